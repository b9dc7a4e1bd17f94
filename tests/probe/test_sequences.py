"""The sequences: of all kinds and lengths, never changing, with text for what a template refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL
from transformers import PreTrainedTokenizerFast

from moe4.errors import ProbeError
from moe4.probe.sequences import choose_sequences

CALL = "<|tool_calls_section_begin|>"


def load(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reference model's tokenizer, for a test to change."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE_MODEL / name, tmp_path)
    return tmp_path


def test_kinds_and_lengths() -> None:
    tokenizer = load(REFERENCE_MODEL)
    chosen, remarks = choose_sequences(tokenizer, 2560)
    assert Counter(sequence.kind for sequence in chosen) == {
        "chat": 20,
        "tool_call": 12,
        "tool_result": 12,
        "text": 20,
    }
    assert remarks == []
    lengths = sorted(len(sequence.tokens) for sequence in chosen)
    assert lengths[0] == 8
    assert lengths[-1] <= 512
    assert sum(length > 256 for length in lengths) >= 2
    assert {15, 16, 17, 127, 128, 129} <= set(lengths)
    assert len({tuple(sequence.tokens) for sequence in chosen}) == 64
    # Chats end at the start of an answer and inside one; calls before the call and within it.
    texts = {kind: [] for kind in ("chat", "tool_call", "tool_result")}
    for sequence in chosen:
        if sequence.kind in texts:
            texts[sequence.kind].append(tokenizer.decode(sequence.tokens).rpartition("<|im_assistant|>")[2])
    for kind, ends in texts.items():
        assert sum(end == "assistant<|im_middle|>" for end in ends) == len(ends) / 2, kind
    assert sum(CALL in end for end in texts["tool_call"]) == 6
    assert not any(CALL in end for end in texts["tool_result"])


def test_they_never_change(folder: Path) -> None:
    """A template that asks for the date is always told the same one."""
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %B %Y %H:%M:%S') }}" + template.read_text())
    first, second = (choose_sequences(load(folder), 2560) for _ in range(2))
    assert first == second
    assert "01 January 2025 00:00:00" in load(folder).decode(first[0][0].tokens)


@pytest.mark.parametrize(
    ("template", "kinds", "remark"),
    [
        (None, {"text": 64}, "text in place of 10 of 10 chats: a built-in prompt: the model's chat template"),
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
            {"text": 44, "chat": 20},
            "text in place of all chats with tools: the model's chat template leaves out the tools",
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}"
            "{% endif %}{{ tools }}{{ m['content'] }}\n{% endfor %}",
            {"text": 48, "chat": 16},
            "text in place of 2 of 10 chats: a built-in prompt: the model's chat template refuses this "
            "document, as a server would: no system turns",
        ),
    ],
    ids=["no template", "no tools", "no system turn"],
)
def test_text_stands_in_for_what_a_template_refuses(
    template: str | None, kinds: dict[str, int], remark: str, folder: Path
) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    chosen, remarks = choose_sequences(load(folder), 2560)
    assert Counter(sequence.kind for sequence in chosen) == kinds
    assert any(found.startswith(remark) for found in remarks), remarks
    assert len({tuple(sequence.tokens) for sequence in chosen}) == 64


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(
        ProbeError, match=r"gives token \d+, but the model's vocabulary has 100; tokenizer and"
    ):
        choose_sequences(load(REFERENCE_MODEL), 100)
