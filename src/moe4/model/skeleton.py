"""transformers' whole model on the meta device, where it takes no memory, and its names in checkpoints."""

import copy
import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from moe4.config import ModelConfig
from moe4.errors import UnsupportedModelError
from moe4.model.experts import EXPERTS_IMPLEMENTATION

# model_type in the checkpoint -> model_type in transformers, where they differ.
TWINS = {"kimi_k2": "deepseek_v3"}
NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_DROPPED = ("model_type", "quantization_config", "auto_map", "architectures", "transformers_version")


def build_config(config: ModelConfig, document: dict[str, Any] | None = None) -> Any:
    """Return transformers' config for a checkpoint's config.json; never runs code of the checkpoint's.

    document: what to take in its place, of the same model_type. Raises UnsupportedModelError.
    """
    from transformers import AutoConfig, PreTrainedConfig

    model_type = config.network_type
    # transformers writes into nested tables of what it is given.
    if document is None:
        document = config.text_document if config.is_text_alone else config.document
    values = {key: copy.deepcopy(value) for key, value in document.items() if key not in _DROPPED}
    try:
        values = PreTrainedConfig._decode_special_floats(values)  # such as infinity
        return AutoConfig.for_model(TWINS.get(model_type, model_type), **values)
    except Exception as error:
        reason = str(error).replace("\n", " ")
        raise UnsupportedModelError(
            f"{config.where}: transformers cannot build this {model_type} config: {reason}"
        ) from error


def build_skeleton(config: Any, architectures: list[str] | None, dtype: torch.dtype) -> Any:
    """Return transformers' whole model for its config, on the meta device. Raises UnsupportedModelError."""
    try:
        kind = find_class(config, architectures)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind._from_config(
                config,
                attn_implementation="sdpa" if kind._supports_sdpa else "eager",
                experts_implementation=EXPERTS_IMPLEMENTATION,
                dtype=dtype,
            )
    except Exception as error:  # a config may ask for anything
        reason = str(error).replace("\n", " ")
        raise UnsupportedModelError(f"transformers cannot build this model: {reason}") from error
    return model.eval().requires_grad_(False)


def find_class(config: Any, architectures: list[str] | None) -> Any:
    """Return transformers' class of the model with its head: the one config.json names, or the usual one."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for name in architectures or []:
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and getattr(kind, "config_class", None) is type(config):
            return kind
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise UnsupportedModelError(
        f"transformers {transformers.__version__} has no {config.model_type} with a head for text"
    )


def find_decoder(model: Any) -> Any:
    """Return the part of a whole model that calls its decoder layers, one after another.

    transformers' own answer may have a head, as in Llama-4; then it is the part of that with the embeddings.
    Returns transformers' answer where nothing has a list of layers.
    """
    answer, embeddings = model.get_decoder(), model.get_input_embeddings()
    for part in answer.modules():
        has_layers = isinstance(getattr(part, "layers", None), nn.ModuleList)
        if has_layers and hasattr(part, "get_input_embeddings") and part.get_input_embeddings() is embeddings:
            return part
    return answer


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAs:
    """The tensors that a checkpoint holds for one of a module's: several are parts of it along `dim`.

    dtype: of the module's.
    """

    pieces: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    dim: int = 0

    def join(self, load: Callable[[str], Tensor]) -> Tensor:
        """Return the module's tensor from the checkpoint's."""
        loaded = [load(name) for name in self.pieces]
        return loaded[0] if len(loaded) == 1 else torch.cat(loaded, dim=self.dim)


class StoredNames:
    """What a checkpoint calls a model's tensors: the reverse of what transformers does when it loads one.

    Several names may be loaded into one tensor: what transformers saves is not always called as it was
    published. Then it is the name that the checkpoint has.
    """

    def __init__(self, model: Any, given: Collection[str] = ()) -> None:
        """given: the names of a checkpoint's tensors; without them they are as transformers saves them."""
        self._model, self._given = model, frozenset(given)
        self._conversions = self._find_conversions()
        self._module_tensors = model.state_dict()

    def of(self, name: str, tensor: Tensor) -> StoredAs:
        """Return what is stored for a module's tensor, on the meta device.

        Raises UnsupportedModelError where that is more than parts laid side by side.
        """
        pieces = self._revert(name, tensor)
        shapes = {stored: tuple(piece.shape) for stored, piece in pieces.items()}
        if len(shapes) == 1 and next(iter(shapes.values())) == tuple(tensor.shape):
            return StoredAs(pieces=shapes, dtype=tensor.dtype)
        for dim, size in enumerate(tensor.shape):
            rest = {(*shape[:dim], *shape[dim + 1 :]) for shape in shapes.values()}
            same = rest == {(*tensor.shape[:dim], *tensor.shape[dim + 1 :])}
            if same and sum(shape[dim] for shape in shapes.values()) == size:
                return StoredAs(pieces=shapes, dtype=tensor.dtype, dim=dim)
        raise UnsupportedModelError(f"{name} is stored as {', '.join(shapes)}, which moe4 cannot join")

    def of_experts(self, name: str, tensor: Tensor) -> dict[str, tuple[int, ...]]:
        """Return what is stored for all experts of a layer, given the tensor of one: names and shapes."""
        return {stored: tuple(piece.shape) for stored, piece in self._revert(name, tensor).items()}

    def _revert(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        self._model._weight_conversions = self._conversions or None
        found: dict[str, Tensor] = revert_weight_conversion(self._model, {name: tensor})
        return {self._as_given(stored): piece for stored, piece in found.items()}

    def _find_conversions(self) -> list[Any]:
        from transformers.conversion_mapping import PrefixChange, get_model_conversion_mapping

        found = get_model_conversion_mapping(self._model, add_legacy=False)
        return [conversion for conversion in found if not isinstance(conversion, PrefixChange)]

    def _as_given(self, name: str) -> str:
        if not self._given or name in self._given:
            return name
        return self._given_by_place.get(self._place(name), name)

    @cached_property
    def _given_by_place(self) -> dict[tuple[object, ...], str]:
        return {self._place(name): name for name in self._given}

    @cached_property
    def _loading(self) -> tuple[list[Any], list[Any]]:
        from transformers.core_model_loading import WeightConverter

        both: tuple[list[Any], list[Any]] = ([], [])
        for conversion in self._find_conversions():
            both[isinstance(conversion, WeightConverter)].append(conversion)
        return both

    def _place(self, name: str) -> tuple[object, ...]:
        """Return what tells where transformers loads a stored tensor: a module's tensor, a part, numbers."""
        from transformers.core_model_loading import rename_source_key

        prefix, tensors = self._model.base_model_prefix, self._module_tensors
        renamed, part = rename_source_key(name, *self._loading, prefix, tensors)
        if renamed not in tensors and name in tensors:
            renamed, part = name, None
        return renamed, part, tuple(NUMBER.findall(name))
