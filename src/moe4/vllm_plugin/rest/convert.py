"""`rest`: linear layers beside the routed experts, and the head, converted while the model is loaded."""

from collections import Counter
from collections.abc import Iterator
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
ROUND = {"int4": int4.round_layer, "int8": int8.round_layer}


def convert_rest(model: nn.Module, rest: Literal["int4", "int8"]) -> None:
    """Convert the weights of linear layers and of the head in place, one after the other.

    With int4, layers that the release holds in INT4 keep their codes. Layers whose shape the kernel does not
    take stay as they are.

    Raises ServeError if the model does not run in bfloat16.
    """
    before = after = 0
    count: Counter[str] = Counter()
    for name, module in _layers(model):
        if rest == "int4" and int4.take_codes(module):
            count["taken"] += 1
        elif type(module.quant_method) in PLAIN:
            if module.weight.dtype != torch.bfloat16:
                raise ServeError(f"rest: {rest} needs --dtype bfloat16, and {name} is {module.weight.dtype}")
            num_bytes = module.weight.nbytes
            if not ROUND[rest](module):
                count["kept"] += 1
                continue
            count["rounded"] += 1
            before += num_bytes
            after += sum(parameter.nbytes for key, parameter in module.named_parameters() if key != "bias")
    groups = f" in groups of {int4.GROUP_SIZE}" if rest == "int4" else ""
    outcomes = {
        "taken": "run on the release's own INT4 codes",
        "rounded": f"rounded to {rest}{groups}, {format_bytes(before)} to {format_bytes(after)}",
        "kept": "left in bfloat16, in a shape that the kernel does not take",
    }
    for outcome, text in outcomes.items():
        if count[outcome]:
            noun = "matrix" if count[outcome] == 1 else "matrices"
            logger.info("moe4: %d %s beside the routed experts %s", count[outcome], noun, text)


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
