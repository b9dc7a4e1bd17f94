"""Calibration documents to token ids, through the model's own tokenizer and chat template."""

import datetime
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from moe4 import reference
from moe4.bounded import Bounds, OutOfBoundsError, map_bounded
from moe4.calibration.formats import Document, join_parts, parse_line
from moe4.checkpoint.index import TOKENIZER_CONFIG_NAME
from moe4.config import parse_tokenizer_config
from moe4.config.tokenizer import TOKENIZER_NAME
from moe4.errors import CalibrationError, CheckpointError, TemplateError
from moe4.files.regular import read_json_object, read_lines
from moe4.recipe import Calibration

Item = TypeVar("Item")
A_DAY = datetime.datetime(2025, 1, 1)  # what a chat template that asks for the date is told
# What a template may take, far more than any takes: the largest of one's own renders in some milliseconds.
FIRST_SECONDS, SECONDS_PER_CHARACTER = 10.0, 2e-5
FIRST_BYTES, BYTES_PER_CHARACTER = 1 << 30, 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Token ids of every calibration sequence, none of them empty."""

    sequences: list[list[int]]
    description: str

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
    trust_remote_code: bool = False,
) -> Corpus:
    """Tokenize calibration data: a JSONL file, or the documents of the reference model's generator.

    `model_config` is transformers' config of the model, which tells it the kind of tokenizer.
    Raises CalibrationError with the file and line of a document that cannot be used.
    """
    path = _require_path(model_folder, path)
    tokenizer = load_tokenizer(model_folder, model_config, trust_remote_code=trust_remote_code)
    description = path.name.encode(errors="replace").decode()  # goes into the report, which is UTF-8
    if reference.is_asked_for(path):
        description = f"k2tiny.corpus, seed {settings.seed}"
    documents = read_documents(model_folder, settings, path)
    sequences = tokenize_all(tokenizer, documents, settings.max_sequence_tokens)
    _check_vocabulary(int(model_config.vocab_size), sequences)
    return Corpus(sequences=sequences, description=description)


def read_documents(
    model_folder: Path, settings: Calibration, path: Path | None
) -> list[tuple[str, Document]]:
    """Return (place, document) of what calibrates, without a tokenizer. Raises CalibrationError."""
    path = _require_path(model_folder, path)
    if reference.is_asked_for(path):
        return read_reference(settings.num_sequences, settings.seed)
    return list(_sample(read_jsonl(path), settings))


def _require_path(model_folder: Path, path: Path | None) -> Path:
    if path is None:
        raise CalibrationError(
            f"GPTQ needs calibration data for {model_folder}: give --calibration FILE.jsonl, with lines like "
            '{"messages": [{"role": "user", "content": "..."}]} or {"text": "..."}'
        )
    return path


def read_reference(num_documents: int, seed: int) -> list[tuple[str, Document]]:
    """Return (place, document) from the reference model's generator. Raises MissingDependencyError."""
    drawn = reference.generate_documents(num_documents, seed)
    return [(f"document {number} of the generator", document) for number, document in enumerate(drawn)]


def read_jsonl(path: Path) -> Iterator[tuple[str, Document]]:
    """Yield (`file:line`, document) for every line that is not blank. Raises CalibrationError."""
    found = False
    try:
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                found = True
                yield f"{path}:{number}", parse_line(line, f"{path}:{number}")
    except CheckpointError as error:
        raise CalibrationError(f"calibration file {error}") from None
    if not found:
        raise CalibrationError(f"calibration file {path} holds no documents")


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
            "mend the one in the checkpoint's folder"
        ) from None


def tokenize(
    tokenizer: Any, document: Document, where: str, *, add_generation_prompt: bool = False
) -> list[int]:
    """Return one document's token ids, every day the same. Raises CalibrationError if a template refuses it.

    add_generation_prompt: whether a chat ends with the start of the assistant's next turn.
    """
    try:
        if "text" in document:
            ids = tokenizer(document["text"])["input_ids"]
        else:
            messages = document["messages"]
            if any(isinstance(message.get("content"), list) for message in messages):
                messages = messages if _reads_parts(tokenizer) else join_parts(messages)
            ids = tokenizer.apply_chat_template(
                messages,
                tools=document.get("tools"),
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                strftime_now=A_DAY.strftime,
            )
    except MemoryError:
        raise
    except Exception as error:  # a template is code that comes with the model; it may raise anything
        reason = str(error).replace("\n", " ")
        raise CalibrationError(
            f"{where}: the model's chat template refuses this document: {reason}"
        ) from error
    if not ids:
        raise CalibrationError(f"{where}: the document has no tokens")
    return [int(token) for token in ids]


def _reads_parts(tokenizer: Any) -> bool:
    """Say whether the chat template takes a message's content as a list of parts."""
    text = "parts"
    contents = (text, [{"type": "text", "text": text}])
    chats = [[{"role": "user", "content": content}] for content in contents]
    whole, apart = (tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats)
    return bool(whole == apart)


def load_tokenizer(folder: Path, model_config: Any, *, trust_remote_code: bool = False) -> Any:
    """Load the model's tokenizer from its folder, never from the network. Raises CalibrationError."""
    from transformers import AutoTokenizer

    _refuse_code(folder, trust_remote_code)
    try:
        with output_to_stderr():  # tokenizers tells of odd settings on stdout, where a command's JSON goes
            return AutoTokenizer.from_pretrained(
                str(folder), config=model_config, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises many kinds here
        reason = str(error).strip().split("\n")[0]
        hint = "" if trust_remote_code else "; if it is the model's own code, --trust-remote-code runs it"
        raise CalibrationError(f"the tokenizer in {folder} cannot be loaded: {reason}{hint}") from error


@contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send to stderr what anything in this process writes to the system's stdout, libraries in C included."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _refuse_code(folder: Path, trust_remote_code: bool) -> None:
    """Raise CalibrationError for a tokenizer that is Python code alone, unless that may run."""
    path = folder / TOKENIZER_CONFIG_NAME
    if trust_remote_code or not path.is_file():
        return
    config = parse_tokenizer_config(read_json_object(path), path)
    if config.needs_own_code(folder):
        raise CalibrationError(
            f"the tokenizer in {folder} is Python code ({path.name}: auto_map), and there is no "
            f"{TOKENIZER_NAME}: without its code text would be split into other tokens; "
            "--trust-remote-code runs it"
        )


def _sample(documents: Iterable[tuple[str, Document]], settings: Calibration) -> list[tuple[str, Document]]:
    """Return `num_sequences` documents, each as likely as any other, in the order of the file."""
    generator = random.Random(settings.seed)
    chosen: list[tuple[int, tuple[str, Document]]] = []
    for number, document in enumerate(documents):
        if number < settings.num_sequences:
            chosen.append((number, document))
        else:
            slot = generator.randrange(number + 1)
            if slot < settings.num_sequences:
                chosen[slot] = (number, document)
    return [document for _, document in sorted(chosen, key=lambda item: item[0])]


def _check_vocabulary(size: int, sequences: list[list[int]]) -> None:
    largest = max(map(max, sequences))
    if largest >= size:
        raise CalibrationError(
            f"the tokenizer gives token {largest}, but the model's vocabulary has {size}; "
            "tokenizer and model do not belong together"
        )
