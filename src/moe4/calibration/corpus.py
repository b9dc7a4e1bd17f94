"""Calibration documents to token ids, through the model's own tokenizer and chat template."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moe4 import reference
from moe4.arguments import argument
from moe4.bounded import Bounds, OutOfBoundsError, map_bounded
from moe4.calibration.chat import tokenize
from moe4.calibration.documents import Drawn, choose_at_random, draw_from
from moe4.calibration.formats import Document, Row
from moe4.calibration.tokenizer import load_tokenizer
from moe4.errors import CalibrationError, TemplateError
from moe4.escape import visible_lines
from moe4.recipe import Calibration

Item = TypeVar("Item")
# What a template may take, far more than any takes: the largest of one's own renders in some milliseconds.
FIRST_SECONDS, SECONDS_PER_CHARACTER = 10.0, 2e-5
FIRST_BYTES, BYTES_PER_CHARACTER = 1 << 30, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Token ids of every calibration sequence, none of them empty."""

    sequences: list[list[int]]
    description: str
    """Names the data, in the report."""
    recognized: str = ""
    """What was recognized in the data, in one line."""
    sample: str = ""
    """The first sequence as text."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences."""
        return sum(map(len, self.sequences))

    def digest(self) -> str:
        """Return a SHA-256 over the token ids."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(json.dumps(sequence).encode())
        return digest.hexdigest()


def load_corpus(
    model_folder: Path,
    model_config: Any,
    settings: Calibration,
    path: Path | None,
    *,
    split: str | None = None,
    trust_remote_code: bool = False,
) -> Corpus:
    """Tokenize calibration data (documents.py), or the documents of the reference model's generator.

    `model_config` is transformers' config of the model, which tells it the kind of tokenizer. `split`: of a
    data set. Raises CalibrationError with the place of a document that cannot be used.
    """
    drawn = draw_documents(model_folder, settings, path, split)
    tokenizer = load_tokenizer(model_folder, model_config, trust_remote_code=trust_remote_code)
    return tokenize_drawn(tokenizer, int(model_config.vocab_size), settings, drawn)


def draw_documents(
    model_folder: Path, settings: Calibration, path: Path | None, split: str | None = None
) -> Drawn:
    """Draw the documents that a model is calibrated on. Raises CalibrationError."""
    if path is None:
        raise CalibrationError(
            f"GPTQ needs calibration data for {model_folder}: give "
            f"{argument('calibration', 'FILE.jsonl')}, with lines like "
            '{"messages": [{"role": "user", "content": "..."}]} or {"text": "..."}'
        )
    if reference.is_asked_for(path):
        return draw_reference(settings.num_sequences, settings.seed)
    return draw_from(path, split, choose_at_random(settings.num_sequences, settings.seed))


def draw_reference(num_documents: int, seed: int) -> Drawn:
    """Draw documents from the reference model's generator. Raises MissingDependencyError."""
    drawn = reference.generate_documents(num_documents, seed)
    rows = [
        Row(where=f"document {number} of the generator", document=document, form="k2-tiny's own")
        for number, document in enumerate(drawn)
    ]
    return Drawn(rows=rows, num_rows=len(rows), name=f"k2tiny.corpus, seed {seed}", container="a generator")


def documents_digest(drawn: Drawn) -> str:
    """Return a SHA-256 over documents, which no template has seen yet."""
    return hashlib.sha256(json.dumps([document for _, document in drawn.documents]).encode()).hexdigest()


def tokenize_drawn(tokenizer: Any, vocab_size: int, settings: Calibration, drawn: Drawn) -> Corpus:
    """Return the tokens of documents. Raises CalibrationError or TemplateError."""
    sequences = tokenize_all(tokenizer, drawn.documents, settings.max_sequence_tokens)
    _check_vocabulary(vocab_size, sequences)
    return Corpus(
        sequences=sequences,
        description=drawn.name,
        recognized=drawn.describe(),
        sample=visible_lines(tokenizer.decode(sequences[0])),
    )


def tokenize_all(
    tokenizer: Any, documents: Sequence[tuple[str, Document]], max_tokens: int
) -> list[list[int]]:
    """Return the first token ids of each (where, document), found within bounds.

    Raises CalibrationError, or TemplateError for a template that does not end or fills the memory.
    """
    return list(
        within_bounds(
            lambda item: tokenize(tokenizer, item[1], item[0])[:max_tokens],
            documents,
            lambda item: item[0],
            lambda item: len(json.dumps(item[1])),
        )
    )


def within_bounds(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    where: Callable[[Item], str],
    num_characters: Callable[[Item], int],
) -> Iterator[Any]:
    """Yield what `function`, which renders a model's template, gives for each item: values for JSON.

    Raises TemplateError, which names the item by `where`, if it takes too much for its characters.
    """

    def bounds(item: Item) -> Bounds:
        size = num_characters(item)
        return Bounds(
            seconds=FIRST_SECONDS + SECONDS_PER_CHARACTER * size,
            num_bytes=FIRST_BYTES + BYTES_PER_CHARACTER * size,
        )

    try:
        yield from map_bounded(function, items, bounds)
    except OutOfBoundsError as error:
        raise TemplateError(
            f"{where(items[error.number])}: the model's chat template or tokenizer {error}; "
            "fix the one in the checkpoint's folder"
        ) from None


def _check_vocabulary(size: int, sequences: list[list[int]]) -> None:
    largest = max(map(max, sequences))
    if largest >= size:
        raise CalibrationError(
            f"the tokenizer gives token {largest}, but the model's vocabulary has {size}; "
            "tokenizer and model do not belong together"
        )
