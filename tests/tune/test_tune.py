"""`moe4 tune`: its gradient, what it gains and leaves alone, and that a run that is cut off goes on."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import load_model, write_source, write_twin
from release_tools import Interrupted, contents, decompress, run_cli, run_quantize
from safetensors.torch import load_file

import moe4
from moe4.checkpoint.release_folder import WORK_NAME
from moe4.errors import ArgumentError, CheckpointError, EvaluationError, OutputNotEmptyError, ResumeError
from moe4.forward.weights import open_model
from moe4.publish.commands import quantize_command
from moe4.recipe import Recipe
from moe4.tune import run
from moe4.tune.scales import TunedScales
from moe4.tune.student import Student, Text

CPU = torch.device("cpu")
# How experts meet the rest of a layer: added; with biases and interleaved; through identities; gated.
FAMILIES = ["glm4_moe_lite", "gpt_oss", "longcat_flash", "qwen3_next"]
SEQUENCES = [[5, 900, 31, 77, 1200, 8], [44, 2, 610], [9, 9, 1500, 321]]
STEP = 1e-4  # too small to send a token to other experts, where the loss jumps
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_tokens": 600, "max_tokens": 64}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents of random words."""
    rng, path = random.Random(7), tmp_path_factory.mktemp("text") / "text.jsonl"
    words = "Tom has seven apples and buys twelve more how many are left in all the baskets today"
    lines = [json.dumps({"text": " ".join(rng.choices(words.split(), k=30))}) for _ in range(200)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def release(small_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rounded to nearest: there is something to gain."""
    out = tmp_path_factory.mktemp("release") / "out"
    run_quantize(small_source, out, Recipe(method="rtn", group_size=32))
    return out


@pytest.fixture(scope="module")
def tuned(small_source: Path, release: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    moe4.tune(small_source, release, out, calibration=text, **OPTIONS)
    return out


def loss_of(student: Student, expected: torch.Tensor) -> tuple[float, list[torch.Tensor], torch.Tensor]:
    """Return the mean KL, the states of every layer, and the loss's gradient to the last."""
    states = student.forward(Text(SEQUENCES), lambda: None)
    total, gradient = student.divergence(states[-1], lambda rows: expected[rows], with_gradient=True)
    return total / len(expected), states, gradient


def student_gradients(
    student: Student, states: list[torch.Tensor], gradient: torch.Tensor
) -> dict[int, list[torch.Tensor]]:
    """Return the gradients of each layer's scales, by part, in the order in which layers had them."""
    found: dict[int, list[torch.Tensor]] = {}

    def step(layer: int) -> None:
        parts = student.scales.of_layer[layer].values()
        found[layer] = [part.change.grad.clone() for part in parts if part.change.grad is not None]
        for part in parts:
            part.forget()

    student.backward(Text(SEQUENCES), states, gradient, step)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers_and_the_gradient_is_the_losss(family: str, tmp_path: Path) -> None:
    """The loss against whole models in float32; its gradient along random directions against differences."""
    source = write_source(tmp_path / "source", family)
    out = tmp_path / "out"
    run_quantize(source, out, Recipe(method="rtn", group_size=32))
    twin = load_model(write_twin(decompress(out, exact=True), source, out, tmp_path / "plain"), torch.float32)
    whole = load_model(source, torch.float32)
    with torch.inference_mode():
        expected, found = (
            torch.cat(
                [torch.log_softmax(model(torch.tensor([tokens])).logits[0], -1) for tokens in SEQUENCES]
            )
            for model in (whole, twin)
        )
    kl = float((expected.exp() * (expected - found)).sum(1).mean())

    released, network = open_model(out, torch.float32)
    scales = TunedScales(released, network, CPU)
    for layer in scales.of_layer:  # no rounding, which has no derivative
        layer.update({part: dataclasses.replace(one, dtype=torch.float32) for part, one in layer.items()})
    student = Student(released, network, scales, CPU, keep_bytes=1 << 30, padded_bytes=0)
    loss, states, gradient = loss_of(student, expected)
    assert loss == pytest.approx(kl, rel=1e-3)
    assert len(student._layers) == network.num_layers
    without_room = Student(released, network, scales, CPU, keep_bytes=0, padded_bytes=1 << 30)
    assert loss_of(without_room, expected)[0] == loss
    assert (len(without_room._layers), without_room._weights) == (1, {})

    slopes = student_gradients(student, states, gradient)
    assert list(slopes) == [layer for layer in reversed(range(network.num_layers)) if scales.of_layer[layer]]
    for padded_bytes in (1, 9000, 1 << 30):  # an expert at a time, some, all at once
        padded = Student(released, network, scales, CPU, keep_bytes=1 << 30, padded_bytes=padded_bytes)
        found_loss, states, gradient = loss_of(padded, expected)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        for layer, parts in student_gradients(padded, states, gradient).items():
            for one, other in zip(parts, slopes[layer], strict=True):
                assert float((one - other).norm()) < 1e-3 * float(other.norm())
    generator = torch.Generator().manual_seed(0)
    for layer, gradients in slopes.items():
        moved = scales.of_layer[layer].values()
        directions = [torch.randn(scale.base.shape, generator=generator) for scale in moved]
        slope = sum(float((one * along).sum()) for one, along in zip(gradients, directions, strict=True))
        losses = []
        for step in (STEP, -STEP):
            with torch.no_grad():
                for scale, direction in zip(moved, directions, strict=True):
                    scale.change.copy_(step * direction)
            losses.append(loss_of(student, expected)[0])
            with torch.no_grad():
                for scale in moved:
                    scale.change.zero_()
        assert (losses[0] - losses[1]) / (2 * STEP) == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_a_tuned_release_is_nearer_and_has_the_same_codes(
    small_source: Path, release: Path, tuned: Path, text: Path
) -> None:
    report = moe4.load_report(tuned)
    assert report.tuning is not None
    assert report.tuning.kl_after < 0.98 * report.tuning.kl_before
    assert (report.tuning.num_sequences, report.tuning.num_held_back) == (180, 20)
    checked = moe4.verify(tuned, source=small_source)
    assert checked.problems == []
    assert report.probe is not None
    assert report.probe.is_there
    others = {
        name: moe4.compare(small_source, folder, data=text, dtype="float32").kl.mean
        for name, folder in (("before", release), ("after", tuned))
    }
    assert others["after"] < others["before"]
    moved = 0
    for shard in release.glob("*.safetensors"):
        before, after = load_file(shard), load_file(tuned / shard.name)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            is_scale = ".mlp.experts." in name and name.endswith(".weight_scale")
            moved += is_scale and not torch.equal(tensor, after[name])
            assert is_scale or torch.equal(tensor, after[name])
            assert tensor.dtype == after[name].dtype
    assert moved > 10
    for line in ("moe4 quantize SOURCE UNTUNED --recipe recipe.toml", "moe4 tune SOURCE UNTUNED OUT --cal"):
        assert line in quantize_command(report)
    assert f"Tuned with `moe4 tune`: {report.tuning.num_scales:,} scales in " in str(
        moe4.card(tuned, write=False)
    )
    assert not (tuned / WORK_NAME).exists()


@pytest.mark.parametrize("after", [1, 9, "written"])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(
    after: int | str,
    small_source: Path,
    release: Path,
    tuned: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, with every step saved; and between the release and its expected answers."""
    out, calls = tmp_path / "out", []
    with monkeypatch.context() as patch:
        patch.setattr(run, "SAVE_SECONDS", 0.0)
        real = TunedScales.step

        def step(self: TunedScales, *arguments: Any) -> None:
            calls.append(arguments)
            if arguments[1] == after:
                raise Interrupted
            real(self, *arguments)

        def expect(*_: Any) -> None:
            raise Interrupted

        patch.setattr(TunedScales, "step", step)
        if after == "written":
            patch.setattr(run, "_expect_answers", expect)
        with pytest.raises(Interrupted):
            moe4.tune(small_source, release, out, calibration=text, **OPTIONS)
    with pytest.raises(OutputNotEmptyError, match=r"finished release|add resume=True"):
        moe4.tune(small_source, release, out, calibration=text, **OPTIONS)
    with pytest.raises(ResumeError, match=r"recipe|another finished release"):
        moe4.tune(small_source, release, out, calibration=text, **{**OPTIONS, "epochs": 5}, resume=True)
    moe4.tune(small_source, release, out, calibration=text, **OPTIONS, resume=True)
    found, expected = contents(out), contents(tuned)
    for files in (found, expected):
        report = json.loads(files.pop("moe4-report.json"))
        assert report["tuning"].pop("seconds") > 0
        files["report"] = json.dumps(report).encode()
    assert found == expected


def test_what_cannot_be_tuned_is_one_line(
    small_source: Path, release: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, out = tmp_path / "few.jsonl", tmp_path / "out"
    few.write_text('{"text": "Tom has seven apples."}\n' * 19)
    with pytest.raises(EvaluationError, match="tuning needs at least 20 documents, found 19"):
        moe4.tune(small_source, release, out, calibration=few)
    with pytest.raises(CheckpointError, match=r"moe4-report\.json"):
        moe4.tune(small_source, small_source, out, calibration=text)
    with pytest.raises(ArgumentError, match="learning_rate"):
        moe4.tune(small_source, release, out, calibration=text, learning_rate=0)
    other = write_source(tmp_path / "other", "gpt_oss")
    with pytest.raises(EvaluationError, match="is not a release of"):
        moe4.tune(other, release, out, calibration=text)
    assert not out.exists()
    monkeypatch.setattr(run._Run, "_train_from", lambda *_: None)
    with pytest.raises(
        EvaluationError, match="tuning did not help on the text held back; nothing was written"
    ):
        moe4.tune(small_source, release, out, calibration=text)
    assert not out.exists()


def test_the_command(
    small_source: Path,
    release: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["tune", str(small_source), str(release), str(out), "--calibration", str(text)]
    settings = ["--epochs", "2", "--batch-tokens", "1200", "--max-tokens", "64"]
    code, shown, told = run_cli([*command, *settings], monkeypatch, capfd)
    assert code == 0, told
    assert "tuned     " in shown
    assert "step 12 of 12: KL " in told
    code, _, told = run_cli([*command, "--epochs", "0"], monkeypatch, capfd)
    assert code == 2
    code, _, told = run_cli([*command, "--num-sequences", "x"], monkeypatch, capfd)
    assert code == 2
