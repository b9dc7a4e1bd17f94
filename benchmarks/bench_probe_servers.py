"""Check a release's expected answers through real servers on a CPU: right ones, and some with damaged files.

    python benchmarks/bench_probe_servers.py RELEASE --output servers.json
    python benchmarks/bench_probe_servers.py RELEASE --only default,int8 --output servers.json

Each row is a `moe4 serve` of its own, about 40 s on two cores. A run that was stopped goes on with what its
output lacks.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe4.probe import check

MOE4 = [sys.executable, "-c", "from moe4.cli.main import main; main()"]
RIGHT: dict[str, tuple[str, ...]] = {
    "default": (),
    "int8": ("--rest", "int8"),
    "compiled": ("--no-enforce-eager",),
    "float32": ("--dtype", "float32"),
    "vLLM's own loader": ("--load-format", "auto"),
    "prefill in pieces of 64 tokens": ("--max-num-batched-tokens", "64", "--enable-chunked-prefill"),
    "no prefix cache": ("--no-enable-prefix-caching",),
    "tensor parallel 2": ("--tensor-parallel-size", "2"),
    "expert parallel 2": ("--tensor-parallel-size", "2", "--enable-expert-parallel"),
}
Tensors = dict[str, Tensor]
LAYER = "model.layers.2.mlp"


def change_scales(tensors: Tensors, part: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the scales of all experts of a layer whose name holds `part`."""
    for name, tensor in tensors.items():
        if f"{LAYER}.experts." in name and name.endswith(f"{part}.weight_scale"):
            tensors[name] = change(tensor).contiguous()


def swap(tensors: Tensors, first: str, second: str) -> None:
    """Swap all tensors that begin with one name with those that begin with the other."""
    for name in [name for name in tensors if name.startswith(f"{first}.")]:
        other = second + name[len(first) :]
        tensors[name], tensors[other] = tensors[other], tensors[name]


def reverse_codes(words: Tensor) -> Tensor:
    """Return int32 words with their eight codes in the other order."""
    codes = [(words.long() >> shift) & 15 for shift in range(0, 32, 4)]
    total = sum(code << shift for code, shift in zip(codes, range(28, -1, -4), strict=True))
    assert isinstance(total, Tensor)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def reverse_one(tensors: Tensors, _: dict[str, Any]) -> None:
    """Reverse the codes of one expert's gate."""
    name = f"{LAYER}.experts.3.gate_proj.weight_packed"
    tensors[name] = reverse_codes(tensors[name])


def without_bias(tensors: Tensors, _: dict[str, Any]) -> None:
    """Zero every correction bias."""
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name].zero_()


def other_rope(_: Tensors, config: dict[str, Any]) -> None:
    """Double YaRN's factor."""
    config["rope_scaling"]["factor"] *= 2


DAMAGED: dict[str, Callable[[Tensors, dict[str, Any]], None]] = {
    "signs of scales lost, one layer": lambda t, _: change_scales(t, "", torch.abs),
    "scales of down one row off, one layer": lambda t, _: change_scales(
        t, "down_proj", lambda s: s.roll(1, 0)
    ),
    "two experts swapped": lambda t, _: swap(t, f"{LAYER}.experts.3", f"{LAYER}.experts.4"),
    "an expert swapped with another layer's": lambda t, _: swap(
        t, f"{LAYER}.experts.5", "model.layers.3.mlp.experts.5"
    ),
    "gate and up swapped, one expert": lambda t, _: swap(
        t, f"{LAYER}.experts.3.gate_proj", f"{LAYER}.experts.3.up_proj"
    ),
    "order of codes reversed, one expert's gate": reverse_one,
    "no correction bias": without_bias,
    "routed scaling factor 2.5": lambda _, config: config.update(routed_scaling_factor=2.5),
    "YaRN factor doubled": other_rope,
}


def damage(release: Path, folder: Path, plant: Callable[[Tensors, dict[str, Any]], None]) -> Path:
    """Write a copy of the release, in one shard, with a fault in it."""
    folder.mkdir()
    for file in release.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    tensors = {
        name: tensor for shard in release.glob("*.safetensors") for name, tensor in load_file(shard).items()
    }
    config = json.loads((release / "config.json").read_text())
    plant(tensors, config)
    shard_name = "model-00001-of-00001.safetensors"
    save_file(tensors, folder / shard_name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard_name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def serve_and_check(release: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Start a server, check it, stop it."""
    server = subprocess.Popen(
        [
            *MOE4,
            "serve",
            str(release),
            "--no-probe",
            "--port",
            "0",
            "--json",
            "--max-model-len",
            "2048",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        ready = server.stdout.readline()
        if not ready:
            return {"error": server.communicate()[1].strip().splitlines()[-1]}
        began = time.monotonic()
        result = check.check(check.read_expected(str(release)), check.Server(json.loads(ready)["url"]))
        return {**result, "seconds": round(time.monotonic() - began, 2)}
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()


def main() -> None:
    """Run all that the output lacks and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", help="names of rows, with commas between them; all if not given")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    wanted = options.only.split(",") if options.only else [*RIGHT, *DAMAGED]
    for name in wanted:
        if name in results:
            continue
        if name in RIGHT:
            results[name] = serve_and_check(options.release, RIGHT[name])
        else:
            with tempfile.TemporaryDirectory() as work:
                folder = damage(options.release, Path(work) / options.release.name, DAMAGED[name])
                results[name] = serve_and_check(folder, ())
        found = results[name]
        print(f"{name}: {check.describe(found) if 'groups' in found else found['error']}", flush=True)
        options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
