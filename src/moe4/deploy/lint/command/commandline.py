"""Which words of a container's command are options of `vllm serve`: through shells and image entry points."""

import re
import shlex
from collections.abc import Sequence
from itertools import takewhile

from moe4.deploy.lint.place import Place
from moe4.deploy.lint.recognize import hide_computed

Words = list[tuple[str, Place]]
SHELLS = ("sh", "bash", "dash", "ash", "zsh")
MODULE = "vllm.entrypoints.openai.api_server"
NAME = re.compile(r"[A-Za-z_]\w*", re.A)
SEPARATORS, REDIRECTIONS = ";&|()\n", "<>"


def served_words(items: Words, image_serves: bool) -> Words | None:
    """Return what follows `vllm serve` in a command line; None where the program is not clear.

    items: command and arguments, as the file has them. image_serves: the image runs `vllm serve` by itself.
    """
    texts = [text for text, _ in items]
    if texts and texts[0].rpartition("/")[2] in SHELLS:
        return _from_script(items)
    start = _after_program(texts)
    if start is None:
        if not image_serves or (texts and not texts[0].startswith("-")):
            return None
        start = 0
    return items[start:]


def _after_program(texts: Sequence[str]) -> int | None:
    """Return where the options of vLLM begin."""
    for number, text in enumerate(texts):
        program = text.rpartition("/")[2]
        if program == "vllm" and list(texts[number + 1 : number + 2]) == ["serve"]:
            return number + 2
        if text == MODULE or program == "api_server.py":
            return number + 1
        if program == "moe4":
            return None
    return None


def _from_script(items: Words) -> Words | None:
    """Return the words of the one command in `sh -c SCRIPT NAME WORD...` that starts vLLM."""
    options = list(takewhile(lambda item: item[0].startswith("-"), items[1:]))
    position = 1 + len(options)
    if not any("c" in text for text, _ in options) or position >= len(items):
        return None
    script, place = items[position]
    given = items[position + 2 :]
    found = []
    commands = split_script(script)
    commands += [
        command for words in commands if words[0] == "eval" for command in split_script(" ".join(words[1:]))
    ]
    for words in commands:
        start = _after_program(words)
        if start is not None:
            found.append(words[start:])
    if len(found) != 1:
        return None
    result: Words = []
    for word in found[0]:
        result += given if word in ("$@", "${@}") else [(word, place)]
    return result


def script_variables(texts: Sequence[str]) -> dict[str, str]:
    """Return the variables that `sh -c SCRIPT` sets before it starts vLLM, with or without `export`.

    One that is set twice, as in the branches of an `if`, is left out.
    """
    if not texts or texts[0].rpartition("/")[2] not in SHELLS:
        return {}
    found: dict[str, str] = {}
    twice = set()
    for script in texts[1:]:
        for words in split_script(script):
            if _after_program(words) is not None:
                break
            kept = words[1:] if words[0] in ("export", "then", "do", "else") else words
            for name, equals, value in (word.partition("=") for word in kept):
                if not equals or not NAME.fullmatch(name):
                    break
                if name in found:
                    twice.add(name)
                found[name] = value
    return {name: value for name, value in found.items() if name not in twice}


def split_script(script: str) -> list[list[str]]:
    """Return a script's simple commands as words, redirections left out; none where quotes do not close."""
    lines = [line for line in script.split("\n") if not line.lstrip().startswith("#")]
    text = hide_computed("\n".join(lines).replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=SEPARATORS + REDIRECTIONS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    commands: list[list[str]] = [[]]
    redirected = False
    try:
        for word in lexer:
            if word and set(word) <= set(SEPARATORS):
                commands.append([])
                redirected = False
            elif word and set(word) <= set(SEPARATORS + REDIRECTIONS):
                redirected = True
            elif not redirected:
                commands[-1].append(word)
    except ValueError:
        return []
    return [command for command in commands if command]
