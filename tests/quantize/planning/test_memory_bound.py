"""Peak memory stays where it is when the experts become four times as many."""

import json
import subprocess
import sys
from pathlib import Path

from model_fixtures import write_random_model

SIZES = {
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "hidden_size": 1024,
    "moe_intermediate_size": 1024,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "qk_rope_head_dim": 32,
}
EXPERT_BYTES = 3 * 1024 * 1024 * 2


def test_peak_memory_does_not_grow_with_the_experts(calibration: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[gptq]\ndescent_sweeps = 0\nscale_candidates = 4\n")
    peaks = []
    for experts in (4, 16):
        source = write_random_model(tmp_path / f"source-{experts}", n_routed_experts=experts, **SIZES)
        arguments = ["--recipe", recipe, "--calibration", calibration, "--num-sequences", "8", "--json"]
        command = [sys.executable, "-m", "moe4", "quantize", source, tmp_path / f"out-{experts}", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout)["timing"]["peak_memory_bytes"])
    # Twelve more experts would be 75 MB if they were kept as they are stored, in BF16.
    assert peaks[1] - peaks[0] < 0.8 * 12 * EXPERT_BYTES
