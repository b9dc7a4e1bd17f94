"""A release whose files hold markup where a name should be: card and page show it and hold nothing more."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import TEXTS
from markdown_it import MarkdownIt
from measured import TASK, write_measured_release
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import OutputError
from moe4.escape import visible
from moe4.publish.card import CardNames
from moe4.publish.card_file import update_card
from moe4.publish.proof import read_proof
from moe4.publish.report_page import render_report
from moe4.strict_json import is_encodable

# JSON with half a surrogate pair is refused when it is read (moe4.strict_json).
READABLE = [text for text in TEXTS if is_encodable(text)]
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class Page(HTMLParser):
    """The tags with their attributes' names, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment",))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_measured_release(tmp_path_factory.mktemp("hostile"))


def rewrite(path: Path, change: Any) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def put_into(release: Path, text: str) -> Path:
    """Put the text wherever the card and the page show a name."""

    def in_report(report: dict[str, Any]) -> None:
        report["calibration"]["data"] = text
        report["versions"]["torch"] = text
        report["versions"][text] = "1"
        report["recipe"]["note"] = text
        report["source"]["model_type"] = text
        report["summary"]["fallbacks"] = [{"matrix": text, "why": text}]
        report["release"]["shards"] = {text: {"num_bytes": 1, "sha256": "0" * 64}}

    def in_evaluation(evaluation: dict[str, Any]) -> None:
        task = evaluation["tasks"].pop(TASK)
        task["change"]["verdict"] = text
        evaluation["tasks"][text] = task

    def in_comparison(comparison: dict[str, Any]) -> None:
        comparison["data"] = text
        comparison["worst_tokens"][0] |= {"context": text, "token": text}

    def in_toolcheck(toolcheck: dict[str, Any]) -> None:
        toolcheck["requests"] = [text]
        for side in ("release", "baseline"):
            measures = toolcheck[side]["measures"]
            measures[text] = measures.pop("tool_call_f1")

    def in_config(config: dict[str, Any]) -> None:
        config["model_type"] = text
        config["license"] = text

    rewrite(release / "moe4-report.json", in_report)
    rewrite(release / "config.json", in_config)
    rewrite(release / "proof" / "evaluation.json", in_evaluation)
    rewrite(release / "proof" / "comparison.json", in_comparison)
    rewrite(release / "proof" / "toolcheck.json", in_toolcheck)
    (release / "chat_template.jinja").write_text("<|tool_calls_section_begin|>")
    return release


def parts(card: str) -> tuple[dict[str, Any], Page]:
    _, head, body = re.split(r"^---\n", card, maxsplit=2, flags=re.M)
    return yaml.safe_load(head), Page(MARKDOWN.render(body))


@pytest.mark.parametrize("text", READABLE)
def test_the_card_is_as_with_plain_names(text: str, written: Path, tmp_path: Path) -> None:
    plain = put_into(shutil.copytree(written, tmp_path / "plain"), "plain")
    hostile = put_into(shutil.copytree(written, tmp_path / text.replace("/", "_")), text)
    expected_head, expected = parts(update_card(read_proof(plain), CardNames(), None).text)
    card = update_card(read_proof(hostile), CardNames(), None).text
    head, page = parts(card)
    assert page.tags == expected.tags
    assert head.keys() == expected_head.keys()
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == text
    shown = " ".join(visible(text.strip()).split())
    assert " ".join(page.text.split()).count(shown) >= 8
    assert visible(card.replace("\n", "")) == card.replace("\n", "")
    (line,) = re.findall(r"^vllm serve .*$", page.text, re.M)
    assert re.fullmatch(r"vllm serve your-name/[A-Za-z0-9_.-]+ [a-z0-9_ -]+", line)


@pytest.mark.parametrize("text", READABLE)
def test_the_page_is_as_with_plain_names(text: str, written: Path, tmp_path: Path) -> None:
    plain = put_into(shutil.copytree(written, tmp_path / "plain"), "plain")
    hostile = put_into(shutil.copytree(written, tmp_path / text.replace("/", "_")), text)
    expected = Page(render_report(read_proof(plain)))
    written_page = render_report(read_proof(hostile))
    page = Page(written_page)
    assert page.tags == expected.tags
    assert page.text.count(visible(text)) >= 10
    assert visible(written_page.replace("\n", "")) == written_page.replace("\n", "")
    assert visible(hostile.name) in page.text


@pytest.mark.parametrize("text", READABLE)
@pytest.mark.parametrize("option", ["--repo", "--push", "--base-model", "--license"])
def test_names_for_the_hub_are_checked(option: str, text: str, written: Path) -> None:
    arguments = [f"{option}={text if option == '--license' else f'owner/{text}'}", "--dry-run"]
    result = CliRunner().invoke(app, ["card", str(written), *arguments])
    assert isinstance(result.exception, OutputError), result.output
    assert result.stdout == ""
