"""What every tensor of a checkpoint is to the model: needed, known to lie beside it, or without a place.

Found before any work, from names and shapes alone: a tensor that is missing, that has another shape than the
config asks for, or that no loader of the model has a place for.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from moe4.arguments import argument
from moe4.checkpoint.encodings import FP8_DTYPES
from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.source import PLAIN_DTYPES
from moe4.config import ModelConfig
from moe4.errors import CheckpointError, MissingFileError, TensorError, UnsupportedModelError
from moe4.model.outline import Outline

Kind = Literal["needed", "extra", "computed", "unknown"]
PATTERNS_SHOWN = 4
INTEGER_DTYPES = ("I64", "I32")
# Buffers that every loader computes from the config, and old versions of transformers saved.
COMPUTED = re.compile(r"(.*\.)?rotary(_pos)?_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
FUSED = re.compile(r".*\.experts\.(?!\d+\.)\w+(\.weight)?")
LINEAR = re.compile(r"(_proj|_proj_with_mqa|\.experts\.\d+\.w[123])\.weight$")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Accounting:
    """The tensors that a network is made of, and what a checkpoint's tensors are to it.

    needed: every weight under its unquantized name, with its shape.
    """

    def __init__(self, network: Outline, config: ModelConfig) -> None:
        """config: the checkpoint's config.json, which says how many prediction layers lie past the last."""
        self.needed = _list_needed(network)
        self._model_type = config.network_type
        self._first_extra = network.num_layers
        self._num_extra = config.text.num_nextn_predict_layers or 0
        self._layers = re.compile(re.escape(network.names.layers) + r"(0|[1-9][0-9]*)\.")
        self._names = network.names
        self._identities = {
            name
            for experts in filter(None, network.experts)
            for number in range(experts.num_identities)
            for name in experts.weight_names(experts.num_experts + number)
        }
        self._integers = network.integers
        self._ignored = [re.compile(pattern) for pattern in network.ignored]
        self._tied_head = {network.names.head} - self.needed.keys()

    def kind(self, name: str) -> Kind:
        """Say what a tensor is by its unquantized name.

        `extra` are layers that predict several tokens (MTP), as many as the config counts or as transformers
        passes over, what a model of several parts has beside its text model, a head that is tied to the
        embeddings, and weights that nothing reads, of experts that give their input back. `computed` are
        rotary frequencies and the like.
        """
        if name in self.needed:
            return "needed"
        if COMPUTED.fullmatch(name):
            return "computed"
        layer = self._layers.match(name)
        is_prediction = layer is not None and 0 <= int(layer[1]) - self._first_extra < self._num_extra
        if (
            is_prediction
            or name in self._tied_head
            or name in self._identities
            or self._names.is_of_another_model(name)
        ):
            return "extra"
        is_ignored = any(pattern.search(name) for pattern in self._ignored)
        return "extra" if is_ignored else "unknown"

    def check(self, stored: Mapping[str, TensorSpec], unlisted: Mapping[str, str]) -> "Balance":
        """Hold the tensors of a checkpoint that is not quantized to what is needed.

        unlisted: tensors that shards hold and the index does not name, with their shards.
        """
        unknown = sorted(name for name in stored if self.kind(name) == "unknown")
        missing = [name for name in self.needed if name not in stored]
        fused = [name for name in unknown if FUSED.fullmatch(name)]
        if fused and missing:
            raise UnsupportedModelError(
                f"the experts are fused, all of a layer in one tensor such as {fused[0]}; moe4 reads a "
                "tensor for each: save the model with transformers' save_pretrained, which takes them apart "
                "by default (save_original_format=True)"
            )
        there = [name for name in self.needed if name in stored]
        misshapen = [name for name in there if stored[name].shape != self.needed[name]]
        unreadable = [name for name in there if stored[name].dtype not in self._readable(name)]
        problems: list[CheckpointError] = [
            *(self._missing(names, unlisted) for names in _alike(missing)),
            *(self._misshapen(names, stored) for names in _alike(misshapen)),
            *(self._unreadable(names, stored) for names in _alike(unreadable)),
        ]
        return Balance(
            unusable={*missing, *misshapen, *unreadable},
            unknown=unknown,
            problems=problems,
            model_type=self._model_type,
        )

    def _missing(self, names: list[str], unlisted: Mapping[str, str]) -> CheckpointError:
        problem = f"the checkpoint has no tensor {names[0]}, which the config requires{_and_others(names)}"
        if names[0] in unlisted:
            problem += f"; {unlisted[names[0]]} holds it, but the index does not name it"
        return MissingFileError(problem)

    def _misshapen(self, names: list[str], stored: Mapping[str, TensorSpec]) -> CheckpointError:
        shape, found = self.needed[names[0]], stored[names[0]].shape
        return TensorError(
            f"{names[0]} must have shape {list(shape)} according to the config, "
            f"found {list(found)}{_and_others(names)}"
        )

    def _unreadable(self, names: list[str], stored: Mapping[str, TensorSpec]) -> CheckpointError:
        return TensorError(
            f"{names[0]} has the dtype {stored[names[0]].dtype}{_and_others(names)}; "
            f"expected {self._describe_readable(names[0])}"
        )

    def _readable(self, name: str) -> tuple[str, ...]:
        return INTEGER_DTYPES if name in self._integers else (*PLAIN_DTYPES, *FP8_DTYPES)

    def _describe_readable(self, name: str) -> str:
        if name in self._integers:
            return " or ".join(INTEGER_DTYPES)
        return f"{', '.join(PLAIN_DTYPES)} or a quantized form"


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What holding a checkpoint to its model found.

    unusable: needed tensors that are missing or have another shape. unknown: stored ones without a place.
    problems: an error for each kind of what is missing or has another shape.
    """

    unusable: Collection[str]
    unknown: list[str]
    problems: list[CheckpointError]
    model_type: str

    def refuse_unknown(self) -> list[CheckpointError]:
        """Return the error that unknown tensors are, if there are any."""
        if not self.unknown:
            return []
        return [
            TensorError(
                f"a {self.model_type} model of this config has no place for {len(self.unknown)} of the "
                f"checkpoint's tensors: {summarize_names(self.unknown)}; "
                f"{argument('allow_extra', True)} leaves them out of "
                "the release"
            )
        ]


def count_patterns(names: Iterable[str]) -> dict[str, int]:
    """Return how many names there are of each pattern; `*` stands for a layer's or expert's number."""
    counts: dict[str, int] = {}
    for group in _alike(names):
        counts[group[0] if len(group) == 1 else NUMBER.sub("*", group[0])] = len(group)
    return counts


def summarize_names(names: Collection[str]) -> str:
    """Return names in one short line, by pattern."""
    counts = count_patterns(names)
    shown = [
        name if count == 1 else f"{name} ({count})" for name, count in list(counts.items())[:PATTERNS_SHOWN]
    ]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} other kinds" if rest else "")


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Return names that differ in numbers alone together, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(NUMBER.sub("*", name), []).append(name)
    return list(groups.values())


def _list_needed(network: Outline) -> dict[str, tuple[int, ...]]:
    vocabulary = (int(network.config.vocab_size), int(network.config.hidden_size))
    needed: dict[str, tuple[int, ...]] = {
        network.embedding_name: vocabulary,
        **network.names.ending,
        network.head_name: vocabulary,
    }
    for layer in range(network.num_layers):
        needed.update(network.layer_tensors(layer))
        experts = network.experts[layer]
        for expert in range(experts.num_experts if experts else 0):
            assert experts is not None
            names = zip(experts.weight_names(expert), experts.parts, strict=True)
            needed.update({name: experts.weight_shape(part) for name, part in names})
    return needed
