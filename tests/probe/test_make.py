"""`moe4 probe RELEASE` against transformers' own forward in float32 on the decoded release."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import (
    load_in_transformers,
    next_token_logprobs,
    write_dequantized_twin,
    write_random_model,
    write_rounded_release,
)
from typer.testing import CliRunner

from moe4.cli.app import app
from moe4.errors import OutputError, ProbeError
from moe4.probe.form import LEAST_LOGPROB, Expectation, ExpectedAnswers, read_probe
from moe4.probe.make import ProbeOptions, make_probe
from moe4.probe.passes import ProbePasses, join_prefixes
from moe4.probe.summary import describe, summarize
from moe4.recipe import Recipe
from moe4.verify.checks import verify

SMALL = {"num_hidden_layers": 3, "n_routed_experts": 6, "num_experts_per_tok": 2}
CLOSE = 1e-4  # of sums over thousands of float32 terms in another order; log-probabilities reach -30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    source = write_random_model(folder / "source", **SMALL)
    write_rounded_release(source, folder / "release", 32)
    write_dequantized_twin(folder / "release", folder / "twin", torch.float32)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> ExpectedAnswers:
    lines: list[str] = []
    made = make_probe(ProbeOptions(release=folder / "release", source=folder / "source"), lines.append)
    assert [line.split(",")[0] for line in lines] == [f"layer {n} ({n + 1} of 3 done)" for n in range(3)]
    return made


def largest_difference(expected: Expectation, logprobs: torch.Tensor) -> float:
    """Return how far an expectation is from the whole distribution, [vocabulary]; its order must hold too."""
    found = torch.tensor(expected.logprobs, dtype=torch.float64)
    assert float(logprobs.topk(20).values.sub(found).abs().max()) < CLOSE
    return float(logprobs[torch.tensor(expected.ids)].sub(found).abs().max())


def test_the_answers_are_transformers(folder: Path, answers: ExpectedAnswers) -> None:
    for name, model_folder in (("released", "twin"), ("source", "source")):
        model = load_in_transformers(folder / model_folder, torch.float32)
        for sequence in answers.sequences:
            logprobs = next_token_logprobs(model, sequence.tokens)[-1].double()
            assert largest_difference(getattr(sequence, name), logprobs) < CLOSE
    first = answers.sequences[0]
    assert first.source is not None
    assert first.source.logprobs != first.released.logprobs


def test_experts_that_no_token_reaches_are_counted(
    folder: Path, answers: ExpectedAnswers, tmp_path: Path
) -> None:
    """Where the correction bias keeps tokens from an expert, it is not reached."""
    from safetensors.torch import load_file, save_file

    assert (answers.experts.num_pairs, answers.experts.num_unreached) == (12, 0)
    changed = tmp_path / "release"
    shutil.copytree(folder / "release", changed, ignore=shutil.ignore_patterns("moe4-probe.json"))
    (shard,) = changed.glob("*.safetensors")
    state = load_file(shard)
    for layer, expert in ((1, 2), (1, 4), (2, 0)):
        state[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"][expert] = -100
    save_file(state, shard, metadata={"format": "pt"})
    made = make_probe(ProbeOptions(release=changed), lambda _: None)
    assert (made.experts.num_pairs, made.experts.num_unreached) == (12, 3)
    assert "9 of 12 (layer, expert) pairs are reached" in describe(summarize(made))
    assert made.sequences[0].source is None


def test_it_is_written_once(folder: Path, answers: ExpectedAnswers, tmp_path: Path) -> None:
    path = folder / "release" / "moe4-probe.json"
    assert read_probe(path, 2560) == answers
    before = path.read_bytes()
    arguments = ["probe", str(folder / "release"), "--source", str(folder / "source")]
    with pytest.raises(OutputError, match=r"moe4-probe.json already exists; --force overwrites it"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "other.json"), "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.json").read_bytes() == before
    assert json.loads(result.stdout)["num_sequences"] == 64
    path.write_text("{}")
    result = CliRunner().invoke(app, [*arguments, "--force"])
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == before


def test_what_cannot_be_made_is_said(folder: Path, tmp_path: Path) -> None:
    other = write_random_model(tmp_path / "other", **{**SMALL, "num_hidden_layers": 2})
    options = ProbeOptions(release=folder / "release", source=other, output=tmp_path / "probe.json")
    with pytest.raises(ProbeError, match=r"is not the source of .*: num_hidden_layers is 2, not 3"):
        make_probe(options, lambda _: None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    with pytest.raises(ProbeError, match=r"holds no tokenizer: expected tokenizer\.json, .*copy the model's"):
        make_probe(ProbeOptions(release=other), lambda _: None)
    assert not (tmp_path / "probe.json").exists()


def test_what_no_probability_tells_apart_is_written_as_the_least() -> None:
    """A model with damaged weights may give log-probabilities that no file holds."""
    passes = object.__new__(ProbePasses)
    passes._last_rows = torch.tensor([0])
    rows = torch.tensor([[-0.1, -7e27, -3.5, -float("inf")]])
    passes.streams = {"released": SimpleNamespace(last_logprobs=lambda _: rows)}  # type: ignore[dict-item]
    (found,) = passes.expectations("released")
    assert found.ids == [0, 2, 1, 3]
    assert found.logprobs == [-0.1, -3.5, LEAST_LOGPROB, LEAST_LOGPROB]


def test_a_sequence_that_begins_another_is_run_with_it() -> None:
    sequences = [[1, 2], [3], [1, 2, 5, 4], [1, 2, 5], [1], [2, 2], [3, 0]]
    whole, rows = join_prefixes(sequences)
    assert sorted(whole) == [[1, 2, 5, 4], [2, 2], [3, 0]]
    flat = [token for sequence in whole for token in sequence]
    for sequence, row in zip(sequences, rows.tolist(), strict=True):
        assert flat[row + 1 - len(sequence) : row + 1] == sequence


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random qwen3_moe, and its release with attention quantized too."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from moe4.quantize.planning.request import Request
    from moe4.quantize.run.pipeline import quantize
    from moe4.recipe import ALL_TARGETS

    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen3MoeConfig(
        vocab_size=2560,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "source")
    reference = Path(__file__).parents[2] / "reference" / "k2-tiny"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(reference / name, folder / "source")
    recipe = Recipe(method="rtn", group_size=32, targets=ALL_TARGETS)
    quantize(Request(source=folder / "source", out=folder / "release", recipe=recipe))
    return folder


def decoded(release: Path) -> dict[str, torch.Tensor]:
    """Return every weight in float32, decoded by compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    config = json.loads((release / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    stored: dict[str, torch.Tensor] = {}
    for shard in release.glob("*.safetensors"):
        stored.update(load_file(shard))
    weights = {name: tensor.float() for name, tensor in stored.items() if ".weight_" not in name}
    for name in stored:
        base, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            state = {
                key: stored[f"{base}.{key}"] for key in ("weight_packed", "weight_scale", "weight_shape")
            }
            state["weight_scale"] = state["weight_scale"].float()
            weights[f"{base}.weight"] = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    return weights


def test_another_family(qwen: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    options = ProbeOptions(release=qwen / "release", output=tmp_path / "probe.json")
    made = make_probe(options, lambda _: None)
    twin = tmp_path / "twin"
    twin.mkdir()
    config = json.loads((qwen / "release" / "config.json").read_text())
    del config["quantization_config"]
    (twin / "config.json").write_text(json.dumps(config))
    save_file(decoded(qwen / "release"), twin / "model.safetensors", metadata={"format": "pt"})
    model: Any = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32).eval()
    for sequence in made.sequences:
        logprobs = next_token_logprobs(model, sequence.tokens)[-1].double()
        assert largest_difference(sequence.released, logprobs) < CLOSE


def test_verify_checks_the_file(qwen: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    shutil.copytree(qwen / "release", release)
    path = release / "moe4-probe.json"
    path.unlink(missing_ok=True)
    make_probe(ProbeOptions(release=release), lambda _: None)
    assert verify(release, qwen / "source").problems == []
    whole = path.read_text()
    data = json.loads(whole)
    data["sequences"][5]["tokens"][0] = 2560
    path.write_text(json.dumps(data))
    other, form = verify(release).problems
    assert other.startswith("moe4-probe.json is not the file moe4-report.json describes: its SHA-256 differs")
    assert "sequences[5].tokens must lie below the vocabulary's size 2560, found 2560" in form
    path.unlink()
    (problem,) = verify(release).problems
    assert problem == f"moe4-probe.json is missing; moe4 probe {release} makes it again"
