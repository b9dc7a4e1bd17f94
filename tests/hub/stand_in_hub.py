"""A hub on 127.0.0.1: what huggingface_hub asks of the real one for models, with faults on demand.

    /api/models/ORG/NAME/revision/REV     a commit and its files
    /ORG/NAME/resolve/REV/FILE            HEAD and GET; a weight file is redirected to a signed place
    /cdn/COMMIT/FILE?signature=N          that place, with ranges

A repository is a list of folders, one a commit; `main` is the last. Whatever is asked is in `log`.
"""

import hashlib
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from safetensors.torch import load_file, save_file

WEIGHTS = (".safetensors", ".bin")
REPOSITORY = "someone/six"


@dataclass
class Faults:
    """What goes wrong; numbers count down to nothing."""

    gated: bool = False
    private: bool = False
    token: str | None = None
    """The only one that opens a gated or private repository."""
    status: dict[str, list[int]] = field(default_factory=dict)
    """By file, statuses with which the next whole or partial requests of it are answered."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """By file, numbers of bytes after which the next answers break off."""
    garble: dict[str, int] = field(default_factory=dict)
    """By file, how many of the next answers have a wrong byte."""
    signature_uses: int = 0
    """How many requests a signed place answers before it has expired; 0 for ever."""
    no_ranges: bool = False
    bytes_per_second: float = 0.0
    plain_etags: bool = False
    """Weight files are in git itself: no X-Linked-Etag, git's own checksum."""


class StandInHub:
    """Serves repositories until it is closed."""

    def __init__(self, repositories: dict[str, list[Path]]) -> None:
        self.repositories, self.faults = repositories, Faults()
        self.log: list[tuple[str, str, str | None]] = []
        """Method, path, range."""
        self.tokens: Counter[str] = Counter()
        """Paths of requests that carried a token."""
        self.sent_bytes: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.signatures: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn(self) -> str:
        """Another host, as it is for the real hub."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def close(self) -> None:
        """Stop; a connection is refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that send huggingface_hub here."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

    def num_whole(self, name: str) -> int:
        """Return how many requests asked for a file, or for all of it that was left."""
        return sum(
            method == "GET" and path.startswith("/cdn/") and path.endswith(f"/{name}") and _is_open(span)
            for method, path, span in self.log
        )


def _is_open(span: str | None) -> bool:
    return span is None or span.endswith("-")


def commit_of(folder: Path) -> str:
    """Return a commit for a folder's contents and name."""
    digest = hashlib.sha1(folder.name.encode())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode())
    return digest.hexdigest()


def handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers for a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return None

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            with hub.lock:
                hub.log.append((self.command, path, self.headers.get("Range")))
                if self.headers.get("Authorization"):
                    hub.tokens[path] += 1
            try:
                if path.startswith("/cdn/"):
                    self.cdn(path, parse_qs(address.query)["signature"][0])
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
                    self.listing(found[1], found[2])
                elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self.resolve(found[1], found[2], found[3])
                else:
                    self.say(404, b"", {"X-Error-Code": "EntryNotFound"})
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if "Content-Length" not in (headers or {}):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def find(self, repository: str, revision: str) -> Path | None:
            """Return a revision's folder, or answer why not."""
            faults = hub.faults
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            allowed = faults.token is not None and given == faults.token
            if repository not in hub.repositories or (faults.private and not allowed):
                self.say(401 if not given else 404, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            if faults.gated and not allowed:
                self.say(403 if given else 401, b"", {"X-Error-Code": "GatedRepo"})
                return None
            folders = hub.repositories[repository]
            by_commit = {commit_of(folder): folder for folder in folders}
            found = folders[-1] if revision == "main" else by_commit.get(revision)
            if found is None:
                self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return found

        def listing(self, repository: str, revision: str) -> None:
            folder = self.find(repository, revision)
            if folder is None:
                return
            names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
            files = [{"rfilename": name, "size": (folder / name).stat().st_size} for name in names]
            answer = {"id": repository, "sha": commit_of(folder), "siblings": files}
            self.say(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def resolve(self, repository: str, revision: str, name: str) -> None:
            folder = self.find(repository, revision)
            if folder is None:
                return
            file = folder / name
            if not file.is_file():
                self.say(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if self.command == "GET" and hub.faults.status.get(name):
                self.say(hub.faults.status[name].pop(0), b"")
                return
            data = file.read_bytes()
            headers = {"X-Repo-Commit": commit_of(folder), "Accept-Ranges": "bytes"}
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if not name.endswith(WEIGHTS) or hub.faults.plain_etags:
                headers |= {"ETag": f'"{git}"', "Content-Length": str(len(data))}
                self.part(name, data, headers)
                return
            with hub.lock:
                hub.signatures["next"] += 1
                signature = hub.signatures["next"]
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{hub.cdn}/cdn/{repository}/{commit_of(folder)}/{name}?signature={signature}",
            }
            self.say(302, b"", headers)

        def cdn(self, path: str, signature: str) -> None:
            _, _, owner, model, commit, name = path.split("/", 5)
            with hub.lock:
                hub.signatures[signature] += 1
                expired = 0 < hub.faults.signature_uses < hub.signatures[signature]
            if expired:
                self.say(403, b"<Error><Code>ExpiredToken</Code></Error>")
                return
            folders = hub.repositories[f"{owner}/{model}"]
            folder = next(folder for folder in folders if commit_of(folder) == commit)
            self.part(name, (folder / name).read_bytes(), {})

        def part(self, name: str, data: bytes, headers: dict[str, str]) -> None:
            """Send a file, or a range of it, with what is to go wrong."""
            faults, status, total = hub.faults, 200, len(data)
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span and not faults.no_ranges:
                start, stop = int(span[1]), min(total, int(span[2] or total - 1) + 1)
                if start >= total:
                    self.say(416, b"")
                    return
                data, status = data[start:stop], 206
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
            headers["Content-Length"] = str(len(data))
            is_whole = self.command == "GET" and (span is None or not span[2])
            if is_whole and faults.garble.get(name):
                faults.garble[name] -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.say(status, b"", headers)
            if self.command != "GET":
                return
            end = faults.cut[name].pop(0) if is_whole and faults.cut.get(name) else len(data)
            self.send_slowly(name, data[:end])
            if end < len(data):
                self.close_connection = True
                self.connection.close()

        def send_slowly(self, name: str, data: bytes) -> None:
            rate = hub.faults.bytes_per_second
            step = 64 << 10 if rate else max(1, len(data))
            for start in range(0, len(data), step):
                piece = data[start : start + step]
                self.wfile.write(piece)
                with hub.lock:
                    hub.sent_bytes[name] += len(piece)
                if rate:
                    time.sleep(len(piece) / rate)

    return Handler


def split_in_shards(
    folder: Path, out: Path, num_shards: int, place: Callable[[int, str], int] | None = None
) -> Path:
    """Write a checkpoint again in so many shards; `place` gives a tensor's, from its number and name."""
    shutil.copytree(folder, out)
    state = {}
    for shard in sorted(out.glob("*.safetensors")):
        state.update(load_file(shard))
        shard.unlink()
    (out / "model.safetensors.index.json").unlink(missing_ok=True)
    pieces: list[dict[str, Any]] = [{} for _ in range(num_shards)]
    for number, name in enumerate(state):
        at = number * num_shards // len(state) if place is None else place(number, name)
        pieces[at][name] = state[name]
    weight_map = {}
    for number, piece in enumerate(pieces, 1):
        name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file(piece, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(piece, name))
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return out
