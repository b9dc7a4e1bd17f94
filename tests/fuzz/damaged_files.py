"""What may have happened to a file: its content edited by its kind, its bytes damaged, itself replaced."""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz.odd_values import edit, odd_value, to_json

LARGEST_BYTES = 64 << 20
YAML_ATTACKS = (
    "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
    "a: &a\n  b: *a\n",
    "&a [*a]\n",
    "a: !!python/object/apply:os.getcwd []\n",
    "!!binary aGFsbG8=\n",
    "a: !!timestamp 2001-13-45\n",
    "a: 2001-12-14\nb: 12:30:45\nc: 0o17\nd: 0x1f\n",
    "? [a, b]\n: c\n",
    "? {a: 1}\n: c\n",
    "a: 1\na: 2\n",
    "--- 1\n--- x\n--- []\n---\n...\n",
    "<<: 1\n",
    "<<: [{a: 1}, 2]\n",
    "%YAML 9.9\n---\na: 1\n",
    "%TAG ! tag:x,2000:\n---\n!y a\n",
    "a:\n\t- b\n",
    "a: .nan\nb: .inf\nc: 1" + "0" * 5000 + "\n",
    "[" * 3000 + "]" * 3000,
    "*missing\n",
    "'unended\n",
)


def damage(path: Path, rng: Random) -> str:
    """Change the file; return what was done to it, in a word."""
    if path.stat().st_size > LARGEST_BYTES:
        return "left as it is"  # a sparse one, of an earlier damage
    if rng.random() < 0.06:
        return replace(path, rng)
    if rng.random() < 0.1:
        return damage_bytes(path, rng)
    for suffixes, change in BY_KIND:
        if path.name.endswith(suffixes):
            return change(path, rng)
    return damage_text(path, rng)


def replace(path: Path, rng: Random) -> str:
    """Put something else in the file's place."""
    size = path.stat().st_size
    path.unlink()
    kinds: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "empty": path.touch,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "socket": lambda: _socket(path),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to zeros": lambda: path.symlink_to("/dev/zero"),
        "link to a folder": lambda: path.symlink_to("."),
        "sparse": lambda: _sparse(path, size, rng),
        "white space": lambda: path.write_text(" \n\t"),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have a hundred letters, with its folder
    try:
        with socket.socket(socket.AF_UNIX) as new:
            new.bind(path.name)
    finally:
        os.chdir(before)


def _sparse(path: Path, size: int, rng: Random) -> None:
    path.touch()
    os.truncate(path, rng.choice([size, 1 << 20, 1 << 33, 1 << 40]))


def damage_bytes(path: Path, rng: Random) -> str:
    """Flip, cut, insert or overwrite bytes, most often near the beginning."""
    data = bytearray(path.read_bytes())
    end = len(data) if rng.random() < 0.5 else min(len(data), 2000)
    place = rng.randrange(end + 1)
    kind = rng.choice(["flip", "cut", "insert", "overwrite", "byte order mark", "append"])
    noise = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 8, 300])))
    if kind == "flip" and place < len(data):
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = noise
    elif kind == "overwrite":
        data[place : place + len(noise)] = noise
    elif kind == "byte order mark":
        data[:0] = b"\xef\xbb\xbf"
    else:
        data += noise
    path.write_bytes(bytes(data))
    return kind


