"""The application that vLLM builds, with the guard as vLLM adds it: each of its routes."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from moe4.serve.guard import guard_path

pytest.importorskip("vllm")
testclient = pytest.importorskip("starlette.testclient")

KEY = "open-sesame"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@pytest.fixture(scope="module", params=["", "/behind/a/proxy"], ids=["plain", "proxied"])
def application(request: pytest.FixtureRequest) -> Iterator[Any]:
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = ["model", "--middleware", guard_path(open_metrics=False)]
    arguments += ["--allowed-origins", '["https://example.com"]']
    if request.param:
        arguments += ["--root-path", request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        options = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        yield build_app(options, ("generate", "transcription", "realtime", "embed", "classify"), None)


def paths(application: Any) -> set[str]:
    """Return a path for each route; what is mounted answers below its path, too."""
    found = {re.sub(r"\{[^}]*\}", "x", route.path) or "/" for route in application.routes}
    return found | {f"{path}/" for path in found} | {"/nothing"}


def test_only_health_checks_answer_without_the_key(application: Any) -> None:
    client = testclient.TestClient(application, raise_server_exceptions=False)
    found = paths(application)
    assert {"/invocations", "/tokenize", "/metrics", "/v1/chat/completions", "/version", "/docs"} <= found
    for prefix in {"", application.root_path or ""}:
        for path in sorted(found):
            for method in METHODS:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": KEY}):
                    status = client.request(method, prefix + path, headers=headers, json={}).status_code
                    if path in ("/health", "/ping"):
                        assert status != 401, (method, prefix + path)
                    else:
                        assert status == 401, (method, prefix + path, headers)


def test_with_the_key_requests_reach_their_routes(application: Any) -> None:
    client = testclient.TestClient(
        application, raise_server_exceptions=False, headers={"Authorization": f"Bearer {KEY}"}
    )
    for path in paths(application):
        for method in ("GET", "POST"):
            assert client.request(method, path, json={}).status_code != 401, (method, path)


def test_a_preflight_is_answered_by_cors_alone(application: Any) -> None:
    headers = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    for path in ("/invocations", "/metrics", "/nothing"):
        response = testclient.TestClient(application).options(path, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["access-control-allow-origin"] == headers["Origin"]
        assert response.text == "OK", response.text


SPELLINGS = (
    *("/invocations", "//invocations", "/v1/../invocations", "/%69nvocations", "/invocations/"),
    *("/./invocations", "/invocations?a=/health", "/invocations#/health", "/health/../invocations"),
    *("/health%2f..%2finvocations", "/health;/../invocations", "/health%00/invocations", "/health%0a"),
    *("http://127.0.0.1/invocations", "/HEALTH", "/metrics", "/metrics/", "/metrics/x", "/%6detrics", "*"),
)


def test_no_spelling_of_a_path_gets_round_it(application: Any) -> None:
    """Paths as a server takes them off the wire, which clients would tidy up."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(application, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask(method: str, path: str, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, b"{}", headers)
        status = connection.getresponse().status
        connection.close()
        return status

    try:
        for path in SPELLINGS:
            for method in ("GET", "POST", "OPTIONS"):
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Original-URL": "/health"}):
                    assert ask(method, path, headers) in (400, 401), (method, path, headers)
        assert ask("GET", "/ping?x=/invocations", {}) != 401
        assert ask("POST", "/invocations", {"Authorization": f"bearer {KEY}"}) != 401
    finally:
        server.should_exit = True
        thread.join(30)


def test_a_websocket_asks_for_the_key(application: Any) -> None:
    found = [route.path for route in application.routes if "WebSocket" in type(route).__name__]
    assert "/v1/realtime" in found
    for path in found:
        with (
            pytest.raises(testclient.WebSocketDenialResponse) as caught,
            testclient.TestClient(application).websocket_connect(path),
        ):
            pass
        assert caught.value.status_code == 401
