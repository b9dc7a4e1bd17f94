"""What the rounding of `--rest int8` alone does to k2-tiny: KL divergence in transformers, float32.

    python benchmarks/bench_rest_int8_weights.py [--tokens 8000]

The matrices that the loader converts are replaced by their decoded int8 values; the routed experts stay as
they are. Held-out chats, every position. JSON on stdout. `bench_rest_int8.py` measures the same inside vLLM.
"""

import argparse
import json

import torch
from bench_rest_int8 import REFERENCE, read_prompts
from transformers import DeepseekV3ForCausalLM

from k2tiny.model import load_config
from moe4.vllm_plugin.rest.int8 import KEPT, quantize_rows


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8000)
    prompts = read_prompts(parser.parse_args().tokens)
    config = load_config(REFERENCE)
    model = DeepseekV3ForCausalLM.from_pretrained(REFERENCE, config=config, dtype=torch.float32).eval()

    def predict() -> torch.Tensor:
        rows = [model(torch.tensor([prompt])).logits[0].double().log_softmax(-1) for prompt in prompts]
        return torch.cat(rows)

    with torch.no_grad():
        exact = predict()
        converted = []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in KEPT:
                codes, scales = quantize_rows(module.weight.to(torch.bfloat16))
                module.weight.copy_(codes.float() * scales.float().unsqueeze(1))
                converted.append(name)
        rounded = predict()
    divergence = (exact.exp() * (exact - rounded)).sum(-1)
    result = {
        "matrices": len(converted),
        "positions": len(divergence),
        "kl_nats": float(divergence.mean()),
        "kl_standard_error": float(divergence.std() / len(divergence) ** 0.5),
        "same_best_token": float((exact.argmax(-1) == rounded.argmax(-1)).double().mean()),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
