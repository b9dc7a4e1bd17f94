"""vLLM's options, judged as its own parser would: by the table of the version that the image's tag names.

`scripts/dump_vllm_options.py` makes the tables from vLLM itself.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Literal

from moe4.deploy.lint.command.commandline import Words, served_words
from moe4.deploy.lint.finding import Finding
from moe4.deploy.lint.server import DescribedServer
from moe4.deploy.manifests.images import vllm_version
from moe4.schema import Own
from moe4.serve.sizes import read_size

PLUGINS = {"--tool-call-parser": "--tool-parser-plugin", "--reasoning-parser": "--reasoning-parser-plugin"}
SLIP = 0.9  # of difflib: a letter or two
LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", lambda value, limit: value >= limit),
    "gt": ("more than", lambda value, limit: value > limit),
    "le": ("at most", lambda value, limit: value <= limit),
    "lt": ("less than", lambda value, limit: value < limit),
}


class VllmOption(Own):
    """An option as vLLM's parser has it; `ge` and the like bound its number."""

    kind: Literal["size", "switch", "text", "int", "float"]
    names: list[str]
    choices: list[str] | None = None
    nargs: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


Table = dict[str, VllmOption]
"""By the options' first long names."""


class Span(VllmOption):
    """An option's facts in the versions from `first` to `last`."""

    first: str
    last: str


class Spans(Own):
    """The file's form: an option's facts stand there once for all the versions in a row that share them."""

    versions: list[str]
    options: dict[str, list[Span]]


@cache
def tables() -> dict[str, Table]:
    """Return the options of each version of vLLM that has a table."""
    text = files("moe4.deploy.lint.command").joinpath("vllm_options.json").read_text(encoding="utf-8")
    spans = Spans.model_validate_json(text)
    found: dict[str, Table] = {version: {} for version in spans.versions}
    for name, rows in spans.options.items():
        for row in rows:
            first, last = spans.versions.index(row.first), spans.versions.index(row.last)
            for version in spans.versions[first : last + 1]:
                found[version][name] = row
    return found


def check_options(server: DescribedServer) -> Iterator[Finding]:
    """Yield what vLLM would refuse of a server's options; or one note that they were not judged."""
    image = str(server.images[0].value) if server.images else ""
    full = vllm_version(image) or ""
    version = full if full in tables() else full.rpartition(".")[0]
    if server.by_moe4 or server.is_helper:
        return
    if version not in tables():
        yield from _refused_by_all(server)
        if server.flags and not server.partial:
            first, *_, last = tables()
            has = f"vLLM {full}" if full else "a vLLM of unknown version"
            why = f"{image or 'the image'} has {has}: options are judged for {first} to {last}"
            yield server.flags_place.find("not-judged", why, "see that image's `vllm serve --help=all`")
        return
    words: Words | None = server.additional
    if not server.templated:
        found = served_words(server.command, image_serves=not server.has_program)
        words = None if found is None else found + server.additional
    if words is not None:
        yield from _check_words(server, words, tables()[version], version)
    elif not server.partial:
        why = "the command that starts vLLM is not in the files, so its options are not judged"
        yield server.flags_place.find("not-judged", why, "name `vllm serve` in the file")


def _refused_by_all(server: DescribedServer) -> Iterator[Finding]:
    """Yield slips in names, and values that no version takes: most likely faults, whatever the image."""
    every = list(tables().values())
    known = {name for table in every for option in table.values() for name in option.names}
    for name, (text, place) in server.flags.items():
        plain = name.partition(".")[0]
        if not name.startswith("--") or (
            plain not in known and any(other.startswith(name) for other in known)
        ):
            continue
        if plain not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=SLIP)
            if close:
                why = f"no vLLM that has a table has {name}"
                yield place.find("option-unknown", why, f"did you mean {close[0]}?", level="warning")
            continue
        facts = [table[plain] for table in every if plain in table]
        if "." in name or not facts or PLUGINS.get(plain) in server.flags:
            continue
        refusals = [_refusal(option, text, server.fill(text)) for option in facts]
        if all(refusals):
            why = f"{name} {text}: no vLLM that has a table takes it: {refusals[-1]}"
            yield place.find("option-value", why, "see `vllm serve --help=all`", level="warning")


