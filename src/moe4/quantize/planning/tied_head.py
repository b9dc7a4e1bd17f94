"""A head that config.json ties to the embeddings, and that the checkpoint holds nevertheless."""

from collections.abc import Callable, Mapping

from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.model.outline import Outline


def check_tied_head(checkpoint: Checkpoint, network: Outline) -> TensorError | None:
    """Return what is wrong with a tied head that is stored. Both tensors are read; other checkpoints are not.

    Of two that differ, transformers takes the stored one and vLLM the embeddings: no release could be right.
    """

    def is_same(one: str, other: str) -> bool:
        pieces = zip(checkpoint.pieces(one), checkpoint.pieces(other), strict=True)
        return all(ours == theirs for ours, theirs in pieces)

    found = compare_tied_head(network, checkpoint.specs, is_same)
    if found is None:
        return None
    head = network.names.head
    return TensorError(f"{found}; set tie_word_embeddings to false to keep {head}, or remove it")


def compare_tied_head(
    network: Outline, specs: Mapping[str, TensorSpec], is_same: Callable[[str, str], bool]
) -> str | None:
    """Return how a stored head differs from the embeddings it is tied to; None if no such head is stored.

    is_same: whether two tensors of one dtype and shape hold the same.
    """
    embedding, head = network.embedding_name, network.names.head
    if network.head_name != embedding or not {embedding, head} <= specs.keys():
        return None
    ours, theirs = specs[embedding], specs[head]
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        expected, other = (f"{spec.dtype} {list(spec.shape)}" for spec in (ours, theirs))
        found = f"which is {other}, not {expected}"
    elif is_same(embedding, head):
        return None
    else:
        found = "which differs from it"
    return (
        f"tie_word_embeddings is true, so {embedding} is the head, but the checkpoint also holds {head}, "
        f"{found}: transformers would use {head}, vLLM would not"
    )
