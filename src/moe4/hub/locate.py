"""Where a checkpoint or release lies: a folder, or a repository on the hub. Every command asks here.

A folder that exists wins. `OWNER/NAME` and `OWNER/NAME@REVISION` are ids; the revision is pinned to a commit
at once. Token, endpoint, cache and offline mode are huggingface_hub's own.
"""

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from moe4.arguments import argument
from moe4.checkpoint.index import CONFIG_NAME, INDEX_NAME
from moe4.errors import HubError
from moe4.files.regular import read_json_object
from moe4.fingerprint import Pin
from moe4.hub.download import Progress, cached_path, download
from moe4.hub.faults import HubUnreachableError
from moe4.hub.repository import Listing, list_files, missing_shards
from moe4.hub.stream import ShardStream

DEFAULT_REVISION = "main"
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[^\s@]+))?", re.ASCII)
_ADDRESS = re.compile(r"(hf://|https?://[^/]+/)(models/)?(?P<id>[\w.-]+/[\w.-]+)", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """A checkpoint: its folder, which has all of it or all but the shards, and what of the hub it is."""

    folder: Path
    pin: Pin | None = None
    stream: ShardStream | None = None
    """Has the shards, if the folder has not."""
    elsewhere: Collection[str] = field(default=(), repr=False)
    """What the repository has at its top, of which the folder may have less."""


def locate(
    where: Path | str,
    revision: str | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Progress | None = None,
) -> Path:
    """Return the folder of a checkpoint or release, downloaded whole if it lies on the hub.

        locate("moonshotai/Kimi-K2-Instruct", "main")

    A path is returned as it is, even if nothing is there: who opens it says so.
    Raises HubError or DiskSpaceError.
    """
    return locate_source(where, revision, say=say, on_progress=on_progress).folder


def locate_source(
    where: Path | str,
    revision: str | None = None,
    *,
    begun: Pin | None = None,
    stream_to: Path | None = None,
    headers_only: bool = False,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Progress | None = None,
) -> Located:
    """Return where a checkpoint lies. With `stream_to`, a folder for shards, these are not downloaded yet.

    begun: what an unfinished run was begun with; where the same is asked for, its commit is taken.
    headers_only: nothing will be read but headers, so a folder or a whole copy in the cache will do as well.
    Raises HubError or DiskSpaceError.
    """
    asked = asked_repository(str(where), revision)
    if asked is None:
        if stream_to is not None and not headers_only:
            what = "a folder" if os.path.lexists(where) else "no id of a repository"
            raise HubError(
                f"{argument('stream')} is for a checkpoint on the hub; {where} is {what}: leave "
                f"{argument('stream')} out"
            )
        return Located(folder=Path(where))
    repository, revision = asked
    commit = None
    if begun is not None and (begun.repository, begun.revision) == (repository, revision):
        commit = begun.commit
    try:
        listing = list_files(repository, revision, commit)
    except HubUnreachableError as error:
        if stream_to is not None and not headers_only:
            raise
        return _from_cache(
            Pin(repository=repository, revision=revision, commit=commit or revision), error, say
        )
    listing.require_checkpoint()
    if stream_to is not None:
        return _stream(listing, stream_to)
    folder = download(listing, listing.without_weights())
    names = listing.shards(folder)
    missing = missing_shards(folder, names)
    if missing:
        say(f"{listing.pin}: downloading {len(missing)} of {len(names)} shards into the hub's cache")
        download(listing, missing, on_progress)
    return Located(folder=folder, pin=listing.pin, elsewhere=listing.top_names())


def short_name(folder: Path) -> str:
    """Return what to call the model in a folder: a repository's name where it is a snapshot in the cache."""
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        return home.parent.parent.name.rpartition("--")[2]
    return home.name


def asked_repository(text: str, revision: str | None = None) -> tuple[str, str] | None:
    """Return the repository and revision that a text names; None for a path, whatever lies there or not."""
    found = None if os.path.lexists(text) else _ID.fullmatch(text)
    if found is not None:
        if found["revision"] and revision and found["revision"] != revision:
            raise HubError(
                f"{text} and {argument('revision', revision)} name two revisions; give one of them"
            )
        return found["id"], revision or found["revision"] or DEFAULT_REVISION
    address = None if os.path.lexists(text) else _ADDRESS.match(text)
    if address is not None:
        raise HubError(f"{text} is an address; give the repository's id: {address['id']}")
    if revision is not None:
        what = "a folder" if os.path.lexists(text) else "no id of a repository"
        raise HubError(f"{argument('revision', revision)} is for a repository on the hub; {text} is {what}")
    return None


def _stream(listing: Listing, work: Path) -> Located:
    folder = download(listing, listing.without_weights())
    names = listing.shards(folder)
    stream = ShardStream(listing, names, work)
    return Located(folder=folder, pin=listing.pin, stream=stream, elsewhere=listing.top_names())


def _from_cache(pin: Pin, error: HubError, say: Callable[[str], None]) -> Located:
    """Return what the cache has of a repository, if that is whole; raise the error if it has nothing."""
    config = cached_path(pin.repository, pin.commit, CONFIG_NAME)
    if config is None:
        raise error
    folder = config.parent
    index = folder / INDEX_NAME
    weight_map = read_json_object(index).get("weight_map") if index.is_file() else None
    missing = missing_shards(folder, set(weight_map.values())) if isinstance(weight_map, dict) else []
    if missing or (weight_map is None and not any(folder.glob("*.safetensors"))):
        some = f" {len(missing)} shards, such as {missing[0]}" if missing else " its shards"
        raise HubError(f"the hub's cache does not have all of {pin.repository}: it lacks{some}. {error}")
    found = Pin(repository=pin.repository, revision=pin.revision, commit=folder.name)
    say(f"the hub cannot be reached: using {found} from its cache")
    return Located(folder=folder, pin=found)
