"""The first request to a new deployment, as one line for a shell."""

import json

from moe4.escape import shell_line, shell_word


def smoke_curl(url: str, model: str, with_key: bool) -> str:
    """Return a curl command of one line that asks for a short answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
    parts = [
        "curl",
        "--fail-with-body",
        "-sS",
        f"{url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
    ]
    if url.startswith("https://127.0.0.1"):  # forwarded to a server whose certificate names another host
        parts.insert(1, "--insecure")
    key = ["-H", '"Authorization: Bearer $VLLM_API_KEY"'] if with_key else []
    return " ".join([shell_line(parts), *key, "-d", shell_word(json.dumps(body))])


def smoke_lines(url: str, model: str, with_key: bool, before: str | None = None) -> list[str]:
    """Return what to run once it is up, `before` first."""
    lines = ["Once it is ready:"]
    if before:
        lines.append(f"  {before}")
    lines.append(f"  {smoke_curl(url, model, with_key)}")
    insecure = " --insecure" if url.startswith("https://127.0.0.1") else ""
    lines.append(f"  moe4 smoke {url}{insecure}")
    return lines
