"""A checkpoint's folder, read by one set of rules: its config, its index, its shards' headers. Torch-free.

Every part of moe4 that opens a checkpoint or a release does so here. The rules:

- Only regular files are opened. A link must lead to a file in the same folder or in the blob store of the
  hub's cache (`models--org--name/snapshots/REVISION/FILE -> ../../blobs/SHA`).
- An index names safetensors files inside the folder, by one name each, and each tensor once.
- Without an index the folder holds one safetensors file. Mistral's `consolidated*.safetensors` do not count,
  as they hold the same weights under other names.
- What the index names must be there, but for the `_scale_inv` of a weight that is BF16, F16 or F32 by now:
  tools that decode FP8 leave those names behind. A tensor that a shard holds and the index does not name is
  not read; it is in `unlisted`, since other programs may read it.
"""

import os
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

from moe4.checkpoint.header import (
    FLOAT_DTYPES,
    MAX_TENSORS,
    Shard,
    StoredTensor,
    check_tensor_name,
)
from moe4.checkpoint.provider import FolderShards, ShardProvider
from moe4.config import ModelConfig, check_generation_config, parse_config, parse_tokenizer_config
from moe4.errors import CheckpointError, MissingFileError, UnsafePathError
from moe4.files.regular import (
    check_file_name,
    has_control_characters,
    open_regular,
    read_json_object,
    require_inside,
)
from moe4.strict_json import JsonObject, is_encodable

CONFIG_NAME = "config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
INDEX_NAME = "model.safetensors.index.json"
PROBE_NAME = "moe4-probe.json"
SHARD_SUFFIX = ".safetensors"
OTHER_COPY = "consolidated"
SCALE_SUFFIX = "_scale_inv"
MAX_CONFIG_BYTES = 16 << 20


class CheckpointIndex:
    """A source checkpoint or a release: what its files say without their data.

    config: config.json. index: the index as it is stored, or an empty object if there is none.
    shards: by name, sorted. tensors: by name, in the index's order.
    unlisted: tensors that a shard holds and the index does not name, by name, and the shard.
    """

    def __init__(
        self,
        folder: Path,
        problems: list[str] | None = None,
        provider: ShardProvider | None = None,
        *,
        family_as_is: bool = False,
    ) -> None:
        """Read the folder. Raises CheckpointError or one of its children.

        provider: has the shards, where the folder has not. family_as_is: its family need not be a listed one.
        With a list of `problems`, what is wrong with single shards and tensors is put there instead, and they
        are left out.
        """
        self.folder = folder
        self._problems = problems
        self.provider = provider or FolderShards(folder)
        self.config = read_config(folder, family_as_is=family_as_is)
        if problems is None:  # else the caller looks at every file himself
            check_files(folder)
        try:
            check_objects(folder, self.config)
        except CheckpointError as error:
            self._note(error)
        self.index: JsonObject = {}
        self.shards: dict[str, Shard] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self.unlisted: dict[str, str] = {}
        if os.path.lexists(folder / INDEX_NAME):
            self.index = read_json_object(checked_path(folder, INDEX_NAME))
            self._read_listed(_weight_map(folder / INDEX_NAME, self.index))
        else:
            name = _only_shard(folder, self.provider.names())
            self.shards[name] = self.provider.shard(name)
            self.tensors.update(self.shards[name].tensors)

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.num_bytes for shard in self.shards.values())

    def _read_listed(self, weight_map: dict[str, str]) -> None:
        index = self.folder / INDEX_NAME
        for name in sorted(set(weight_map.values())):
            try:
                if not self.provider.has(name):
                    raise MissingFileError(f"{index} names the shard {name}, which is not in {self.folder}")
                self.shards[name] = self.provider.shard(name)
            except CheckpointError as error:
                self._note(error)
        for tensor, name in weight_map.items():
            if name not in self.shards:
                continue
            if tensor in self.shards[name].tensors:
                self.tensors[tensor] = self.shards[name].tensors[tensor]
            elif not self._is_past_scale(tensor, weight_map):
                self._note(CheckpointError(f"{index} says {name} holds {tensor}; it does not"))
        for name, shard in self.shards.items():
            self.unlisted.update({t: name for t in shard.tensors if weight_map.get(t) != name})

    def _is_past_scale(self, name: str, weight_map: dict[str, str]) -> bool:
        """Say whether a tensor that is gone was the scale of a weight which is plain by now."""
        weight = name.removesuffix(SCALE_SUFFIX)
        shard = self.shards.get(weight_map.get(weight, ""))
        stored = shard.tensors.get(weight) if shard is not None and weight != name else None
        return stored is not None and stored.spec.dtype in FLOAT_DTYPES

    def _note(self, error: CheckpointError) -> None:
        if self._problems is None:
            raise error
        self._problems.append(str(error))


