"""Whole files of a repository into the hub's own cache, by huggingface_hub."""

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Self

from moe4.arguments import argument
from moe4.checkpoint.release_folder import free_bytes
from moe4.errors import DiskSpaceError, HubError
from moe4.files.durable import write_file
from moe4.fingerprint import Pin
from moe4.hub.repository import NUM_TRIES_TO_DOWNLOAD, Listing, patiently
from moe4.units import format_bytes

NUM_FILES_AT_ONCE = 4

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and all of them."""


def download(listing: Listing, names: Collection[str], on_progress: Progress | None = None) -> Path:
    """Bring files into the cache; return the snapshot's folder. Raises HubError or DiskSpaceError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    pin, counter = listing.pin, _Counter(sum(listing.sizes[name] or 0 for name in names), on_progress)

    def fetch(name: str) -> Path:
        path = patiently(
            lambda: hf_hub_download(
                pin.repository, name, revision=pin.commit, tqdm_class=counter.bar_class()
            ),
            pin.repository,
            pin.revision,
            name,
            num_tries=NUM_TRIES_TO_DOWNLOAD,
        )
        return Path(path).parents[len(PurePosixPath(name).parts) - 1]

    _require_room(listing, names)
    try:
        with ThreadPoolExecutor(max_workers=NUM_FILES_AT_ONCE, thread_name_prefix="moe4-hub") as threads:
            folders = list(threads.map(fetch, names))
    except HFValidationError as error:
        raise HubError(f"{pin.repository}: {error}") from None
    _remember(pin, folders[0])
    return folders[0]


def _remember(pin: Pin, folder: Path) -> None:
    """Note in the cache which commit a revision is, as the library does, for when the hub cannot be asked."""
    refs = folder.parent.parent / "refs"
    if pin.revision != pin.commit and ".." not in PurePosixPath(pin.revision).parts:
        path = refs / pin.revision.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pin.commit.encode())


def cached_path(repository: str, revision: str, name: str) -> Path | None:
    """Return a file's path in the cache's snapshot of a revision, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _require_room(listing: Listing, names: Collection[str]) -> None:
    """Raise DiskSpaceError where the cache's volume is too small for what is not in it yet."""
    from huggingface_hub import constants

    pin, cache = listing.pin, Path(constants.HF_HUB_CACHE)
    missing = [name for name in names if cached_path(pin.repository, pin.commit, name) is None]
    needed, free = sum(listing.sizes[name] or 0 for name in missing), free_bytes(cache)
    if needed > free:
        raise DiskSpaceError(
            f"{pin} needs {format_bytes(needed)} in the hub's cache {cache}, whose volume has "
            f"{format_bytes(free)} free; set HF_HOME to a larger one, or quantize with "
            f"{argument('stream', True)}"
        )


class _Counter:
    """Adds up what the bars of single files would show."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress
        self._lock = threading.Lock()

    def add(self, num_bytes: float) -> None:
        """Count bytes of any file."""
        with self._lock:
            self._done += int(num_bytes)
            if self._on_progress is not None and self._total:
                self._on_progress(min(self._done, self._total), self._total)

    def bar_class(self) -> Any:
        """Return a class that stands in for tqdm's bars."""
        counter = self

        class Bar:
            """One file's bar, which shows nothing and counts."""

            def __init__(self, *_: Any, initial: float = 0, **__: Any) -> None:
                self.n = self.total = 0
                counter.add(initial or 0)

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                return None

            def update(self, num_bytes: float | None = 1) -> None:
                counter.add(num_bytes or 0)

            def close(self, *_: Any, **__: Any) -> None:
                return None

            update_transfer = refresh = set_description = set_description_str = close
            set_postfix_str = set_transfer_postfix_str = close

        return Bar
