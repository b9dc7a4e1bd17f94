"""A tokenizer for Kimi's `tiktoken.model` that gives the ids of the code that comes with it.

The library tiktoken splits and merges, as it does for that code: a tokenizer of another library merges some
runs of letters in another order. Imported where it is needed, for it brings transformers.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiktoken
from transformers import PythonBackend

from moe4.calibration.kimi_code import PATTERN, VOCABULARY_NAME, KimiCode
from moe4.errors import CheckpointError
from moe4.files.regular import read_bytes

# Lengths beyond which the code cuts text before it is encoded, in characters.
LONGEST_PIECE, LONGEST_RUN = 400_000, 25_000


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return byte strings by rank: a line each, base64 and a number. Raises CheckpointError."""
    ranks: dict[bytes, int] = {}
    lines = read_bytes(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"{path}:{number} must be a base64 string and its rank") from None
    if sorted(ranks.values()) != list(range(len(lines))) or not ranks:
        raise CheckpointError(f"{path} must give {len(lines)} byte strings the ranks from 0, each once")
    missing = next((byte for byte in range(256) if bytes((byte,)) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{path} has no rank for the byte {missing}, so some text has no tokens")
    return ranks


class KimiTokenizer(PythonBackend):  # type: ignore[misc]
    """Kimi's tokenizer. Token strings are bytes as byte-level tokenizers write them."""

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}  # noqa: RUF012  (transformers reads it off the class)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        code: KimiCode | None = None,
        added_tokens_decoder: dict[int, Any] | None = None,
        **options: Any,
    ) -> None:
        self._code = code or KimiCode()
        ranks = read_ranks(Path(vocab_file))
        named = {number: str(token) for number, token in (added_tokens_decoder or {}).items()}
        self._special = {
            named.get(number, f"<|reserved_token_{number}|>"): number
            for number in range(len(ranks), len(ranks) + self._code.num_special)
        }
        self._model = tiktoken.Encoding(
            VOCABULARY_NAME, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self._special
        )
        self._characters = byte_characters()
        self._bytes = {character: byte for byte, character in enumerate(self._characters)}
        self._strings = {number: self._spell(token) for token, number in ranks.items()}
        self._strings.update((number, self._spell(name.encode())) for name, number in self._special.items())
        self._ids = {text: number for number, text in sorted(self._strings.items())}
        super().__init__(added_tokens_decoder=added_tokens_decoder or {}, **options)

    @property
    def vocab_size(self) -> int:
        """Ids, special ones included."""
        return int(self._model.n_vocab)

    def get_vocab(self) -> dict[str, int]:
        """Return ids by token string."""
        return self._ids

    def apply_chat_template(self, conversation: Any, tools: Any = None, **options: Any) -> Any:
        """Render a chat as the code that comes with the vocabulary does."""
        if self._code.sorts_tools:
            tools = sort_keys(tools)
        options = {**self._code.template_values, **options}
        return super().apply_chat_template(conversation, tools=tools, **options)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        pieces = (text[start : start + LONGEST_PIECE] for start in range(0, len(text), LONGEST_PIECE))
        return [
            self._strings[number]
            for piece in pieces
            for part in cut_runs(piece, LONGEST_RUN)
            for number in self._model.encode(part, allowed_special="all")
        ]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._strings.get(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of token strings."""
        data = bytes(self._bytes[character] for token in tokens for character in token)
        return data.decode(errors="replace")

    def _spell(self, token: bytes) -> str:
        return "".join(self._characters[byte] for byte in token)


def byte_characters() -> list[str]:
    """Return the character that byte-level tokenizers write for each byte: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]


def cut_runs(text: str, longest: int) -> Iterator[str]:
    """Yield text in pieces that have no more than `longest` characters in a row with or without space."""
    start, run, was_space = 0, 0, text[:1].isspace()
    for place, character in enumerate(text):
        is_space = character.isspace()
        run = 1 if is_space != was_space else run + 1
        was_space = is_space
        if run > longest:
            yield text[start:place]
            start, run = place, 1
    yield text[start:]


def sort_keys(value: Any) -> Any:
    """Return JSON with the keys of every object in order."""
    if isinstance(value, dict):
        return {key: sort_keys(entry) for key, entry in sorted(value.items())}
    return [sort_keys(entry) for entry in value] if isinstance(value, list) else value
