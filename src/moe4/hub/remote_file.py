"""One shard on the hub: parts of it by range requests, and all of it into a file, resumed and checked.

Every request begins at the hub's own address, so that a signed URL which has expired is made anew; only the
many small reads go straight to where the hub sent the first of them.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from moe4.arguments import argument
from moe4.checkpoint.header import Shard, header_length, parse_shard, read_shard
from moe4.errors import HubError
from moe4.files.durable import publish, read_pieces
from moe4.fingerprint import Pin
from moe4.hub.faults import may_pass
from moe4.hub.repository import NUM_TRIES, explain_or_none, patiently, wait_seconds

HEAD_BYTES = 512 << 10  # read at once: the header of most shards
WHOLE_BYTES = 4 << 20  # a shard of at most this is read in one piece where parts of it are wanted
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def part_path(path: Path) -> Path:
    """Return where a shard lies while it is on its way to `path`."""
    return path.with_suffix(".incomplete")


class FetchStoppedError(Exception):
    """The run that wanted a shard has ended."""


class RemoteFile:
    """A shard of a pinned repository. Ranges may be read from any thread; one thread fetches."""

    def __init__(self, pin: Pin, name: str) -> None:
        """Ask for its size and checksum. Raises HubError."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self.pin, self.name = pin, name
        self._url = hf_hub_url(pin.repository, name, revision=pin.commit)
        self._headers = {**build_hf_headers(), "accept-encoding": "identity"}
        self._etag = ""
        self._location: str | None = None
        self.num_bytes: int = self._patiently(self._ask)
        if self.num_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise HubError(f"{name} of {pin} is too large to be streamed; leave {argument('stream')} out")

    def _ask(self) -> int:
        """Ask the hub itself for the checksum, which the place that it redirects to need not know."""
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.utils import hf_raise_for_status, http_backoff

        answer = http_backoff("HEAD", self._url, headers=self._headers, follow_redirects=False, max_retries=0)
        hf_raise_for_status(answer)
        etag, size = (answer.headers.get(f"x-linked-{field}") for field in ("etag", "size"))
        if etag and size and size.isdigit():
            self._etag, self._location = etag.removeprefix("W/").strip('"'), answer.headers.get("location")
            return int(size)
        found = get_hf_file_metadata(self._url, headers=self._headers)
        if found.size is None:
            raise HubError(
                f"{self.name} of {self.pin}: the hub does not say how large it is; leave "
                f"{argument('stream')} out"
            )
        self._etag = found.etag or ""
        return int(found.size)

    def header(self, path: Path) -> Shard:
        """Return the header of the shard, which will lie at `path`."""
        head = self.read(0, min(HEAD_BYTES, self.num_bytes))
        length = 8 + header_length(Path(self.pin.repository, self.name), head[:8], self.num_bytes)
        if length > len(head):
            head += self.read(len(head), length - len(head))
        return parse_shard(path, head[:length], self.num_bytes)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return some bytes, fewer only at the end. Raises HubError."""
        stop = min(self.num_bytes, start + num_bytes)
        return b"" if stop <= start else self._patiently(lambda: self._read(start, stop))

    def _read(self, start: int, stop: int) -> bytes:
        from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

        location = self._location
        headers = {**self._headers, "range": f"bytes={start}-{stop - 1}"}
        if location is not None:
            headers.pop("authorization", None)  # a signed URL needs none, and its server shall not see it
        try:
            address = location or self._url
            with http_stream_backoff("GET", address, headers=headers, max_retries=0) as response:
                hf_raise_for_status(response)
                is_part = response.status_code == HTTPStatus.PARTIAL_CONTENT
                if not is_part and (start > 0 or self.num_bytes > WHOLE_BYTES):
                    raise HubError(
                        f"{self.name} of {self.pin}: its server does not answer range requests; "
                        "download the checkpoint instead of streaming it"
                    )
                data = bytes(response.read())[: stop - start]
        except Exception:
            if location is None:
                raise
            self._location = None  # it has expired: ask the hub for another
            return self._read(start, stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")
        return data

    def fetch(
        self, path: Path, header: Shard, received: Callable[[int], None], stop: threading.Event
    ) -> None:
        """Bring the whole file to `path`; what an earlier attempt has left beside it is continued.

        received: called with the number of bytes that came. Raises HubError, or OSError of the disk.
        """
        part = part_path(path)
        for is_last in (False, True):
            self._complete(part, received, stop)
            if self._is_right(part, header):
                break
            part.unlink()
            if is_last:
                raise HubError(
                    f"{self.name} of {self.pin} was downloaded twice, and its bytes do not have the hub's "
                    f"checksum ({self._etag:.16}...); try again later, or download it another way"
                )
        publish(part, path)

    def _complete(self, part: Path, received: Callable[[int], None], stop: threading.Event) -> None:
        """Download what a part lacks. An attempt that brings something begins the count of tries anew."""
        attempt = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before > self.num_bytes:
                part.unlink()
                before = 0
            try:
                self._download(part, before, received, stop)
                return
            except FetchStoppedError:
                raise
            except Exception as error:  # libraries below the hub's raise their own kinds
                known = explain_or_none(error, self.pin.repository, self.pin.revision, self.name)
                if known is None:
                    raise
                attempt = attempt + 1 if part.stat().st_size <= before else 0
                if attempt >= NUM_TRIES or not may_pass(error):
                    raise known from error
            if stop.wait(wait_seconds(attempt)):
                raise FetchStoppedError

    def _download(
        self, part: Path, before: int, received: Callable[[int], None], stop: threading.Event
    ) -> None:
        from huggingface_hub.file_download import http_get

        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o666), "r+b", buffering=0) as file:
            file.seek(before)
            http_get(
                self._url,
                _Watched(file, received, stop),
                resume_size=before,
                headers=dict(self._headers),
                expected_size=self.num_bytes,
                tqdm_class=_NoBar,
            )
            os.fsync(file.fileno())

    def _is_right(self, part: Path, header: Shard) -> bool:
        """Say whether a whole file is what the hub said: its size, its checksum, its header."""
        if part.stat().st_size != self.num_bytes or not self._has_checksum(part):
            return False
        return read_shard(part).header_sha256 == header.header_sha256

    def _has_checksum(self, part: Path) -> bool:
        """Compare a file with the hub's checksum: LFS has SHA-256, git its own SHA-1; else there is none."""
        if _SHA256.fullmatch(self._etag):
            digest = hashlib.sha256()
        elif _GIT_SHA1.fullmatch(self._etag):
            digest = hashlib.sha1(b"blob %d\0" % self.num_bytes, usedforsecurity=False)
        else:
            return True
        for piece in read_pieces(part):
            digest.update(piece)
        return digest.hexdigest() == self._etag

    def is_whole(self, path: Path, header: Shard) -> bool:
        """Say whether a file that an earlier run has left is the shard."""
        return path.is_file() and not path.is_symlink() and self._is_right(path, header)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        return patiently(ask, self.pin.repository, self.pin.revision, self.name)


class _Watched:
    """A file that tells what is written to it, and refuses more when the run has ended."""

    def __init__(self, file: BinaryIO, received: Callable[[int], None], stop: threading.Event) -> None:
        self._file, self._received, self._stop = file, received, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise FetchStoppedError
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._received(len(data))
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def truncate(self) -> int:
        removed = os.fstat(self._file.fileno()).st_size - self._file.tell()
        self._received(-removed)
        return self._file.truncate()


class _NoBar:
    """Stands in for tqdm's bar and shows nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.n = self.total = 0

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _: float | None = 1) -> None:
        return None

    def close(self) -> None:
        return None
