"""Experts stored fused: all of a layer's gates and ups in one tensor, and all of its downs in another.

So transformers saves them with `save_original_format=False`: as its modules hold them, under its modules'
names. An expert's weights lie there one after another, so each is a piece of the file, and nothing is copied.
"""

from collections.abc import Iterator
from math import prod

from moe4.checkpoint.header import ITEM_BITS, StoredTensor, TensorSpec
from moe4.checkpoint.source import PLAIN_DTYPES, Checkpoint
from moe4.errors import TensorError
from moe4.model.names import Part
from moe4.model.outline import ExpertShape, Outline


def take_experts_apart(checkpoint: Checkpoint, network: Outline) -> None:
    """Have a checkpoint with fused experts show its tensors as the family's published ones hold them.

    Raises TensorError for a fused tensor of another dtype or shape than transformers gives it.
    """
    stored = checkpoint.stored
    names = {name: name for name in stored}
    pieces: dict[str, list[StoredTensor]] = {}
    for experts in filter(None, network.experts):
        for name, parts in experts.fused.items():
            if name in stored:
                pieces[name] = list(_pieces(stored[name], experts, parts))
    if not pieces:
        return
    for layer in range(network.num_layers):
        names.update(network.module_names(layer))
    taken: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        for piece in pieces.get(name, [_renamed(tensor, names[name])]):
            if piece.spec.name in taken:
                raise TensorError(f"{checkpoint.folder} holds {piece.spec.name} twice: apart, and as {name}")
            taken[piece.spec.name] = piece
    checkpoint.show(taken)


def _renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    spec = TensorSpec(name=name, dtype=tensor.spec.dtype, shape=tensor.spec.shape)
    return StoredTensor(spec=spec, path=tensor.path, offset=tensor.offset)


def _pieces(fused: StoredTensor, experts: ExpertShape, parts: tuple[Part, ...]) -> Iterator[StoredTensor]:
    """Yield a fused tensor [experts, parts x out, in] as one [out, in] for each expert and part."""
    rows, columns = experts.weight_shape(parts[0])
    shape = experts.num_experts, len(parts) * rows, columns
    if fused.spec.dtype not in PLAIN_DTYPES or fused.spec.shape != shape:
        raise TensorError(
            f"{fused.spec.name} must be {list(shape)} in one of {', '.join(PLAIN_DTYPES)}, as transformers "
            f"stacks experts, found {fused.spec.dtype} {list(fused.spec.shape)}"
        )
    num_bytes = prod((rows, columns)) * ITEM_BITS[fused.spec.dtype] // 8
    for number in range(experts.num_experts * len(parts)):
        expert, place = divmod(number, len(parts))
        name = experts.weight_name(expert, parts[place])
        spec = TensorSpec(name=name, dtype=fused.spec.dtype, shape=(rows, columns))
        yield StoredTensor(spec=spec, path=fused.path, offset=fused.offset + number * num_bytes)
