"""The bound on a run's memory, held to what Kimi-K2's shapes make unavoidable, and what is done with it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from shared_data import shared_path

from moe4.errors import MemoryBudgetError
from moe4.model.architecture import Network
from moe4.quantize.forecast.forecast import SketchedCheckpoint
from moe4.quantize.planning import memory_bound as needs
from moe4.quantize.planning.memory_bound import MemoryNeed, batch_tokens, memory_need, require_memory
from moe4.quantize.planning.release_plan import ReleasePlan, make_plan
from moe4.quantize.planning.resolve import resolve_for_source
from moe4.recipe import Recipe

HIDDEN, WIDTH, DENSE = 7168, 2048, 18432
LARGEST = HIDDEN * DENSE  # elements, and bytes in FP8: a matrix of the dense layer
ATTENTION = HIDDEN * 1536 + 1536 * 64 * 192 + HIDDEN * 576 + 512 * 64 * 256 + 64 * 128 * HIDDEN
LAYER = ATTENTION + 3 * LARGEST
DECODING = (1 + 4 + 2) * LARGEST  # as stored, in float32, in BF16
PROBE_TOKENS = 4000
PROBE = PROBE_TOKENS * HIDDEN * 32
HESSIAN = 4 * HIDDEN**2
# What cannot be done without. The bound has more: pages mapped, activations kept, LAPACK's workspace.
LEAST = {
    "copying a tensor": DECODING,
    "a layer's attention": 2 * LAYER + DECODING + (500 << 20),  # with a batch's inner states
    # The pool's and the expert's Hessian, its permuted copy, the factor; gate and up as read, stacked, lost.
    "an expert": 5 * HESSIAN + 2 * HIDDEN * WIDTH * (4 + 4 + 4) + PROBE + (256 << 20),  # inner states
    "the expected answers": 4 * LAYER + DECODING + PROBE,
}
Bound = Callable[..., MemoryNeed]


@pytest.fixture(scope="module")
def bound() -> Bound:
    checkpoint = SketchedCheckpoint(shared_path("configs", "kimi-k2-instruct"))
    network = Network(checkpoint.config, torch.bfloat16)

    @cache
    def plan_of(method: str) -> ReleasePlan:
        recipe = Recipe(method=method)
        return make_plan(checkpoint, network, resolve_for_source(recipe, checkpoint, network), [])

    def of(
        recipe: Recipe, num_tokens: int, probe_tokens: int = PROBE_TOKENS, device: str = "cpu"
    ) -> MemoryNeed:
        return memory_need(
            replace(plan_of(recipe.method), recipe=recipe),
            network,
            checkpoint,
            num_tokens,
            probe_tokens=probe_tokens,
            device=torch.device(device),
        )

    return of


def test_each_phase_holds_what_it_must_and_not_twice_that(bound: Bound) -> None:
    need = bound(Recipe(), 1 << 18)
    assert need.phases.keys() == LEAST.keys()
    for phase, least in LEAST.items():
        assert least <= need.phases[phase] <= 2 * least, phase
    assert need.largest_phase == "an expert"
    assert need.peak_bytes == need.base_bytes + need.phases["an expert"]
    assert 500e6 < need.base_bytes < 1e9  # Python, torch and transformers, measured 750 MB


def test_rounding_needs_no_hessian(bound: Bound) -> None:
    need = bound(Recipe(method="rtn"), 0)
    assert need.phases.keys() == LEAST.keys() - {"a layer's attention"}
    weights = 3 * HIDDEN * WIDTH * (1 + 2 + 4) + PROBE  # in FP8, BF16 and float32
    assert weights <= need.phases["an expert"] <= 1.6 * weights
    assert need.largest_phase == "the expected answers"


def test_without_expected_answers_their_states_are_not_counted(bound: Bound) -> None:
    with_them, without = bound(Recipe(), 1 << 18), bound(Recipe(), 1 << 18, probe_tokens=0)
    assert "the expected answers" not in without.phases
    assert with_them.phases["an expert"] - without.phases["an expert"] >= PROBE
    assert without.peak_bytes < with_them.peak_bytes - PROBE


def test_a_gpus_host_holds_what_is_on_its_way(bound: Bound) -> None:
    need = bound(Recipe(), 1 << 18, device="cuda")
    assert list(need.phases) == ["a layer on a GPU"]
    experts, largest, written = 32 * 3 * (16 << 20), 128 << 20, 2 << 30  # pinned blocks are powers of two
    least = experts + largest + written + PROBE
    assert least <= need.peak_bytes - need.base_bytes <= 1.2 * least


def test_memory_grows_with_tokens_only_by_their_routing(bound: Bound) -> None:
    """From some thousands on: an id, a gate, a row number and their sorted copies for each of 8 experts."""
    few, many = bound(Recipe(), 1 << 18), bound(Recipe(), 1 << 20)
    routing = ((1 << 20) - (1 << 18)) * 8
    grown = many.peak_bytes - few.peak_bytes
    assert routing * (8 + 8 + 4) <= grown <= routing * 48
    assert bound(Recipe(), 100).peak_bytes < few.peak_bytes - (1 << 28)


def test_a_batch_is_the_same_on_every_machine(bound: Bound) -> None:
    """It decides the order of sums, and with it the bytes of a release."""
    config = SketchedCheckpoint(shared_path("configs", "kimi-k2-instruct")).config
    network = Network(config, torch.bfloat16)
    assert batch_tokens(network, torch.device("cpu")) == 1272
    assert batch_tokens(network, torch.device("cuda")) == 8192


@pytest.mark.parametrize("budget", [1000, None], ids=["a budget", "what is free"])
def test_what_is_there_is_enough_to_the_byte(budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_memory_bytes", lambda: 1000)
    require_memory(MemoryNeed(base_bytes=600, phases={"an expert": 400, "other": 1}), budget)
    told = "memory_budget allows 1.0 kB; raise it" if budget else "this machine has 1.0 kB free; free some"
    with pytest.raises(MemoryBudgetError, match=rf"for an expert, but {told}, or .*shorter sequences"):
        require_memory(MemoryNeed(base_bytes=600, phases={"an expert": 401, "other": 1}), budget)
    with pytest.raises(MemoryBudgetError, match=r"for copying a tensor, .*; (free some|raise it)$"):
        require_memory(MemoryNeed(base_bytes=600, phases={"copying a tensor": 401}), budget)
