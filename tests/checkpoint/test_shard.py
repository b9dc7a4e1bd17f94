"""Our reader and writer of safetensors against safetensors' own, and what a broken file is called."""

import contextlib
import hashlib
import json
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moe4.checkpoint.header import ITEM_BITS
from moe4.checkpoint.shard import DTYPES, ShardWriter, TensorSpec, iterate_bytes, read_shard, read_tensor
from moe4.errors import MissingFileError, TensorError, TruncatedShardError

specs = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
        dtype=st.sampled_from(["BF16", "F16", "F32", "I32", "I64", "U8", "F8_E4M3"]),
        shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda spec: spec.name,
).filter(lambda items: all(spec.name != "__metadata__" for spec in items))


def random_tensor(spec: TensorSpec, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 100, (spec.num_bytes,), generator=generator, dtype=torch.uint8)
    return data.view(DTYPES[spec.dtype]).view(spec.shape)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=specs, seed=st.integers(0, 1000))
def test_safetensors_reads_what_we_write_and_we_read_it_back(
    specs: list[TensorSpec], seed: int, tmp_path: Path
) -> None:
    path = tmp_path / "written.safetensors"
    tensors = {spec.name: random_tensor(spec, seed + number) for number, spec in enumerate(specs)}
    writer = ShardWriter(path, specs)
    for name in random.Random(seed).sample(sorted(tensors), len(tensors)):
        writer.write(name, tensors[name])
    writer.finish()
    theirs, shard = load_file(path), read_shard(path)
    assert set(theirs) == set(tensors) == set(shard.tensors)
    for name, tensor in tensors.items():
        for found in (theirs[name], read_tensor(shard.tensors[name])):
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    # The data starts on a page and lies in the order that was asked for.
    first = min(stored.offset for stored in shard.tensors.values())
    assert first % 4096 == 0
    order = [spec.name for spec in specs if spec.num_bytes]
    assert sorted(order, key=lambda name: shard.tensors[name].offset) == order


def test_copies_bytes_between_shards(tmp_path: Path) -> None:
    weight = torch.randn(300, 7, dtype=torch.bfloat16)
    save_file({"a": weight, "b": torch.arange(5)}, tmp_path / "source.safetensors")
    source = read_shard(tmp_path / "source.safetensors")
    assert b"".join(iterate_bytes(source.tensors["a"])) == weight.view(torch.uint8).numpy().tobytes()
    writer = ShardWriter(tmp_path / "copy.safetensors", [stored.spec for stored in source.tensors.values()])
    for stored in source.tensors.values():
        assert writer.lacks(stored.spec.name)
        writer.write_pieces(stored.spec.name, iterate_bytes(stored))
        assert not writer.lacks(stored.spec.name)
    writer.finish()
    assert torch.equal(load_file(tmp_path / "copy.safetensors")["a"], weight)


def test_a_shard_is_finished_only_when_whole(tmp_path: Path) -> None:
    spec = TensorSpec(name="a", dtype="F32", shape=(2,))
    writer = ShardWriter(tmp_path / "shard.safetensors", [spec])
    with pytest.raises(AssertionError, match="never written"):
        writer.finish()
    writer.write("a", torch.zeros(2))
    with pytest.raises(AssertionError, match="written twice"):
        writer.write("a", torch.zeros(2))
    writer.close()


