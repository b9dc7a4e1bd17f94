"""A head that config.json ties to the embeddings, and that the checkpoint holds nevertheless."""

from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.model.outline import Outline


def check_tied_head(checkpoint: Checkpoint, network: Outline) -> TensorError | None:
    """Return what is wrong with a tied head that is stored. Both tensors are read; other checkpoints are not.

    Of two that differ, transformers takes the stored one and vLLM the embeddings: no release could be right.
    """
    embedding, head = network.embedding_name, network.names.in_checkpoint("lm_head.weight")
    if network.head_name != embedding or not {embedding, head} <= checkpoint.tensors.keys():
        return None
    specs = [checkpoint.tensors[name].spec for name in (embedding, head)]
    if specs[0].dtype == specs[1].dtype and specs[0].shape == specs[1].shape:
        pieces = zip(checkpoint.pieces(embedding), checkpoint.pieces(head), strict=True)
        if all(one == other for one, other in pieces):
            return None
        found = "which differs from it"
    else:
        ours, theirs = (f"{spec.dtype} {list(spec.shape)}" for spec in specs)
        found = f"which is {theirs}, not {ours}"
    return TensorError(
        f"tie_word_embeddings is true, so {embedding} is the head, but the checkpoint also holds {head}, "
        f"{found}: transformers would use {head}, vLLM would not; set tie_word_embeddings to false to keep "
        f"{head}, or remove it"
    )
