"""`moe4 compare` against whole models in transformers, in float32; sums written another way."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    load_in_transformers,
    next_token_logprobs,
    write_dequantized_twin,
    write_random_model,
    write_rounded_release,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from moe4.checkpoint.source import Checkpoint
from moe4.errors import CalibrationError, CheckpointError, EvaluationError
from moe4.evaluate.comparison.compare import (
    CompareOptions,
    check_comparison,
    compare,
    describe,
    error_ratio,
)
from moe4.evaluate.comparison.divergence import kl_divergence
from moe4.evaluate.result_files import ComparisonFile, to_json

SMALL = {"num_hidden_layers": 3, "n_routed_experts": 6, "num_experts_per_tok": 2}
TEXTS = ["Tom has 12 apples and 30 pears.", "How many?", "The way from Oslo to Rome is 2000 km long."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    source = write_random_model(folder / "source", **SMALL)
    release = write_rounded_release(source, folder / "release", 32)
    write_dequantized_twin(release, folder / "twin", torch.float32)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "text.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> ComparisonFile:
    options = CompareOptions(
        source=folder / "source",
        release=folder / "release",
        data=folder / "text.jsonl",
        compute_dtype="float32",
    )
    lines: list[str] = []
    found = compare(options, lines.append)
    assert len(lines) == 1 + 3  # what was read, and a line a layer
    return found


@pytest.fixture(scope="module")
def oracle(folder: Path) -> dict[str, torch.Tensor]:
    """Log-probabilities, targets and hidden states of both models, from transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]
    found: dict[str, torch.Tensor] = {
        "targets": torch.tensor([token for sequence in sequences for token in sequence[1:]])
    }
    for name in ("source", "twin"):
        model = load_in_transformers(folder / name, torch.float32)
        rows = [next_token_logprobs(model, sequence)[:-1] for sequence in sequences]
        found[name] = torch.cat(rows).double()
        with torch.no_grad():
            states = [model.model(torch.tensor([s]), output_hidden_states=True) for s in sequences]
        # The last entry is after the final norm; layer 2's output before it is not there.
        found[f"{name}-hidden"] = torch.cat([state.hidden_states[2][0] for state in states])
    return found


def test_every_figure_is_the_whole_models(result: ComparisonFile, oracle: dict[str, torch.Tensor]) -> None:
    p, q, targets = oracle["source"], oracle["twin"], oracle["targets"]
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert result.num_tokens == len(targets)
    assert result.kl.mean == pytest.approx(float(kl.mean()), rel=1e-3)
    assert result.kl.max == pytest.approx(float(kl.max()), rel=1e-3)
    for name, logs in (("source", p), ("release", q)):
        nll = torch.nn.functional.nll_loss(logs, targets)
        assert getattr(result.perplexity, name) == pytest.approx(math.exp(nll), rel=1e-4)
    assert result.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    shared = [len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) for a, b in zip(p, q)]  # noqa: B905
    assert result.top5_agreement == pytest.approx(sum(shared) / 5 / len(shared))
    assert result.kl.mean > 0.001
    low, high = result.kl.interval
    assert low < result.kl.mean < high


def test_the_error_after_a_layer(result: ComparisonFile, oracle: dict[str, torch.Tensor]) -> None:
    source, twin = oracle["source-hidden"], oracle["twin-hidden"]
    expected = (twin - source).square().sum() / source.square().sum()
    assert result.layers[1].error == pytest.approx(float(expected), rel=1e-3)
    # The first layer is dense and not quantized; the second is handed no error, so all of it is its own.
    assert to_json(result.layers[0]) == {"layer": 0, "error": 0.0, "kl": 0.0}
    assert result.layers[-1].kl == pytest.approx(result.kl.mean, rel=1e-5)
    assert result.layers[1].added_error == pytest.approx(result.layers[1].error, rel=1e-4)
    assert result.layers[1].same_experts == 1.0
    num_tokens = len(oracle["targets"]) + len(TEXTS)
    assert sum(result.layers[1].expert_tokens) == 2 * num_tokens


