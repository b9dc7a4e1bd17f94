"""Lint files: read each as what it is, apply the rules, mend what can be mended safely."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from moe4.deploy.lint.checks.needs import Context, check_server
from moe4.deploy.lint.checks.pod import check_object, check_running
from moe4.deploy.lint.checks.service import check_services
from moe4.deploy.lint.checks.values import check_values
from moe4.deploy.lint.command.options import check_options
from moe4.deploy.lint.command.shell import Script, check_script, read_servers
from moe4.deploy.lint.finding import RULES, Finding
from moe4.deploy.lint.gather import gather
from moe4.deploy.lint.place import Document, entries, get
from moe4.deploy.lint.quadlet import read_unit
from moe4.deploy.lint.render import Rendering, render, sort_files
from moe4.deploy.lint.schema import Schemas
from moe4.deploy.lint.server import DescribedServer
from moe4.deploy.lint.unread import check_read, refuse_file, refuse_template, unread
from moe4.deploy.manifests.documents import parse
from moe4.errors import CheckpointError, DeployError, MissingFileError
from moe4.files.durable import check_output, write_output
from moe4.files.regular import read_bytes

MAX_BYTES = 4 << 20  # of a manifest or a script
YAML_SUFFIXES = (".yaml", ".yml", ".json")
UNIT_SUFFIX = ".container"
FENCE = re.compile(r"^\s*(```+|~~~+)\s*([A-Za-z]*)")
TABS = re.compile(r"(?<=\S)[ \t]*\t[ \t]*(?=#|$)|^[ \t]*\t[ \t]*(?=#|$)", re.MULTILINE)
SHELLS = ("sh", "bash", "shell", "console", "zsh")


@dataclass(kw_only=True, slots=True)
class LintedFile:
    """One file, read: its documents, its scripts, and what it is written back from.

    is_rendered: the text is what a program made of the file, so that places in it are none of the file's.
    """

    file: Path
    text: str
    documents: list[Any] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    units: list[DescribedServer] = field(default_factory=list)
    is_yaml: bool = False
    is_rendered: bool = False


def lint_files(files: Sequence[Path], context: Context, schemas: Schemas | None) -> list[Finding]:
    """Return the findings of all files, which are looked at together, by file and line.

    Raises MissingFileError.
    """
    plain, renderings = sort_files(files)
    return _lint([_read(file) for file in plain], renderings, context, schemas)


def fix_files(files: Sequence[Path], context: Context, schemas: Schemas | None) -> list[Finding]:
    """Mend what is safe to mend, write those files, and return the findings that were mended."""
    plain, renderings = sort_files(files)
    sources = [_read(file) for file in plain]
    findings = _lint(sources, renderings, context, schemas)
    mended = [finding for finding in findings if finding.repair is not None]
    for finding in mended:
        assert finding.repair is not None
        finding.repair()
    changed = [source for source in sources if any(finding.file == source.file for finding in mended)]
    for source in changed:
        check_output(source.file)
    for source in changed:
        _write(source)
    return mended


def _lint(
    sources: list[LintedFile], renderings: list[Rendering], context: Context, schemas: Schemas | None
) -> list[Finding]:
    findings: list[Finding] = []
    documents: list[Document] = []
    servers: list[DescribedServer] = []
    for source in sources:
        findings += _parse(source)
    rendered = []
    for rendering in renderings:
        texts, not_read = render(rendering)
        findings += [] if not_read is None else [not_read]
        rendered += [LintedFile(file=item.file, text=item.text, is_rendered=True) for item in texts]
    for source in rendered:
        findings += _parse_yaml(source, source.text)
    for source in [*sources, *rendered]:
        start = (1, 1) if source.is_rendered else None
        documents += [item for data in source.documents for item in _objects(source.file, data, start)]
        for script in source.scripts:
            findings += check_script(script)
            servers += read_servers(script)
        servers += source.units
    for document in documents:
        if schemas is not None:
            findings += schemas.check(document)
        findings += check_object(document)
        findings += check_values(document)
    described = gather(documents)
    for document in documents:
        findings += check_read(document, described)
    findings += check_services(documents, described)
    servers += described
    for server in servers:
        findings += check_options(server)
        findings += check_server(server, context)
        findings += check_running(server, context)
    mendable = {source.file for source in sources if source.is_yaml}
    findings = [
        item if not item.path or item.file in mendable else replace(item, repair=None) for item in findings
    ]
    unique = {(item.rule, item.file, item.line, item.column, item.path, item.why): item for item in findings}
    return sorted(unique.values(), key=lambda item: (str(item.file), item.line, item.column, item.rule))


def _objects(file: Path, data: Any, start: tuple[int, int] | None) -> list[Document]:
    """Return a document, or the objects of a list such as `kubectl get -o yaml` prints, or of a template."""
    if get(data, "kind") == "Template" and isinstance(get(data, "objects"), list):
        return [item for part in entries(get(data, "objects")) for item in _objects(file, part, start)]
    if str(get(data, "kind") or "").endswith("List") and isinstance(get(data, "items"), list):
        return [item for part in entries(get(data, "items")) for item in _objects(file, part, start)]
    return [Document(file=file, data=data, start=start)]


def _read(file: Path) -> LintedFile:
    try:
        text = read_bytes(file, MAX_BYTES).decode()
    except MissingFileError:
        raise MissingFileError(f"{file} does not exist") from None
    except CheckpointError as error:
        raise DeployError(str(error)) from None
    except UnicodeDecodeError as error:
        raise DeployError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise DeployError(f"{file} contains null characters, so it is not text")
    return LintedFile(file=file, text=text)


def _parse(source: LintedFile) -> Iterator[Finding]:
    """Read a file as what its name says it is."""
    file, lines = source.file, source.text.splitlines()
    refusal = refuse_file(file, source.text)
    if refusal is not None:
        yield refusal
    elif file.suffix in YAML_SUFFIXES:
        source.is_yaml = True
        yield from _parse_yaml(source, source.text)
        if not source.documents and not any(character not in "-.# \t\r\n" for character in _bare(lines)):
            yield unread(file, "the file contains no object", "give the file that is deployed")
    elif file.suffix == UNIT_SUFFIX:
        try:
            source.units = list(read_unit(file, source.text))
        except ValueError as error:
            yield _unreadable(file, f"the unit cannot be read: {error}")
    elif file.suffix == ".md":
        for language, block in _blocks(lines):
            if language in SHELLS:
                source.scripts.append(Script(file=file, lines=block))
            elif language in ("yaml", "yml"):
                yield from _parse_yaml(source, "\n".join(block))
    else:
        source.scripts.append(Script(file=file, lines=lines))


def _bare(lines: list[str]) -> str:
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def _parse_yaml(source: LintedFile, text: str) -> Iterator[Finding]:
    try:
        source.documents += _parse_as_kubectl(text, str(source.file))
    except DeployError as error:
        template = refuse_template(source.file, text)
        yield _unreadable(source.file, str(error)) if template is None else template


def _parse_as_kubectl(text: str, where: str) -> list[Any]:
    """Parse YAML; tabs before comments and at the ends of lines, which kubectl's reader takes, are blanks."""
    try:
        return parse(text, where)
    except DeployError:
        blanks = TABS.sub(lambda found: found.group().replace("\t", " "), text)
        if blanks == text:
            raise
        return parse(blanks, where)


