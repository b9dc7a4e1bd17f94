"""Which container images bring moe4's plugin into vLLM: told by their name."""


def has_plugin(image: str) -> bool:
    """Say whether an image is known to hold moe4 beside vLLM: its repository's own name contains `moe4`.

    `registry.example/team/moe4-gpu:0.1.0` does; `registry.example/moe4/vllm-openai:v0.32.0` is not known to.
    """
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return "moe4" in repository.lower()
