"""How far training has come, in the work folder: a file of tensors, and a line that names it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from moe4.checkpoint.header import TensorSpec, read_shard
from moe4.checkpoint.journal import BEGIN_AGAIN, is_unchanged
from moe4.checkpoint.release_folder import dump_json
from moe4.checkpoint.shard import ShardWriter, read_tensor
from moe4.errors import ResumeError
from moe4.files.durable import PARTIAL_SUFFIX, publish, write_file
from moe4.files.own import OwnFile
from moe4.fingerprint import FileName, Hash
from moe4.schema import Own

NAME = "tuning.json"


class SavedLine(Own):
    """`tuning.json`: after how many steps, and the file with the tensors of then."""

    done: Annotated[int, Field(ge=0)]
    kl_before: float
    file: FileName
    sha256: Hash
    bytes: Annotated[int, Field(ge=0)]


SAVED = OwnFile(form=SavedLine, error=ResumeError, remedy=BEGIN_AGAIN)


@dataclass(frozen=True, slots=True)
class Saved:
    """What was saved. done: steps; kl_before: of the release as it was, in nats a token."""

    done: int
    kl_before: float
    tensors: dict[str, Tensor]


class SavedState:
    """The state in one work folder. What was saved last stays whole until the next is."""

    def __init__(self, work: Path) -> None:
        self._work, self._path = work, work / NAME

    def load(self) -> Saved | None:
        """Return what was saved last, if anything. Raises ResumeError if it has changed since."""
        if not self._path.is_file():
            return None
        line = SAVED.read(self._path)
        path = self._work / line.file
        if not is_unchanged(path, line.sha256, line.bytes):
            raise ResumeError(f"{path} is not the file that was saved; {BEGIN_AGAIN}")
        tensors = {name: read_tensor(stored) for name, stored in read_shard(path).tensors.items()}
        return Saved(line.done, line.kl_before, tensors)

    def save(self, done: int, kl_before: float, state: Iterable[tuple[str, Tensor]]) -> None:
        """Save float32 tensors by name, durably; then forget what was saved before."""
        tensors = dict(state)
        specs = [
            TensorSpec(name=name, dtype="F32", shape=tuple(tensor.shape)) for name, tensor in tensors.items()
        ]
        final = self._work / f"tuning-{done:05d}.safetensors"
        temporary = final.with_name(f"{final.name}{PARTIAL_SUFFIX}")
        temporary.unlink(missing_ok=True)
        writer = ShardWriter(temporary, specs)
        for name, tensor in tensors.items():
            writer.write(name, tensor.cpu())
        writer.finish()
        publish(temporary, final)
        line = SavedLine(
            done=done, kl_before=kl_before, file=final.name, sha256=writer.sha256, bytes=writer.num_bytes
        )
        write_file(self._path, dump_json(line.as_dict()), self._work)
        for path in self._work.glob("tuning-*.safetensors"):
            if path != final:
                path.unlink()
