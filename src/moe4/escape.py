"""Text written in another language: one function for each, whatever the text holds.

Names of releases, tensors, tasks and model types come from files that anybody may have written. They reach
shells, units, manifests, pages and terminals only through these functions.
"""

import os
import re
import shlex
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

# What moves the cursor, ends a line, turns the direction of what follows or is not seen at all. Surrogates
# stand for bytes of file names that are not UTF-8. Joiners (U+200C, U+200D) stay, for scripts and emoji.
_HIDDEN = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(f"[{_HIDDEN}]")
_UNSEEN_IN_LINES = re.compile(f"(?![\n\t])[{_HIDDEN}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# What Markdown takes for markup anywhere, and what only in some places: underscores at the edge of a word,
# addresses, and the beginnings of lists, headings and tables.
_MARKDOWN = re.compile(
    r"[\\`*\[\]<>&|~#!$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.(?=\w)|^[-+=]|^\d+(?=[.)](?:\s|$))", re.I
)
_PLAIN_CODE = re.compile(r"[\w./:=+,()-][\w ./:=+,()-]*", re.A)


def visible(text: str) -> str:
    r"""Return one line in which nothing is hidden: `\n`, `\x1b`, `\u202e` for what would not be seen."""
    return _UNSEEN.sub(_spell, text)


def visible_lines(text: str) -> str:
    """Return the text for a terminal: as `visible`, but its newlines and tabs are its own."""
    return _UNSEEN_IN_LINES.sub(_spell, text)


def comment(text: str) -> str:
    """Return the text as a comment line of a shell script, a systemd unit or YAML."""
    return f"# {visible(text)}".rstrip()


def shell_word(text: str) -> str:
    """Return the text as one word of a shell; characters that are not seen take bash's form `$'...'`."""
    if not _UNSEEN.search(text):
        return shlex.quote(text)
    inner = text.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{_UNSEEN.sub(_spell_for_shell, inner)}'"


def shell_line(words: Iterable[str]) -> str:
    """Return the words as one command of a shell."""
    return " ".join(map(shell_word, words))


def dollars(text: str) -> str:
    """Return the text where compose and Kubernetes put variables in: `$$` is a dollar sign."""
    return text.replace("$", "$$")


def unit_text(text: str) -> str:
    """Return the text as a systemd setting that is shown, such as Description."""
    return visible(text).replace("\\", r"\x5c").replace("%", "%%")


def unit_value(text: str) -> str:
    """Return the text as a value of a quadlet's [Container] that podman takes whole, such as Volume.

    It ends up in ExecStart, where systemd puts specifiers and variables in. The text must hold no line's end.
    """
    return dollars(visible(text).replace("%", "%%"))


def unit_word(text: str) -> str:
    """Return the text as one word of a quadlet's Exec, Environment or PodmanArgs, which podman splits."""
    value = unit_value(text)
    if re.fullmatch(r"[\w@%+=:,./$-]+", value, re.A):
        return value
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


def toml_string(text: str) -> str:
    """Return the text as a string of TOML."""
    quoted = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{_UNSEEN.sub(_spell_for_toml, quoted)}"'


def markdown_text(text: str) -> str:
    """Return the text as Markdown's inline text, also in a cell of a table: no markup, link or HTML."""
    return _MARKDOWN.sub(_as_entities, visible(text.strip()))


def markdown_code(text: str) -> str:
    """Return the text as inline code of Markdown, also in a cell of a table."""
    if _PLAIN_CODE.fullmatch(text) and text == text.strip():
        return f"`{text}`"
    return f"<code>{markdown_text(text)}</code>"


def markdown_block(text: str, language: str) -> str:
    """Return the text as a block of code, fenced by more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible_lines(text).strip()}\n{fence}"


def html_text(text: str) -> str:
    """Return the text as HTML's, also in an attribute between double quotes."""
    return escape(visible(text))


def uri_path(path: str) -> str:
    """Return a file's path as the reference of a URI."""
    return quote(os.fsencode(path))


def _spell(found: re.Match[str]) -> str:
    letter = found.group()
    code = ord(letter)
    if code < 0x100:
        return _SHORT.get(letter, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spell_for_shell(found: re.Match[str]) -> str:
    """Spell a character by its bytes, which every locale's shell reads alike."""
    letter = found.group()
    is_byte = "\udc80" <= letter <= "\udcff"  # of a file name that is not UTF-8
    data = letter.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _spell_for_toml(found: re.Match[str]) -> str:
    letter, code = found.group(), ord(found.group())
    return _SHORT.get(letter) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def _as_entities(found: re.Match[str]) -> str:
    return "".join(f"&#{ord(letter)};" for letter in found.group())
