"""What the rounding of `--rest int8` and `int4` alone does to k2-tiny: KL divergence in transformers.

    python benchmarks/bench_rest_weights.py [--tokens 8000]

The matrices that the loader converts are replaced by their decoded integers; the routed experts stay as they
are. int4 in groups of 32 is for comparison: the loader takes 128. Held-out chats, every position, float32.
JSON on stdout. `bench_rest.py` measures the same inside vLLM.
"""

import argparse
import json
from collections.abc import Callable

import torch
from bench_rest import REFERENCE, read_prompts
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from k2tiny.model import load_config
from moe4.kernels.reference import dequantize
from moe4.vllm_plugin.rest.convert import KEPT
from moe4.vllm_plugin.rest.int4 import quantize_groups
from moe4.vllm_plugin.rest.int8 import quantize_rows


def round_to_int8(weight: Tensor) -> Tensor:
    codes, scales = quantize_rows(weight)
    return codes.float() * scales.float().unsqueeze(1)


def round_to_int4(weight: Tensor, group_size: int) -> Tensor:
    words, scales = quantize_groups(weight, group_size)
    return dequantize(words, scales, group_size).float()


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": round_to_int8,
    "int4, groups of 32": lambda weight: round_to_int4(weight, 32),
    "int4, groups of 128": lambda weight: round_to_int4(weight, 128),
}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8000)
    prompts = read_prompts(parser.parse_args().tokens)
    config = load_config(REFERENCE)
    model = DeepseekV3ForCausalLM.from_pretrained(REFERENCE, config=config, dtype=torch.float32).eval()
    matrices = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in KEPT
    }
    originals = {name: module.weight.detach().clone() for name, module in matrices.items()}

    def predict() -> Tensor:
        rows = [model(torch.tensor([prompt])).logits[0].double().log_softmax(-1) for prompt in prompts]
        return torch.cat(rows)

    result: dict[str, object] = {"matrices": len(matrices)}
    with torch.no_grad():
        exact = predict()
        result["positions"] = len(exact)
        for kind, rounding in ROUNDINGS.items():
            for name, module in matrices.items():
                module.weight.copy_(rounding(originals[name].to(torch.bfloat16)))
            rounded = predict()
            divergence = (exact.exp() * (exact - rounded)).sum(-1)
            result[kind] = {
                "kl_nats": float(divergence.mean()),
                "kl_standard_error": float(divergence.std() / len(divergence) ** 0.5),
                "same_best_token": float((exact.argmax(-1) == rounded.argmax(-1)).double().mean()),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