def _refusal(facts: VllmOption, text: str, value: str | None) -> str | None:
    """Return why vLLM refuses an option's value as the file has it; None if it takes it."""
    if facts.kind == "switch" or facts.nargs is not None:
        return None
    return "it has no value" if not text else refuse_value(facts, value)


def _check_words(server: DescribedServer, words: Words, table: Table, version: str) -> Iterator[Finding]:
    by_name = {name: option for option, facts in table.items() for name in facts.names}
    given = {word.partition("=")[0].replace("_", "-") for word, _ in words}
    position, num_models = 0, 0
    while position < len(words):
        word, place = words[position]
        position += 1
        if not is_option(word):
            num_models += 0 if server.fill(word) is None else 1  # an unseen variable may be empty
            if num_models > 1:
                why = f"vLLM takes one model, and ends at {word}"
                yield place.find("option-unknown", why, "leave it out, or write the option it belongs to")
            continue
        if word.startswith("-O"):
            continue
        name, equals, value = word.partition("=")
        option = find_option(name, by_name)
        if option is None:
            why = f"vLLM {version} has no option {name}, and exits at once"
            close = difflib.get_close_matches(name, by_name, n=1)
            yield place.find("option-unknown", why, f"did you mean {close[0]}?" if close else "leave it out")
            continue
        facts = table[option]
        if facts.kind == "switch":
            if equals:
                why = f"{name} is a switch and takes no value; vLLM ends at {word}"
                yield place.find("option-value", why, f"write {name} alone, or leave it out")
            continue
        if not equals:
            values = []
            while position < len(words) and not is_option(words[position][0]):
                values.append(words[position][0])
                position += 1
                if facts.nargs is None:
                    break
            if not values and facts.nargs not in ("?", "*"):
                yield place.find("option-value", f"{name} has no value, and vLLM ends", "give it one")
            value = values[0] if len(values) == 1 else ""
        if "." in name or facts.nargs is not None or PLUGINS.get(option) in given:
            continue
        refusal = refuse_value(facts, server.fill(value))
        if refusal:
            yield place.find("option-value", f"{name} {value}: {refusal}", "see `vllm serve --help=all`")


def is_option(word: str) -> bool:
    """Say whether argparse takes a word for an option: a dash, and no negative number."""
    return word.startswith("-") and word not in ("-", "--") and not re.fullmatch(r"-[0-9.]+", word)


def find_option(name: str, by_name: dict[str, str]) -> str | None:
    """Return the option that a name stands for, as vLLM reads it: underscores, dots, unique prefixes."""
    if name.startswith("--"):
        name = "--" + name[2:].partition(".")[0].replace("_", "-")
    else:
        name = name.partition(".")[0]
    if name in by_name:
        return by_name[name]
    if not name.startswith("--"):  # -tp8
        return next((option for short, option in by_name.items() if name.startswith(short)), None)
    starting = {option for long, option in by_name.items() if long.startswith(name)}
    return starting.pop() if len(starting) == 1 else None


def refuse_value(facts: VllmOption, value: str | None) -> str | None:
    """Return why vLLM refuses an option's value; None if it takes it, or the value is not seen."""
    if value is None or value in ("", "None"):
        return None
    if facts.choices is not None:
        if value in facts.choices:
            return None
        close = difflib.get_close_matches(value, facts.choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else f": {', '.join(facts.choices[:12])}"
        return f"not one of its {len(facts.choices)} values{hint}"
    number = read_number(facts.kind, value)
    if facts.kind == "text":
        return None
    if number is None:
        return {"int": "not a whole number", "float": "not a number"}.get(
            facts.kind, "not a size such as 32768, 32k, -1 or auto"
        )
    for key, (words, holds) in LIMITS.items():
        limit: float | None = getattr(facts, key)
        if limit is not None and not holds(number, limit):
            return f"must be {words} {limit:g}"
    return None


def read_number(kind: str, text: str) -> float | None:
    """Return a value of kind int, float or size (32k) as a number; None if it is none."""
    if kind == "int":
        return int(text) if re.fullmatch(r"[-+]?[0-9]{1,18}", text) else None
    if kind == "float":
        try:
            return float(text)
        except ValueError:
            return None
    return read_size(text)
