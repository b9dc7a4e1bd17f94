"""`rest`: linear layers beside the routed experts, and the head, converted while the model is loaded."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

from moe4.errors import ServeError
from moe4.units import format_bytes
from moe4.vllm_plugin.rest import int4, int8

logger = init_logger("vllm.plugins.moe4")

# MLA takes kv_b_proj apart; routers are small, and one that is off by little chooses other experts.
KEPT = ("kv_b_proj", "gate", "shared_expert_gate", "router")
PLAIN = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
ROUND: dict[str, Callable[[Any], str | None]] = {"int4": int4.round_layer, "int8": int8.round_layer}


def convert_rest(model: nn.Module, rest: Literal["int4", "int8"]) -> None:
    """Convert the weights of linear layers and of the head in place, one after the other.

    With int4, layers that the release holds in INT4 keep their codes. Layers whose shape the kernel does not
    take stay as they are.

    Raises ServeError if the model does not run in bfloat16.
    """
    count: Counter[str] = Counter()
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for name, module in _layers(model):
        if rest == "int4" and int4.take_codes(module):
            count["run on the release's own INT4 codes"] += 1
        elif type(module.quant_method) in PLAIN:
            if module.weight.dtype != torch.bfloat16:
                raise ServeError(f"rest: {rest} needs --dtype bfloat16, and {name} is {module.weight.dtype}")
            num_bytes = module.weight.nbytes
            kind = ROUND[rest](module)
            if kind is None:
                count["left in bfloat16, in a shape that the kernel does not take"] += 1
                continue
            outcome = f"rounded to {kind}"
            count[outcome] += 1
            before[outcome] += num_bytes
            after[outcome] += sum(held.nbytes for key, held in module.named_parameters() if key != "bias")
    for outcome, number in count.items():
        noun = "matrix" if number == 1 else "matrices"
        sizes = (
            f", {format_bytes(before[outcome])} to {format_bytes(after[outcome])}" if before[outcome] else ""
        )
        logger.info("moe4: %d %s beside the routed experts %s%s", number, noun, outcome, sizes)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield linear layers and heads, but what must stay exact and a head that is the embedding too."""
    embeddings = {
        id(module.weight)
        for name, module in model.named_modules()
        if name.endswith("embed_tokens") and hasattr(module, "weight")
    }
    for name, module in model.named_modules():
        skipped = name.rpartition(".")[2] in KEPT or id(getattr(module, "weight", None)) in embeddings
        if isinstance(module, LinearBase | ParallelLMHead) and not skipped:
            yield name, module