def read_config(folder: Path, *, family_as_is: bool = False) -> ModelConfig:
    """Return a checkpoint's config.json. Raises CheckpointError or one of its children."""
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder} {found}; give the folder of a checkpoint or release, or its id on the "
            "hub, such as moonshotai/Kimi-K2-Instruct"
        )
    if not os.path.lexists(folder / CONFIG_NAME):
        raise MissingFileError(f"{folder} is not a checkpoint: it has no {CONFIG_NAME}")
    path = checked_path(folder, CONFIG_NAME)
    return parse_config(read_json_object(path, MAX_CONFIG_BYTES), path, family_as_is=family_as_is)


def has_weights(folder: Path) -> bool:
    """Say whether a folder has an index or a safetensors file, whatever is wrong with it."""
    return os.path.lexists(folder / INDEX_NAME) or any(folder.glob(f"*{SHARD_SUFFIX}"))


def checked_path(folder: Path, name: str) -> Path:
    """Return a file's path in the folder. Raises UnsafePathError if a link leads out of the checkpoint."""
    path = folder / name
    require_inside(path, folder)
    return path


def check_files(folder: Path) -> None:
    """Refuse a folder with a named pipe, socket or device in it, or a link that leads nowhere or out of it.

    Whatever loads a tokenizer or a template opens files by their names, and would hang or follow.
    """
    for path in side_paths(folder):
        if not path.is_dir():
            open_regular(checked_path(folder, path.name)).close()


def check_objects(folder: Path, config: ModelConfig) -> None:
    """Refuse a damaged tokenizer_config.json or generation_config.json, where every server would stop.

    Raises CheckpointError.
    """
    for name in (TOKENIZER_CONFIG_NAME, GENERATION_CONFIG_NAME):
        if not os.path.lexists(folder / name):
            continue
        path = checked_path(folder, name)
        document = read_json_object(path)
        if name == TOKENIZER_CONFIG_NAME:
            parse_tokenizer_config(document, path)
        else:
            check_generation_config(document, path, config.text.vocab_size)


def side_paths(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds beside weights and hidden entries, sorted by name.

    Raises CheckpointError for a name that no message or report could hold.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    for path in paths:
        if path.name.startswith(".") or path.name.lower().endswith(SHARD_SUFFIX):
            continue
        check_file_name(path)
        yield path


def _weight_map(path: Path, index: JsonObject) -> dict[str, str]:
    """Return which shard holds each tensor, every name checked."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"{path} names {len(weight_map)} tensors; at most {MAX_TENSORS} are read")
    for tensor, name in weight_map.items():
        try:
            check_tensor_name(tensor)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: weight_map gives {tensor} {name!r:.60}, not a shard's name")
    names = set(weight_map.values())
    for name in sorted(names):
        _check_shard_name(path, name)
    if len({name.casefold() for name in names}) < len(names):
        alike = sorted(names, key=lambda name: (name.casefold(), name))
        one, other = next(pair for pair in pairwise(alike) if pair[0].casefold() == pair[1].casefold())
        raise UnsafePathError(f"{path} names {one} and {other}, which some file systems take for one file")
    return weight_map


def _check_shard_name(index: Path, name: str) -> None:
    path = PurePosixPath(name)
    is_text = is_encodable(name) and not has_control_characters(name)
    is_plain = is_text and str(path) == name and "\\" not in name
    if not is_plain or path.is_absolute() or ".." in path.parts or path.suffix != SHARD_SUFFIX:
        raise UnsafePathError(
            f"{index} names {name!r:.200}, which is not a safetensors file inside the folder"
        )


def own_shards(names: Collection[str]) -> list[str]:
    """Return the safetensors files among the names that are no copy of others under other tensor names."""
    found = sorted(name for name in names if name.endswith(SHARD_SUFFIX) and not name.startswith("."))
    return [name for name in found if not name.startswith(OTHER_COPY)] or found


def _only_shard(folder: Path, names: Collection[str]) -> str:
    """Return the name of the safetensors file that needs no index."""
    own = own_shards(names)
    if len(own) == 1:
        _check_shard_name(folder, own[0])
        return own[0]
    if not own:
        raise MissingFileError(
            f"{folder} is not a checkpoint: it has no {INDEX_NAME} and no safetensors file"
        )
    raise MissingFileError(
        f"{folder} is not a checkpoint: it has no {INDEX_NAME}, which its {len(own)} safetensors files need"
    )
