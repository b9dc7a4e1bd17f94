"""Tensors for which the model has no place: refused by name, or left out with --allow-extra."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from release_tools import load_folder, run_cli
from safetensors.torch import load_file, save_file

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.0"
State = dict[str, torch.Tensor]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return lambda *arguments: run_cli(list(map(str, arguments)), monkeypatch, capfd)


def edit(source: Path, folder: Path, change: Callable[[State], object], *unlisted: str) -> Path:
    """Write a copy with other tensors, some of which its index does not name."""
    shutil.copytree(source, folder)
    state = load_file(folder / SHARD)
    change(state)
    save_file(state, folder / SHARD, metadata={"format": "pt"})
    weight_map = {name: SHARD for name in state if name not in unlisted}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def add_extras(state: State) -> None:
    for expert in range(4):
        state[f"model.layers.1.mlp.experts.{expert}.up_proj.bias"] = torch.ones(64)
    state["model.layers.0.self_attn.k_scale"] = torch.ones(())


def test_refused_or_left_out(small_source: Path, tmp_path: Path, run: Run) -> None:
    source, out = edit(small_source, tmp_path / "source", add_extras), tmp_path / "out"
    named = "model.layers.*.mlp.experts.*.up_proj.bias (4)"
    code, text, _ = run("plan", source, "--no-time", "--method", "rtn", "--json")
    (problem,) = json.loads(text)["problems"]
    assert (code, named in problem, "model.layers.0.self_attn.k_scale" in problem) == (1, True, True)
    code, _, err = run("quantize", source, out, "--method", "rtn")
    assert (code, named in err, len(err.splitlines())) == (2, True, 1)
    assert not out.exists()

    code, text, _ = run("plan", source, "--no-time", "--method", "rtn", "--json", "--allow-extra")
    planned = json.loads(text)
    assert code == 0
    assert any(named in warning for warning in planned["warnings"])
    assert planned["source"]["num_tensors_by_kind"]["unknown"] == 5
    code, text, err = run("quantize", source, out, "--method", "rtn", "--json", "--allow-extra")
    assert code == 0
    assert "warning: the release leaves out tensors for which the model has no place: model.layers" in err
    assert named in err
    expected = {"model.layers.*.mlp.experts.*.up_proj.bias": 4, "model.layers.0.self_attn.k_scale": 1}
    assert json.loads(text)["source"]["tensors_left_out"] == expected
    code, text, _ = run("verify", out, "--source", source, "--json")
    assert (code, json.loads(text)["problems"]) == (0, [])
    assert named in json.loads(text)["warnings"][0]

    plain = tmp_path / "plain"
    assert run("quantize", small_source, plain, "--method", "rtn")[0] == 0
    found, wanted = load_folder(out), load_folder(plain)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].view(-1), wanted[name].view(-1)) for name in wanted)


def test_verify_names_a_tensor_without_a_place(small_source: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run("quantize", small_source, out, "--method", "rtn")[0] == 0
    (last,) = out.glob("model-00004-*")
    state = load_file(last)
    state["model.layers.1.mlp.experts.9.up_proj.bias"] = torch.ones(2)
    save_file(state, last, metadata={"format": "pt"})
    index = json.loads((out / INDEX).read_text())
    index["weight_map"]["model.layers.1.mlp.experts.9.up_proj.bias"] = last.name
    (out / INDEX).write_text(json.dumps(index))
    code, text, _ = run("verify", out)
    assert code == 1
    assert "experts.9.up_proj.bias has no place in the model that config.json describes" in text


def test_plan_without_expert_0(small_source: Path, tmp_path: Path, run: Run) -> None:
    parts = [f"{EXPERT}.{part}_proj.weight" for part in ("gate", "up", "down")]
    source = edit(small_source, tmp_path / "source", lambda state: [state.pop(name) for name in parts])
    code, text, err = run("plan", source, "--no-time", "--method", "rtn", "--json")
    assert code == 1, err
    problems = json.loads(text)["problems"]
    assert len(problems) == 3
    assert all(f"{name}, which the config requires" in " ".join(problems) for name in parts)


def test_what_the_index_does_not_name_is_a_warning(small_source: Path, tmp_path: Path, run: Run) -> None:
    source = edit(small_source, tmp_path / "source", add_extras, "model.layers.0.self_attn.k_scale")
    code, text, _ = run("plan", source, "--no-time", "--method", "rtn", "--json", "--allow-extra")
    assert code == 0
    warnings = json.loads(text)["warnings"]
    assert any("its index does not name are ignored: model.layers.0.self_attn.k_scale" in w for w in warnings)


def test_a_snapshot_of_the_hubs_cache(small_source: Path, tmp_path: Path, run: Run) -> None:
    """Its files are links into the blob store; the release's are files."""
    cache, out = tmp_path / "models--org--name", tmp_path / "out"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    shutil.copytree(small_source, cache / "blobs")
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    assert run("quantize", snapshot, out, "--method", "rtn")[0] == 0
    assert not any(path.is_symlink() for path in out.iterdir())
    code, text, _ = run("verify", out, "--source", snapshot, "--json")
    assert (code, json.loads(text)["problems"]) == (0, [])


