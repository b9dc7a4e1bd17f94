"""Quantize a checkpoint with llm-compressor, as its examples do; runs in an environment of its own.

    python peer_llmcompressor.py MODEL TOKENS.json OUT

TOKENS.json holds the calibration token ids, a list of lists. Only routed experts are quantized: W4A16,
symmetric, groups of 128, GPTQ with its defaults. Versions go to OUT/versions.json.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM

IGNORE = [
    "lm_head",
    "re:.*self_attn.*",
    "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    r"re:.*mlp\.gate$",
]


def main() -> None:
    model_folder, tokens, out = sys.argv[1:]
    sequences = json.loads(Path(tokens).read_text())
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    linearize_moe(model)
    dataset = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences])
    oneshot(
        model=model,
        dataset=dataset,
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=IGNORE),
        num_calibration_samples=len(sequences),
        max_seq_length=max(map(len, sequences)),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    (Path(out) / "versions.json").write_text(json.dumps({name: version(name) for name in names}))


if __name__ == "__main__":
    main()
