"""`moe4 verify` names everything that is wrong, and nothing that is right."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from release_tools import run_cli
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.probe.make import ProbeOptions, make_probe
from moe4.verify import threads as verify_threads
from moe4.verify.checks import is_copy, verify
from moe4.verify.result import describe
from moe4.verify.threads import num_threads

LAYER = "model-00002-of-00004.safetensors"
REST = "model-00004-of-00004.safetensors"
EXPERT = "model.layers.1.mlp.experts.3.up_proj"
Break = Callable[[Path], None]


def edit(shard: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def apply(folder: Path) -> None:
        state = load_file(folder / shard)
        change(state)
        save_file(state, folder / shard, metadata={"format": "pt"})

    return apply


def edit_config(change: Callable[[dict[str, object]], None]) -> Break:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def weights_of(config: dict[str, object]) -> dict[str, object]:
    return config["quantization_config"]["config_groups"]["group_0"]["weights"]


def flip(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name].view(torch.uint8).view(-1)[5] ^= 1

    return change


def swap_experts(state: dict[str, torch.Tensor]) -> None:
    for leaf in ("weight_packed", "weight_scale"):
        one, other = f"{EXPERT}.{leaf}", f"{EXPERT.replace('.3.', '.4.')}.{leaf}"
        state[one], state[other] = state[other], state[one]


def set_scale(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[f"{EXPERT}.weight_scale"][0, 0] = value

    return change


def truncate(folder: Path) -> None:
    (folder / LAYER).write_bytes((folder / LAYER).read_bytes()[:-1])


def move_out_and_link(path: Path) -> None:
    away = path.parent.parent / path.name
    shutil.move(path, away)
    path.symlink_to(away)


def edit_report(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    report = json.loads((folder / "moe4-report.json").read_text())
    change(report)
    (folder / "moe4-report.json").write_text(json.dumps(report))


def unignore_attention(config: dict[str, object]) -> None:
    quantization = config["quantization_config"]
    quantization["ignore"] = [entry for entry in quantization["ignore"] if "self_attn" not in entry]


# What is broken, what is said of it, and whether the source is needed to see it.
CASES: dict[str, tuple[Break, str, bool]] = {
    "a shard is gone": (lambda f: (f / LAYER).unlink(), rf"names the shard {LAYER}, which is not in", False),
    "a shard is cut": (truncate, rf"{LAYER} is truncated or damaged", False),
    "a tensor is gone": (
        edit(LAYER, lambda s: s.pop(f"{EXPERT}.weight_scale")),
        rf"{EXPERT}\.weight_scale is missing",
        False,
    ),
    "a norm is gone": (
        edit(LAYER, lambda s: s.pop("model.layers.1.input_layernorm.weight")),
        rf"says {LAYER} holds model\.layers\.1\.input_layernorm\.weight; it does not",
        False,
    ),
    "an extra tensor": (
        edit(LAYER, lambda s: s.update({"extra": torch.zeros(2)})),
        r"extra is in .*, but the index does not list it",
        False,
    ),
    "scales of another dtype": (
        edit(LAYER, lambda s: s.update({f"{EXPERT}.weight_scale": s[f"{EXPERT}.weight_scale"].half()})),
        rf"{EXPERT}\.weight_scale must be BF16 \[128, 4\], found F16 \[128, 4\]",
        False,
    ),
    "codes of another shape": (
        edit(
            LAYER, lambda s: s.update({f"{EXPERT}.weight_packed": s[f"{EXPERT}.weight_packed"][:64].clone()})
        ),
        rf"{EXPERT}\.weight_packed must be I32 \[128, 32\], found I32 \[64, 32\]",
        False,
    ),
    "a shape that is not the model's": (
        edit(LAYER, lambda s: s.update({f"{EXPERT}.weight_shape": torch.tensor([256, 128])})),
        rf"{EXPERT}\.weight_shape must be \[128, 256\], found \[256, 128\]",
        False,
    ),
    "a zero scale": (
        edit(LAYER, set_scale(0.0)),
        rf"{EXPERT}\.weight_scale holds zero in row 0, group 0$",
        False,
    ),
    "a NaN scale": (
        edit(LAYER, set_scale(float("nan"))),
        rf"{EXPERT}\.weight_scale holds NaN or Inf in row 0, group 0$",
        False,
    ),
    "a NaN in the head": (
        edit(REST, lambda s: s["lm_head.weight"][0].fill_(float("nan"))),
        r"lm_head\.weight holds NaN or Inf",
        False,
    ),
    "one bit of a code": (
        edit(LAYER, flip(f"{EXPERT}.weight_packed")),
        rf"{LAYER} is not the file moe4-report\.json describes",
        False,
    ),
    "one bit of the router": (
        edit(LAYER, flip("model.layers.1.mlp.gate.weight")),
        r"model\.layers\.1\.mlp\.gate\.weight differs from the source",
        True,
    ),
    "experts swapped": (edit(LAYER, swap_experts), rf"{EXPERT}\.weight does not resemble the source's", True),
    "a side file changed": (
        lambda f: (f / "chat_template.jinja").write_text("{{ 1 }}"),
        r"chat_template\.jinja is missing or differs from the source",
        True,
    ),
    "the config changed": (
        edit_config(lambda c: c.update(routed_scaling_factor=1.0)),
        r"config\.json: routed_scaling_factor differs from the source",
        True,
    ),
    "no quantization_config": (
        edit_config(lambda c: c.pop("quantization_config")),
        r"config\.json has no quantization_config",
        False,
    ),
    "eight bits": (
        edit_config(lambda c: weights_of(c).update(num_bits=8)),
        r"num_bits must be 4, found 8",
        False,
    ),
    "asymmetric": (
        edit_config(lambda c: weights_of(c).update(symmetric=False)),
        r"symmetric must be True",
        False,
    ),
    "a group vLLM lacks": (
        edit_config(lambda c: weights_of(c).update(group_size=16)),
        r"group_size must be 32, 64 or 128, found 16",
        False,
    ),
    "actorder group": (
        edit_config(lambda c: weights_of(c).update(actorder="group")),
        r"vLLM does not take actorder group",
        False,
    ),
    "not compressed-tensors' terms": (
        edit_config(lambda c: weights_of(c).update(strategy="blocks")),
        r"compressed-tensors does not accept the quantization_config",
        False,
    ),
    "the config asks for more": (
        edit_config(unignore_attention),
        r"model\.layers\.0\.self_attn\.q_a_proj\.weight_packed is missing",
        False,
    ),
    "experts ignored": (
        edit_config(lambda c: c["quantization_config"]["ignore"].append("re:.*experts.*")),
        r"experts\.0\.down_proj\.weight_packed is quantized, but quantization_config does not say so",
        False,
    ),
    "total_size": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            (f / "model.safetensors.index.json").read_text().replace('"total_size": ', '"total_size": 1')
        ),
        r"total_size should be",
        False,
    ),
    "a side file changed, without the source": (
        lambda f: (f / "chat_template.jinja").write_text("{{ 1 }}"),
        r"chat_template\.jinja is not the file moe4-report\.json describes: its SHA-256 differs",
        False,
    ),
    "a side file is gone": (
        lambda f: (f / "LICENSE").unlink(),
        r"^LICENSE is missing$",
        False,
    ),
    "the config changed, without the source": (
        edit_config(lambda c: c.update(routed_scaling_factor=1.0)),
        r"config\.json is not the file moe4-report\.json describes",
        False,
    ),
    "the index is written anew": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps(json.loads((f / "model.safetensors.index.json").read_text()))
        ),
        r"model\.safetensors\.index\.json is not the file",
        False,
    ),
    "a file is added": (
        lambda f: (f / "modeling_x.py").write_text("print()"),
        r"^modeling_x\.py was added: moe4-report\.json does not list it$",
        False,
    ),
    "a file is added with a name that is no text": (
        lambda f: (f / os.fsdecode(b"x-\xff")).write_text(""),
        r"^x-\ufffd was added",
        False,
    ),
    "a folder is added": (lambda f: (f / "more").mkdir(), r"^more/ was added", False),
    "a shard is added": (
        lambda f: shutil.copy(f / LAYER, f / "model-00009-of-00004.safetensors"),
        r"model-00009-of-00004\.safetensors was added",
        False,
    ),
    "a side file is a link out": (
        lambda f: move_out_and_link(f / "LICENSE"),
        r"^LICENSE is a link to .*, outside ",
        False,
    ),
    "the card is a link out": (
        lambda f: (f / "README.md").symlink_to("/etc/hostname"),
        r"^README\.md is a link to .*, outside ",
        False,
    ),
    "a measured result is a link out": (
        lambda f: ((f / "proof").mkdir(), (f / "proof" / "x.json").symlink_to("/etc/hostname")),
        r"^proof/x\.json is a link to .*, outside ",
        False,
    ),
    "no report": (
        lambda f: (f / "moe4-report.json").unlink(),
        r"moe4-report\.json is missing: nothing says .*, so none of them could be checked",
        False,
    ),
    "a report without a list": (
        lambda f: edit_report(f, lambda r: r["release"].pop("files")),
        r"moe4-report\.json does not list the release's files, so none could be checked",
        False,
    ),
    "a report of something else": (
        lambda f: (f / "moe4-report.json").write_text("{}"),
        r"moe4-report\.json is damaged: .* missing.*, so none of the release's files could be checked",
        False,
    ),
    "a report that is damaged": (
        lambda f: (f / "moe4-report.json").write_text('{"release": {"shards"'),
        r"moe4-report\.json is damaged: not JSON",
        False,
    ),
    "a list with other places": (
        lambda f: edit_report(
            f, lambda r: r["release"]["files"].update({"../x": {"num_bytes": 0, "sha256": "0" * 64}})
        ),
        r"\.\./x is not a file name",
        False,
    ),
    "an unfinished run": (lambda f: (f / ".moe4").mkdir(), r"has not finished", False),
    "an unfinished run's place is a link": (
        lambda f: (f / ".moe4").symlink_to("nowhere"),
        r"has not finished",
        False,
    ),
    "the card is a named pipe": (lambda f: os.mkfifo(f / "README.md"), r"^README\.md is not a file", False),
    "a measured result is a named pipe": (
        lambda f: ((f / "proof").mkdir(), os.mkfifo(f / "proof" / "x.json")),
        r"^proof/x\.json is not a file",
        False,
    ),
    "a pattern that is none": (
        edit_config(lambda c: c["quantization_config"].update(ignore=["lm_head", "re:("])),
        r"ignore: re:\( is not a regular expression: missing \)",
        False,
    ),
    "a pattern that never ends": (
        edit_config(lambda c: c["quantization_config"].update(ignore=["re:([a-z_.0-9]+)+!"])),
        r"ignore: re:\(\[a-z_\.0-9\]\+\)\+! takes too long",
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_names_what_is_wrong(
    name: str,
    source: Path,
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    breaks, message, needs_source = CASES[name]
    copy = tmp_path / "release"
    shutil.copytree(release, copy)
    breaks(copy)
    arguments = ["verify", str(copy), "--json", *(["--source", str(source)] if needs_source else [])]
    code, out, _ = run_cli(arguments, monkeypatch, capfd)
    result = json.loads(out)
    assert code == 1
    assert result["ok"] is False
    assert any(re.search(message, problem) for problem in result["problems"]), result["problems"]


def test_a_good_release_passes_and_shows_sizes_and_worst_experts(
    source: Path, release: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_cli(["verify", str(release), "--source", str(source)], monkeypatch, capfd)
    assert code == 0, out
    assert re.search(r"^size +\d+\.\d MB, the source \d+\.\d MB \(\d+\.\d%\)$", out, re.MULTILINE)
    assert len(re.findall(r"^worst +layer \d expert \d (gate|up|down)_proj: error", out, re.MULTILINE)) == 5
    assert re.search(r"^ok +\d+ tensors, 48 quantized matrices$", out, re.MULTILINE)


def test_what_comes_after_is_no_change(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card, written and then edited; measured results; what the hub adds; expected answers made again."""
    copy = tmp_path / "release"
    shutil.copytree(release, copy)
    result = CliRunner().invoke(app, ["card", str(copy)])
    assert result.exit_code == 0, result.output
    (copy / "README.md").write_text((copy / "README.md").read_text() + "edited\n")
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 0, result.output
    (copy / ".gitattributes").write_text("")
    (copy / ".cache").mkdir()
    make_probe(ProbeOptions(release=copy, force=True), lambda _: None)
    found = verify(copy)
    assert found.problems == []
    assert found.not_covered == ["moe4-report.json", "README.md", "proof/"]
    assert f"files     {found.num_files} listed in moe4-report.json; not covered: moe4-" in describe(found)
    listed = json.loads((copy / "moe4-report.json").read_text())["release"]
    covered = set(listed["shards"]) | set(listed["files"])
    free = {"moe4-report.json", "README.md", "proof", ".gitattributes", ".cache"}
    assert covered == {path.name for path in copy.iterdir()} - free


