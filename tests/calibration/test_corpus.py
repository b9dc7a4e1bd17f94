"""Documents to tokens: the model's own template, seeded sampling, cutting."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import REFERENCE_MODEL, reference_config
from transformers import PreTrainedTokenizerFast

from moe4.calibration.corpus import load_corpus
from moe4.calibration.tokenizer import load_tokenizer, output_to_stderr
from moe4.config import parse_config
from moe4.errors import CalibrationError, MissingDependencyError, TemplateError
from moe4.model.architecture import build_config
from moe4.probe.sequences import choose_sequences
from moe4.recipe import Calibration

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}},
}
CHAT = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]


@pytest.fixture(scope="module")
def config() -> Any:
    """transformers' config of k2-tiny."""
    return build_config(parse_config(reference_config()))


def write_lines(path: Path, documents: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(REFERENCE_MODEL)


def test_chats_go_through_the_template_with_their_tools(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, config: Any
) -> None:
    path = write_lines(
        tmp_path / "c.jsonl", [{"messages": CHAT, "tools": [TOOL]}, {"messages": CHAT}, {"text": "hi"}]
    )
    corpus = load_corpus(REFERENCE_MODEL, config, Calibration(), path)
    with_tools = tokenizer.apply_chat_template(CHAT, tools=[TOOL], return_dict=False)
    plain = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert corpus.sequences == [with_tools, plain, tokenizer("hi")["input_ids"]]
    assert "tool_declare" in tokenizer.decode(corpus.sequences[0])
    assert corpus.num_tokens == sum(map(len, corpus.sequences))


def test_a_template_that_writes_the_date_gives_the_same_tokens_on_another_day(
    tmp_path: Path, config: Any
) -> None:
    """Else a run that is killed could not be resumed the day after."""
    model = shutil.copytree(
        REFERENCE_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}" + template.read_text())
    path = write_lines(tmp_path / "c.jsonl", [{"messages": CHAT}])
    digests = {load_corpus(model, config, Calibration(), path).digest() for _ in range(2)}
    assert len(digests) == 1


def test_sampling_is_seeded_and_keeps_the_files_order(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, config: Any
) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": f"number {number}"} for number in range(40)])

    def chosen(seed: int) -> list[int]:
        settings = Calibration(num_sequences=10, seed=seed)
        sequences = load_corpus(REFERENCE_MODEL, config, settings, path).sequences
        return [int(tokenizer.decode(sequence).split("number")[1]) for sequence in sequences]

    assert len(chosen(0)) == 10
    assert chosen(0) == sorted(chosen(0)) == chosen(0)
    assert chosen(0) != chosen(1)


def test_long_documents_are_cut(tmp_path: Path, config: Any) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": "a long story " * 50}, {"text": "short"}])
    settings = Calibration(max_sequence_tokens=16)
    lengths = [len(sequence) for sequence in load_corpus(REFERENCE_MODEL, config, settings, path).sequences]
    assert lengths[0] == 16
    assert lengths[1] < 16


def test_a_tokenizer_of_another_model_is_noticed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"text": "hello"}])
    with pytest.raises(CalibrationError, match="the model's vocabulary has 30"):
        load_corpus(
            REFERENCE_MODEL, build_config(parse_config(reference_config(vocab_size=30))), Calibration(), path
        )


def test_the_reference_documents_come_where_they_are_asked_for(config: Any) -> None:
    settings, asked = Calibration(num_sequences=12), Path("reference")
    corpus = load_corpus(REFERENCE_MODEL, config, settings, asked)
    assert len(corpus.sequences) == 12
    assert corpus.digest() == load_corpus(REFERENCE_MODEL, config, settings, asked).digest()
    other = load_corpus(REFERENCE_MODEL, config, Calibration(num_sequences=12, seed=1), asked)
    assert other.digest() != corpus.digest()


def test_no_model_is_calibrated_on_data_that_nobody_named(config: Any) -> None:
    """Not even k2-tiny itself, nor one that has its chat template."""
    with pytest.raises(CalibrationError, match=r"give calibration=.FILE\.jsonl"):
        load_corpus(REFERENCE_MODEL, config, Calibration(), None)


def test_reference_documents_that_are_not_installed(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moe4\[reference\]'"):
        load_corpus(REFERENCE_MODEL, config, Calibration(), Path("reference"))


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["code.Own", None]}, ["code.Own", None]])
def test_a_tokenizer_that_is_code_is_not_replaced_by_another(
    tmp_path: Path, config: Any, tokenizer: PreTrainedTokenizerFast, auto_map: object
) -> None:
    """transformers would read the vocabulary beside it with a tokenizer of its own, without a word."""
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    described = {"tokenizer_class": "GPT2Tokenizer", "auto_map": auto_map}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    with pytest.raises(CalibrationError, match=r"is Python code .* trust_remote_code=True runs it"):
        load_tokenizer(tmp_path, config)
    shutil.copy(REFERENCE_MODEL / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path, config)("hello")["input_ids"] == tokenizer("hello")["input_ids"]


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = [
    LOOP,
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) if n < 99 }}{% endfor %}{% endmacro %}{{ f(0) }}",
    "{{ 9 ** (9 ** (messages | length + 7)) }}",
    "{{ 'x' * 999999999999 }}",
    "{{ 'x' * 99999999 * messages | length * 99 }}",
    "{% set n = namespace(x='x' * 9999) %}{% for i in range(99999) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=['x'] * 9999) %}{% for i in range(999) %}{% set n.x = n.x + n.x %}{% endfor %}"
    "{{ n.x | join('x' * 9999) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ 'x' * 99999999 }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_does_not_end_or_fills_the_memory(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr("moe4.calibration.corpus.FIRST_SECONDS", 0.3)
    monkeypatch.setattr("moe4.calibration.corpus.FIRST_BYTES", 1 << 28)
    model = shutil.copytree(
        REFERENCE_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (model / "chat_template.jinja").write_text(template)
    path = write_lines(tmp_path / "c.jsonl", [{"text": "hi"}, {"messages": CHAT}])
    with pytest.raises(
        TemplateError, match=r"c.jsonl:2: the model's chat template or tokenizer (takes|gives)"
    ):
        load_corpus(model, config, Calibration(), path)
    with pytest.raises(TemplateError, match="the built-in prompts: the model's chat template"):
        choose_sequences(load_tokenizer(model, config), 2560)


def test_what_a_library_writes_to_stdout_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("ours\n")
    with output_to_stderr():
        os.write(1, b"a library's\n")
    sys.stdout.write("ours again\n")
    assert capfd.readouterr() == ("ours\nours again\n", "a library's\n")
