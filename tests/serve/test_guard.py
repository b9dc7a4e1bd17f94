"""The API key's guard, asked as a server asks it: what is open without the key, and what never is."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from moe4.errors import ServeError
from moe4.serve.guard import KeyGuard, KeyGuardOpenMetrics, guard_path, read_keys

KEY = "open-sesame"
RIGHT = [(b"authorization", f"Bearer {KEY}".encode())]


def ask(
    path: str,
    *headers: tuple[bytes, bytes],
    method: str = "GET",
    kind: str = "http",
    guard: type[KeyGuard] = KeyGuard,
    **scope: Any,
) -> int | str:
    """Return 200 if the request reaches the application, or what the guard answers."""
    said: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        said.append({"status": 200})

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    whole = {"type": kind, "path": path, "headers": list(headers), **scope}
    if kind == "http":
        whole["method"] = method
    asyncio.run(guard(application)(whole, receive, send))
    return said[0]["status"] if "status" in said[0] else str(said[0]["type"])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.delenv("MOE4_API_KEYS", raising=False)


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"]
)
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/invocations",
            "/v1/chat/completions",
            "/tokenize",
            "/metrics",
            "/metrics/",
            "/version",
            "/",
            "",
            "/docs",
        ),
        *(
            "//health",
            "/health/",
            "/health/../invocations",
            "/ping/..",
            "/HEALTH",
            "/health\n",
            "/healthx",
            "/health;x",
        ),
        *("/v1/../health", "/v1/health", "/invocations/health", "/metrics/health"),
    ],
)
def test_nothing_else_is_open(method: str, path: str) -> None:
    assert ask(path, method=method) == 401
    assert ask(path, (b"authorization", b"Bearer wrong"), method=method) == 401
    assert ask(path, *RIGHT, method=method) == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_health_checks_are_open(method: str) -> None:
    assert ask("/health", method=method) == 200
    assert ask("/ping", method=method) == 200


def test_metrics_are_open_where_that_is_chosen() -> None:
    for path in ("/metrics", "/metrics/"):
        assert ask(path, guard=KeyGuardOpenMetrics) == 200
        assert ask(path) == 401
    for path in ("/invocations", "/metrics/../invocations", "/metricsx", "/metrics/x"):
        assert ask(path, guard=KeyGuardOpenMetrics) == 401
    assert ask("/health", guard=KeyGuardOpenMetrics) == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"BEARER {KEY}", 200),
        (f"Bearer  {KEY}", 401),
        (f"Bearer {KEY} ", 401),
        (f"Bearer\t{KEY}", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY.upper()}", 401),
    ],
)
def test_spellings_of_the_header(header: str, status: int) -> None:
    assert ask("/v1/models", (b"authorization", header.encode())) == status
    assert ask("/v1/models", (b"Authorization", header.encode())) == status
    assert ask("/v1/models", (b"x-api-key", KEY.encode())) == 401  # as vLLM: bearer tokens only


def test_bytes_that_are_no_text_are_a_wrong_key() -> None:
    assert ask("/v1/models", (b"authorization", b"Bearer \xff\xfe")) == 401


def test_a_preflight_is_open_and_another_options_is_not() -> None:
    origin, asked = (b"origin", b"https://example.com"), (b"access-control-request-method", b"POST")
    assert ask("/v1/models", origin, asked, method="OPTIONS") == 200
    assert ask("/metrics", origin, method="OPTIONS") == 401
    assert ask("/metrics", asked, method="OPTIONS") == 401
    assert ask("/v1/models", origin, asked, method="POST") == 401


def test_the_prefix_of_a_proxy() -> None:
    assert ask("/api/health", root_path="/api") == 200
    assert ask("/health", root_path="/api") == 200  # the router strips no prefix that is not there
    assert ask("/apihealth", root_path="/api") == 401
    assert ask("/api/api/health", root_path="/api") == 401
    assert ask("/invocations/health", root_path="/invocations") == 200
    assert ask("/api/invocations", root_path="/api") == 401


def test_websockets_are_guarded_too() -> None:
    denial = {"extensions": {"websocket.http.response": {}}}
    assert ask("/v1/realtime", kind="websocket", **denial) == 401
    assert ask("/v1/realtime", kind="websocket") == "websocket.close"
    assert ask("/health", kind="websocket", **denial) == 401
    assert ask("/v1/realtime", *RIGHT, kind="websocket") == 200


def test_what_is_no_request_passes() -> None:
    assert ask("", kind="lifespan") == 200


def test_one_of_several_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE4_API_KEYS", "one\ntwo")
    monkeypatch.setenv("VLLM_API_KEY", "")
    for key, status in (("one", 200), ("two", 200), ("one\ntwo", 401), ("", 401)):
        assert ask("/v1/models", (b"authorization", f"Bearer {key}".encode())) == status


@pytest.mark.parametrize("given", ["", None])
def test_without_a_key_it_does_not_start(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    if given is not None:
        monkeypatch.setenv("VLLM_API_KEY", given)
    with pytest.raises(ServeError, match="VLLM_API_KEY"):
        ask("/health")


@pytest.mark.parametrize("given", ["secret\n", " secret", "schlüssel", "a\x1bb"])
def test_a_key_that_no_header_carries_is_not_repeated(given: str) -> None:
    with pytest.raises(ServeError, match="no header can carry") as caught:
        read_keys({"VLLM_API_KEY": given})
    assert given.strip() not in str(caught.value)


def test_vllm_finds_it_without_torch() -> None:
    program = (
        "import importlib, inspect, sys\n"
        f"module, name = {guard_path(open_metrics=False)!r}.rsplit('.', 1)\n"
        "assert inspect.isclass(getattr(importlib.import_module(module), name))\n"
        "assert not {'torch', 'vllm', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert guard_path(open_metrics=True) != guard_path(open_metrics=False)
