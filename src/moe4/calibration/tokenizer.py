"""A model's own tokenizer, loaded from its folder without running code, or not at all.

transformers loads a vocabulary whose tokenizer it does not know with a tokenizer of its own, and says
nothing: other tokens. Where the folder names a tokenizer that only its Python code can give, it is refused.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe4.arguments import argument
from moe4.calibration.kimi_code import CLASS, VOCABULARY_NAME, read_kimi_code
from moe4.checkpoint.index import CONFIG_NAME, TOKENIZER_CONFIG_NAME
from moe4.config import TokenizerConfig, parse_tokenizer_config
from moe4.config.tokenizer import TOKENIZER_NAME
from moe4.errors import CalibrationError, CheckpointError
from moe4.files.regular import read_json_object, read_text
from moe4.schema import show

TEMPLATE_NAME = "chat_template.jinja"
VOCABULARIES = (TOKENIZER_NAME, "tokenizer.*", "*.model", "*.tiktoken", "tekken.json", "vocab.*")
MOST_IDS = 1 << 24  # tokenizers' memory grows with the largest id, not with the number of tokens


def load_tokenizer(folder: Path, model_config: Any, *, trust_remote_code: bool = False) -> Any:
    """Load the model's tokenizer from its folder, never from the network. Raises CalibrationError.

    transformers makes an empty tokenizer of some classes where there is no vocabulary; moe4 refuses it.
    Kimi's code is not run even if it may be: its imports fail in transformers 5, and the ids are the same.
    """
    kimi = _load_without_code(folder, may_run=trust_remote_code)
    if kimi is not None:
        return kimi
    _check_ids(folder / TOKENIZER_NAME)
    from transformers import AutoTokenizer

    try:
        with output_to_stderr():  # tokenizers tells of odd settings on stdout, where a command's JSON goes
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), config=model_config, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises many kinds here
        raise _refused(folder, error, may_run=trust_remote_code) from error
    names = tokenizer.vocab_files_names.values()
    if names and not any((folder / name).is_file() for name in names) and not _vocabularies(folder):
        raise _no_vocabulary(folder)
    return tokenizer


def _load_without_code(folder: Path, *, may_run: bool) -> Any:
    """Return Kimi's tokenizer; None where transformers has the one that the folder names.

    Raises CalibrationError for a tokenizer that neither has, unless its code may run.
    """
    config = _read_config(folder)
    if (folder / TOKENIZER_NAME).is_file():
        return None
    named = config.code_class or _class_in_model_config(folder)
    if _is_kimi(folder, named, config):
        return _load_kimi(folder, config, may_run=may_run)
    if may_run and named is not None:
        return None
    if named is not None:
        raise CalibrationError(
            f"the tokenizer in {folder} is Python code ({named} in auto_map), and there is no "
            f"{TOKENIZER_NAME}: without its code text would be split into other tokens; "
            f"{argument('trust_remote_code', True)} runs it"
        )
    if (folder / VOCABULARY_NAME).is_file():
        raise CalibrationError(
            f"the tokenizer in {folder} is a {VOCABULARY_NAME} alone, which does not say how text is split; "
            f"add the model's {TOKENIZER_CONFIG_NAME} and the code it names, or a {TOKENIZER_NAME}"
        )
    return None


def _check_ids(path: Path) -> None:
    """Raise CalibrationError if a tokenizer's file gives a token an id that no model has room for."""
    if not path.is_file():
        return
    try:
        document = read_json_object(path)
    except CheckpointError:
        return  # transformers reads it next, and what it says is told
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            ids[str(token.get("content"))] = token.get("id")
    for token, number in ids.items():
        if isinstance(number, int) and number >= MOST_IDS:
            raise CalibrationError(
                f"{path}: the id of {show(token)} must be less than {MOST_IDS:,}, found {number}; "
                "copy the file from the model's repository again"
            )


def _read_config(folder: Path) -> TokenizerConfig:
    path = folder / TOKENIZER_CONFIG_NAME
    if not path.is_file():
        return TokenizerConfig()
    return parse_tokenizer_config(read_json_object(path), path)


def _class_in_model_config(folder: Path) -> str | None:
    """Return the tokenizer class that config.json names, where transformers would look next."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    document = read_json_object(path)
    auto_map = document.get("auto_map")
    return parse_tokenizer_config({"auto_map": auto_map}, path).code_class if auto_map else None


def _is_kimi(folder: Path, named: str | None, config: TokenizerConfig) -> bool:
    by_name = named is None and config.tokenizer_class == CLASS.rpartition(".")[2]
    return (named == CLASS or by_name) and (folder / VOCABULARY_NAME).is_file()


def _load_kimi(folder: Path, config: TokenizerConfig, *, may_run: bool) -> Any:
    """Return a tokenizer with the ids of Kimi's code; None where the code does more and may run.

    Raises CalibrationError where it does more and may not.
    """
    path = folder / TEMPLATE_NAME
    try:
        template = read_text(path) if path.is_file() else config.chat_template or ""
        code = read_kimi_code(folder, template)
    except CheckpointError as error:
        if may_run:
            return None
        raise CalibrationError(
            f"the tokenizer in {folder} is Python code that moe4 cannot stand in for: {error}; "
            f"{argument('trust_remote_code', True)} runs it"
        ) from None
    from moe4.calibration.kimi_tokenizer import KimiTokenizer

    try:
        return KimiTokenizer.from_pretrained(str(folder), code=code, local_files_only=True)
    except CheckpointError as error:
        raise CalibrationError(str(error)) from None
    except Exception as error:  # as above, and what tiktoken raises
        raise _cannot_load(folder, error) from error


def _vocabularies(folder: Path) -> list[str]:
    """Return the names of the files in the folder that may hold a vocabulary."""
    return sorted({path.name for pattern in VOCABULARIES for path in folder.glob(pattern) if path.is_file()})


def _no_vocabulary(folder: Path) -> CalibrationError:
    return CalibrationError(
        f"{folder} holds no tokenizer: expected {TOKENIZER_NAME}, tokenizer.model or another vocabulary, "
        "found none; copy the model's tokenizer files there"
    )


def _refused(folder: Path, error: Exception, *, may_run: bool) -> CalibrationError:
    """Return the error for a tokenizer that transformers cannot load, with what the user can do."""
    found = _vocabularies(folder)
    if not found:
        return _no_vocabulary(folder)
    if TOKENIZER_NAME in found:
        try:
            read_json_object(folder / TOKENIZER_NAME)
        except CheckpointError as damage:
            return CalibrationError(f"{damage}; copy the model's file again")
    named = _read_config(folder).code_class or _class_in_model_config(folder)
    if named is not None:
        return _cannot_load(
            folder,
            error,
            f" ({named} in auto_map)"
            + ("" if may_run else f"; {argument('trust_remote_code', True)} runs it"),
        )
    if TOKENIZER_NAME in found:
        return _cannot_load(folder, error, f"; copy the model's {TOKENIZER_NAME} again")
    return _cannot_load(folder, error, f" (found {', '.join(found)}); add the model's {TOKENIZER_NAME}")


def _cannot_load(folder: Path, error: Exception, hint: str = "") -> CalibrationError:
    reason = str(error).strip().split("\n")[0].rstrip(" :.")
    if reason.startswith("Couldn't instantiate"):  # the rest lists what transformers tried
        reason = "transformers cannot build one from its files"
    elif "contains custom code" in reason:
        reason = "it is Python code"
    elif " " not in reason:
        reason = f"{type(error).__name__} {reason}".rstrip()
    return CalibrationError(f"the tokenizer in {folder} cannot be loaded: {reason}{hint}")


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
