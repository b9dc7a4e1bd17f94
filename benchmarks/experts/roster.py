"""Who takes part: the engines asked for, as far as they are here and right."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from experts.contestant import Contestant
from experts.in_process import torch_bf16, torch_int4, vllm_bf16
from experts.layer import Layer
from experts.oracle import reference
from experts.peers.catalog import ENGINES
from experts.peers.engine import AbsentError, BrokenError, Setting
from experts.peers.remote import Worker

IN_PROCESS = ("torch-int4", "torch-bf16", "vllm")
PEERS = (*IN_PROCESS, *ENGINES)


class Roster:
    """The contestants, and by name why others are not among them."""

    def __init__(self, contestants: Iterable[Contestant]) -> None:
        self.contestants = list(contestants)
        self.absent: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        self.errors: dict[str, float] = {}

    def add_in_process(self, names: Iterable[str], layer: Layer, w13: Tensor, w2: Tensor) -> None:
        makers = {
            "torch-int4": lambda: torch_int4(layer),
            "torch-bf16": lambda: torch_bf16(w13, w2),
            "vllm": lambda: vllm_bf16(w13, w2),
        }
        for name in names:
            try:
                self.contestants.append(makers[name]())
            except ModuleNotFoundError as error:
                self.absent[name] = str(error)

    def add_workers(
        self, engines: Iterable[str], layer: Layer, folder: Path, setting: Setting | None, stack: ExitStack
    ) -> None:
        """Start a process for each variant; `stack` ends them. The layer goes through a file in `folder`."""
        file = folder / "layer.safetensors"
        for engine in engines:
            for place, (name, variant) in enumerate(ENGINES[engine].items()):
                if setting is None:
                    self.absent[name] = "needs --peer-env, see benchmarks/setup_peers.py"
                    continue
                if not file.exists():
                    layer.save(file)
                try:
                    worker = Worker(engine, name, file, folder / f"{engine}-{place}", setting)
                except AbsentError as error:
                    self.absent[name] = str(error)
                    continue
                except BrokenError as error:
                    self.wrong[name] = f"{error}: {variant.note}"
                    continue
                stack.callback(worker.close)
                self.contestants.append(
                    Contestant(
                        name=name,
                        run=worker.run,
                        note=variant.note,
                        max_error=variant.max_error,
                        scale_dtype=variant.scale_dtype,
                    )
                )
        file.unlink(missing_ok=True)

    def check(self, layer: Layer) -> None:
        """Compare each with float64 of its own weights, and part with those that are wrong.

        With few tokens, and with enough that most engines take their other path; the greater error counts.
        """
        calls = [layer.draw_call(3), layer.draw_call(40, experts=layer.top_k)]
        expected: dict[tuple[torch.dtype, int], Tensor] = {}
        for contestant in list(self.contestants):
            errors = []
            try:
                for place, call in enumerate(calls):
                    key = (contestant.scale_dtype, place)
                    if key not in expected:
                        expected[key] = reference(layer, call, contestant.scale_dtype)
                    out = contestant.run(call)[1].double()
                    errors.append(((out - expected[key]).norm() / expected[key].norm()).item())
            except BrokenError as error:
                self.lose(contestant, str(error))
                continue
            if all(error < contestant.max_error for error in errors):
                self.errors[contestant.name] = max(errors)
            else:  # NaN is wrong, too
                shown = " and ".join(f"{error:.3g}" for error in errors)
                self.lose(contestant, f"relative error {shown} with 3 and 40 tokens")
                if contestant.name.startswith("moe4"):
                    sys.exit(f"bench_experts: {contestant.name} is wrong: {self.wrong[contestant.name]}")

    def lose(self, contestant: Contestant, reason: str) -> None:
        self.contestants.remove(contestant)
        self.wrong[contestant.name] = f"{reason}: {contestant.note}"
