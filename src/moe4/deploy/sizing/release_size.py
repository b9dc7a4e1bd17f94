"""What sizing must know of a release: bytes by how they are split. From headers or a config; torch-free."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe4.arguments import argument
from moe4.checkpoint.header import ITEM_BITS, TensorSpec
from moe4.checkpoint.index import CONFIG_NAME, CheckpointIndex, has_weights, read_config
from moe4.config import FAMILIES, TEXT_MODELS, Family, ModelConfig, parse_config, parse_tokenizer_config
from moe4.errors import CheckpointError, DeployError, UnsupportedModelError
from moe4.files.regular import read_json_object
from moe4.hub.locate import asked_repository
from moe4.hub.repository import patiently
from moe4.model.inventory import Tensors, list_tensors
from moe4.recipe import GROUP_SIZES
from moe4.serve.model import writes_kimi_calls
from moe4.vllm_facts.expert_splits import choose_group_size

# Every rank holds these whole; vLLM splits what else is not a routed expert over the tensor-parallel ranks.
REPLICATED = (
    "norm",
    "mlp.gate.",
    "q_a_proj",
    "kv_a_proj_with_mqa",
    "shared_expert_gate",
    "e_score_correction",
)
# Of these vLLM splits the input, so the groups of their codes must split too.
ROW_PARALLEL = ("down_proj", "o_proj")
LAYERS = "model.layers."  # of most models
EXPERT = re.compile(r"(.*?layers\.)[0-9]+\..*experts\.")


@dataclass(slots=True)
class LayerBytes:
    """A decoder layer's bytes: routed experts, what tensor parallelism splits, what each rank holds whole."""

    experts: int = 0
    split: int = 0
    whole: int = 0


@dataclass(kw_only=True, slots=True)
class ReleaseSize:
    """A release, or the one that a config would become.

    origin: `headers` if its files were looked at, `config` if it is computed.
    bytes_by_dtype: safetensors' dtype names to bytes.
    row_groups: of quantized matrices whose input vLLM splits, the number of groups; each must split evenly.
    layers_prefix: of the names of the text model's layers, before a layer's number.
    """

    name: str
    where: str
    origin: str
    config: ModelConfig
    group_size: int | None
    layers: list[LayerBytes]
    layers_prefix: str = LAYERS
    embedding_bytes: int = 0
    head_bytes: int = 0
    other_bytes: int = 0
    num_elements: int = 0
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)
    row_groups: dict[str, int] = field(default_factory=dict)
    uses_kimi_calls: bool = False
    needs_own_code: bool = False

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        layers = sum(layer.experts + layer.split + layer.whole for layer in self.layers)
        return layers + self.embedding_bytes + self.head_bytes + self.other_bytes

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer; 0 for a dense model."""
        return self.config.text.num_routed_experts

    @property
    def expert_width(self) -> int:
        """The routed experts' inner width."""
        return self.config.text.expert_width

    @property
    def experts_per_token(self) -> int:
        """Routed experts that a token passes in a layer."""
        return self.config.text.num_experts_per_tok or 1

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.config.text.num_heads

    @property
    def has_latent_cache(self) -> bool:
        """Whether attention is MLA, whose cache every tensor-parallel rank holds whole."""
        return bool(self.config.text.kv_lora_rank)

    @property
    def num_kv_heads(self) -> int:
        """Heads whose keys and values are cached; 1 with MLA."""
        return 1 if self.has_latent_cache else self.config.text.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """A token's BF16 cache bytes in all layers."""
        return self.config.text.kv_bytes_per_token

    @property
    def max_position_embeddings(self) -> int:
        """Tokens the model was made for."""
        return self.config.text.max_position_embeddings or 4096

    @property
    def expert_bytes_read(self) -> int:
        """Expert bytes a decoded token reads."""
        experts = sum(layer.experts for layer in self.layers)
        return experts * self.experts_per_token // max(1, self.num_experts)

    @property
    def dense_bytes_read(self) -> int:
        """Bytes a decoded token reads beside the routed experts'; of the embedding it reads one row."""
        head = self.head_bytes or self.embedding_bytes
        return sum(layer.split + layer.whole for layer in self.layers) + head + self.other_bytes

    def _add(self, spec: TensorSpec, copies: int) -> None:
        size, name = spec.num_bytes * copies, spec.name.removeprefix(self.config.text_prefix)
        self.num_elements += math.prod(spec.shape) * copies
        self.bytes_by_dtype[spec.dtype] = self.bytes_by_dtype.get(spec.dtype, 0) + size
        parts = name.split(".")
        number = name.removeprefix(self.layers_prefix).split(".")[0]
        if name.startswith(self.layers_prefix) and number.isdigit() and int(number) < len(self.layers):
            layer = self.layers[int(number)]
            if ".experts." in name:
                layer.experts += size
            elif any(part in name for part in REPLICATED):
                layer.whole += size
            else:
                layer.split += size
        elif len(spec.shape) == 2 and spec.shape[0] == self.config.text.vocab_size:
            if "head" in parts[-2]:
                self.head_bytes += size
            else:
                self.embedding_bytes += size
        else:
            self.other_bytes += size
        is_grouped = self.group_size is not None and len(spec.shape) == 2  # other formats split as they like
        if is_grouped and name.endswith("_proj.weight_scale") and parts[-2] in ROW_PARALLEL:
            kind = "the routed experts' inner width" if ".experts." in name else f"the input of {parts[-2]}"
            self.row_groups[kind] = math.gcd(self.row_groups.get(kind, 0), spec.shape[-1])


