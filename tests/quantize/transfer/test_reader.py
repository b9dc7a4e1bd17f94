"""The source is read once, an expert ahead, and what is copied keeps its bytes."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from release_tools import load_folder, run_quantize

from moe4.checkpoint.provider import ShardProvider
from moe4.checkpoint.source import Checkpoint
from moe4.errors import TensorError
from moe4.model.architecture import Network
from moe4.model.names import Part
from moe4.quantize.run import prepare
from moe4.quantize.transfer.reader import ExpertReader, Prefetcher, Stored
from moe4.recipe import ALL_TARGETS, Recipe


def test_experts_are_read_one_ahead_in_another_thread(
    fp8_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(fp8_source)
    experts = Network(checkpoint.config, torch.bfloat16).experts[1]
    assert experts is not None
    read, done, threads = ExpertReader._read, threading.Semaphore(0), set()
    begun: list[int] = []

    def observed(reader: ExpertReader, expert: int) -> dict[Part, Stored]:
        begun.append(expert)
        threads.add(threading.current_thread().name)
        parts = read(reader, expert)
        done.release()
        return parts

    monkeypatch.setattr(ExpertReader, "_read", observed)
    with ExpertReader(checkpoint, experts, range(1, 8, 2)) as reader:
        for number, expert in enumerate(range(1, 8, 2)):
            assert done.acquire(timeout=30)
            assert begun == list(range(1, 8, 2))[: number + 1]  # no more than one ahead
            stored = reader.take(expert)
            for part, pieces in stored.items():
                name = experts.weight_name(expert, part)
                assert pieces[0].dtype == torch.float8_e4m3fn
                assert torch.equal(checkpoint.decode(name, pieces), checkpoint.load(name))
    assert threading.current_thread().name not in threads


def test_a_layer_read_ahead_is_read_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(source)
    names = list(Network(checkpoint.config, torch.bfloat16).layer_tensors(1))
    asked: list[str] = []
    read = checkpoint.read

    def observed(name: str, *, pinned: bool = False) -> Stored:
        asked.append(name)
        return read(name, pinned=pinned)

    monkeypatch.setattr(checkpoint, "read", observed)
    ahead = Prefetcher(checkpoint, torch.device("cpu"))
    ahead.begin(1, names)
    ahead.begin(1, names)
    for name in names:
        assert torch.equal(checkpoint.decode(name, ahead.take(name)), checkpoint.load(name))
    assert sorted(set(asked)) == sorted(names)
    assert len(asked) == 2 * len(names)  # once ahead, and once by `load` in this test
    ahead.take(names[0])  # it is forgotten: read again
    assert len(asked) == 2 * len(names) + 1


def test_an_error_in_the_reader_is_the_callers(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(source)
    experts = Network(checkpoint.config, torch.bfloat16).experts[1]
    assert experts is not None

    def fail(name: str, **_: object) -> Stored:
        raise TensorError(f"{name} is broken")

    monkeypatch.setattr(checkpoint, "read", fail)
    with (
        ExpertReader(checkpoint, experts, range(3)) as reader,
        pytest.raises(TensorError, match="is broken"),
    ):
        reader.take(0)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("kind", ["source", "fp8_source"])
def test_the_source_is_read_once(
    kind: str,
    method: str,
    calibration: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Checkpoint] = []

    class Observed(Checkpoint):
        def __init__(
            self, folder: Path, provider: ShardProvider | None = None, *, family_as_is: bool = False
        ) -> None:
            super().__init__(folder, provider, family_as_is=family_as_is)
            opened.append(self)

    monkeypatch.setattr(prepare, "Checkpoint", Observed)
    folder: Path = request.getfixturevalue(kind)
    recipe = Recipe.from_dict(
        {"method": method, "targets": list(ALL_TARGETS), "calibration": {"num_sequences": 4}}
    )
    report = run_quantize(folder, tmp_path / "out", recipe, calibration if method == "gptq" else None)
    (checkpoint,) = opened
    bytes_read = checkpoint.bytes_read
    dropped = sum(
        stored.spec.num_bytes for name, stored in checkpoint.tensors.items() if name.endswith("inv_freq")
    )
    embedding = checkpoint.tensors["model.embed_tokens.weight"].spec.num_bytes
    # GPTQ looks its tokens up in the embedding, which is copied at the end. The expected answers need the
    # embedding and the head for each of three passes, and the norm; round to nearest reads the rest of the
    # layers again for them.
    head = checkpoint.tensors["lm_head.weight"].spec.num_bytes
    again = 3 * (embedding + head) + checkpoint.tensors["model.norm.weight"].spec.num_bytes
    if method == "gptq":
        again += embedding
    else:
        rest = [name for name in checkpoint.tensors if "layers." in name and ".experts." not in name]
        plain = Checkpoint(folder)
        pieces = [piece for name in rest for piece in plain.read(name)]
        again += sum(piece.nbytes for piece in pieces) - dropped
    assert bytes_read == checkpoint.num_bytes - dropped + again
    traffic = report["timing"]["traffic_bytes"]
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert traffic["source_read"] == checkpoint.bytes_read
    assert traffic["release_written"] == sum(shard.stat().st_size for shard in shards)
    assert traffic["release_read_back"] < traffic["release_written"]
    if method == "gptq":
        hidden_bytes = report["calibration"]["num_tokens"] * 256 * 2
        assert traffic["activations_written"] > 3 * hidden_bytes
        assert traffic["activations_read"] > traffic["activations_written"]
    else:
        assert traffic["activations_read"] == traffic["activations_written"] == 0
    for shard in shards:
        digest = hashlib.sha256(shard.read_bytes()).hexdigest()
        assert report["release"]["shards"][shard.name]["sha256"] == digest
    stored, released = load_folder(folder), load_folder(tmp_path / "out")
    copied = [name for name in released if name in stored and stored[name].dtype == released[name].dtype]
    assert copied
    for name in copied:
        assert torch.equal(stored[name], released[name]), name