@pytest.mark.timeout(60)
def test_a_config_that_could_not_be_written_is_refused_first(
    small_source: Path, tmp_path: Path, run: Run
) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_source, source)
    text = (source / "config.json").read_text()
    (source / "config.json").write_text(text.replace("{", '{"note": "\\ud800",', 1))
    code, _, err = run("quantize", source, tmp_path / "out", "--method", "rtn")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "'note' contains half of a surrogate pair" in err
    assert not (tmp_path / "out").exists()


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HEADS = {
    "equal": (lambda weight: weight.clone(), None),
    "another": (
        lambda weight: weight + (torch.arange(weight.shape[0]) == 7)[:, None],
        "which differs from it",
    ),
    "another dtype": (lambda weight: weight.float(), r"which is F32 \[\d+, \d+\], not BF16 \[\d+, \d+\]"),
    "another shape": (
        lambda weight: weight[:-1].clone(),
        r"which is BF16 \[\d+, \d+\], not BF16 \[\d+, \d+\]",
    ),
}


@pytest.fixture(scope="module")
def tied_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral whose head is its embeddings."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=2560,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        tie_word_embeddings=True,
        sliding_window=None,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tied") / "source"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / SHARD)
    return folder


@pytest.mark.parametrize("kind", HEADS)
def test_a_tied_head_that_is_stored(kind: str, tied_source: Path, tmp_path: Path, run: Run) -> None:
    """transformers takes a stored head that differs from the embeddings, vLLM does not."""
    change, message = HEADS[kind]
    source = edit(
        tied_source, tmp_path / "source", lambda state: state.update({HEAD: change(state[EMBEDDING])})
    )
    options = ("--method", "rtn", "--group-size", "32")
    code, text, _ = run("plan", source, "--no-time", *options, "--json")
    problems = json.loads(text)["problems"]
    out_code, _, err = run("quantize", source, tmp_path / "out", *options)
    if message is None:
        assert (code, problems, out_code) == (0, [], 0)
        assert torch.equal(load_folder(tmp_path / "out")[EMBEDDING], load_file(source / SHARD)[EMBEDDING])
        return
    assert (code, out_code, len(problems), len(err.splitlines())) == (1, 2, 1, 1)
    for line in (problems[0], err):
        assert re.search(f"the checkpoint also holds {HEAD}, {message}: transformers would use", line)
    assert not (tmp_path / "out").exists()


def test_verify_holds_a_stored_head_to_the_embeddings(tied_source: Path, tmp_path: Path, run: Run) -> None:
    def problems(folder: Path, *options: object) -> list[str]:
        found: list[str] = json.loads(run("verify", folder, *options, "--json")[1])["problems"]
        return [problem for problem in found if "tie_word_embeddings" in problem]

    source = edit(
        tied_source, tmp_path / "source", lambda state: state.update({HEAD: state[EMBEDDING].clone()})
    )
    for given in (tied_source, source):
        out = tmp_path / f"{given.parent.name}-out"
        assert run("quantize", given, out, "--method", "rtn", "--group-size", "32")[0] == 0
        assert run("verify", out, "--source", given)[0] == 0
    (shard,) = (path for path in out.glob("*.safetensors") if HEAD in load_file(path))
    for change, message in HEADS.values():
        state = load_file(shard)
        state[HEAD] = change(state[EMBEDDING])
        save_file(state, shard, metadata={"format": "pt"})
        found = problems(out)
        assert len(found) == (message is not None)
        assert message is None or re.search(f"also holds {HEAD}, {message}: transformers would use", found[0])
