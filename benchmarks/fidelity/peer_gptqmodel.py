"""Quantize a checkpoint with GPTQModel, with its defaults; runs in an environment of its own.

    python peer_gptqmodel.py MODEL TOKENS.json OUT

TOKENS.json holds the calibration token ids, a list of lists. Only routed experts are quantized: 4 bits,
symmetric, groups of 128. Versions go to OUT/versions.json.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

SKIPPED = (r"-:.*self_attn.*", r"-:.*shared_experts.*", r"-:.*layers\.0\.mlp.*", r"-:lm_head")


def main() -> None:
    model_folder, tokens, out = sys.argv[1:]
    sequences = json.loads(Path(tokens).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = QuantizeConfig(
        bits=4, group_size=128, dynamic={pattern: {} for pattern in SKIPPED}, device=device
    )
    model = GPTQModel.load(model_folder, config, backend=BACKEND.TORCH)
    calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
    model.quantize(calibration, batch_size=1)
    model.save(out)
    versions = {name: version(name) for name in ("gptqmodel", "transformers", "torch")}
    (Path(out) / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
