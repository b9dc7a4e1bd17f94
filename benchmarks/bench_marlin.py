"""A release's experts, with their negative scales, through vLLM's Marlin MoE kernel, against float64.

    python benchmarks/bench_marlin.py RELEASE [--layer 1] [--order alone|vllm|plugin] [--library FILE]

Needs a GPU, and the library of operators that vLLM's package for CUDA brings
(`_moe_C_stable_libtorch.abi3.so`): that of the installed vLLM if none is named. `--order` says who puts
words and scales into the kernel's order: `alone`, this benchmark, without vLLM, which shows the kernel;
`vllm`, vLLM's own processing, which shows what a server computes; `plugin`, the same with moe4's
correction. Without it all run.
"""

import argparse
import importlib
import importlib.util
import json
from pathlib import Path

import torch
from gpu.marlin import Experts, compare, load_kernel, prepare_alone, prepare_by_vllm
from safetensors import safe_open

from moe4.checkpoint.packed import unpack
from moe4.vllm_plugin.marlin import scales as marlin_scales

ORDERS = ("alone", "vllm", "plugin")
LIBRARY = "_moe_C_stable_libtorch.abi3.so"


def find_library() -> Path:
    """Return the installed vLLM's library."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vLLM is not installed; name its library with --library")
    return Path(spec.origin).with_name(LIBRARY)


def read_layer(release: Path, layer: int) -> tuple[Experts, int]:
    """Return a layer's experts on the GPU, and how many of them a token goes to."""
    config = json.loads((release / "config.json").read_text())
    index = json.loads((release / "model.safetensors.index.json").read_text())["weight_map"]
    codes: dict[str, list[torch.Tensor]] = {"gate": [], "up": [], "down": []}
    scales: dict[str, list[torch.Tensor]] = {"gate": [], "up": [], "down": []}
    for expert in range(config["n_routed_experts"]):
        for part in codes:
            base = f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj."
            with safe_open(release / index[base + "weight_packed"], "pt", device="cuda") as shard:
                codes[part].append(unpack(shard.get_tensor(base + "weight_packed")))
                scales[part].append(shard.get_tensor(base + "weight_scale"))

    def stack(found: dict[str, list[torch.Tensor]], *parts: str) -> torch.Tensor:
        return torch.cat([torch.stack(found[part]) for part in parts], dim=1)

    experts = Experts(
        gate_up=(stack(codes, "gate", "up"), stack(scales, "gate", "up")),
        down=(stack(codes, "down"), stack(scales, "down")),
    )
    return experts, config["num_experts_per_tok"]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--order", choices=ORDERS)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    orders = [args.order] if args.order else list(ORDERS)
    if orders == ["alone"]:
        load_kernel(args.library or find_library())
    else:
        importlib.import_module("vllm._custom_ops")  # it loads the library
    experts, top_k = read_layer(args.release, args.layer)
    shapes = {
        "experts": len(experts.down[0]),
        "hidden": experts.down[0].shape[1],
        "width": experts.down[0].shape[2],
    }
    found = {}
    for order in orders:  # the plugin's correction stays once it is attached, so it comes last
        if order == "plugin":
            marlin_scales.attach()
        prepare = prepare_alone if order == "alone" else prepare_by_vllm
        found[order] = {str(tokens): compare(experts, top_k, tokens, prepare) for tokens in (1, 16, 512)}
    shapes["group_size"] = experts.group_size
    print(json.dumps({"gpu": torch.cuda.get_device_name(), **shapes, "by_order": found}, indent=2))


if __name__ == "__main__":
    main()
