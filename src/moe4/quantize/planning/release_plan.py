"""Decide, from headers alone, what the release will hold; refuse now what would fail hours later."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from moe4.arguments import argument
from moe4.checkpoint.header import FLOAT_DTYPES, TensorSpec
from moe4.checkpoint.source import Checkpoint
from moe4.errors import CheckpointError, Moe4Error, RecipeError, TensorError
from moe4.model.accounting import Accounting, Kind, summarize_names
from moe4.model.names import Part
from moe4.model.outline import ExpertShape, Outline
from moe4.quantize.planning.ignore_list import ignore_list
from moe4.quantize.planning.targets import LINEAR_STAGES, targeted
from moe4.quantize.planning.tied_head import check_tied_head
from moe4.recipe import GROUP_SIZES, Recipe
from moe4.strict_json import JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] that becomes packed codes and scales; `name` ends in `.weight`."""

    name: str
    shape: tuple[int, int]

    def specs(self, group_size: int) -> dict[str, TensorSpec]:
        """Return what is stored: `weight_packed`, `weight_scale`, `weight_shape`."""
        rows, columns = self.shape
        stored = {
            "weight_packed": ("I32", (rows, columns // 8)),
            "weight_scale": ("BF16", (rows, columns // group_size)),
            "weight_shape": ("I64", (2,)),
        }
        base = self.name.removesuffix("weight")
        return {
            key: TensorSpec(name=base + key, dtype=dtype, shape=shape)
            for key, (dtype, shape) in stored.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard of the release: a decoder layer, or, with `layer` None, everything else."""

    file_name: str
    layer: int | None
    experts: ExpertShape | None = None
    linear_stages: list[list[QuantizedWeight]] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    """Tensors whose bytes stay as they are; those stored quantized become BF16."""
    specs: list[TensorSpec] = field(default_factory=list)
    """The layout, in file order."""

    @property
    def num_bytes(self) -> int:
        """Size of the tensors, without the header."""
        return sum(spec.num_bytes for spec in self.specs)

    @property
    def source_names(self) -> Iterator[str]:
        """The tensors of the source that it is made of."""
        yield from (weight.name for stage in self.linear_stages for weight in stage)
        for expert in range(self.experts.num_experts if self.experts else 0):
            assert self.experts is not None
            yield from self.experts.weight_names(expert)
        yield from self.copied

    @property
    def layer_number(self) -> int:
        """The decoder layer; only for shards that hold one."""
        assert self.layer is not None
        return self.layer


def expert_weight(experts: ExpertShape, expert: int, part: Part) -> QuantizedWeight:
    """Return one expert's projection as a weight to quantize."""
    return QuantizedWeight(name=experts.weight_name(expert, part), shape=experts.weight_shape(part))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasePlan:
    """The whole release.

    num_tensors: of the source, by what they are to the model.
    left_out: tensors for which the model has no place. unlisted: tensors that shards hold and the source's
    index does not name. dropped: scales of quantized activations and caches. None go into the release.
    """

    recipe: Recipe
    """Resolved: its group size and method are those of the release."""
    shards: list[ShardPlan]
    ignore: list[str]
    num_tensors: dict[Kind, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    coarse: list[str] = field(default_factory=list)
    """Weights that are quantized again from codes of at most 8 bits."""

    @property
    def num_bytes(self) -> int:
        """Size of all tensors of the release."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def warnings(self) -> list[str]:
        """What users of the release should know of the source's other tensors."""
        found = []
        if self.left_out:
            found.append(
                "the release leaves out tensors for which the model has no place: "
                + summarize_names(self.left_out)
            )
        if self.coarse:
            found.append(
                "weights that are INT4, INT8 or FP4 codes in the source are quantized again, which adds to "
                "what they have lost; errors are given against the source's own: "
                + summarize_names(self.coarse)
            )
        if self.dropped:
            found.append(
                "the release leaves out the scales of quantized activations, as its own are BF16: "
                + summarize_names(self.dropped)
            )
        if self.unlisted:
            found.append(
                "tensors in the source's shards that its index does not name are ignored: "
                + summarize_names(self.unlisted)
            )
        return found


def make_plan(
    checkpoint: Checkpoint,
    network: Outline,
    recipe: Recipe,
    problems: list[str] | None = None,
    *,
    allow_extra: bool = False,
) -> ReleasePlan:
    """Plan a resolved recipe's release. Raises MissingFileError, TensorError or RecipeError with the tensor.

    With a list of `problems` those errors are put there instead, and what they name is left out.
    allow_extra: leave out tensors for which the model has no place, instead of refusing them.
    """
    num_shards = network.num_layers + 1
    accounting = Accounting(network, checkpoint.config)
    stored = checkpoint.specs
    balance = accounting.check(stored, checkpoint.unlisted)
    _raise_or_note(problems, [*balance.problems, *([] if allow_extra else balance.refuse_unknown())])
    tied = check_tied_head(checkpoint, network)
    _raise_or_note(problems, [] if tied is None else [tied])
    kinds = {name: accounting.kind(name) for name in sorted(stored)}
    kept = [name for name, kind in kinds.items() if kind in ("needed", "extra")]
    by_layer, rest = _sort_names(kept, network)
    shards = []
    for layer, names in enumerate(by_layer):
        file_name = f"model-{layer + 1:05d}-of-{num_shards:05d}.safetensors"
        usable = [name for name in names if name not in balance.unusable]
        shards.append(_plan_layer(checkpoint, network, recipe, layer, usable, file_name, problems))
    specs = [_copied_spec(checkpoint, name) for name in rest]
    file_name = f"model-{num_shards:05d}-of-{num_shards:05d}.safetensors"
    shards.append(ShardPlan(file_name=file_name, layer=None, copied=rest, specs=specs))
    return ReleasePlan(
        recipe=recipe,
        shards=shards,
        ignore=ignore_list(
            network, recipe.targets, rest, {plan.layer_number: plan.copied for plan in shards[:-1]}
        ),
        num_tensors=dict(Counter(kinds.values())),
        left_out=balance.unknown if allow_extra else [],
        unlisted=sorted(checkpoint.unlisted),
        dropped=sorted(checkpoint.dropped),
        coarse=[name for name in targeted(recipe.targets, network) if _is_coarse(checkpoint, recipe, name)],
    )


def quantization_config(plan: ReleasePlan) -> JsonObject:
    """Return the `quantization_config` that compressed-tensors and vLLM read."""
    recipe = plan.recipe
    ordered = recipe.method == "gptq" and recipe.gptq.activation_order
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": recipe.group_size,
        "dynamic": False,
        "actorder": "weight" if ordered else None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
        "ignore": plan.ignore,
    }


def _sort_names(names: list[str], network: Outline) -> tuple[list[list[str]], list[str]]:
    """Return tensors' names by decoder layer, and those outside the layers that are run."""
    by_layer: list[list[str]] = [[] for _ in range(network.num_layers)]
    rest = []
    for name in names:
        layer = network.layer_of(name)
        if layer is not None and layer < network.num_layers:
            by_layer[layer].append(name)
        else:
            rest.append(name)
    return by_layer, rest


def _plan_layer(
    checkpoint: Checkpoint,
    network: Outline,
    recipe: Recipe,
    layer: int,
    names: list[str],
    file_name: str,
    problems: list[str] | None,
) -> ShardPlan:
    experts = network.experts[layer]
    plan = ShardPlan(file_name=file_name, layer=layer, experts=experts)
    there = set(names)
    for target, modules in LINEAR_STAGES:
        stage = []
        for module in modules:
            name = f"{network.layer_prefix(layer)}{module}.weight"
            if target in recipe.targets and name in there:
                rows, columns = checkpoint.tensors[name].spec.shape
                stage.append(QuantizedWeight(name=name, shape=(rows, columns)))
        if stage:
            plan.linear_stages.append(stage)
    linears = [weight for stage in plan.linear_stages for weight in stage]
    numbers = range(experts.num_experts if experts else 0)
    routed = [expert_weight(experts, expert, part) for expert in numbers if experts for part in experts.parts]
    quantized = [*routed, *linears]
    quantized = [
        weight
        for weight in quantized
        if weight.name in there and _is_quantizable(checkpoint, weight, recipe.group_size, problems)
    ]
    quantized_names = {weight.name for weight in quantized}
    plan.copied.extend(name for name in names if name not in quantized_names)
    plan.specs.extend(_layout(checkpoint, quantized, plan.copied, recipe.group_size))
    return plan


def _layout(
    checkpoint: Checkpoint, quantized: list[QuantizedWeight], copied: Iterable[str], group_size: int
) -> Iterator[TensorSpec]:
    """Yield a layer's tensors in file order: all packed codes, then the rest by falling item size.

    An expert's three packed matrices hold 3/2 hidden x width bytes, a multiple of 4096 whenever both are
    multiples of 128 or of 64 and 256 and so on; then every expert's run starts on a page, since the data
    does.
    """
    stored = [weight.specs(group_size) for weight in quantized]
    yield from (specs["weight_packed"] for specs in stored)
    yield from (specs["weight_shape"] for specs in stored)
    copies = [_copied_spec(checkpoint, name) for name in copied]
    yield from (spec for spec in copies if spec.dtype in ("I64", "F64"))
    yield from (spec for spec in copies if spec.dtype in ("F32", "I32"))
    yield from (specs["weight_scale"] for specs in stored)
    yield from (spec for spec in copies if spec.dtype not in ("I64", "F64", "F32", "I32"))


def _is_coarse(checkpoint: Checkpoint, recipe: Recipe, name: str) -> bool:
    encoding = checkpoint.encoding(name)
    return encoding is not None and encoding.is_coarse and recipe.method != "copy"


def _copied_spec(checkpoint: Checkpoint, name: str) -> TensorSpec:
    spec = checkpoint.tensors[name].spec
    return TensorSpec(
        name=name, dtype="BF16" if checkpoint.is_encoded(name) else spec.dtype, shape=spec.shape
    )


def _is_quantizable(
    checkpoint: Checkpoint, weight: QuantizedWeight, group_size: int, problems: list[str] | None
) -> bool:
    """Say whether a weight can become codes; with no list for the reason, raise it."""
    dtype = checkpoint.tensors[weight.name].spec.dtype
    error: CheckpointError | RecipeError | None = None
    if dtype not in FLOAT_DTYPES and not checkpoint.is_encoded(weight.name):
        error = TensorError(
            f"{weight.name} has the dtype {dtype}; expected BF16, F16, F32 or a quantized form"
        )
    elif weight.shape[1] % group_size:
        fitting = [str(size) for size in GROUP_SIZES if weight.shape[1] % size == 0]
        hint = (
            f"use {argument('group_size', fitting[-1])}" if fitting else "no supported group size divides it"
        )
        error = RecipeError(
            f"{weight.name} has {weight.shape[1]} input columns, "
            f"which groups of {group_size} do not divide; {hint}"
        )
    _raise_or_note(problems, [] if error is None else [error])
    return error is None


def _raise_or_note(problems: list[str] | None, errors: Sequence[Moe4Error]) -> None:
    """Raise the first error, or put all in the list if there is one."""
    if problems is None and errors:
        raise errors[0]
    if problems is not None:
        problems.extend(map(str, errors))
