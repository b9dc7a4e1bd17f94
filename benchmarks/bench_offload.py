"""Experts larger than memory: mapped with readahead beside the cache that is filled with direct reads.

    python benchmarks/bench_offload.py RELEASE --limit-gb 3 [--ways map cache:1 cache:2] [--skew 0 1]

Each way runs in a process of its own in a memory control group of `limit-gb` (needs root), page cache
included. Its routed experts are supplied and computed as in vLLM, layer after layer, for one token at a time;
the ids are drawn at random, expert number r of a layer with a weight of 1 / r^skew: skew 0 is the worst case,
trained models lie between. JSON on stdout; beside each time is what direct reads of the same files give.

Ways: `map` is readahead of the experts just routed, `map:plain` mapping without any advice, `map:normal`
readahead on top of the system's own, `cache:GB` the expert cache with that budget.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_limit import drop_from_cache, join_group, peak_bytes, remove_group

from moe4.checkpoint.header import read_shard
from moe4.checkpoint.mapping import MappedShard
from moe4.kernels.table import table_experts
from moe4.machine.disk import measure_disk_rate
from moe4.vllm_plugin.loader.cache import ExpertCache, LayerOfCache
from moe4.vllm_plugin.loader.layer import ExpertLayout, MappedLayer, map_layer
from moe4.vllm_plugin.loader.supply import ReadAhead, Supply

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def own_bytes() -> int:
    """Return this process's memory that is not the page cache's."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Anonymous"))


class Experts:
    """The routed experts of a release of K2's architecture, mapped."""

    def __init__(self, release: Path) -> None:
        config = json.loads((release / "config.json").read_text())
        weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
        self.top_k = int(config["num_experts_per_tok"])
        self.hidden = int(config["hidden_size"])
        self.group_size = int(weights["group_size"])
        self.num_experts = int(config["n_routed_experts"])
        width = int(config["moe_intermediate_size"])
        self.layouts = [
            ExpertLayout(
                prefix=f"model.layers.{layer}.mlp.experts",
                projections=PROJECTIONS,
                experts=tuple(range(self.num_experts)),
                hidden=self.hidden,
                inter=width,
                first=0,
                share=width,
                group_size=self.group_size,
            )
            for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"])
        ]
        shards = [read_shard(file) for file in sorted(release.glob("*.safetensors"))]
        stored = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
        used = {stored[layout.name(0, "gate")].path for layout in self.layouts}
        self.maps = {shard.path: MappedShard(shard) for shard in shards if shard.path in used}
        self.layers: list[MappedLayer] = [map_layer(layout, stored, self.maps) for layout in self.layouts]
        self.num_bytes = sum(layer.num_bytes for layer in self.layers)
        self.token_bytes = self.num_bytes * self.top_k // self.num_experts

    def supplies(self, way: str) -> tuple[list[Supply], ExpertCache | None]:
        """Return what brings each layer's experts into memory."""
        kind, _, setting = way.partition(":")
        if kind == "cache":
            pairs = list(zip(self.layouts, self.layers, strict=True))
            cache = ExpertCache(pairs, int(float(setting) * 1e9), self.top_k)
            return [LayerOfCache(cache, number) for number in range(len(self.layers))], cache
        if setting not in ("normal", "plain"):
            for shard in self.maps.values():
                shard.advise_random()
        step = min(shard.readahead_bytes for shard in self.maps.values())
        return [ReadAhead(layer.table, layer.ranges, step, once=False) for layer in self.layers], None

    def compute(self, layer: int, table: torch.Tensor, x: torch.Tensor, ids: torch.Tensor) -> None:
        """Run one token through its experts of a layer."""
        share = self.layouts[layer].share
        table_experts(x, table, torch.full(ids.shape, 0.1), ids, inter=share, group_size=self.group_size)


def measure(release: Path, way: str, skew: float, num_tokens: int) -> dict[str, Any]:
    """Return the figures of one way, in this process."""
    experts = Experts(release)
    disk_rate = measure_disk_rate(list(experts.maps), huge_pages=way.startswith("cache")) or 0.0
    supplies, cache = experts.supplies(way)
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, experts.num_experts + 1) ** skew
    popularity /= popularity.sum()
    orders = [rng.permutation(experts.num_experts) for _ in supplies]
    x = torch.randn(1, experts.hidden).to(torch.bfloat16)
    times = []
    for token in range(2 * num_tokens):
        if token == num_tokens and cache is not None:  # the first half fills it
            cache.num_hits = cache.num_misses = 0
        began = time.perf_counter()
        for layer, supply in enumerate(supplies):
            chosen = rng.choice(experts.num_experts, experts.top_k, replace=False, p=popularity)
            ids = torch.from_numpy(orders[layer][chosen])[None]
            table = experts.layers[layer].table if way == "map:plain" else supply.fetch(ids)
            experts.compute(layer, table, x, ids)
        times.append(time.perf_counter() - began)
    low, median, high = np.quantile(times[num_tokens:], (0.25, 0.5, 0.75)).tolist()
    return {
        "way": way,
        "skew": skew,
        "seconds_per_token": [round(value, 4) for value in (low, median, high)],
        "tokens_per_second": round(1 / float(np.mean(times[num_tokens:])), 2),
        "expert_bytes_per_token": experts.token_bytes,
        "hit_rate": cache and round(cache.num_hits / (cache.num_hits + cache.num_misses), 3),
        "disk_bytes_per_second": round(disk_rate),
        "tokens_per_second_if_all_came_from_disk": round(disk_rate / experts.token_bytes, 2),
        "own_bytes": own_bytes(),
        "group_peak_bytes": peak_bytes(),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("--limit-gb", type=float, required=True)
    parser.add_argument("--ways", nargs="+", default=["map", "map:plain", "map:normal", "cache:1", "cache:2"])
    parser.add_argument("--skew", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--tokens", type=int, default=24, help="timed, after as many that are not")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        join_group(int(options.limit_gb * 1e9))
        print(json.dumps(measure(options.release, options.child, options.skew[0], options.tokens)))
        return
    rows = []
    for skew in options.skew:
        for way in options.ways:
            drop_from_cache(sorted(options.release.glob("*.safetensors")))
            command = [sys.executable, __file__, str(options.release), "--limit-gb", str(options.limit_gb)]
            command += ["--skew", str(skew), "--tokens", str(options.tokens), "--child", way]
            child = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
            remove_group()
            row = json.loads(child.stdout) if child.returncode == 0 else {"way": way, "failed": True}
            rows.append({"limit_bytes": int(options.limit_gb * 1e9), **row})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
