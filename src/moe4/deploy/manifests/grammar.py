"""What a cluster, a registry, the hub and podman accept as a name; anything else is refused in one line.

`option` is what a message says before the text: `--image ` or `--model oci://`.
"""

import re
from pathlib import PurePosixPath

from moe4.arguments import argument
from moe4.deploy.manifests.images import moves
from moe4.errors import DeployError
from moe4.escape import visible

LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*"
_SHORT_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUALIFIED = re.compile(rf"(?:(?P<prefix>[^/]*)/)?{_SHORT_NAME}")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# github.com/distribution/reference: a registry with its port, lower-case parts, a tag, a digest.
_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_IMAGE = re.compile(
    rf"(?P<name>(?:{_HOST}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(?P<digest>{_DIGEST}))?"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_PATH_PART = re.compile(r"[A-Za-z0-9._~@+=,-]+")


def is_repository(text: str) -> bool:
    """Say whether the hub takes this for the name of a repository, `OWNER/NAME`."""
    if not _REPOSITORY.fullmatch(text) or ".." in text or "--" in text:
        return False
    return not text.endswith(("-", ".", ".git")) and not text.partition("/")[0].endswith(("-", "."))


def is_license(text: str) -> bool:
    """Say whether this can be the hub's name of a licence, such as `apache-2.0`."""
    return _LICENSE.fullmatch(text) is not None


def check_namespace(text: str) -> None:
    """Raise DeployError unless the text is a label of DNS, as a namespace's name is."""
    if not re.fullmatch(LABEL, text):
        _refuse(
            argument("namespace") + " ",
            text,
            "1 to 63 lower-case letters, digits and hyphens, no hyphen at an end",
        )


def check_object_name(option: str, text: str) -> None:
    """Raise DeployError unless the text is a subdomain of DNS, as the names of secrets and claims are."""
    if not re.fullmatch(SUBDOMAIN, text):
        expected = "lower-case letters, digits, hyphens and dots, a letter or digit at each end"
        _refuse(option, text, f"1 to 253 {expected}")


def check_image(option: str, text: str) -> None:
    """Raise DeployError unless the text is an image's name with a fixed tag or digest."""
    found = _IMAGE.fullmatch(text)
    if found is None or len(found["name"]) > 255:
        _refuse(option, text, "[REGISTRY[:PORT]/]NAME:TAG or NAME@sha256:DIGEST, the name in lower case")
    elif not found["digest"] and (found["tag"] is None or moves(found["tag"])):
        raise DeployError(f"{option}{text} has no fixed tag or digest, so what runs could change")


def parse_toleration(text: str) -> dict[str, str]:
    """Read `KEY`, `KEY=VALUE`, either with `:EFFECT`, as a pod's toleration. Raises DeployError."""
    taint, colon, effect = text.partition(":")
    key, has_value, value = taint.partition("=")
    _check_key(argument("tolerations") + " ", text, key)
    _check_value(argument("tolerations") + " ", text, value)
    if colon and effect not in _EFFECTS:
        _refuse(argument("tolerations") + " ", text, f"one of {', '.join(_EFFECTS)} after the colon")
    found = {"key": key, "operator": "Equal" if has_value else "Exists"}
    if has_value:
        found["value"] = value
    if effect:
        found["effect"] = effect
    return found


def parse_node_selector(texts: list[str]) -> dict[str, str]:
    """Read `KEY=VALUE` of each text as a pod's node selector. Raises DeployError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            _refuse(argument("node_selector") + " ", text, "KEY=VALUE")
        _check_key(argument("node_selector") + " ", text, key)
        _check_value(argument("node_selector") + " ", text, value)
        if found.setdefault(key, value) != value:
            raise DeployError(
                f"{argument('node_selector')} gives {key} twice, as {found[key]} and {value}: give one"
            )
    return found


def check_claim(uri: str, claim: str, path: str) -> None:
    """Raise DeployError unless a `pvc://CLAIM/PATH` names a claim and a path inside it."""
    check_object_name(f"{argument('model', visible(uri))}: the claim ", claim)
    parts = path.split("/") if path else []
    if any(part in (".", "..") or not _PATH_PART.fullmatch(part) for part in parts):
        _refuse(
            argument("model") + " ",
            uri,
            "a path inside the claim of letters, digits and ._~@+=,- between slashes",
        )


def check_folder(uri: str, path: str) -> None:
    """Raise DeployError unless podman and compose can mount the folder of a `file:///PATH`."""
    if not path.startswith("/"):
        raise DeployError(f"{argument('model', visible(uri))} must give a whole path: file:///PATH")
    if ".." in PurePosixPath(path).parts:
        _refuse(argument("model") + " ", uri, "a path without ..")
    if ":" in path:
        raise DeployError(
            f"{argument('model', visible(uri))} holds a colon, which podman takes for the end of the "
            "path: rename the "
            "folder, or link to it from another"
        )
    if path != visible(path):
        raise DeployError(
            f"{argument('model', visible(uri))} contains invisible characters, shown here with a backslash: "
            "rename the folder, or link to it from another"
        )


def check_repository(option: str, text: str) -> None:
    """Raise DeployError unless the text is `OWNER/NAME` as the hub has it."""
    if not is_repository(text):
        _refuse(option, text, "OWNER/NAME of letters, digits and single ._- between them, 96 characters each")


def _check_key(option: str, whole: str, key: str) -> None:
    found = _QUALIFIED.fullmatch(key)
    if found is None or (found["prefix"] is not None and not re.fullmatch(SUBDOMAIN, found["prefix"])):
        expected = "a key of [PREFIX/]NAME: a domain, then 1 to 63 letters, digits and ._- inside"
        _refuse(option, whole, expected)


def _check_value(option: str, whole: str, value: str) -> None:
    if value and not re.fullmatch(_SHORT_NAME, value):
        _refuse(option, whole, "a value of at most 63 letters, digits and ._- inside")


def _refuse(option: str, text: str, expected: str) -> None:
    found = visible(text) if text else "(nothing)"
    raise DeployError(f"{option}{found} is refused: expected {expected}")
