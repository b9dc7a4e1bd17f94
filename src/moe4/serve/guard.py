"""The API key on every route of a server: ASGI middleware for vLLM's `--middleware`.

vLLM 0.32's own check looks at paths below /v1, /v2, /inference and /cohere alone; `POST /invocations` runs
the model without a key. This one lets nothing through without it but what is named here. It reads the key
from VLLM_API_KEY, or several from MOE4_API_KEYS, a line each. It imports neither torch nor vLLM.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from moe4.errors import ServeError

KEY_VARIABLE = "VLLM_API_KEY"
KEYS_VARIABLE = "MOE4_API_KEYS"
HEALTH_CHECKS = frozenset(("/health", "/ping"))
METRICS = frozenset(("/metrics", "/metrics/"))

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class KeyGuard:
    """Ask all requests but health checks and CORS's preflights for the key: `Authorization: Bearer KEY`."""

    open_paths = HEALTH_CHECKS

    def __init__(self, app: App) -> None:
        """Raise ServeError if no key is set: a guard without one would leave all open."""
        self._app = app
        keys = read_keys(os.environ)
        if not keys:
            raise ServeError(
                f"the key's guard needs {KEY_VARIABLE}, which is not set: set it, or leave it out"
            )
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] not in ("http", "websocket") or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        # A preflight is answered by CORS itself; any other OPTIONS goes on to the route, which may run it.
        is_preflight = _header(scope, b"origin") and _header(scope, b"access-control-request-method")
        if scope["method"] == "OPTIONS" and is_preflight:
            return True
        return _route_path(scope) in self.open_paths

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, given = (_header(scope, b"authorization") or "").partition(" ")
        found = _digest(given)
        matches = [hmac.compare_digest(found, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


class KeyGuardOpenMetrics(KeyGuard):
    """The same, with /metrics open: for a Prometheus that has no key."""

    open_paths = HEALTH_CHECKS | METRICS


def guard_path(*, open_metrics: bool) -> str:
    """Return the value of vLLM's `--middleware`."""
    chosen = KeyGuardOpenMetrics if open_metrics else KeyGuard
    return f"{chosen.__module__}.{chosen.__qualname__}"


def read_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that are set. Raises ServeError for one that no header can carry, without the key."""
    several = environment.get(KEYS_VARIABLE)
    variable = KEYS_VARIABLE if several else KEY_VARIABLE
    keys = several.split("\n") if several else [environment.get(KEY_VARIABLE, "")]
    return check_keys(variable, [key for key in keys if key])


def check_keys(origin: str, keys: list[str]) -> tuple[str, ...]:
    """Return the keys, if a header can carry each. Raises ServeError, without the key."""
    for key in keys:
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ServeError(
                f"{origin} holds a key that no header can carry: use printable ASCII without a space or a "
                "newline at an end"
            )
    return tuple(keys)


def _route_path(scope: Scope) -> str:
    """Return the path that the router looks up: without the prefix of a proxy in front."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key.lower() == name:
            return bytes(value).decode("latin-1")
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 401; a websocket's handshake, too, where the server can."""
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    if prefix != "http":
        await receive()  # the client's websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})
            return
    body = json.dumps({"error": "Unauthorized"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": f"{prefix}.response.start", "status": 401, "headers": headers})
    await send({"type": f"{prefix}.response.body", "body": body})