def test_a_release_as_the_hub_keeps_it(release: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "rev"
    shutil.copytree(release, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert verify(snapshot).problems == []


def test_a_release_of_another_source(fp8_source: Path, release: Path) -> None:
    problems = verify(release, fp8_source).problems
    assert any("describes another source" in problem for problem in problems)


def test_threads_find_the_same_in_the_same_order(
    source: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "release"
    shutil.copytree(release, copy)
    edit(LAYER, swap_experts)(copy)
    edit(REST, lambda state: state["model.norm.weight"].fill_(float("nan")))(copy)
    found = []
    for number in (1, 8):
        monkeypatch.setattr(verify_threads, "num_threads", lambda *_, number=number: number)
        found.append(verify(copy, source).problems)
    assert len(found[0]) >= 3
    assert found[0] == found[1]


def test_progress_counts_every_byte_once(source: Path, release: Path) -> None:
    heard: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    assert verify(release, source, on_progress=lambda *count: heard.append(count)).ok
    assert torch.get_num_threads() == threads
    done = [count for count, _ in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1][1] == 2 * sum(path.stat().st_size for path in release.glob("*.safetensors"))


def test_threads_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(32))
    for free, expected in ((1 << 40, 32), (10 << 30, 5), (1 << 20, 1)):
        monkeypatch.setattr(verify_threads, "available_memory_bytes", lambda free=free: free)
        assert num_threads(1 << 30, torch.device("cpu")) == expected


def test_a_side_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte takes an hour to read."""
    for name, size in (("source", 100), ("release", 1 << 40)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert not is_copy(tmp_path / "release", tmp_path / "source")
    (tmp_path / "same").write_bytes(bytes(100))
    assert is_copy(tmp_path / "same", tmp_path / "source")