def damage_json(path: Path, rng: Random) -> str:
    """Edit a JSON file one to three times."""
    data = json.loads(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = edit(data, rng)
    path.write_bytes(to_json(data, rng))
    return "edited"


def damage_lines(path: Path, rng: Random) -> str:
    """Edit a file of JSON lines: one line, or their order."""
    lines = path.read_bytes().splitlines()
    place = rng.randrange(len(lines)) if lines else 0
    action = rng.random()
    if lines and action < 0.8:
        try:
            lines[place] = to_json(edit(json.loads(lines[place]), rng), rng)
        except (ValueError, RecursionError):  # edited before
            lines[place] = to_json(odd_value(rng), rng)
    elif lines and action < 0.9:
        lines.insert(rng.randrange(len(lines) + 1), lines[place])
    else:
        lines.insert(place, rng.choice([b"", b"{", b"\xff", b"[" * 3000, b"null", b"{}", b" \t"]))
    path.write_bytes(b"\n".join(lines) + rng.choice([b"\n", b"", b"\n\n"]))
    return "a line edited"


def damage_shard(path: Path, rng: Random) -> str:
    """Edit a safetensors file: its header's JSON, the header's length, or its data."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    except (ValueError, struct.error, RecursionError):  # damaged before
        return damage_bytes(path, rng)
    action = rng.random()
    if action < 0.65:
        kind = _edit_header(header, rng)
        text = to_json(header, rng)
        length = len(text)
    elif action < 0.8:
        kind, text = "length", data[8 : 8 + length]
        length = rng.choice([0, 1, length - 1, length + 1, length * 2, 1 << 27, 1 << 40, (1 << 64) - 1])
    else:
        kind, text = "data", data[8 : 8 + length]
        body = _edit_body(body, header, rng)
    path.write_bytes(struct.pack("<Q", length) + text + body)
    return f"shard's {kind}"


def _edit_header(header: dict[str, Any], rng: Random) -> str:
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    action = rng.randrange(9)
    if action == 0:
        entry["dtype"] = rng.choice(["F32", "I8", "F8_E5M2", "F64", "BF16", "I64", "U4", "", "bf16", None, 3])
    elif action == 1:
        entry["shape"] = rng.choice(
            [[], [0], [-1], [1 << 62, 4], [1.5], "x", None, entry["shape"][::-1], [True]]
        )
    elif action == 2:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            [
                [end, begin],
                [begin],
                [begin, end + 2],
                [0, 0],
                [-2, end],
                [begin, 1 << 63],
                None,
                [0.0, end],
                "x",
            ]
        )
    elif action == 3:
        del header[name]
    elif action == 4:
        base, _, leaf = name.rpartition(".")
        suffixes = ("_scale_inv", "_scale", "_zero_point", "_packed", "_shape", "_g_idx", "x", "")
        names = [f"{base}.weight{suffix}" for suffix in suffixes] + [f"{base}.input_scale", f"x.{leaf}"]
        header[rng.choice(["x", "", "a\nb", "../x", *names])] = header.pop(name)
    elif action == 5:
        other = header[rng.choice(names)]
        header[name] = {**other}
    elif action == 6:
        header["__metadata__"] = odd_value(rng)
    elif action == 7:
        count = 1 if not entry["shape"] else entry["shape"][0]
        entry["shape"] = [count, *entry["shape"]]
    else:
        edit(header, rng)
    return "header"


def _edit_body(body: bytes, header: dict[str, Any], rng: Random) -> bytes:
    """Change the data: of some bytes, of all, or of one tensor, as scales and shapes are small."""
    data = bytearray(body)
    place = rng.randrange(max(1, len(data)))
    action = rng.randrange(6)
    if action == 0:
        data[place : place + 64] = b"\xff" * len(data[place : place + 64])
    elif action == 1:
        del data[place:]
    elif action == 2:
        data += b"\0" * rng.choice([1, 2, 4096])
    elif action == 3:
        data[:] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * len(data)
    else:
        _edit_tensor(data, header, rng)
    return bytes(data)


def _edit_tensor(data: bytearray, header: dict[str, Any], rng: Random) -> None:
    """Overwrite a tensor, or its first element alone."""
    leaves: dict[str, list[tuple[int, int]]] = {}
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets):
            leaves.setdefault(name.rpartition(".")[2], []).append((offsets[0], offsets[1]))
    if not leaves:
        return
    begin, end = rng.choice(rng.choice(list(leaves.values())))
    if 0 <= begin < end <= len(data):
        end = rng.choice([end, min(end, begin + 2)])
        data[begin:end] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * (end - begin)


def damage_yaml(path: Path, rng: Random) -> str:
    """Edit YAML as data, as text, or add what YAML has that nobody expects."""
    action = rng.random()
    if action < 0.55 and (documents := _documents(path)):
        place = rng.randrange(len(documents))
        for _ in range(rng.choice([1, 1, 2, 4])):
            documents[place : place + 1] = [edit(documents[place], rng)]
        text = yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return "edited"
    if action < 0.8:
        return damage_text(path, rng)
    attack = rng.choice(YAML_ATTACKS)
    before = path.read_text(encoding="utf-8", errors="replace")
    path.write_text(rng.choice([attack, f"{attack}---\n{before}", f"{before}---\n{attack}", before + attack]))
    return "odd YAML"


def _documents(path: Path) -> list[Any]:
    """Return what a YAML file holds; nothing if an earlier damage has made that something else."""
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8", errors="replace")))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []


def damage_toml(path: Path, rng: Random) -> str:
    """Give a key of TOML another value, add a table, or edit its text."""
    if rng.random() < 0.2:
        return damage_text(path, rng)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    keys = [number for number, line in enumerate(lines) if "=" in line.partition("#")[0]]
    values = ["0", "-1", "1e400", "nan", "inf", '""', '"x"', "[]", "{}", "true", "1979-05-27", "9" * 5000]
    values += ['["experts"]', '["experts", "experts"]', "[[]]", "0.5", '"auto"', "64", "0x40", "'''a\nb'''"]
    if keys:
        place = rng.choice(keys)
        lines[place] = lines[place].partition("=")[0] + "= " + rng.choice(values)
    if rng.random() < 0.2:
        extra = ["[gptq]", "[calibration]", "[x.y]", "[[gptq]]", 'gptq = "x"', "a.b.c = 1", "seed = -1"]
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(extra))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "edited"


def damage_text(path: Path, rng: Random) -> str:
    """Edit lines and words of any text."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(lines))
        words = lines[place].split(" ")
        word = rng.randrange(len(words))
        action = rng.randrange(7)
        if action == 0:
            del lines[place]
        elif action == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[place])
        elif action == 2:
            words[word] = str(
                rng.choice(["", "'", '"', "\\", "$(", "`", "{", "&a", "*a", "|", ">-", "%", "#", "-1"])
            )
        elif action == 3:
            value = odd_value(rng)
            words[word] = value if isinstance(value, str) else json.dumps(value)
        elif action == 4:
            del words[word]
        elif action == 5:
            words.insert(word, words[word])
        else:
            words[0] = rng.choice(["\t", "  ", "- ", "\r"]) + words[0]
        if action > 1:
            lines[place] = " ".join(words)
        lines = lines or [""]
    end = rng.choice(["\n", "\n", "\r\n", "\r", "\u2028"])
    path.write_bytes((end.join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return "text edited"


BY_KIND: tuple[tuple[tuple[str, ...], Callable[[Path, Random], str]], ...] = (
    ((".safetensors",), damage_shard),
    (
        (".json", ".lock"),
        lambda path, rng: damage_json(path, rng) if _is_json(path) else damage_bytes(path, rng),
    ),
    ((".jsonl",), damage_lines),
    ((".yaml", ".yml"), damage_yaml),
    ((".toml",), damage_toml),
    ((".bin",), damage_bytes),
)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def clutter(folder: Path, rng: Random) -> str:
    """Add something to a folder that does not belong there."""
    name = rng.choice(
        ["a\nb", "été.safetensors", "x.safetensors", "model.safetensors", "..x", "a" * 200, "x.bin"]
    )
    path = folder / name
    if path.exists():
        return "nothing"
    rng.choice([path.touch, path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere")])()
    return "something added"


def rename(folder: Path, rng: Random) -> Path:
    """Give a folder a name that scripts do not expect."""
    names = [
        "a\nb",
        "with space",
        "été",
        "-x",
        "a'b",
        'a"b',
        "$(x)",
        "a:b",
        "a,b",
        "x" * 200,
        "{{x}}",
        "a\x1b[1mb",
    ]
    new = folder.with_name(rng.choice(names))
    shutil.move(folder, new)
    return new
