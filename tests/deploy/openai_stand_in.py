"""A small OpenAI-compatible server for tests of `moe4 smoke`: correct, or wrong in one way."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FAULTS = (
    "no models",
    "empty answer",
    "no usage",
    "cut stream",
    "no tools",
    "wrong tool",
    "not json",
    "error",
    "odd status",
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /v1/models and /v1/chat/completions; `fault` and `key` are set by `serving`."""

    fault = ""
    key = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer /v1/models."""
        if self._denied():
            return
        models = [] if self.fault == "no models" else [{"id": "tiny", "object": "model"}]
        self._answer({"object": "list", "data": models})

    def do_POST(self) -> None:
        """Answer /v1/chat/completions, whole or in pieces."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._denied():
            return
        if self.fault == "error":
            self._answer({"error": {"message": "engine is dead"}}, 500)
        elif self.fault == "odd status":
            self._answer({"error": {"message": "none of HTTP's"}}, 999)
        elif self.fault == "not json":
            self._send(b"<html>", 200, "text/html")
        elif body.get("stream"):
            self._stream(body)
        else:
            self._answer(self._completion(body))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "" if self.fault == "empty answer" else "Hello.",
        }
        if body.get("tools") and self.fault != "no tools":
            name = "get_time" if self.fault == "wrong tool" else body["tools"][0]["function"]["name"]
            call = {"id": "functions.get_weather:0", "type": "function"}
            call["function"] = {"name": name, "arguments": '{"city": "Paris"}'}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {"choices": [{"index": 0, "message": message}], "usage": usage}

    def _stream(self, body: dict[str, Any]) -> None:
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": word}}]} for word in ("Hel", "lo.")
        ]
        if body["stream_options"]["include_usage"] and self.fault != "no usage":
            chunks.append({"choices": [], "usage": {"total_tokens": 5}})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        if self.fault != "cut stream":
            lines.append("data: [DONE]\n\n")
        self._send("".join(lines).encode(), 200, "text/event-stream")

    def _denied(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._answer({"error": "Unauthorized"}, 401)
            return True
        return False

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, "application/json")

    def _send(self, data: bytes, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(fault: str = "", key: str = "") -> Iterator[str]:
    """Run the server in a thread and yield its address."""
    handler = type("Faulty", (Handler,), {"fault": fault, "key": key})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
