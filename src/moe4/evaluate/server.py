"""A running OpenAI-compatible server, as the harness needs it."""

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from moe4.errors import ServeError
from moe4.probe.check import is_address
from moe4.strict_json import JsonObject

TIMEOUT_SECONDS = 10


def normalise_url(base_url: str) -> str:
    """Return the URL up to and with /v1, whatever of it the user wrote. Raises ServeError."""
    url = base_url.rstrip("/")
    for ending in ("/completions", "/chat", "/models"):
        url = url.removesuffix(ending)
    if "://" not in url:
        url = f"http://{url}"
    if not is_address(url):
        raise ServeError(f"{base_url} is not an address; give one such as http://127.0.0.1:8000")
    return url if url.endswith("/v1") else f"{url}/v1"


def api_key() -> str | None:
    """Return the key for the server, from VLLM_API_KEY or OPENAI_API_KEY."""
    return os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY")


def check_server(base_url: str, model: str) -> None:
    """Make sure the server answers and has the model. Raises ServeError."""
    names = [entry["id"] for entry in list_models(base_url)]
    if model not in names:
        raise ServeError(
            f"the server at {base_url} has no model {model}; it has {', '.join(names) or 'none'}"
        )


def list_models(base_url: str) -> list[JsonObject]:
    """Return what the server says of its models. Raises ServeError."""
    url = f"{base_url}/models"
    try:
        with _open(url) as answer:
            entries: list[JsonObject] = [
                {**entry, "id": str(entry["id"])} for entry in json.load(answer)["data"]
            ]
    except urllib.error.HTTPError as error:
        hint = "; set VLLM_API_KEY to its key" if error.code in (401, 403) else ""
        raise ServeError(f"{url} answers {error.code} {error.reason}{hint}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ServeError(
            f"no OpenAI-compatible server at {base_url} ({reason}); start one with moe4 serve"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServeError(f"{url} lists no models: {base_url} is not an OpenAI-compatible server") from None
    return entries


def local_model_folder(base_url: str, model: str) -> Path | None:
    """Return the folder a server of this machine says it serves the model from, if it is there."""
    if urllib.parse.urlsplit(base_url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    for entry in list_models(base_url):
        root = entry.get("root")
        if entry["id"] == model and isinstance(root, str) and Path(root, "config.json").is_file():
            return Path(root)
    return None


def server_version(base_url: str) -> str | None:
    """Return vLLM's version where the server is vLLM."""
    try:
        with _open(f"{base_url.removesuffix('/v1')}/version") as answer:  # other servers have no such page
            return str(json.load(answer)["version"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        return None


def _open(url: str) -> Any:
    key = api_key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