def shard_bytes(header: object, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": (b"", "cannot hold its header"),
    "header longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "cannot hold its header"),
    "not JSON": (shard_bytes(b"{nonsense"), "no valid safetensors header"),
    "not an object": (shard_bytes([1]), "no valid safetensors header"),
    "not UTF-8": (shard_bytes(b'{"\xff": 1}'), "no valid safetensors header"),
    "half a byte": (shard_bytes({"a": entry("F4", [1], 0, 1)}, b"x"), "no valid safetensors header"),
    "a key twice": (shard_bytes(b'{"a": 1, "a": 2}'), "the key 'a' is there twice"),
    "NaN": (shard_bytes(b'{"a": NaN}'), "NaN is not a JSON value"),
    "deep": (shard_bytes(b'{"a":' + b"[" * 100_000), "nested deeper"),
    "a number of many digits": (shard_bytes(b'{"a": 1' + b"0" * 5000 + b"}"), "has 5001 digits"),
    "metadata that is no text": (shard_bytes({"__metadata__": {"format": 1}}), "__metadata__ must map"),
    "another key": (
        shard_bytes({"a": {**entry("U8", [1], 0, 1), "device": "cpu"}}, b"x"),
        "and nothing else",
    ),
    "many dimensions": (shard_bytes({"a": entry("U8", [1] * 17, 0, 1)}, b"x"), "shape of at most 16 sizes"),
    "a size that is true": (shard_bytes({"a": entry("U8", [True], 0, 1)}, b"x"), "not a whole number"),
    "an empty name": (shard_bytes({"": entry("U8", [1], 0, 1)}, b"x"), "cannot be the name of a tensor"),
    "a line break in a name": (shard_bytes({"a\nb": entry("U8", [1], 0, 1)}, b"x"), "cannot be the name"),
    "half a surrogate pair": (
        shard_bytes({"a\ud800": entry("U8", [1], 0, 1)}, b"x"),
        "half of a surrogate pair",
    ),
    "no offsets": (shard_bytes({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "no valid safetensors header"),
    "offsets that are no list": (
        shard_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": 1}}, b"x"),
        "tensor a has no pair of data_offsets",
    ),
    "one offset": (
        shard_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"),
        "tensor a has no pair of data_offsets",
    ),
    "three offsets": (
        shard_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"x"),
        "tensor a has no pair of data_offsets",
    ),
    "negative size": (shard_bytes({"a": entry("U8", [-1], 0, 1)}, b"x"), "negative size or offset"),
    "offsets of another size": (shard_bytes({"a": entry("F32", [2], 0, 4)}, b"xxxx"), "needs 8 bytes"),
    "overlap": (
        shard_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"xxx"),
        "overlaps another or leaves a hole",
    ),
    "hole": (
        shard_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"xxx"),
        "overlaps another or leaves a hole",
    ),
    "too short": (shard_bytes({"a": entry("U8", [4], 0, 4)}, b"xxx"), "is truncated or damaged"),
    "too long": (shard_bytes({"a": entry("U8", [4], 0, 4)}, b"xxxxx"), "is truncated or damaged"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_with_one_line(name: str, tmp_path: Path) -> None:
    data, message = MALFORMED[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(TruncatedShardError, match=message) as caught:
        read_shard(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dtype_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    path.write_bytes(shard_bytes({"a": entry("F3_E1M1", [8], 0, 3)}, b"xxx"))
    with pytest.raises(TensorError, match=r"tensor a has the dtype 'F3_E1M1', which moe4 does not read"):
        read_shard(path)


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_every_dtype_of_safetensors_is_parsed(dtype: str, tmp_path: Path) -> None:
    """safetensors accepts the same file, so the sizes are the format's own."""
    path = tmp_path / "one.safetensors"
    size = 8 * ITEM_BITS[dtype] // 8
    path.write_bytes(shard_bytes({"a": entry(dtype, [8], 0, size)}, bytes(size)))
    assert read_shard(path).tensors["a"].spec == TensorSpec(name="a", dtype=dtype, shape=(8,))
    with safe_open(path, framework="np") as theirs:
        assert theirs.get_slice("a").get_shape() == [8]
    stored = read_shard(path).tensors["a"]
    if dtype in DTYPES:
        assert read_tensor(stored).shape == (8,)
    else:
        with pytest.raises(TensorError, match=rf"a in .*one\.safetensors has the dtype {dtype}"):
            read_tensor(stored)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        read_shard(tmp_path / "none.safetensors")


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_raise_anything_else(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(TruncatedShardError, TensorError):
        read_shard(path)


def test_a_slow_hash_does_not_hold_up_what_is_written_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe4.checkpoint.shard.BEHIND_BYTES", 4096)
    monkeypatch.setattr("moe4.checkpoint.shard.SYNC_BYTES", 8192)
    tensors = {f"t{number}": torch.full((1024 + number,), float(number)) for number in range(24)}
    specs = [TensorSpec(name=name, dtype="F32", shape=tuple(t.shape)) for name, t in tensors.items()]
    may_hash, hash_until = threading.Event(), ShardWriter._hash_until

    def wait_and_hash(writer: ShardWriter, end: int) -> None:
        assert may_hash.wait(30)
        hash_until(writer, end)

    monkeypatch.setattr(ShardWriter, "_hash_until", wait_and_hash)
    writer = ShardWriter(tmp_path / "shard", specs, behind=True)
    shuffled = random.Random(0).sample(sorted(tensors), len(tensors))
    for name in shuffled:  # returns though nothing is hashed
        writer.write(name, tensors[name])
    may_hash.set()
    writer.finish()
    writer.close()
    data = (tmp_path / "shard").read_bytes()
    assert writer.sha256 == hashlib.sha256(data).hexdigest()
    read = load_file(tmp_path / "shard")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_file_cut_before_it_is_hashed_is_an_error(tmp_path: Path) -> None:
    specs = [TensorSpec(name=name, dtype="F32", shape=(4096,)) for name in "ab"]
    writer = ShardWriter(tmp_path / "shard", specs)
    for name in "ba":  # b, out of order, is hashed at the end
        writer.write(name, torch.zeros(4096))
    os.truncate(tmp_path / "shard", 4096 + 4 * 4096 + 100)
    with pytest.raises(TruncatedShardError, match="became shorter"):
        writer.finish()
    writer.close()
