"""A tokenizer that cannot be loaded ends in one line: what is missing or damaged, and what to do."""

import json
import shutil
from pathlib import Path

import pytest
from model_fixtures import REFERENCE_MODEL

from moe4.calibration.tokenizer import load_tokenizer
from moe4.errors import CalibrationError

LLAMA, CODE = (
    {"tokenizer_class": "LlamaTokenizer"},
    {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
)
NONE = r"holds no tokenizer: expected tokenizer\.json, .*found none; copy the model's tokenizer files there$"
CASES = {
    "an empty folder": ({}, NONE),
    "settings alone": ({"tokenizer_config.json": "{}", "special_tokens_map.json": "{}"}, NONE),
    # transformers makes an empty tokenizer of these, in which all text is unknown
    "a class, no vocabulary": ({"tokenizer_config.json": json.dumps(LLAMA)}, NONE),
    "an unknown class": ({"tokenizer_config.json": '{"tokenizer_class": "Nope"}'}, NONE),
    "half a file": ({"tokenizer.json": '{"version": "1.0", '}, r"\.json cannot .*; copy the model's file"),
    "a pointer of git-lfs": ({"tokenizer.json": "version https://git-lfs"}, r"\.json cannot .* again$"),
    "another JSON": ({"tokenizer.json": "{}"}, r"KeyError 'added_tokens'; copy the model's tok"),
    "an unknown format": (
        {"vocab.txt": "a\nb\n"},
        r"transformers cannot build one .* \(found vocab\.txt\); add the model's tokenizer\.json$",
    ),
    "code beside a file": (
        {"tokenizer.json": "{}", "tokenizer_config.json": json.dumps(CODE)},
        r"it is Python code \(tokenization_x\.X in auto_map\); trust_remote_code=True runs it$",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tokenizer_that_cannot_be_loaded(name: str, tmp_path: Path) -> None:
    files, said = CASES[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(CalibrationError, match=said) as caught:
        load_tokenizer(tmp_path, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["vocabulary", "added"])
def test_an_id_beyond_any_model(where: str, tmp_path: Path) -> None:
    """The library's memory grows with the largest id, and it aborts where there is none."""
    document = json.loads((REFERENCE_MODEL / "tokenizer.json").read_text())
    if where == "vocabulary":
        document["model"]["vocab"]["false"] = 1_337_982_976
    else:
        document["added_tokens"].append({**document["added_tokens"][0], "content": "false", "id": 2**32 - 1})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(
        CalibrationError, match=r'the id of "false" must be less than 16,777,216, found \d+; '
    ):
        load_tokenizer(tmp_path, None)


def test_a_vocabulary_alone_is_enough(tmp_path: Path) -> None:
    shutil.copy(REFERENCE_MODEL / "tokenizer.json", tmp_path)
    assert len(load_tokenizer(tmp_path, None)) > 1000