def read_release(where: str, group_size: int | None = None) -> ReleaseSize:
    """Describe a folder, a config.json or a repository on the hub (`org/name`) without reading weights.

    A config alone that is not W4A16 is taken for the W4A16 release it would become, in groups of `group_size`
    or else of what `moe4 quantize` would choose.
    Raises CheckpointError, UnsupportedModelError, HubError or DeployError.
    """
    path = Path(where)
    if path.is_file():
        config = parse_config(read_json_object(path), path)
        return _from_config(path.resolve().parent.name, where, config, group_size, path.parent)
    if path.is_dir():
        return _from_folder(path, where, group_size)
    asked = asked_repository(where)
    if asked is None:
        raise CheckpointError(
            f"{where} is not a folder, a config.json or a repository on the hub; "
            "give one, such as moonshotai/Kimi-K2-Instruct"
        )
    return _from_hub(where, *asked)


def _from_folder(folder: Path, where: str, group_size: int | None) -> ReleaseSize:
    if not has_weights(folder):
        return _from_config(folder.resolve().name, where, read_config(folder), group_size, folder)
    index = CheckpointIndex(folder)
    specs = [tensor.spec for tensor in index.tensors.values()]
    return _from_specs(folder.resolve().name, where, index.config, specs, folder)


def _from_hub(where: str, repository: str, revision: str) -> ReleaseSize:
    """Read config.json and, by HTTP range requests, the safetensors headers of a repository."""
    import huggingface_hub
    from huggingface_hub.errors import NotASafetensorsRepoError

    def read() -> tuple[str, Any]:
        config = huggingface_hub.hf_hub_download(repository, CONFIG_NAME, revision=revision)
        return config, huggingface_hub.get_safetensors_metadata(repository, revision=revision)

    try:
        file, metadata = patiently(read, repository, revision, num_tries=1)  # the library tries again itself
    except NotASafetensorsRepoError:
        raise CheckpointError(f"the repository {repository} has no safetensors files") from None
    config = parse_config(read_json_object(Path(file)), f"{repository}/{CONFIG_NAME}")
    specs = [
        TensorSpec(name=name, dtype=info.dtype, shape=tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    ]
    return _from_specs(repository.split("/")[1], where, config, specs, None)


def _from_specs(
    name: str, where: str, config: ModelConfig, specs: Iterable[TensorSpec], folder: Path | None
) -> ReleaseSize:
    release = _empty(name, where, "headers", config, _group_size(config), folder)
    specs = list(specs)
    names = (spec.name.removeprefix(config.text_prefix) for spec in specs)
    release.layers_prefix = next((found[1] for found in map(EXPERT.match, names) if found), LAYERS)
    for spec in specs:
        if spec.dtype not in ITEM_BITS:
            raise CheckpointError(
                f"{where}: {spec.name} has the dtype {spec.dtype}, which moe4 does not know"
            )
        release._add(spec, 1)
    return release


def _from_config(
    name: str, where: str, config: ModelConfig, group_size: int | None, folder: Path
) -> ReleaseSize:
    text = config.text
    if not text.num_routed_experts:
        raise UnsupportedModelError(
            f"{where} describes no routed experts; moe4 sizes Mixture-of-Experts models"
        )
    if not isinstance(text, Family):
        known = ", ".join(sorted({*FAMILIES, *TEXT_MODELS}))
        raise UnsupportedModelError(
            f"model_type {text.model_type!r:.60} cannot be sized from a config alone; known are {known}. "
            "Give a folder or repository with its safetensors files"
        )
    width, hidden = text.expert_width, text.hidden_size
    group_size = _group_size(config) or group_size
    if group_size is None:
        group_size = choose_group_size((width, hidden), width)
    if group_size not in GROUP_SIZES or width % group_size or hidden % group_size:
        raise DeployError(
            f"groups of {group_size} codes do not divide the experts of {where} ({width} by {hidden}); "
            f"use {argument('group_size')} 32, 64 or 128"
        )
    release = _empty(name, where, "config", config, group_size, folder)
    for tensors in list_tensors(text):
        for spec in _stored(tensors, group_size):
            release._add(spec, tensors.copies)
    return release


def _group_size(config: ModelConfig) -> int | None:
    return config.quantization.w4a16_group_size if config.quantization else None


def _stored(tensors: Tensors, group_size: int) -> Iterable[TensorSpec]:
    """Yield what the default recipe stores: routed experts packed, the rest in BF16."""
    name, shape = tensors.name, tensors.shape
    if not tensors.is_routed_expert:
        yield TensorSpec(name=name, dtype="F32" if tensors.float32 else "BF16", shape=shape)
        return
    rows, columns = shape
    yield TensorSpec(name=f"{name}_packed", dtype="I32", shape=(rows, columns // 8))
    yield TensorSpec(name=f"{name}_scale", dtype="BF16", shape=(rows, columns // group_size))
    yield TensorSpec(name=f"{name}_shape", dtype="I64", shape=(2,))


def _empty(
    name: str, where: str, origin: str, config: ModelConfig, group_size: int | None, folder: Path | None
) -> ReleaseSize:
    num_layers = config.text.num_decoder_layers
    if not num_layers:
        raise UnsupportedModelError(
            f"the config of {where} has no num_hidden_layers; is it a language model?"
        )
    tokenizer = folder / "tokenizer_config.json" if folder else None
    found = read_json_object(tokenizer) if tokenizer and tokenizer.is_file() else {}
    tokenizer_config = parse_tokenizer_config(found, tokenizer)
    needs_own_code = config.model_type == "kimi_k2"  # as published; known where its files are seen
    if folder and found:
        needs_own_code = tokenizer_config.needs_own_code(folder)
    return ReleaseSize(
        name=name,
        where=where,
        origin=origin,
        config=config,
        group_size=group_size,
        layers=[LayerBytes() for _ in range(num_layers)],
        needs_own_code=needs_own_code,
        uses_kimi_calls=writes_kimi_calls(folder, config, tokenizer_config),
    )
