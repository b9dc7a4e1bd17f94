"""Answers already given, on disk: a killed evaluation resumes, a repeated one is free.

One file a model and engine, `CACHE/<identity>.jsonl`: a line that says what it belongs to, then one line an
answer, appended as it is given. A line that a crash tore is not JSON and is passed over.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe4.errors import CheckpointError, EvaluationError
from moe4.files.durable import file_sha256, make_folder, write_output
from moe4.files.regular import read_lines, read_text
from moe4.strict_json import JsonObject

# What a model's answers depend on: weights, configs, tokenizer, chat template, code.
MODEL_SUFFIXES = frozenset((".safetensors", ".json", ".jinja", ".model", ".py", ".txt", ".tiktoken"))
NOT_THE_MODEL = frozenset(("moe4-report.json",))


def default_cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/moe4/evaluations, or the same in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "moe4" / "evaluations"


def folder_identity(folder: Path, cache_folder: Path) -> str:
    """Return a SHA-256 over every file of a model's folder.

    Hashes are kept in CACHE/hashes.json by path, size and time of change, so that a large model is read once.
    """
    make_folder(cache_folder)
    memo_path = cache_folder / "hashes.json"
    memo = _read_memo(memo_path)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in MODEL_SUFFIXES or path.name in NOT_THE_MODEL:
            continue
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = memo.get(str(path.resolve()))
        if known is None or known[:2] != stamp:
            known = [*stamp, file_sha256(path)]
            memo[str(path.resolve())] = known
        digest.update(f"{path.name} {known[2]}\n".encode())
    write_output(memo_path, json.dumps(memo))
    return digest.hexdigest()


def _read_memo(path: Path) -> dict[str, list[Any]]:
    try:
        memo = json.loads(read_text(path))
    except (CheckpointError, ValueError):  # not there yet, or torn: it is only a memo
        return {}
    return memo if isinstance(memo, dict) else {}


class AnswerCache:
    """The answers of one model through one engine, in memory and on disk."""

    def __init__(self, folder: Path, identity: JsonObject) -> None:
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        self.path = folder / f"{name}.jsonl"
        self._answers: JsonObject = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._read()
            else:
                self._append([json.dumps({"identity": identity})])
        except OSError as error:
            raise EvaluationError(f"the cache {self.path} cannot be used: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Keep answers, durably, before this returns."""
        pairs = list(answers)
        self._append([json.dumps({"key": key, "answer": answer}) for key, answer in pairs])
        self._answers.update(pairs)

    def _append(self, lines: list[str]) -> None:
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A torn line of a run that was killed is ended first.
            file.write("".join(f"\n{line}" for line in lines).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        for line in read_lines(self.path):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "key" in entry:
                self._answers[entry["key"]] = entry["answer"]


def answer_key(kind: str, arguments: Any, occurrence: int) -> str:
    """Return the key of one request: its kind, prompt and decoding, and which of its repeats it is."""
    text = json.dumps([kind, arguments, occurrence], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
