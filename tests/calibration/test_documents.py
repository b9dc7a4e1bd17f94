"""Calibration data as they are published: containers, compression, tables; damaged and hostile ones."""

import bz2
import gzip
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from moe4.calibration import packed_files
from moe4.calibration.documents import Drawn, choose_at_random, draw_from
from moe4.errors import CalibrationError, MissingDependencyError, Moe4Error

ROWS = [{"id": n, "messages": [{"role": "user", "content": f"number {n}, ä"}]} for n in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ALL = choose_at_random(100, 0)


def texts(drawn: Drawn) -> list[str]:
    return [document["messages"][-1]["content"] for _, document in drawn.documents]


EXPECTED = [row["messages"][0]["content"] for row in ROWS]  # type: ignore[index]


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


FILES = {
    "lines": (LINES, "JSON lines"),
    "lines, no end": (LINES.rstrip(), "JSON lines"),
    "lines, Windows": (b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), "JSON lines"),
    "array": (json.dumps(ROWS).encode(), "a JSON array"),
    "array, indented": (
        b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
        "a JSON array",
    ),
    "gzip": (gzip.compress(LINES), "JSON lines, gzip"),
    "gzip, two members": (gzip.compress(LINES[:900]) + gzip.compress(LINES[900:]), "JSON lines, gzip"),
    "gzip, array": (gzip.compress(json.dumps(ROWS).encode()), "a JSON array, gzip"),
    "bzip2": (bz2.compress(LINES), "JSON lines, bzip2"),
    "xz": (lzma.compress(LINES), "JSON lines, xz"),
    "xz, two streams": (lzma.compress(LINES[:900]) + lzma.compress(LINES[900:]), "JSON lines, xz"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_what_it_holds(tmp_path: Path, name: str) -> None:
    data, container = FILES[name]
    path = tmp_path / "data"
    path.write_bytes(data)
    drawn = draw_from(path, None, ALL)
    assert texts(drawn) == EXPECTED
    assert drawn.container == container
    assert (
        drawn.describe() == f"calibration: 40 documents from data ({container}): OpenAI messages; ignored: id"
    )


def test_zstd(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(LINES))
    drawn = draw_from(tmp_path / "c.jsonl.zst", None, ALL)
    assert (texts(drawn), drawn.container) == (EXPECTED, "JSON lines, zstd")


def write_parquet(path: Path, rows: list[Any], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def test_parquet_draws_the_same_documents_as_lines(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(LINES)
    path = write_parquet(tmp_path / "c.parquet", ROWS, row_group_size=7)
    for num in (1, 9, 40, 100):
        choose = choose_at_random(num, 3)
        assert texts(draw_from(path, None, choose)) == texts(draw_from(tmp_path / "c.jsonl", None, choose))
    drawn = draw_from(path, None, choose_at_random(9, 3))
    assert (
        drawn.describe()
        == "calibration: 9 documents of 40 from c.parquet (Parquet): OpenAI messages; ignored: id"
    )
    assert drawn.documents[0][0].startswith(f"{path}: row ")


def test_what_a_row_of_a_table_had_not_is_absent(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"b": 2}}}
    rows = [
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [tool]}]} for tool in (call, other)
    ]
    rows.append({"messages": [{"role": "user", "content": "x"}]})  # type: ignore[list-item]
    drawn = draw_from(write_parquet(tmp_path / "c.parquet", rows), None, ALL)
    messages = [document["messages"][0] for _, document in drawn.documents]
    assert [message.get("tool_calls") for message in messages] == [[call], [other], None]


def test_a_row_of_a_table_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    rows = [*ROWS[:5], {"id": 9, "messages": []}]
    with pytest.raises(CalibrationError, match=r"c\.parquet: row 6: messages must have at least 1 entry"):
        draw_from(write_parquet(tmp_path / "c.parquet", rows), None, ALL)
    with pytest.raises(CalibrationError, match="found the columns id, chosen"):
        draw_from(write_parquet(tmp_path / "d.parquet", [{"id": 1, "chosen": "x"}]), None, ALL)


def test_a_damaged_table(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"PAR1" + b"x" * 100, data[:40] + b"\xff" * 300 + data[340:]):
        path.write_bytes(broken)
        with pytest.raises(CalibrationError, match=r"c\.parquet") as caught:
            draw_from(path, None, ALL)
        assert "\n" not in str(caught.value)


def test_a_small_table_of_large_rows_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "x" * 4_000_000}] * 200  # 800 MB of a file of some kilobytes
    path = write_parquet(tmp_path / "bomb.parquet", rows, compression="zstd")
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr("moe4.calibration.parquet.FIRST_BYTES", 200 << 20)
    with pytest.raises(CalibrationError, match=r"bomb\.parquet: reading it (takes|gives) more than"):
        draw_from(path, None, ALL)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("gzip", gzip.compress(LINES)[:-30]),
        ("bzip2", bz2.compress(LINES)[:-30]),
        ("xz", lzma.compress(LINES)[:-30]),
        ("gzip, flipped", gzip.compress(LINES)[:200] + b"\0" * 40 + gzip.compress(LINES)[240:]),
        ("gzip, head alone", b"\x1f\x8b\x08\0\0\0"),
        ("xz, more after", lzma.compress(LINES) + b"garbage"),
    ],
)
def test_a_damaged_compressed_file(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "c.jsonl").write_bytes(data)
    with pytest.raises(CalibrationError, match=r"c\.jsonl is damaged or cut short: "):
        draw_from(tmp_path / "c.jsonl", None, ALL)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("fill", [b"\n", b" "])
