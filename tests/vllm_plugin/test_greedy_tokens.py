"""Greedy tokens in BF16: packed against decoded weights in vLLM, and vLLM against transformers.

BF16 rounds differently in each implementation, so two tokens that nearly tie may change places. What counts
as a tie is measured, not chosen. Where prefixes are equal, take the gap between the log-probabilities of the
two best tokens in both runs: wherever the best token is the same and the gap is not wide, the two gaps differ
by at most some E. Tokens may change places only where their gaps, of opposite signs then, differ by no more.
"""

import logging
import math
import random
from dataclasses import dataclass, field

import pytest
import torch
from model_fixtures import (
    REFERENCE_MODEL,
    load_in_transformers,
    next_token_logprobs,
    write_dequantized_twin,
    write_rounded_release,
)
from transformers import AutoTokenizer
from vllm_fork_server import NUM_BEST
from vllm_forks import Answers, VllmForks

from k2tiny import corpus

pytestmark = pytest.mark.vllm

PLUGIN_AT_WORK = "moe4: W4A16 routed experts on CPU"
NUM_PROMPTS, NUM_LONG, NUM_TOKENS = 50, 3, 24
WIDE_GAP = 2.0  # of log-probabilities: the second token is 7 times less likely


@dataclass
class Comparison:
    """Two runs over the same prompts, seen at positions with equal prefixes."""

    gap_differences: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    num_positions: int = 0
    num_equal_answers: int = 0

    def compare(self, left: dict[int, float], right: dict[int, float]) -> bool:
        """Take in one position's best tokens in both runs, best first; say whether the first is the same."""
        self.num_positions += 1
        first, second = list(left)[:2]
        best = next(iter(right))
        if best == first:
            gap = left[first] - left[second]
            if gap < WIDE_GAP and second in right:
                self.gap_differences.append(abs(gap - (right[first] - right[second])))
            return True
        # A token that is not among the other run's best has no measured gap there, and is no tie.
        ours = left[first] - left.get(best, -math.inf)
        theirs = right[best] - right.get(first, -math.inf)
        self.swaps.append(ours + theirs)
        return False

    def check(self) -> None:
        """Fail if tokens change places that do not tie."""
        bound = max(self.gap_differences)
        figures = (
            f"{self.num_positions} positions, {self.num_equal_answers} of {NUM_PROMPTS} answers equal, "
            f"{len(self.swaps)} swaps with gaps up to {max(self.swaps, default=0):.3f}, "
            f"{len(self.gap_differences)} other gaps differ by up to {bound:.3f}, "
            f"on average {sum(self.gap_differences) / len(self.gap_differences):.4f}"
        )
        logging.getLogger(__name__).info(figures)
        assert all(swap <= bound for swap in self.swaps), figures
        # Otherwise the measure says nothing: runs that differ this much differ by more than rounding.
        assert bound < WIDE_GAP / 2, figures
        assert self.num_equal_answers >= NUM_PROMPTS // 2, figures


def best_of(step: list[list[float]]) -> dict[int, float]:
    return {int(token): logprob for token, logprob in step}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Beginnings of k2-tiny's own kind of documents, some of them past 1,024 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    rng = random.Random(1)
    drawn = []
    for number in range(NUM_PROMPTS):
        length = rng.randrange(1030, 1400) if number < NUM_LONG else rng.randrange(8, 160)
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += tokenizer.encode(corpus.draw_document(rng).text, add_special_tokens=False)
        drawn.append(tokens[:length])
    return drawn


@pytest.fixture(scope="module")
def answers(
    prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory, vllm_forks: VllmForks
) -> dict[str, Answers]:
    """What k2-tiny, its release and the release's weights, decoded, say to the prompts."""
    work = tmp_path_factory.mktemp("greedy")
    release = write_rounded_release(REFERENCE_MODEL, work / "release")
    models = {
        "plain": REFERENCE_MODEL,
        "packed": release,
        "decoded": write_dequantized_twin(release, work / "decoded"),
    }
    found = {}
    for name, model in models.items():
        found[name], log = vllm_forks.engine({"model": model, "prompts": prompts, "max_tokens": NUM_TOKENS})
        assert (PLUGIN_AT_WORK in log) == (name == "packed")  # it is loaded and has nothing to do elsewhere
    return found


def test_packed_weights_give_the_tokens_of_decoded_weights(answers: dict[str, Answers]) -> None:
    comparison = Comparison()
    for left, right in zip(answers["packed"], answers["decoded"], strict=True):
        for ours, theirs in zip(left["steps"], right["steps"], strict=True):
            if not comparison.compare(best_of(ours), best_of(theirs)):
                break
        else:
            comparison.num_equal_answers += 1
    comparison.check()


def test_transformers_gives_the_tokens_of_vllm(prompts: list[list[int]], answers: dict[str, Answers]) -> None:
    """Transformers follows vLLM's tokens, so that every position has an equal prefix."""
    model = load_in_transformers(REFERENCE_MODEL, torch.bfloat16)
    comparison = Comparison()
    for prompt, answer in zip(prompts, answers["plain"], strict=True):
        rows = next_token_logprobs(model, prompt + answer["tokens"])[len(prompt) - 1 : -1]
        same = True
        for step, row in zip(answer["steps"], rows, strict=True):
            values, tokens = row.topk(NUM_BEST)
            theirs = {int(token): float(value) for token, value in zip(tokens, values, strict=True)}
            same &= comparison.compare(best_of(step), theirs)
        comparison.num_equal_answers += same
    comparison.check()
