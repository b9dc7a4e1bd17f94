"""What a container image is known to hold, told by its name: moe4's plugin, a version of vLLM, a user."""

import re

# What our commands and probes may call, by engine. Sources: vLLM's docker/Dockerfile, which installs bash,
# curl and python3 by apt, vllm by pip and no Ray since 0.19; Red Hat's UBI 9; packaging/Containerfile.cpu.
PROGRAMS = {
    "vllm": frozenset(("bash", "sh", "curl", "python3", "vllm")),
    "rhaiis": frozenset(("bash", "sh", "curl", "python3", "vllm")),
    "cpu": frozenset(("bash", "sh", "curl", "python3", "vllm", "moe4")),
}
UPSTREAM = ("vllm-openai", "vllm-openai-cpu", "vllm-cpu-release-repo")  # repositories of the vLLM project


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
