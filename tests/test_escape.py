"""Text in another language: what its own reader makes of it is the text again, and nothing else."""

import json
import re
import shlex
import subprocess
from html.parser import HTMLParser

import pytest
from hostile import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from moe4 import escape

UNSEEN = ("Cc", "Cs", "Cf", "Cn", "Zl", "Zp")
TAGS_AND_SELECTORS = "".join(map(chr, range(0xE0000, 0xE1000)))  # not seen either, whatever their category
SEEN = st.text(st.characters(exclude_categories=UNSEEN, exclude_characters="\xad" + TAGS_AND_SELECTORS))


@given(text=st.text() | st.sampled_from(TEXTS))
def test_nothing_in_a_line_is_hidden(text: str) -> None:
    line = escape.visible(text)
    assert escape.visible(line) == line
    assert len((line + ".").splitlines()) == 1
    assert line.isprintable() or not set(line) & set("\x1b\r\n\t\u202e\u2028\ufeff")
    assert escape.comment(text).startswith("#")
    lines = escape.visible_lines(text)
    assert "\x1b" not in lines and lines.count("\n") == text.count("\n")


@given(text=st.text() | st.sampled_from([*TEXTS, "\x7f\x85\xad", "\U000e0001", "\udcff"]))
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_json_stays_json_and_hides_nothing(ensure_ascii: bool, text: str) -> None:
    found = escape.visible_json(json.dumps({text: [text]}, ensure_ascii=ensure_ascii, indent=1))
    assert json.loads(found) == {text: [text]}
    assert escape.visible_lines(found) == found


@given(text=SEEN)
def test_what_is_seen_stays(text: str) -> None:
    assert escape.visible(text) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "\udcff" not in text])
def test_a_shell_reads_one_word(text: str) -> None:
    script = f"printf '%s\\0' {escape.shell_word(text)} {escape.shell_line([text, 'b'])}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert ran.stdout.decode() == f"{text}\0{text}\0b\0"
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\u2028]", script)


@given(text=SEEN)
def test_what_is_seen_is_quoted_for_any_shell(text: str) -> None:
    assert shlex.split(escape.shell_word(text)) == [text]


def test_bytes_of_a_file_name_reach_the_shell() -> None:
    command = f"printf %s {escape.shell_word(chr(0xDCFF))}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout == b"\xff"


@given(text=SEEN | st.sampled_from(TEXTS))
def test_systemd_gives_the_word_back(text: str) -> None:
    assert "\n" not in escape.unit_word(text)
    (word,) = shlex.split(escape.unit_word(text)) or [""]
    assert word.replace("%%", "%").replace("$$", "$") == escape.visible(text)
    assert not re.sub("%%", "", escape.unit_text(text)).count("%")
    assert not escape.unit_text(text).endswith("\\")
    assert not re.sub(r"%%|\$\$", "", escape.unit_value(text)).count("$")


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.text += data


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize("function", [escape.markdown_text, escape.markdown_code])
@given(text=SEEN | st.sampled_from(TEXTS))
def test_markdown_shows_the_text_and_nothing_else(function: object, text: str) -> None:
    assert callable(function)
    inner = function(text)
    paragraph = Page(MARKDOWN.render(f"{inner}"))
    table = Page(MARKDOWN.render(f"| a | b |\n| --- | --- |\n| {inner} | end |\n"))
    shown = " ".join(escape.visible(text.strip()).split())
    assert " ".join(paragraph.text.split()) == shown
    assert set(paragraph.tags) <= {"p", "code"}
    assert table.tags.count("td") == 2 and set(table.tags) <= {
        *("table", "thead", "tbody", "tr", "th", "td", "code")
    }
    assert " ".join(table.text.split()) == f"a b {shown} end".replace("  ", " ")


@pytest.mark.parametrize("text", ["3.5 GB", "32", "2.13.0", "1)a", "4-bit", "1234567890"])
def test_a_number_is_no_list_and_stays(text: str) -> None:
    assert escape.markdown_text(text) == text


@pytest.mark.parametrize("text", ["1. a", "12) a", "7.", "7)"])
def test_what_would_begin_a_list_does_not(text: str) -> None:
    assert Page(MARKDOWN.render(escape.markdown_text(text))).tags == ["p"]


@given(text=st.text(st.sampled_from("`~ab\n\x1b ")))
def test_a_block_of_code_is_not_left(text: str) -> None:
    page = Page(MARKDOWN.render(escape.markdown_block(text, "bash") + "\n\nafter"))
    assert page.tags == ["pre", "code", "p"]


@given(text=st.text() | st.sampled_from(TEXTS))
def test_html_shows_the_text_and_nothing_else(text: str) -> None:
    page = Page(f'<p title="{escape.html_text(text)}">{escape.html_text(text)}</p>')
    assert page.tags == ["p"]
    assert page.text == escape.visible(text)