def test_a_file_that_unpacks_to_far_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Any, fill: bytes
) -> None:
    monkeypatch.setattr(packed_files, "FREE_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(compress(b'{"text": "a"}\n' + fill * (8 << 20)))
    with pytest.raises(CalibrationError, match="bomb unpacks to more than"):
        draw_from(tmp_path / "bomb", None, ALL)


def test_an_xz_file_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    data = bytearray(lzma.compress(LINES, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]))
    compressor = lzma.LZMACompressor(filters=[{**filters[0], "mf": lzma.MF_HC3, "mode": lzma.MODE_FAST}])
    try:
        data = bytearray(compressor.compress(LINES) + compressor.flush())
    except MemoryError:
        pytest.skip("no memory to write such a file")
    (tmp_path / "c.xz").write_bytes(data)
    with pytest.raises(CalibrationError, match=r"c\.xz is damaged or cut short: Memory usage limit"):
        draw_from(tmp_path / "c.xz", None, ALL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no documents"),
        (b"\n \n", "holds no documents"),
        (b"[]", "holds no documents"),
        (b"[", "entry 1: not JSON"),
        (b"[1", r"entry 1: not JSON|expected '\]'|entry 1: expected an object"),
        (b'[{"text": "a"}', "expected ']' in its JSON array, found the end of the file"),
        (b'[{"text": "a"} {"text": "b"}]', "expected ']' in its JSON array, found '{'"),
        (b'[{"text": "a"},]', "entry 2: not JSON"),
        (b'[{"text": "a"}, {"texts": "b"}]', r"c\.json: entry 2: expected an object"),
        (b'[{"text": "a"}]\n[{"text": "b"}]', "more text follows its JSON array"),
        (b'[{"text": "\xff"}]', "is not UTF-8 text"),
        (b'[{"text": "a", "x": NaN}]', "entry 1: not JSON: NaN"),
        (b"[" * 100_000, "nested too deeply"),
        (b"PK\x03\x04zip", "is a zip archive; unpack it"),
        (b"{\n", r":1: not JSON"),
    ],
)
def test_what_is_no_data(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(CalibrationError, match=message) as caught:
        draw_from(tmp_path / "c.json", None, ALL)
    assert "\n" not in str(caught.value)


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    path.write_text('{"text": "a"}\n')
    os.truncate(path, 1 << 40)
    with pytest.raises(CalibrationError, match=r"line 2 does not end within 100000000 bytes"):
        draw_from(path, None, ALL)


def test_an_entry_without_an_end_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe4.calibration.json_array.MAX_JSON_BYTES", 1 << 18)
    (tmp_path / "c.json").write_text('[{"text": "' + "x" * (1 << 20) + '"}]')
    with pytest.raises(CalibrationError, match="entry 1 does not end within"):
        draw_from(tmp_path / "c.json", None, ALL)


def test_entries_longer_than_a_piece(tmp_path: Path) -> None:
    rows = [{"text": f"{n}" + "ä" * 70_000 * n} for n in range(4)]
    (tmp_path / "c.json").write_text(json.dumps(rows, ensure_ascii=False))
    drawn = draw_from(tmp_path / "c.json", None, ALL)
    assert [document for _, document in drawn.documents] == rows


def test_a_folder_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(LINES)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"), raising=False)
    drawn = draw_from(folder, "train[:20]", choose_at_random(5, 1))
    assert set(texts(drawn)) <= set(EXPECTED[:20])
    assert (len(drawn.rows), drawn.num_rows) == (5, 20)
    assert "split train[:20] (a data set): OpenAI messages; ignored: id" in drawn.describe()
    with pytest.raises(CalibrationError, match="split nothing, cannot be loaded: "):
        draw_from(folder, "nothing", ALL)
    with pytest.raises(CalibrationError, match=r"is a folder; name a split .* calibration_split"):
        draw_from(folder, None, ALL)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"question": "1 + 1?", "answer": "2", "level": 1}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    drawn = draw_from(Path("owner/sums:main"), "train", ALL)
    assert asked == [(("owner/sums", "main"), {"split": "train"})]
    assert drawn.name == "owner/sums:main, split train"
    assert drawn.describe().endswith("(a data set): question and answer columns; ignored: level")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("owner/none", None, "does not exist; for the hub's data set of that name add its split"),
        ("none.jsonl", None, "does not exist"),
        ("none.jsonl", "train", "no data set of the hub has such a name"),
        ("../x/../y", "train", "no data set of the hub has such a name"),
        ("x" * 300, None, "cannot be read: File name too long"),
        ("a\0b", None, "cannot be read: "),
    ],
)
def test_what_is_not_there(name: str, split: str | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        draw_from(Path(name), split, ALL)


def test_a_split_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(LINES)
    with pytest.raises(CalibrationError, match="is a file, which has no splits"):
        draw_from(tmp_path / "c.jsonl", "train", ALL)


@pytest.mark.parametrize("library", ["pyarrow", "datasets"])
def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path = write_parquet(tmp_path / "c.parquet", ROWS)
    packed = tmp_path / "c.zst"
    packed.write_bytes(zstd(LINES))
    monkeypatch.setitem(sys.modules, library, None)
    asks = [(path, None), (packed, None)] if library == "pyarrow" else [(Path("a/b"), "train")]
    said = rf"needs {library}, which is not installed: pip install 'moe4\[data\]'"
    for asked, split in asks:
        with pytest.raises(MissingDependencyError, match=said):
            draw_from(asked, split, ALL)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.jsonl")
    with pytest.raises(Moe4Error, match="is a named pipe"):
        draw_from(tmp_path / "c.jsonl", None, ALL)
