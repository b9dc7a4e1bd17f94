"""Quadlet units, `NAME.container`: systemd's INI form, in which keys repeat."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from moe4.deploy.lint.place import Document, Place
from moe4.deploy.lint.recognize import runs_vllm
from moe4.deploy.lint.server import DescribedServer

DEVICE_FILES = ("/dev/kfd", "/dev/dri", "/dev/accel", "/dev/davinci", "/dev/neuron")  # no count is known


def read_unit(file: Path, text: str) -> Iterator[DescribedServer]:
    """Yield the server of a unit, with each value at its line. Raises ValueError for what is no unit."""
    entries = list(_entries(text))
    container = [(key, value, line) for section, key, value, line in entries if section == "Container"]
    named = {key: value for key, value, _ in container}
    if not runs_vllm(named.get("Image", ""), f"{named.get('Entrypoint', '')} {named.get('Exec', '')}"):
        return
    service = [(key, value, line) for section, key, value, line in entries if section == "Service"]
    start = next((line for key, _, line in container if key == "Exec"), 1)
    whole = Place(document=Document(file=file, data={}, start=(start, 1)))
    server = DescribedServer(place=whole, kind="quadlet", flags_place=whole, on_host=True, num_gpus=0)
    words: list[tuple[str, Place]] = []
    for key, value, line in container:
        here = Place(document=Document(file=file, data={key: value}, start=(line, 1)), path=(key,))
        if key == "Image":
            server.images = [here]
        elif key in ("Entrypoint", "Exec"):
            found = [(word, here) for word in shlex.split(value)]
            words += found
            server.command += found
            server.has_program = server.has_program or key == "Entrypoint"
        elif key == "PublishPort":
            server.published = True
        elif key == "Volume" and value.startswith(("/", "~", "%", ".")):
            server.host_volumes.append(here)
        elif key == "ShmSize":
            server.shm, server.shm_size = here, value
        elif key == "AddDevice" and "gpu" in value:
            server.all_gpus = server.all_gpus or value.endswith("=all")
            server.num_gpus = (server.num_gpus or 0) + (not value.endswith("=all"))
        elif key == "AddDevice" and value.startswith(DEVICE_FILES):
            server.claims = True
        elif key == "PodmanArgs" and value.startswith("--memory="):
            server.memory = value.partition("=")[2]
        elif key == "Environment":
            name, _, given = value.partition("=")
            document = Document(file=file, data={name: {"value": given}}, start=(line, 1))
            server.variables[name] = Place(document=document, path=(name,))
    server.read_flags(words)
    server.labelled = any(
        (key == "SecurityLabelDisable" and value.lower() in ("true", "yes", "1", "on"))
        or (key == "SecurityLabelType")
        or (key == "PodmanArgs" and "label" in value)
        for key, value, _ in container
    )
    restarts = [(value, line) for key, value, line in service if key == "Restart"] or [("no", start)]
    value, line = restarts[-1]
    server.restart = value, Place(document=Document(file=file, data={}, start=(line, 1)))
    yield server


def _entries(text: str) -> Iterator[tuple[str, str, str, int]]:
    """Yield (section, key, value, line); a backslash at the end joins lines. Raises ValueError."""
    section, joined, first = "", "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not joined and (not stripped or stripped[0] in "#;"):
            continue
        if not joined and stripped.startswith("["):
            section = stripped.strip("[]")
            continue
        first = first if joined else number
        joined += stripped
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        key, equals, value = joined.partition("=")
        if not equals:
            raise ValueError(f"line {first}, column 1 is neither [SECTION] nor KEY=VALUE")
        yield section, key.strip(), value.strip(), first
        joined = ""