def _unreadable(file: Path, why: str) -> Finding:
    place = re.search(r"line (\d+), column (\d+)(?!.*line \d+, column)", why)
    return Finding(
        rule="file-unreadable",
        level=RULES["file-unreadable"].level,
        file=file,
        line=int(place[1]) if place else 1,
        column=int(place[2]) if place else 1,
        path="",
        why=why,
        fix="correct it",
    )


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the language and text of Markdown's code blocks, at the lines they stand on."""
    opened, language, block = "", "", list[str]()
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if opened and fence and fence[1].startswith(opened) and not fence[2]:
            yield language, block
            opened = ""
        elif opened:
            block.append(line)
        elif fence:
            opened, language = fence[1], fence[2].lower()
            block = [""] * (number + 1)  # so that a block's lines have the file's numbers


def _write(source: LintedFile) -> None:
    """Write a mended file, YAML with its comments and indentation."""
    if source.is_yaml:
        writer = YAML()
        writer.width = 4096
        dashes = re.search(r"^( *)[^\s#-][^\n]*:[^\S\n]*\n( *)- ", source.text, re.MULTILINE)
        offset = len(dashes[2]) - len(dashes[1]) if dashes else 2
        writer.indent(mapping=2, sequence=2 + offset, offset=offset)
        writer.explicit_start = source.text.startswith("---")
        stream = io.StringIO()
        writer.dump_all(source.documents, stream)
        text = stream.getvalue()
    else:
        # Scripts in one file keep its line numbers, so the last lines that differ are the mended ones.
        lines = source.text.splitlines()
        for script in source.scripts:
            for number, line in enumerate(script.lines):
                if line:
                    lines[number] = line
        text = "\n".join(lines) + "\n"
    write_output(source.file, text)
