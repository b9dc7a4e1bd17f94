"""From a config to decoder layers on the meta device, and which tensors are routed experts.

The network's code is transformers'. Layers are built one at a time, without their experts' weights: experts
are 3-D parameters in memory that stay on the meta device, and one tensor per expert and projection in the
checkpoint.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moe4.config import ModelConfig
from moe4.errors import Moe4Error, TensorError, UnsupportedModelError
from moe4.model.experts import ExpertMath, takes_copies
from moe4.model.layouts import FIRST_PROJECTIONS, find_first_projection, find_layout
from moe4.model.names import PARTS, SIDE_BY_SIDE, Names, Part
from moe4.model.outline import ExpertShape, Outline
from moe4.model.skeleton import StoredAs, StoredNames, build_config, build_skeleton, find_decoder
from moe4.model.surroundings import Call, Surroundings, answer_as_asked, compute_buffers, tail

FUSED_BIASES = ("gate_up_proj_bias", "up_proj_bias", "down_proj_bias")
BEGIN_TOKENS = 256  # through what a decoder does before its first layer, at once


class Network(Outline):
    """A model's skeleton on the meta device, by transformers' own code. No weights are held.

    Raises UnsupportedModelError for a model that cannot be streamed.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype, stored: Collection[str] = ()) -> None:
        """Build the skeleton of the model that `config` describes, to be computed in `compute_dtype`.

        stored: the unquantized names of the checkpoint's tensors, which may be other than transformers'.
        """
        self.compute_dtype, self.item_bytes = compute_dtype, compute_dtype.itemsize
        self._source = config, () if config.is_checked else stored
        config.require_complete()
        whole = build_config(config)
        self.adds_experts = config.is_checked
        named = None if config.is_checked else config.architectures
        self._model = build_skeleton(whole, named, compute_dtype)
        try:
            self._describe(config)
        except Moe4Error:
            raise
        except Exception as error:  # the model's code is transformers', and the config may ask for anything
            if config.is_checked:
                raise
            reason = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"{config.where}: moe4 cannot run this {config.network_type} model layer by layer: {reason}"
            ) from error

    def _describe(self, config: ModelConfig) -> None:
        """Find the parts of the model, their names in checkpoints, and how the layers are called."""
        self._decoder: Any = find_decoder(self._model)
        self.config = self._decoder.config
        self.ties_head = bool(self._model.config.tie_word_embeddings)
        if not isinstance(getattr(self._decoder, "layers", None), nn.ModuleList):
            raise UnsupportedModelError(
                f"{config.where}: transformers' {config.network_type} has no single list of decoder layers"
            )
        if "shared" in (getattr(self.config, "indexer_types", None) or ()):
            raise UnsupportedModelError(
                f"{config.where}: indexer_types has shared: such a layer attends to what an earlier layer "
                'chose, which moe4 does not hand on; expected "full" for every layer'
            )
        self.num_layers = len(self._decoder.layers)
        self._fp32_names: tuple[str, ...] = tuple(self._model._keep_in_fp32_modules_strict or ())
        self._stored = StoredNames(self._model, self._source[1])
        prefixes = {id(module): name for name, module in self._model.named_modules()}
        self._path = f"{prefixes[id(self._decoder)]}."
        self._text_prefix = config.text_prefix
        self.experts = [self._find_experts(layer) for layer in range(self.num_layers)]
        if not any(self.experts):
            raise UnsupportedModelError(f"{config.where}: no layer of this model has routed experts")
        self._layers = [dict(self._list_layer(layer)) for layer in range(self.num_layers)]
        self._ending = self._find_ending()
        self.integers = frozenset(
            name
            for stored in self._layers
            for tensor in stored.values()
            if not tensor.dtype.is_floating_point
            for name in tensor.pieces
        )
        self.names = self._find_names()
        ignored = self._model._keys_to_ignore_on_load_unexpected or ()
        self.ignored = () if config.is_checked else tuple(ignored)
        self._surroundings: dict[torch.device, Surroundings] = {}
        self._begins = not config.is_checked
        self._tail = None if config.is_checked else tail(self._model, self._decoder)
        self.state_shape = self._find_state_shape()

    def in_dtype(self, compute_dtype: torch.dtype) -> "Network":
        """Return the same network, to be computed in another dtype."""
        config, stored = self._source
        return Network(config, compute_dtype, stored)

    @property
    def state_width(self) -> int:
        """Values of a token between layers."""
        return self.state_shape.numel()

    @property
    def needs_ids(self) -> bool:
        """Whether layers get something that depends on the token ids."""
        return self._around(torch.device("cpu")).needs_ids

    def calls(self, batch: int, length: int, device: torch.device, ids: Tensor | None = None) -> list[Call]:
        """Return what each layer gets beside hidden states [batch, length, ...].

        ids: of the tokens, int64 [batch, length]; only where `needs_ids`.
        """
        return self._around(device).calls(batch, length, ids)

    def begin(self, embeddings: Tensor) -> Tensor:
        """Return the first layer's input [tokens, state_width] for embeddings [tokens, hidden]."""
        if not self._begins or not len(embeddings):
            return embeddings
        around = self._around(embeddings.device)
        pieces = torch.split(embeddings.to(self.compute_dtype), BEGIN_TOKENS)
        return torch.cat([around.begin(piece).flatten(1) for piece in pieces])

    def build_layer(self, layer: int, load: Callable[[str], Tensor], device: torch.device) -> nn.Module:
        """Return a decoder layer with all weights but the routed experts', in the compute dtype.

        `load` reads a tensor by its name in the checkpoint. Tensors that transformers keeps in float32 stay
        so. Raises TensorError if a shape is not the one the config asks for, or if a table names an expert
        that the layer does not have.
        """
        module: nn.Module = copy.deepcopy(self._decoder.layers[layer])
        state = {}
        for local, stored in self._layers[layer].items():
            if not self._is_of_experts(layer, local):
                tensor = self._read(stored, load)
                self._check_table(layer, stored, tensor)
                state[local] = tensor.to(device=device, dtype=self._dtype_of(local, stored))
        module.load_state_dict(state, strict=False, assign=True)
        experts = self.experts[layer]
        for name, part in module.named_modules():
            is_expert = experts is not None and f"{name}.".startswith(f"{experts.module}.")
            if not is_expert:
                compute_buffers(self._decoder, part, device)
        answer_as_asked(module, self._fp32_names)
        return module.eval().requires_grad_(False)

    def build_ending(self, load: Callable[[str], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return what stands between the last layer's output [tokens, state_width] and the head."""
        state = {
            name: self._read(stored, load).to(device=device, dtype=self._dtype_of(name, stored))
            for name, stored in self._ending.items()
        }
        around = Surroundings(self._decoder, device)
        around.load_ending(state, self._fp32_names)
        return lambda states: around.end(states.view(-1, *self.state_shape))

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Return the model's logits [tokens, any] of its head's products."""
        return logits if self._tail is None else self._tail(logits)

    def experts_module(self, layer_module: nn.Module, layer: int) -> nn.Module:
        """Return the routed experts inside a built layer."""
        experts = self.experts[layer]
        assert experts is not None
        return layer_module.get_submodule(experts.module)

    def expert_math(self, layer: int, load: Callable[[str], Tensor], device: torch.device) -> ExpertMath:
        """Return what the experts of a layer compute beside products. Their biases are read."""
        plain, found = self.plain_math(layer), {}
        for local, stored in self._layers[layer].items():
            leaf = local.rpartition(".")[2]
            if leaf in FUSED_BIASES and self._is_of_experts(layer, local):
                found[leaf] = self._read(stored, load).to(device=device, dtype=self.compute_dtype)
        biases: dict[Part, Tensor] = {
            part: found[f"{part}_proj_bias"] for part in PARTS if f"{part}_proj_bias" in found
        }
        if "gate_up_proj_bias" in found:
            both = found["gate_up_proj_bias"]
            gate, up = both.chunk(2, 1) if plain.experts.is_concatenated else (both[:, 0::2], both[:, 1::2])
            biases = {"gate": gate, "up": up, **biases}
        return replace(plain, biases=biases)

    def plain_math(self, layer: int) -> ExpertMath:
        """Return the same without biases."""
        shape = self.experts[layer]
        assert shape is not None
        experts = self.experts_module(self._decoder.layers[layer], layer)
        return ExpertMath(experts=experts, first_parts=shape.first_parts)

    def _around(self, device: torch.device) -> Surroundings:
        if device not in self._surroundings:
            self._surroundings[device] = Surroundings(self._decoder, device)
        return self._surroundings[device]

    def _find_state_shape(self) -> torch.Size:
        if not self._begins:
            return torch.Size([int(self.config.hidden_size)])
        sample = torch.linspace(-1, 1, 2 * int(self.config.hidden_size), dtype=self.compute_dtype).view(2, -1)
        around = self._around(torch.device("cpu"))
        first = around.begin(sample)
        self._begins = first.shape != sample.shape or not torch.equal(first, sample)
        return first.shape[1:]

    def _read(self, stored: StoredAs, load: Callable[[str], Tensor]) -> Tensor:
        def checked(name: str) -> Tensor:
            tensor, shape = load(name), stored.pieces[name]
            if tuple(tensor.shape) != shape:
                raise TensorError(f"{name} must have shape {list(shape)}, found {list(tensor.shape)}")
            return tensor

        return stored.join(checked)

    def _check_table(self, layer: int, stored: StoredAs, table: Tensor) -> None:
        """Raise TensorError for whole numbers that are not the layer's experts'."""
        experts = self.experts[layer]
        if stored.dtype.is_floating_point or experts is None or not table.numel():
            return
        for found in (int(table.min()), int(table.max())):
            if not 0 <= found < experts.num_experts:
                raise TensorError(
                    f"{next(iter(stored.pieces))} names expert {found}; expected 0 to "
                    f"{experts.num_experts - 1}, the layer's experts"
                )

    def _dtype_of(self, local: str, stored: StoredAs) -> torch.dtype:
        """Return the dtype that one of the decoder's tensors is computed in."""
        if not stored.dtype.is_floating_point:
            return stored.dtype
        keeps = any(part in local for part in self._fp32_names)
        return torch.float32 if keeps else self.compute_dtype

    def _is_of_experts(self, layer: int, local: str) -> bool:
        experts = self.experts[layer]
        return experts is not None and local.startswith(f"{experts.module}.")

    def _layer_tensors(self, layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Yield (name in the checkpoint, name in the module, shape) of all but routed experts' weights."""
        for local, stored in self._layers[layer].items():
            for name, shape in stored.pieces.items():
                yield name, local, shape

    def _list_layer(self, layer: int) -> Iterator[tuple[str, StoredAs]]:
        """Yield (name in the module, its names and shapes in the checkpoint) of all but experts' weights."""
        for local, tensor in self._decoder.layers[layer].state_dict().items():
            if not self._is_of_experts(layer, local) or local.rpartition(".")[2] in FUSED_BIASES:
                yield local, self._stored_as(f"layers.{layer}.{local}", tensor)

    def _stored_as(self, local: str, tensor: Tensor) -> StoredAs:
        """Return what is stored for one of the decoder's tensors."""
        found = self._stored.of(self._path + local, tensor)
        pieces = {self._text_prefix + name: shape for name, shape in found.pieces.items()}
        return replace(found, pieces=pieces)

    def _find_ending(self) -> dict[str, StoredAs]:
        embedding = self._decoder.get_input_embeddings()
        aside = {id(tensor) for tensor in embedding.state_dict(keep_vars=True).values()}
        return {
            local: self._stored_as(local, tensor)
            for local, tensor in self._decoder.state_dict(keep_vars=True).items()
            if not local.startswith("layers.") and id(tensor) not in aside
        }

    def _find_names(self) -> Names:
        embedding = self._decoder.get_input_embeddings()
        embeddings = {
            name: tensor
            for name, tensor in self._decoder.state_dict(keep_vars=True).items()
            if tensor is embedding.weight
        }
        (name, tensor), *_ = embeddings.items()
        (stored_embedding,) = self._stored_as(name, tensor).pieces
        head = self._model.get_output_embeddings()
        (head_name,) = (name for name, module in self._model.named_modules() if module is head)
        (stored_head,) = self._stored.of(f"{head_name}.weight", head.weight).pieces
        ending = {name: shape for stored in self._ending.values() for name, shape in stored.pieces.items()}
        head_bias = None
        if head.bias is not None:
            (head_bias,) = self._stored.of(f"{head_name}.bias", head.bias).pieces
            ending[head_bias] = tuple(head.bias.shape)
        first = next(iter(next(iter(self._layers[0].values())).pieces))
        layers, dot, _ = first.partition(".0.")
        text = {f"{self._path}{name}" for name in self._decoder.state_dict()} | {
            f"{head_name}.weight",
            f"{head_name}.bias",
        }
        others = {
            stored
            for name, tensor in self._model.state_dict().items()
            if name not in text
            for stored in self._stored.of(name, tensor).pieces
        }
        return Names(
            layers=f"{layers}{dot[:1]}",
            embedding=stored_embedding,
            head=self._text_prefix + stored_head,
            head_bias=head_bias,
            ending=ending,
            module_layers=f"{self._path}layers.",
            text_prefix=self._text_prefix,
            others=frozenset(others),
        )

    def _find_experts(self, layer: int) -> ExpertShape | None:
        """Return the shape of a layer's routed experts, or None for a dense layer."""
        for name, module in self._decoder.layers[layer].named_modules():
            first = find_first_projection(module)
            if first is not None:
                return self._describe_experts(layer, name, module, first)
        return None

    def _describe_experts(self, layer: int, name: str, module: Any, first: str) -> ExpertShape:
        local = f"{self._path}layers.{layer}.{name}"
        layout = find_layout(module, self._model.config.model_type)
        num_experts, *sizes = module.down_proj.shape
        hidden_size, width = reversed(sizes) if layout.is_turned else sizes
        parts: tuple[Part, ...] = (*FIRST_PROJECTIONS[first], "down")
        fused: dict[str, tuple[Part, ...]] = {
            f"{local}.{first}": FIRST_PROJECTIONS[first],
            f"{local}.down_proj": ("down",),
        }
        leaves: dict[Part, str] = {}
        prefix = ""
        for whole, inside in list(fused.items()):
            found = self._stored.of_experts(whole, getattr(module, whole.rpartition(".")[2])[:1])
            if not prefix:
                parent = next(iter(found)).removesuffix(".weight").rpartition(".")[0]
                prefix = parent if parent.endswith(".experts") else f"{parent}.experts"
            if len(found) == 1 and len(inside) > 1:
                fused[next(iter(found))] = inside
                continue
            for part, (stored, shape) in zip(inside, found.items(), strict=True):
                if len(shape) > 2:
                    fused[stored] = (part,)
                else:
                    prefix, _, leaf = stored.rpartition(".0.")
                    leaves[part] = leaf.removesuffix(".weight")
        return ExpertShape(
            num_experts=num_experts,
            hidden_size=hidden_size,
            width=width,
            num_identities=int(getattr(module, "zero_expert_num", 0)),
            own_inputs=int(self.config.num_experts_per_tok) if takes_copies(module) else 0,
            prefix=self._text_prefix + prefix,
            module=name,
            leaves=leaves or {part: SIDE_BY_SIDE[part] for part in parts},
            layout=layout,
            fused={self._text_prefix + whole: parts for whole, parts in fused.items()},
        )
