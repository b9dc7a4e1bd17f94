"""Batches cover every token once, and the store is a file."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe4.calibration.activations import ActivationStore, make_batches


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), batch_tokens=st.integers(1, 200))
def test_every_token_is_in_one_batch_in_its_sequence(lengths: list[int], batch_tokens: int) -> None:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    sequences = {tuple(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)}
    found = []
    for batch in make_batches(lengths, batch_tokens):
        assert batch.rows.numel() <= max(batch_tokens, batch.rows.shape[1])
        for row in batch.rows:
            tokens = tuple(row[row >= 0].tolist())
            assert (row[len(tokens) :] == -1).all()
            found.append(tokens)
    assert len(found) == len(lengths)
    assert set(found) == sequences


def test_gather_and_select_are_inverse(tmp_path: Path) -> None:
    values = torch.randn(30, 4)
    store = ActivationStore(tmp_path / "x.bin", (30, 4), torch.float32, create=True)
    store.write(slice(0, 30), values)
    for batch in make_batches([7, 3, 12, 8], 20):
        states = batch.gather(store, torch.device("cpu"))
        assert torch.equal(batch.select(states), values[batch.token_rows])
        assert torch.equal(batch.select(states.flatten(0, 1)), values[batch.token_rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_store_survives_reopening(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(5, 8).to(dtype)
    store = ActivationStore(tmp_path / "x.bin", (5, 8), dtype, create=True)
    store.write(slice(0, 5), values)
    store.sync()
    assert (tmp_path / "x.bin").stat().st_size == 40 * dtype.itemsize
    again = ActivationStore(tmp_path / "x.bin", (5, 8), dtype, create=False)
    assert torch.equal(again.read(torch.tensor([4, 0])), values[[4, 0]])


def resident_file_bytes() -> int:
    """Pages of mapped files in this process' memory."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("RssFile")).split()[1]) << 10


def test_a_store_larger_than_memory_may_be_does_not_stay_in_it(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "x.bin", (40_000, 1024), torch.float32, create=True)  # 164 MB
    before = resident_file_bytes()
    ones = torch.ones(1, 1024)
    for rows in store.pieces():
        store.write(rows, ones.expand(rows.stop - rows.start, -1))
        assert resident_file_bytes() - before < 100e6
    chosen = torch.randperm(40_000)
    for rows in chosen.split(3000):
        store.add(rows, ones.expand(len(rows), -1))
        assert resident_file_bytes() - before < 100e6
    assert store.is_finite()
    assert bool((store.read(chosen[:100]) == 2).all())
    store.write(slice(39_999, 40_000), ones * float("nan"))
    assert not store.is_finite()
