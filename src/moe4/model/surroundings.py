"""What a decoder layer gets beside hidden states, as the model's own forward gives it.

Rotary tables, masks, positions, token ids and whatever else a family has: transformers' decoder is run with
recorders in the place of its layers. The same shows what it does before the first layer and after the last.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from moe4.errors import UnsupportedModelError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""A layer's arguments after the hidden states."""
SAMPLE_TOKENS = 2


class _EndedError(Exception):
    """The last layer has been called; what follows is not wanted."""


class _Recorder(nn.Module):
    """Stands for a layer: notes how it is called, and answers with what it was given."""

    def __init__(self, layer: nn.Module, recording: "_Recording", number: int) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not a submodule
        self.__dict__["_recording"], self.__dict__["_number"] = recording, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)  # such as its type, which decides its mask

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self._recording.called(self._number, arguments, named)


class _Recording:
    """One run of the decoder over recorders.

    output: what the last layer answers, or None to end there. answers_pairs: whether layers give something
    beside hidden states. first: the first layer's input; last: what the decoder gave.
    """

    def __init__(self, num_layers: int, output: Tensor | None, *, answers_pairs: bool) -> None:
        self.num_layers, self.output, self.answers_pairs = num_layers, output, answers_pairs
        self.calls: list[Call] = []
        self.first: Tensor | None = None
        self.last: Tensor | None = None

    def called(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = dict(named)
        hidden = arguments[0] if arguments else named.pop("hidden_states")
        if number == 0:
            self.first, self.calls = hidden, []
        if hidden is not self.first or number != len(self.calls):
            raise _NotInTurnError
        self.calls.append((arguments[1:], named))
        answer = hidden
        if number + 1 == self.num_layers:
            if self.output is None:
                raise _EndedError
            answer = self.output
        return (answer, None) if self.answers_pairs else answer


class _Embedded(nn.Module):
    """Stands for the embeddings: answers with some that were made before."""

    def __init__(self, embedding: nn.Module, answer: Tensor) -> None:
        super().__init__()
        self.__dict__["_embedding"], self.__dict__["weight"] = embedding, answer  # a weight tells its device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_embedding"], name)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        answer: Tensor = self.weight
        return answer


class _NotInTurnError(Exception):
    """Hidden states do not go from one layer to the next as they are."""


class Surroundings:
    """A decoder without its layers, on a device. Its tables are computed; `load_ending` gives it weights."""

    def __init__(self, decoder: Any, device: torch.device) -> None:
        self._device = device
        self._width, self._dtype = int(decoder.config.hidden_size), decoder.dtype
        self._layers = list(decoder.layers)
        frame = copy.copy(decoder)
        self._embeddings = embedding = decoder.get_input_embeddings()
        frame.__dict__["_modules"] = {
            name: child
            if child is None or child is embedding or child is decoder.layers
            else _on_device(decoder, child, device)
            for name, child in decoder._modules.items()
        }
        self._frame: Any = frame
        self._embedding = next((name for name, child in decoder._modules.items() if child is embedding), None)
        self._latest: tuple[Tensor | torch.Size, list[Call]] | None = None

    def load_ending(self, state: dict[str, Tensor], fp32_names: Collection[str]) -> None:
        """Give what follows the last layer its weights, by the decoder's own names.

        fp32_names: of parts whose weights are in float32 whatever the others' dtype is.
        """
        self._frame._modules["layers"] = nn.ModuleList()
        self._frame.load_state_dict(state, strict=False, assign=True)
        for name, child in self._frame._modules.items():
            if child is not None:
                answer_as_asked(child, fp32_names, name)

    @cached_property
    def needs_ids(self) -> bool:
        """Whether what layers get depends on the token ids, as found with two texts of the same length."""
        if self._embedding is None:
            return False
        ids = torch.zeros(1, SAMPLE_TOKENS, dtype=torch.int64, device=self._device)
        try:
            calls = self._record(ids.shape, ids), self._record(ids.shape, ids + 1)
        except UnsupportedModelError:  # it runs by embeddings alone
            return False
        first, second = (list(_tensors_in(found)) for found in calls)
        return len(first) != len(second) or not all(map(torch.equal, first, second))

    def calls(self, batch: int, length: int, ids: Tensor | None = None) -> list[Call]:
        """Return what each layer gets beside hidden states [batch, length, ...].

        ids: of the tokens, int64 [batch, length]; only where `needs_ids`.
        """
        key: Tensor | torch.Size = torch.Size((batch, length))
        if self.needs_ids:
            assert ids is not None
            ids = key = ids.to(self._device)
        else:
            ids = None
        if self._latest is None or not _is_same(self._latest[0], key):
            self._latest = key, self._record(torch.Size((batch, length)), ids)
        return self._latest[1]

    def _record(self, shape: torch.Size, ids: Tensor | None) -> list[Call]:
        empty = torch.zeros(1, 1, 1, dtype=self._dtype, device=self._device)
        return self._run(empty.expand(*shape, self._width), None, ids).calls

    def begin(self, embeddings: Tensor) -> Tensor:
        """Return the first layer's input [tokens, ...] for embeddings [tokens, hidden]."""
        first = self._run(embeddings.unsqueeze(0), None).first
        assert first is not None
        return first[0]

    def end(self, states: Tensor) -> Tensor:
        """Return what the head gets, [tokens, hidden], of the last layer's output [tokens, ...]."""
        empty = torch.zeros(1, 1, 1, dtype=self._dtype, device=self._device)
        last = self._run(empty.expand(1, len(states), self._width), states.unsqueeze(0)).last
        assert last is not None
        return last[0]

    def _run(self, embeddings: Tensor, output: Tensor | None, ids: Tensor | None = None) -> "_Recording":
        """Run the decoder over recorders, of embeddings [batch, length, hidden], with their ids if given."""
        text = {"inputs_embeds": embeddings}
        if ids is not None:
            assert self._embedding is not None
            text = {"input_ids": ids}
            self._frame._modules[self._embedding] = _Embedded(self._embeddings, embeddings)
        for pairs in (False, True):
            recording = _Recording(len(self._layers), output, answers_pairs=pairs)
            recorders = (_Recorder(layer, recording, number) for number, layer in enumerate(self._layers))
            self._frame._modules["layers"] = nn.ModuleList(recorders)
            try:
                with torch.set_grad_enabled(output is not None and output.requires_grad):
                    found = self._frame(**text, use_cache=False)
                recording.last = found.last_hidden_state
            except _EndedError:
                pass
            except (_NotInTurnError, TypeError, ValueError):
                if pairs:
                    raise UnsupportedModelError(
                        "this family passes more than hidden states from layer to layer, so moe4 cannot "
                        "run one layer at a time"
                    ) from None
                continue
            return recording
        raise AssertionError


def _is_same(one: Tensor | torch.Size, other: Tensor | torch.Size) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and objects, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors_in(part)


def answer_as_asked(module: nn.Module, fp32_names: Collection[str], name: str = "") -> None:
    """Have the parts of a module whose weights are in float32 answer in the dtype they are asked in.

    So the weights multiply in float32, and what follows gets the dtype of its own. name: the module's own.
    """

    def cast(_: nn.Module, asked: tuple[Any, ...], answer: Any) -> Any:
        is_one = asked and isinstance(asked[0], Tensor) and isinstance(answer, Tensor)
        return answer.to(asked[0].dtype) if is_one and asked[0].is_floating_point() else answer

    for path, part in module.named_modules():
        if (path or name).rpartition(".")[2] in fp32_names:
            part.register_forward_hook(cast)


def compute_buffers(decoder: Any, module: nn.Module, device: torch.device) -> None:
    """Give a module's own buffers on the meta device the values that transformers computes, on `device`."""
    fresh = {name: tensor for name, tensor in module.named_buffers(recurse=False) if tensor.is_meta}
    if not fresh:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # what transformers leaves as it is
    for name, tensor in fresh.items():
        module._buffers[name] = torch.empty_like(tensor, device="cpu")
    with torch.no_grad():
        decoder._init_weights(module)
    for name in fresh:
        module._buffers[name] = module._buffers[name].to(device)  # type: ignore[union-attr]


def _on_device(decoder: Any, module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of one of the decoder's modules with its tables computed and its weights empty."""
    found = copy.deepcopy(module)
    for part in found.modules():
        compute_buffers(decoder, part, device)
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(torch.empty_like(tensor, device=device), False)
    return found


def tail(model: Any, decoder: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what a model does with its head's logits, [tokens, any]; None if it leaves them as they are."""
    head, answer = model.get_output_embeddings(), _Answer()
    owner = next(module for module in model.modules() if any(child is head for child in module.children()))
    frame = copy.copy(owner)
    frame.__dict__["_modules"] = {}
    for name, child in owner._modules.items():
        holds_decoder = child is not None and any(part is decoder for part in child.modules())
        frame._modules[name] = nn.Identity() if child is head else answer if holds_decoder else child

    def finish(logits: Tensor) -> Tensor:
        answer.logits = logits.unsqueeze(0)
        found: Tensor = frame(input_ids=torch.zeros(1, len(logits), dtype=torch.int64)).logits
        return found[0]

    sample = torch.linspace(-40, 40, 64, dtype=torch.float32).reshape(2, 32)
    return None if torch.equal(finish(sample), sample) else finish


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]
    """What a decoder gives; of everything but hidden states, nothing."""

    def __getattr__(self, _: str) -> None:
        return None


class _Answer(nn.Module):
    """Stands for a decoder: gives what it is to give."""

    logits: Tensor

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(last_hidden_state=self.logits)
