"""A server that answers as no server should: a thread of the process that asks it."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from deploy.openai_stand_in import Handler
from fuzz.odd_values import edit, to_json

BODIES = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"{",
    b"\xff\xfe",
    b"<html>",
    b'{"data": null}',
    b'{"data": [null]}',
    b'{"data": [{}]}',
    b'{"choices": []}',
    b'{"choices": [null]}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": 7, "tool_calls": 7}}]}',
    b"[" * 3000,
    b"1" * 5000,
    b"data: null\n\ndata: [DONE]\n\n",
    b"data: [\n\n",
    b'data: {"choices": [{"delta": null}]}\n\ndata: [DONE]\n\n',
    b"x" * 3_000_000,
)


class Hostile(Handler):
    """Right in all but what `rng` has decided."""

    rng: Random
    rate: float

    def handle(self) -> None:
        """Answer until the other side has had enough."""
        with contextlib.suppress(OSError):
            super().handle()

    def _send(self, data: bytes, status: int, kind: str) -> None:
        rng = self.rng
        if rng.random() > self.rate:
            super()._send(data, status, kind)
            return
        action = rng.randrange(9)
        if action == 0:
            data = rng.choice(BODIES)
        elif action == 1:
            status = rng.choice([199, 204, 301, 307, 400, 401, 404, 418, 429, 500, 503, 999])
        elif action == 2:
            kind = rng.choice(["", "text/plain", "application/json; charset=utf-7", "x" * 100])
        elif action in (3, 4):
            data = self._edited(data)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status in (301, 307):
            self.send_header("Location", rng.choice([self.path, "/", "http://[::1", "file:///etc/x", ""]))
        length = rng.choice([str(len(data) + 10), "-1", "x", "0"]) if action == 5 else str(len(data))
        self.send_header("Content-Length", length)
        if action == 6:
            self.send_header("Content-Encoding", rng.choice(["gzip", "deflate", "br", "x"]))
        self.end_headers()
        if action == 7:
            time.sleep(2)
        self.wfile.write(data[: len(data) // 2] if action == 8 else data)
        self.close_connection = True

    def _edited(self, data: bytes) -> bytes:
        """Return a body of JSON, or of a stream, with something changed in it."""
        pieces = data.split(b"\n\n") if data.startswith(b"data: ") else [data]
        place = self.rng.randrange(len(pieces))
        prefix = b"data: " if pieces[place].startswith(b"data: ") else b""
        with contextlib.suppress(ValueError):
            pieces[place] = prefix + to_json(
                edit(json.loads(pieces[place][len(prefix) :]), self.rng), self.rng
            )
        return b"\n\n".join(pieces)

    def send_error(self, *arguments: Any, **options: Any) -> None:
        """Leave the other side without an answer."""


@contextmanager
def serving(rng: Random) -> Iterator[str]:
    """Run it and yield its address."""
    handler = type("Server", (Hostile,), {"rng": rng, "rate": rng.choice([0.2, 0.5, 1.0])})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
