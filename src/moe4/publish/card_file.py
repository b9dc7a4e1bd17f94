"""`moe4 card`: OUT/README.md, made of moe4's sections and of whatever else its user has written there.

Each of moe4's sections stands between two comments, of which the first has a digest of what was written. When
the card is written again, a section that is as it was written becomes the new one in its place. One that its
user has changed stays, and so does every line outside the sections. Of the front matter, what is there stays;
measured results, and names that are given anew, take the place of those before them.
"""

import hashlib
import io
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe4.checkpoint.side_files import CARD_NAME
from moe4.errors import OutputError
from moe4.escape import visible_lines
from moe4.files.durable import kind_of, write_output
from moe4.files.regular import read_text
from moe4.publish.card import CardNames, card_sections, front_matter
from moe4.publish.proof import Proof
from moe4.strict_json import JsonObject

FRONT = re.compile(r"\A---\n(.*?)^---[ \t]*\n", re.MULTILINE | re.DOTALL)
SECTION = re.compile(
    r"^<!-- moe4:(?P<name>[a-z]+) (?P<digest>[0-9a-f]{16}) -->\n(?P<body>.*?)^<!-- /moe4:(?P=name) -->$",
    re.MULTILINE | re.DOTALL,
)
REPO = re.compile(r"^<!-- moe4 card of ([A-Za-z0-9._-]+/[A-Za-z0-9._-]+) -->$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A model card and where it belongs; `str(card)` is its text.

    kept: moe4's sections that stay as their user has changed them.
    """

    path: Path
    text: str
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def remarks(self) -> list[str]:
        """What its user should know of sections that stay, a line each."""
        return [
            f"{CARD_NAME}: section {name} keeps your changes; to have moe4 write it again, remove it with "
            "its two comments"
            for name in self.kept
        ]


def card_path(out: Path) -> Path:
    """Return where the card lies in a release."""
    return out / CARD_NAME


def read_card(out: Path) -> str | None:
    """Return the card that is there, if it can be written again. Raises OutputError if it cannot."""
    path = card_path(out)
    if kind_of(path) is None:
        return None
    if kind_of(path) != "a file":
        raise OutputError(f"{path} cannot be written: it is {kind_of(path)}; move it away")
    found = read_text(path).replace("\r\n", "\n")
    _load_front(found, path)
    return found


def update_card(proof: Proof, names: CardNames, before: str | None) -> Card:
    """Return the release's card, with what its user has written into the card `before`.

    A repository that was named once need not be named again. Raises OutputError for bad names, or for front
    matter that cannot be read.
    """
    names.check()
    if before is None:
        before = ""
    elif names.repo is None and (found := REPO.search(before)):
        names = replace(names, repo=found[1])
    path = card_path(proof.folder)
    if names.base_model is None and (base := _known_base(_load_front(before, path))):
        names = replace(names, base_model=base)
    head = _merge_front(before, path, front_matter(proof, names), names)
    body = FRONT.sub("", before, count=1)
    body, kept = _merge_sections(body, card_sections(proof, names))
    if names.repo is not None:
        line = f"<!-- moe4 card of {names.repo} -->"
        body = REPO.sub(line, body, count=1) if REPO.search(body) else f"{line}\n\n{body.lstrip()}"
    return Card(path=path, text=f"---\n{head}---\n\n{body.strip()}\n", kept=kept)


def write_card(proof: Proof, names: CardNames) -> Card:
    """Write OUT/README.md; return it."""
    card = update_card(proof, names, read_card(proof.folder))
    write_output(card_path(proof.folder), card.text)
    return card


def _merge_sections(body: str, sections: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Put each section into its place, or behind the one before it; return the body and what was kept."""
    kept = []
    marked = REPO.search(body)
    end = marked.end() if marked else 0  # of what stands before the next section, in `body`
    for name, text in sections.items():
        found = next((match for match in SECTION.finditer(body) if match["name"] == name), None)
        if found is None:
            front, rest = body[:end], body[end:].lstrip("\n")
            if SECTION.search(body) is None:  # another's card stays whole, above
                front, rest = body.rstrip("\n"), ""
            block = _mark(name, text)
            body = "\n\n".join(part for part in (front, block, rest) if part)
            end = len(front) + (2 if front else 0) + len(block)
            continue
        block = found.group()
        if _digest(found["body"]) == found["digest"]:
            block = _mark(name, text)
        elif found["body"].strip() != text:
            kept.append(name)
        body = body[: found.start()] + block + body[found.end() :]
        end = found.start() + len(block)
    return body, tuple(kept)


def _mark(name: str, text: str) -> str:
    return f"<!-- moe4:{name} {_digest(text)} -->\n\n{text}\n\n<!-- /moe4:{name} -->"


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _load_front(text: str, path: Path) -> MutableMapping[str, Any]:
    """Return a card's front matter, with its comments. Raises OutputError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found = FRONT.match(text)
    try:
        data = YAML().load(found[1]) if found else None
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(
            f"{path}: its front matter is not YAML ({reason}); fix it, or move the file"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, MutableMapping):
        raise OutputError(
            f"{path}: its front matter is not a mapping of names to values; fix it, or move the file"
        )
    index = data.get("model-index", [])
    if not isinstance(index, list) or not all(isinstance(entry, MutableMapping) for entry in index):
        raise OutputError(
            f"{path}: model-index in its front matter is not a list of models; fix or remove it"
        )
    return data


def _known_base(head: Mapping[str, Any]) -> str | None:
    """Return the source's name in a card's front matter, if it has one that the hub would take."""
    found = head.get("base_model")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    try:
        CardNames(base_model=found if isinstance(found, str) else None).check()
    except OutputError:
        return None
    return found if isinstance(found, str) else None


def _merge_front(before: str, path: Path, ours: JsonObject, names: CardNames) -> str:
    """Return the front matter as YAML: the one that is there, with what is measured or named anew."""
    from ruamel.yaml import YAML

    head, found = _load_front(before, path), FRONT.match(before)
    given = {"base_model": names.base_model, "license": names.license_name}
    for key, value in ours.items():
        if key in ("tags", "metrics") and isinstance(head.get(key), list):
            head[key] += [item for item in value if item not in head[key]]
        elif key == "model-index" and head.get(key):
            _merge_results(head[key], value[0])
        elif key not in head or head[key] not in (value, given.get(key) or head[key]):
            head[key] = value
    if found and head == _load_front(before, path):
        return found[1]
    for plain in (False, True):  # letters stay letters, unless something in them would not be seen
        yaml = YAML()
        yaml.width, yaml.preserve_quotes, yaml.allow_unicode = 4096, True, not plain
        out = io.StringIO()
        yaml.dump(head, out)
        if visible_lines(out.getvalue()) == out.getvalue():
            break
    return out.getvalue()


def _merge_results(index: list[Any], ours: JsonObject) -> None:
    """Put measured results into the hub's index of them; results of other tasks and metrics stay."""
    entry = next((item for item in index if item.get("name") == ours["name"]), index[0])
    entry["name"] = ours["name"]
    new = {_result_key(result): result for result in ours["results"]}
    others = [result for result in entry.get("results") or [] if _result_key(result) not in new]
    entry["results"] = [*new.values(), *others]


def _result_key(result: Any) -> tuple[str, ...]:
    """Return the task and metrics that a result is of, or what it holds if it is none."""
    try:
        return (str(result["dataset"]["type"]), *(str(metric["type"]) for metric in result["metrics"]))
    except (KeyError, TypeError, AttributeError):
        return (repr(result),)
