"""Reading source checkpoints: FP8 blocks, shards behind links, side files."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from moe4.checkpoint.encodings import dequantize_blocks
from moe4.checkpoint.header import TensorSpec
from moe4.checkpoint.shard import DTYPE_NAMES, ShardWriter
from moe4.checkpoint.source import Checkpoint
from moe4.errors import MissingFileError, TensorError, UnsafePathError, UnsupportedModelError


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 16), st.integers(1, 16)),
)
def test_blocks_take_their_scale_to_the_ragged_edge(rows: int, columns: int, block: tuple[int, int]) -> None:
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // block[0]), -(-columns // block[1])) + 0.5
    found = dequantize_blocks(weight, scales, block)
    for i in range(rows):
        for j in range(columns):
            assert found[i, j] == weight[i, j].float() * scales[i // block[0], j // block[1]]


def test_one_shard_needs_no_index_and_digest_sees_headers(tmp_path: Path) -> None:
    one = Checkpoint(write(tmp_path / "one", {"a": torch.zeros(2, 3)}))
    assert list(one.tensors) == ["a"]
    assert one.digest() == Checkpoint(tmp_path / "one").digest()
    other = Checkpoint(write(tmp_path / "other", {"a": torch.zeros(3, 2)}))
    assert one.digest() != other.digest()
    trained = Checkpoint(write(tmp_path / "trained", {"a": torch.ones(2, 3)}))
    assert one.digest() != trained.digest()


def test_digest_sees_headers_that_its_samples_of_the_data_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe4.checkpoint.source._sample", lambda *_: b"")
    one = Checkpoint(write(tmp_path / "one", {"a": torch.zeros(2, 3)}))
    other = Checkpoint(write(tmp_path / "other", {"a": torch.zeros(3, 2)}))
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("shape", "tensors", "message"),
    [
        ((4, 4), {}, "w is F8_E4M3 but has no w_scale_inv or _scale with its scales"),
        ((4,), {"w_scale_inv": torch.ones(1, 1)}, r"w is F8_E4M3 of shape \[4\]; expected a matrix"),
    ],
    ids=["none", "of a vector"],
)
def test_fp8_without_scales_of_blocks_is_refused(
    tmp_path: Path, shape: tuple[int, ...], tensors: dict[str, torch.Tensor], message: str
) -> None:
    fp8 = {"w": torch.ones(shape).to(torch.float8_e4m3fn), **tensors}
    folder = write(tmp_path / "model", fp8, quantization_config={"quant_method": "fp8"})
    with pytest.raises(TensorError, match=message):
        Checkpoint(folder).load("w")


def test_two_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"a": torch.zeros(2)})
    save_file({"b": torch.zeros(2)}, folder / "more.safetensors")
    with pytest.raises(
        MissingFileError, match=r"no model\.safetensors\.index\.json, which its 2 safetensors files need"
    ):
        Checkpoint(folder)


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs = write(tmp_path / "blobs", {"a": torch.ones(2)})
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(Path("../..") / "blobs" / name)
    assert torch.equal(Checkpoint(snapshot).load("a"), torch.ones(2))
    assert (blobs / "config.json").exists()


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "x.bin", "a\\x.safetensors"]
)
def test_paths_stay_inside(path: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"a": torch.zeros(2)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path}}))
    with pytest.raises(UnsafePathError, match="not a safetensors file inside the folder"):
        Checkpoint(folder)


def test_fp8_scales_must_cover_every_block(tmp_path: Path) -> None:
    weight = torch.zeros(200, 130).to(torch.float8_e4m3fn)
    folder = write(
        tmp_path / "model",
        {"w": weight, "w_scale_inv": torch.ones(2, 1)},
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    with pytest.raises(
        TensorError, match=r"w_scale_inv must have shape \[2, 2\] for w of shape \[200, 130\]"
    ):
        Checkpoint(folder)


@pytest.mark.parametrize("dtype", ["U8", "F8_E8M0", "BF16"])
def test_scales_that_are_powers_of_two(dtype: str, tmp_path: Path) -> None:
    """The byte e means 2 ** (e - 127), under either dtype."""
    weight = torch.randn(200, 130).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[-3.0, 2.0], [0.0, -9.0]])
    stored = {
        "U8": (exponents + 127).to(torch.uint8),
        "F8_E8M0": (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu),
        "BF16": (2**exponents).to(torch.bfloat16),
    }[dtype]
    quantization = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    write_shard(tmp_path, {"w": weight, "w_scale_inv": stored}, quantization)
    found = Checkpoint(tmp_path)
    assert list(found.tensors) == ["w"]
    assert torch.equal(found.load("w"), dequantize_blocks(weight, 2**exponents, (128, 128)))
    assert found.bytes_read == 200 * 130 + 4 * stored.itemsize


def write_shard(
    folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, object], **config: object
) -> None:
    """Write a checkpoint in every dtype that moe4 knows; safetensors.torch does not have all of them."""
    specs = [
        TensorSpec(name=name, dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    writer = ShardWriter(folder / "model.safetensors", specs)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.finish()
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization, **config}))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float64])
def test_scales_of_a_dtype_without_a_meaning_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    """A byte is an exponent only where the config says so; it never is the number itself."""
    tensors = {"w": torch.zeros(4, 4).to(torch.float8_e4m3fn), "w_scale_inv": torch.ones(1, 1, dtype=dtype)}
    write_shard(tmp_path, tensors, {"quant_method": "fp8"})
    with pytest.raises(
        TensorError, match=r"w_scale_inv has the dtype \w+; expected one of BF16, F16, F32, F8_E8"
    ):
        Checkpoint(tmp_path)


def test_a_scale_beside_a_weight_that_is_not_fp8_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"w": torch.zeros(4, 4), "w_scale_inv": torch.ones(1, 1)})
    assert list(Checkpoint(folder).tensors) == ["w", "w_scale_inv"]


@pytest.mark.parametrize(
    "quantization",
    [
        7,
        [1],
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "fp8", "weight_block_size": [0, 1]},
    ],
)
def test_a_quantization_that_makes_no_sense_is_refused(quantization: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"w": torch.zeros(4, 4)}, quantization_config=quantization)
    with pytest.raises(UnsupportedModelError, match=r"quantization_config.* must be .*, found"):
        Checkpoint(folder)


def test_bytes_of_a_dtype_that_torch_lacks_are_copied(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]}}
    encoded = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"abcd")
    (tmp_path / "config.json").write_text("{}")
    assert b"".join(Checkpoint(tmp_path).iterate("w")) == b"abcd"
    with pytest.raises(TensorError, match=r"w in .* has the dtype F4, which moe4 does not read"):
        Checkpoint(tmp_path).load("w")


def test_side_files_are_what_users_need_and_no_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"a": torch.zeros(2)})
    for name in (
        "tokenizer.json",
        "tokenization_x.py",
        "LICENSE",
        "pytorch_model.bin",
        "README.md",
        ".gitattributes",
    ):
        (folder / name).write_text("x")
    (folder / "figures").mkdir()
    names = [path.name for path in Checkpoint(folder).side_files()]
    assert names == ["LICENSE", "tokenization_x.py", "tokenizer.json"]
