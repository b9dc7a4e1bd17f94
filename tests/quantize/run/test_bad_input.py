"""Bad input through the real command line: one clear line on stderr, exit code 2, nothing written."""

import json
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from release_tools import run_cli
from safetensors.torch import load_file, save_file

from moe4.cli import main as cli

Break = Callable[[Path], None]
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def apply(folder: Path) -> None:
        state = load_file(folder / SHARD)
        edit(state)
        save_file(state, folder / SHARD, metadata={"format": "pt"})
        index = {"weight_map": dict.fromkeys(state, SHARD)}
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def edit_json(name: str, **changes: object) -> Break:
    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, **changes}))

    return apply


def poison(name: str, value: float) -> Break:
    def edit(state: dict[str, torch.Tensor]) -> None:
        state[name][0, 0] = value

    return edit_tensors(edit)


def truncate(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:-100])


def cut_header(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:50])


def narrow_experts(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        if "experts." in name:
            width = slice(0, 80)
            state[name] = (state[name][:, width] if "down" in name else state[name][width]).contiguous()


def blow_up_activations(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.1.post_attention_layernorm.weight"].fill_(3e38)


def drop_scales(folder: Path) -> None:
    data = json.loads((folder / INDEX).read_text())
    name = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"
    assert data["weight_map"].pop(name)
    (folder / INDEX).write_text(json.dumps(data))


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
CASES: dict[str, tuple[Break, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"is not a checkpoint: it has no config\.json"),
    "no index, no shard": (
        lambda f: ((f / INDEX).unlink(), (f / SHARD).unlink()),
        r"is not a checkpoint: it has no model",
    ),
    "config is not JSON": (
        lambda f: (f / "config.json").write_text("{"),
        r"config\.json cannot be read as JSON",
    ),
    "missing shard": (lambda f: (f / SHARD).unlink(), rf"names the shard {SHARD}, which is not in"),
    "path outside": (
        edit_json(INDEX, weight_map={"a": "../other.safetensors"}),
        r"not a safetensors file inside",
    ),
    "absolute path": (
        edit_json(INDEX, weight_map={"a": "/etc/passwd.safetensors"}),
        r"not a safetensors file inside",
    ),
    "pickle": (edit_json(INDEX, weight_map={"a": "model.bin"}), r"not a safetensors file inside"),
    "truncated shard": (
        truncate,
        r"is truncated or damaged: its header describes \d+ bytes, the file has \d+",
    ),
    "truncated header": (cut_header, r"is not a whole safetensors file"),
    "index names a tensor the shard lacks": (
        edit_json(INDEX, weight_map={"model.norm.scale": SHARD}),
        r"says .* holds model\.norm\.scale; it does not",
    ),
    "tensor missing": (edit_tensors(lambda s: s.pop(EXPERT)), rf"has no tensor {EXPERT}"),
    "wrong shape": (
        edit_tensors(lambda s: s.update({EXPERT: s[EXPERT][:64].clone()})),
        rf"{EXPERT} must have shape \[128, 256\] according to the config, found \[64, 256\]",
    ),
    "NaN in an expert": (poison(EXPERT, float("nan")), rf"{EXPERT} in .* holds NaN or Inf"),
    "Inf in attention": (
        poison("model.layers.1.self_attn.o_proj.weight", float("inf")),
        r"o_proj\.weight in .* holds NaN or Inf",
    ),
    "NaN in the head": (poison("lm_head.weight", float("nan")), r"lm_head\.weight in .* holds NaN or Inf"),
    "activations overflow": (
        edit_tensors(blow_up_activations),
        r"calibration activations hold NaN or Inf .* layer 1",
    ),
    "width not divisible": (
        lambda f: (edit_tensors(narrow_experts)(f), edit_json("config.json", moe_intermediate_size=80)(f)),
        r"down_proj\.weight has 80 input columns, which groups of 128 do not divide; no supported",
    ),
    "unsupported architecture": (
        edit_json("config.json", model_type="llama"),
        r"model_type 'llama' is not supported; moe4 supports afmoe, deepseek_v2, deepseek_v3, ",
    ),
    "no experts": (
        edit_json("config.json", first_k_dense_replace=3),
        r"the model has no layer with routed experts",
    ),
    "quantized already": (
        edit_json("config.json", quantization_config={"quant_method": "gptq"}),
        r"quantized already \(gptq\)",
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("*token*")],
        r"holds no tokenizer: expected tokenizer\.json, .* found none; copy the model",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_source(
    name: str,
    source: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    breaks, message = CASES[name]
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    breaks(copy)
    arguments = ["quantize", str(copy), str(tmp_path / "out"), "--calibration", str(calibration)]
    code, out, err = run_cli(arguments, monkeypatch, capfd)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("moe4: error: ")]
    assert err.splitlines()[-1] == line
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "config.json").exists()


def test_values_whose_squares_overflow(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    poison(EXPERT, 1e30)(copy)
    arguments = ["quantize", str(copy), str(tmp_path / "out"), "--method", "rtn"]
    code, _, err = run_cli(arguments, monkeypatch, capfd)
    assert code == 2
    assert f"moe4: error: {EXPERT} holds values so large that their squares overflow float32" in err


def test_fp8_without_scales(
    fp8_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "source"
    shutil.copytree(fp8_source, copy)
    drop_scales(copy)
    code, _, err = run_cli(["quantize", str(copy), str(tmp_path / "out")], monkeypatch, capfd)
    assert code == 2
    assert f"{EXPERT} is F8_E4M3 but has no {EXPERT}_scale_inv" in err


LINES = {
    "not JSON": ('{"text": ', r":2: not JSON"),
    "not an object": ("[1]", r':2: expected an object with "messages", .*, found \[1\]'),
    "neither key": (
        '{"chosen": "a", "rejected": "b"}',
        r":2: expected an object .* columns chosen, rejected",
    ),
    "text beside broken messages": ('{"text": "a", "messages": []}', r":2: messages must have at least 1"),
    "half of a pair": ('{"prompt": "a"}', r":2: expected an object with .*, found the columns prompt"),
    "empty text": ('{"text": ""}', r":2: text must be a string that is not empty"),
    "messages empty": ('{"messages": []}', r":2: messages must have at least 1 entry"),
    "message without role": (
        '{"messages": [{"content": "a"}]}',
        r":2: messages\[0\]\.role is missing",
    ),
    "tools no list": (
        '{"messages": [{"role": "user", "content": "a"}], "tools": {}}',
        r":2: tools must be a list, .*, found {}",
    ),
    "template refuses": (
        '{"messages": [{"role": "tool", "content": "without tool_call_id"}]}',
        r":2: the model's chat template refuses",
    ),
    "not text": ("\udcff", r":2: not JSON"),
}


@pytest.mark.parametrize("name", LINES)
def test_broken_calibration_line(
    name: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line, message = LINES[name]
    path = tmp_path / "calibration.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n", errors="surrogateescape")
    arguments = ["quantize", str(source), str(tmp_path / "out"), "--calibration", str(path)]
    code, _, err = run_cli(arguments, monkeypatch, capfd)
    assert code == 2
    assert re.search(re.escape(str(path)) + message, err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "message"), [(None, "does not exist"), ("\n\n", "holds no documents")])
def test_calibration_file_missing_or_empty(
    text: str | None,
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "calibration.jsonl"
    if text is not None:
        path.write_text(text)
    arguments = ["quantize", str(source), str(tmp_path / "out"), "--calibration", str(path)]
    code, _, err = run_cli(arguments, monkeypatch, capfd)
    assert code == 2
    assert message in err


def test_every_model_needs_calibration_data(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also one with k2-tiny's chat template, which this has."""
    code, _, err = run_cli(["quantize", str(source), str(tmp_path / "out")], monkeypatch, capfd)
    assert code == 2
    assert "GPTQ needs calibration data" in err
    assert "--calibration FILE.jsonl" in err


class TestOutputFolder:
    def test_other_content(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        for extra in ([], ["--resume"]):
            arguments = ["quantize", str(source), str(tmp_path), "--method", "rtn", *extra]
            code, _, err = run_cli(arguments, monkeypatch, capfd)
            assert code == 2
            assert "holds other files, such as thesis.tex; choose an empty folder" in err
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").write_text("")
        code, _, err = run_cli(["quantize", str(source), str(tmp_path / "out")], monkeypatch, capfd)
        assert code == 2
        assert "is a file; choose a folder" in err

    def test_a_pipe(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(tmp_path / "out")
        code, _, err = run_cli(["quantize", str(source), str(tmp_path / "out")], monkeypatch, capfd)
        assert code == 2
        assert "is a FIFO; choose a folder" in err

    def test_finished_release(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["quantize", str(source), str(tmp_path / "out"), "--method", "rtn"]
        monkeypatch.setattr("sys.argv", ["moe4", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        code, _, err = run_cli(arguments, monkeypatch, capfd)
        assert code == 2
        assert "holds a finished release; choose an empty folder" in err
        code, out, err = run_cli([*arguments, "--resume", "--json"], monkeypatch, capfd)
        assert code == 0
        assert json.loads(out)["recipe"]["method"] == "rtn"
        assert f"{tmp_path / 'out'} is finished; nothing was left to do" in err
        code, _, err = run_cli([*arguments, "--resume", "--group-size", "32"], monkeypatch, capfd)
        assert code == 2
        assert "finished release of another recipe" in err

    @pytest.mark.parametrize("inside", [".", "release"])
    def test_inside_the_source(
        self,
        inside: str,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        copy = tmp_path / "source"
        shutil.copytree(source, copy)
        before = sorted(copy.iterdir())
        code, _, err = run_cli(["quantize", str(copy), str(copy / inside)], monkeypatch, capfd)
        assert code == 2
        assert "is inside the source folder" in err
        assert sorted(copy.iterdir()) == before

    def test_too_little_disk(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 9, 1_000_000))
        arguments = ["quantize", str(source), str(tmp_path / "out"), "--method", "rtn"]
        code, _, err = run_cli(arguments, monkeypatch, capfd)
        assert code == 2
        assert re.search(r"needs \d+\.\d MB and its volume has 1\.0 MB free", err)
        assert not (tmp_path / "out").exists()

    def test_disk_that_fills_up(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        arguments = ["quantize", str(source), str(tmp_path / "out"), "--method", "rtn"]
        code, _, err = run_cli(arguments, monkeypatch, capfd)
        assert code == 2
        assert "the volume is full; free some space and run again with --resume" in err

    def test_two_runs_at_once(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from journal_lines import BEGIN

        from moe4.checkpoint.journal import Begin
        from moe4.checkpoint.release_folder import ReleaseFolder

        first = ReleaseFolder(tmp_path / "out", resume=False)
        journal = first.open()
        for begin, options in ((False, []), (True, []), (False, ["--resume"])):
            if begin:
                journal.start(Begin(**BEGIN))
            arguments = ["quantize", str(source), str(tmp_path / "out"), "--method", "rtn", *options]
            code, _, err = run_cli(arguments, monkeypatch, capfd)
            assert code == 2
            assert "another moe4 command is writing" in err
        first.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size", "48"], "options: --group-size must be one of 32, 64, 128 or auto, found 48"),
        (["--recipe", "none.toml"], "recipe none.toml does not exist"),
        (["--num-sequences", "0"], "options: --num-sequences must be at least 1, found 0"),
        (["--device", "tpu0"], "device tpu0"),
    ],
)
def test_bad_options(
    arguments: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ["quantize", str(source), str(tmp_path / "out"), *arguments]
    code, _, err = run_cli(command, monkeypatch, capfd)
    assert code == 2
    assert message in err


def test_verify_needs_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_cli(["verify", str(tmp_path)], monkeypatch, capfd)
    assert code == 2
    assert "is not a release" in err
