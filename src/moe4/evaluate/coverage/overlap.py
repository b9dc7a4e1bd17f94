"""Do calibration and evaluation share text? Word n-grams, as contamination of training data is told."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe4.errors import CheckpointError, EvaluationError
from moe4.files.regular import read_text
from moe4.schema import decode

NGRAM_WORDS = 13  # Brown et al. 2020 (GPT-3), appendix C
WORD = re.compile(r"\w+")
KEYS = ("question", "prompt", "text", "problem", "input")
SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedWords:
    """A question, the place in the calibration that shares words with it, and the words."""

    question: str
    calibration: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """How many questions share a run of words with the calibration, and how many stand in it whole."""

    num_questions: int
    num_overlapping: int
    num_whole: int
    ngram_words: int
    examples: list[SharedWords]


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def ngrams(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Yield runs of `size` words; of a shorter text the whole."""
    if len(words) <= size:
        if words:
            yield tuple(words)
        return
    for start in range(len(words) - size + 1):
        yield tuple(words[start : start + size])


def read_questions(path: Path) -> list[tuple[str, str]]:
    """Return (place, question) of a JSONL file: a question, prompt or text, or the users' messages.

    Raises EvaluationError.
    """
    try:
        lines = read_text(path).splitlines()
    except CheckpointError as error:
        raise EvaluationError(str(error)) from None
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append((f"{path}:{number}", _question(line, f"{path}:{number}")))
    return questions


def _question(line: str, where: str) -> str:
    row = decode(line, where, EvaluationError)
    if isinstance(row, dict):
        for key in KEYS:
            if isinstance(row.get(key), str):
                return str(row[key])
        if isinstance(row.get("messages"), list):
            last = [m for m in row["messages"] if isinstance(m, dict) and m.get("role") == "user"]
            if last and isinstance(last[-1].get("content"), str):
                return str(last[-1]["content"])
    raise EvaluationError(f"{where}: expected an object with one of {', '.join(KEYS)} or messages")


def find_overlap(
    calibration: Iterable[tuple[str, str]], questions: Sequence[tuple[str, str]], size: int = NGRAM_WORDS
) -> Overlap:
    """Return which questions share a run of `size` words with the calibration.

    A question of fewer words counts where all of it stands in a row in the calibration.
    """
    wanted: dict[tuple[str, ...], list[int]] = {}
    lengths: set[int] = set()
    for place, (_, question) in enumerate(questions):
        for run in ngrams(words_of(question), size):
            wanted.setdefault(run, []).append(place)
            lengths.add(len(run))
    found: dict[int, tuple[str, str]] = {}
    whole: set[int] = set()
    for where, text in calibration:
        words = words_of(text)
        for length in lengths:
            for start in range(len(words) - length + 1):
                run = tuple(words[start : start + length])
                for place in wanted.get(run, ()):
                    found.setdefault(place, (where, " ".join(run)))
                    asked = words_of(questions[place][1])
                    if asked == words[start : start + len(asked)]:
                        whole.add(place)
    return Overlap(
        num_questions=len(questions),
        num_overlapping=len(found),
        num_whole=len(whole),
        ngram_words=size,
        examples=[
            SharedWords(question=questions[place][0], calibration=found[place][0], words=found[place][1])
            for place in sorted(found)[:SHOWN]
        ],
    )


def describe_overlap(result: Overlap) -> str:
    """Return the finding as text."""
    size, count, total = result.ngram_words, result.num_overlapping, result.num_questions
    if not count:
        return f"none of {total} questions shares {size} words in a row with the calibration"
    lines = [
        f"{count} of {total} questions share {size} words in a row with the calibration, "
        f"{result.num_whole} are contained in it whole:"
    ]
    lines += [f"  {shared.question} and {shared.calibration}: {shared.words!r}" for shared in result.examples]
    return "\n".join(lines)
