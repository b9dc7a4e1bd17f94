"""Command lines: split a script as a shell would, and look at what curl and podman are told."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.place import Document, Place, whole
from moe4.deploy.lint.quadlet import DEVICE_FILES
from moe4.deploy.lint.recognize import runs_vllm
from moe4.deploy.lint.server import DescribedServer

PLACEHOLDER = re.compile(r"<[A-Za-z][A-Za-z0-9 _.-]*>")
RUNNERS = ("podman", "docker")
OPERATORS = ";|&<>"
BODY_FLAGS = ("-d", "--data", "--data-raw", "--json", "--data-binary")
# Options of curl that take a value and none that is an address.
VALUE_FLAGS = frozenset(
    (
        *BODY_FLAGS,
        *("-H", "--header", "-X", "--request", "-o", "--output", "-u", "--user", "-b", "-F", "--form"),
        *("-m", "--max-time", "-w", "--write-out", "--cacert", "--resolve", "--retry", "--connect-timeout"),
    )
)
# Options of `podman run` that take no value.
SWITCHES = re.compile(
    r"--(rm|detach|interactive|tty|init|privileged|read-only|replace|no-healthcheck)|-[ditP]+"
)


@dataclass(kw_only=True, slots=True)
class Script:
    """A file's lines; repairs change them."""

    file: Path
    lines: list[str]

    def place(self, line: int, column: int = 1) -> Place:
        """Return a place in the file, counted from 1."""
        return Place(document=Document(file=self.file, start=(line, column)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShellCommand:
    """One command, over the lines `first` to `last`, counted from 1."""

    first: int
    last: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words up to a pipe, redirection or the like; without quotes and variables set before it."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=OPERATORS)
        lexer.whitespace_split = True
        try:
            words = list(takewhile(lambda word: not set(word) <= set(OPERATORS) or not word, lexer))
        except ValueError:
            words = self.text.split()
        while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
            words.pop(0)
        return words[1:] if words[:1] in (["$"], ["sudo"]) else words


def check_script(script: Script) -> Iterator[Finding]:
    """Yield what is wrong with a script's curl and podman commands."""
    commands, broken = split_commands(script)
    yield from broken
    for command in commands:
        words = command.words
        program = words[0].rpartition("/")[2] if words else ""
        if program in (*RUNNERS, "curl"):
            yield from _placeholders(script, command)
        if program == "curl":
            yield from _curl(script, command)


def read_servers(script: Script) -> Iterator[DescribedServer]:
    """Yield the vLLM servers that the script's podman or docker commands start."""
    for command in split_commands(script)[0]:
        words = command.words
        if len(words) > 1 and words[0].rpartition("/")[2] in RUNNERS and words[1] == "run":
            server = _read_run((command.first, 1), script.file, words[2:])
            if runs_vllm(str(server.images[0].value), command.text):
                yield server


def split_commands(script: Script) -> tuple[list[ShellCommand], list[Finding]]:
    """Split a script into commands; lines that should have been joined are, with a finding."""
    commands: list[ShellCommand] = []
    findings: list[Finding] = []
    first, quote = 0, ""
    parts: list[str] = []
    for number, line in enumerate(script.lines, start=1):
        if not parts:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            first = number
        quote = _quote_after(line, quote)
        stripped = line.rstrip()
        if not quote and stripped.endswith("\\") and stripped != line:
            findings.append(_blank_after_backslash(script, number))
            parts.append(stripped[:-1] + " ")
            continue
        if not quote and line.endswith("\\"):
            parts.append(line[:-1])
            continue
        parts.append(line)
        if quote:
            continue
        following = script.lines[number] if number < len(script.lines) else ""
        if _is_ours(parts) and re.match(r"\s*(-[A-Za-z]\b|--[a-z])", following):
            findings.append(_missing_backslash(script, number))
            continue
        commands.append(ShellCommand(first=first, last=number, text="\n".join(parts)))
        parts = []
    if parts:
        commands.append(ShellCommand(first=first, last=len(script.lines), text="\n".join(parts)))
    if quote:
        why = f"a {'single' if quote == chr(39) else 'double'} quote is never closed"
        findings.append(script.place(first).find("shell-quotes", why, "close it"))
    return commands, findings


def _is_ours(parts: list[str]) -> bool:
    words = parts[0].replace("$", " ").split()
    return any(word in ("curl", *RUNNERS) for word in words[:3])


def _quote_after(line: str, quote: str) -> str:
    """Return the quote that is open at the line's end."""
    position = 0
    while position < len(line):
        letter = line[position]
        if letter == "\\" and quote != "'":
            position += 1
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (position == 0 or line[position - 1].isspace()):
            break
        position += 1
    return quote


def _missing_backslash(script: Script, number: int) -> Finding:
    def repair() -> None:
        script.lines[number - 1] += " \\"

    why = (
        "the command ends here; the shell runs the next line, which begins with an option, as another command"
    )
    place = script.place(number, len(script.lines[number - 1]) + 1)
    return place.find("shell-continuation", why, "end the line with a backslash", repair)


def _blank_after_backslash(script: Script, number: int) -> Finding:
    def repair() -> None:
        script.lines[number - 1] = script.lines[number - 1].rstrip()

    why = "the backslash quotes the blank after it, not the line's end"
    place = script.place(number, len(script.lines[number - 1].rstrip()))
    return place.find("shell-continuation", why, "remove the blank", repair)


def _placeholders(script: Script, command: ShellCommand) -> Iterator[Finding]:
    quote = ""
    for number in range(command.first, command.last + 1):
        line = script.lines[number - 1]
        for found in PLACEHOLDER.finditer(line):
            if not _quote_after(line[: found.start()], quote):
                why = f"the shell reads {found.group()} as two redirections, from one file and into another"
                place = script.place(number, found.start() + 1)
                yield place.find("shell-placeholder", why, "use a variable, such as $HOST")
        quote = _quote_after(line, quote)


def _curl(script: Script, command: ShellCommand) -> Iterator[Finding]:
    words = command.words[1:]
    place = script.place(command.first)
    takes_value = False
    addresses = []
    for word in words:
        if not takes_value and not word.startswith("-"):
            addresses.append(word)
        takes_value = not takes_value and word in VALUE_FLAGS
    if not addresses and "--url" not in words:
        yield place.find("curl-url", "curl has no address", "add the server's, with /v1/...")
    for flag, word in pairwise(words):
        if flag in BODY_FLAGS and word.lstrip().startswith(("{", "[")):
            try:
                json.loads(word)
            except ValueError as error:
                why = f"the body is not JSON: {error}"
                yield place.find("curl-json", why, "quote the body in single quotes, and close all braces")


def _read_run(start: tuple[int, int], file: Path, words: list[str]) -> DescribedServer:
    """Return the server of `podman run WORDS`."""
    options: list[tuple[str, str]] = []
    position = 0
    while position < len(words) and words[position].startswith("-"):
        name, equals, value = words[position].partition("=")
        if not equals and not SWITCHES.fullmatch(name):
            position += 1
            value = words[position] if position < len(words) else ""
        options.append((name, value))
        position += 1
    variables = [value.partition("=") for name, value in options if name in ("--env", "-e")]
    data = {
        "image": words[position] if position < len(words) else "",
        "env": {name: {"value": value} for name, _, value in variables},
    }
    place = Place(document=Document(file=file, data=data, start=start))
    server = DescribedServer(
        place=place, kind="podman", flags_place=place, on_host=True, images=[place / "image"]
    )
    server.variables = {name: place / "env" / name for name, _, _ in variables}
    entrypoint = [value for name, value in options if name == "--entrypoint"]
    server.command = [(word, place) for word in [*entrypoint, *words[position + 1 :]]]
    server.has_program = bool(entrypoint)
    server.read_flags(server.command)
    devices = [value for name, value in options if name == "--device" and "gpu" in value]
    counts = [value for name, value in options if name == "--gpus"]
    server.all_gpus = "all" in counts or any(value.endswith("=all") for value in devices)
    server.num_gpus = 0 if server.all_gpus else len(devices)
    server.claims = any(name == "--device" and value.startswith(DEVICE_FILES) for name, value in options)
    number = whole(counts[0]) if counts else None
    if number is not None:
        server.num_gpus = number
    for name, value in options:
        if name == "--shm-size" or (name == "--ipc" and value == "host" and server.shm is None):
            server.shm, server.shm_size = place, value
        elif name in ("--memory", "-m"):
            server.memory = value
    return server