def test_the_worst_token_is_the_worst(result: ComparisonFile, oracle: dict[str, torch.Tensor]) -> None:
    kl = torch.nn.functional.kl_div(oracle["twin"], oracle["source"], log_target=True, reduction="none").sum(
        -1
    )
    place = int(kl.argmax())
    worst = result.worst_tokens[0]
    assert worst.kl == pytest.approx(float(kl[place]), rel=1e-3)
    assert worst.source_probability == pytest.approx(
        float(oracle["source"][place, oracle["targets"][place]].exp()), rel=1e-3
    )
    text = describe(result)
    assert "nats a token" in text
    assert "layer 1 expert" in text or "layer 2 expert" in text


def test_what_is_written_is_as_it_was(result: ComparisonFile) -> None:
    """The fields of comparison.json and of --json, in their order."""
    document = to_json(result)
    assert list(document) == [
        *("source", "release", "data", "num_sequences", "compute_dtype", "num_tokens", "kl"),
        *("top1_agreement", "top5_agreement", "perplexity", "worst_tokens", "layers"),
    ]
    assert list(document["layers"][1]) == [
        *("layer", "added_error", "experts_error", "same_experts", "expert_errors", "expert_tokens"),
        *("error", "kl"),
    ]
    json.loads(json.dumps(document, allow_nan=False))


def test_a_model_beside_itself_differs_in_nothing(folder: Path) -> None:
    options = CompareOptions(
        source=folder / "source", release=folder / "source", data=folder / "text.jsonl", num_sequences=2
    )
    found = compare(options, lambda _: None)
    assert (found.kl.max, found.top1_agreement, found.top5_agreement) == (0.0, 1.0, 1.0)
    assert all(record.error == 0.0 for record in found.layers)


def test_values_whose_squares_overflow_float32_have_a_ratio() -> None:
    whole = torch.full((3, 4), 2e30)
    assert error_ratio(whole / 2, whole) == 0.25
    assert error_ratio(torch.zeros(3, 4), torch.zeros(3, 4)) == 0.0


def test_models_whose_difference_overflows_are_refused(folder: Path, tmp_path: Path) -> None:
    """Each is finite by itself, so that nothing else says it."""
    ends = torch.finfo(torch.bfloat16).max
    for name, value in (("source", ends), ("release", -ends)):
        shutil.copytree(folder / name, tmp_path / name)
        for path in (tmp_path / name).glob("*.safetensors"):
            tensors = load_file(path)
            if "model.embed_tokens.weight" in tensors:
                tensors["model.embed_tokens.weight"].fill_(value)
                save_file(tensors, path, {"format": "pt"})
    options = CompareOptions(
        source=tmp_path / "source", release=tmp_path / "release", data=folder / "text.jsonl"
    )
    with pytest.raises(EvaluationError, match="layer 0: the two models' values are so far apart"):
        compare(options, lambda _: None)


def test_kl_of_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    found = kl_divergence((p + 1e-30).log(), q.log())
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)])


def test_releases_are_read_as_compressed_tensors_reads_them(folder: Path) -> None:
    release, twin = Checkpoint(folder / "release"), Checkpoint(folder / "twin")
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert torch.equal(release.load(name), twin.load(name))
    with pytest.raises(CheckpointError, match=r"has no tensor model\.nothing\.weight"):
        release.load("model.nothing.weight")


def test_what_cannot_be_compared_is_said(folder: Path, tmp_path: Path) -> None:
    other = write_random_model(tmp_path / "other", **{**SMALL, "num_hidden_layers": 2})
    options = CompareOptions(source=folder / "source", release=other, data=folder / "text.jsonl")
    with pytest.raises(EvaluationError, match="num_hidden_layers is 2, not 3"):
        compare(options, lambda _: None)
    with pytest.raises(EvaluationError, match="num_hidden_layers is 2, not 3"):
        check_comparison(options)
    missing = CompareOptions(source=other, release=other, data=tmp_path / "none.jsonl")
    with pytest.raises(CalibrationError, match=r"none\.jsonl"):
        check_comparison(missing)


def test_without_a_text_moe4s_own_is_read(folder: Path) -> None:
    source = folder / "source"
    found = compare(CompareOptions(source=source, release=source, num_sequences=3), lambda _: None)
    assert (found.data, found.num_sequences) == ("hard-cases.jsonl", 3)
    assert found.kl.mean == 0 and found.num_tokens > 50
