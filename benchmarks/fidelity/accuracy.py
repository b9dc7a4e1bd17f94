"""Exact answers to held-out word problems, 0-shot, decoded greedily: the score, and pairs of scores compared.

Greedy decoding is done by checking guesses. A whole answer is guessed (first the expected one), one forward
pass tells the likeliest token at each of its places, the first that differs is put right, and what stood
behind it is the next guess. Each pass settles at least one token, mostly all of them; the result is that of
decoding token by token. What one network answers is the guess of what the next will.
"""

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fidelity.network import Network, make_batches
from fidelity.texts import problem_rows

MAX_NEW_TOKENS = 256
FINAL_ANSWER = re.compile(r"#### (-?[0-9]+)")
END = "\n\n"


class Problems:
    """The first `num` held-out problems, with the prompts of moe4's task `k2_tiny_problems_0shot`.

    `model` is the folder of a checkpoint with its tokenizer.
    """

    def __init__(self, model: Path, num: int) -> None:
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        self._special = set(self._tokenizer.all_special_ids)
        rows = problem_rows(num)
        self._prompts = [self._encode(f"Question: {row['question']}\nAnswer:") for row in rows]
        # A prompt and its answer are encoded as one text: where they meet, a token may span both.
        texts = [f"Question: {row['question']}\nAnswer: {row['answer']}{END}" for row in rows]
        self._guesses = [
            self._encode(text)[len(prompt) :] for text, prompt in zip(texts, self._prompts, strict=True)
        ]
        self._expected = [final_answer(row["answer"]) for row in rows]

    def correct(self, network: Network) -> list[float]:
        """Return 1 for each problem that the network answers exactly, else 0."""
        answers = self._decode(network)
        return [
            float(final_answer(answer) == expected)
            for answer, expected in zip(answers, self._expected, strict=True)
        ]

    def _decode(self, network: Network) -> list[str]:
        guesses, settled = [list(guess) for guess in self._guesses], [0] * len(self._guesses)
        open_problems = list(range(len(guesses)))
        while open_problems:
            likeliest = self._likeliest(network, [(self._prompts[n], guesses[n]) for n in open_problems])
            still_open = []
            for n, found in zip(open_problems, likeliest, strict=True):
                wrong = next(
                    (i for i in range(settled[n], len(guesses[n])) if guesses[n][i] != found[i]), None
                )
                if wrong is None:
                    guesses[n].append(found[len(guesses[n])])
                    settled[n] = len(guesses[n])
                else:
                    guesses[n][wrong] = found[wrong]
                    settled[n] = wrong + 1
                so_far = guesses[n][: settled[n]]
                if len(so_far) >= MAX_NEW_TOKENS or self._has_ended(so_far):
                    guesses[n] = so_far
                else:
                    still_open.append(n)
            open_problems = still_open
        self._guesses = guesses
        return [self._tokenizer.decode(guess).split(END)[0] for guess in guesses]

    def _has_ended(self, tokens: list[int]) -> bool:
        return END in self._tokenizer.decode(tokens) or not self._special.isdisjoint(tokens)

    @staticmethod
    @torch.inference_mode()
    def _likeliest(network: Network, pairs: list[tuple[list[int], list[int]]]) -> list[list[int]]:
        """Return for each (prompt, guess) the likeliest token at each place of the guess and after it."""
        sequences = [prompt + guess for prompt, guess in pairs]
        result: list[list[int]] = [[] for _ in pairs]
        starts = torch.tensor([0, *map(len, sequences)]).cumsum(0).tolist()
        tokens = torch.empty(starts[-1], dtype=torch.long, device=network.device)
        for batch in make_batches(sequences, network.device):
            tokens[batch.rows] = _argmax(network, batch.ids, batch.valid)
        for n, (prompt, guess) in enumerate(pairs):
            first = starts[n] + len(prompt) - 1
            result[n] = tokens[first : first + len(guess) + 1].tolist()
        return result

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])


def _argmax(network: Network, ids: Tensor, valid: Tensor) -> Tensor:
    logits: Tensor = network.model(ids, use_cache=False).logits
    return logits[valid].argmax(dim=-1)


def final_answer(text: str) -> str | None:
    """Return the number after ####, as the task's filter finds it."""
    found = FINAL_ANSWER.search(text)
    return found.group(1) if found else None
