"""What the quantizer's tests share: running it, and reading what it wrote without any code of moe4's."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

from moe4.checkpoint.journal import CommittedShard, Journal
from moe4.checkpoint.release_folder import ReleaseFolder
from moe4.cli import main as cli
from moe4.quantize.planning.request import Request
from moe4.quantize.reporting.progress import ProgressReporter
from moe4.quantize.run import commit
from moe4.quantize.run.pipeline import quantize
from moe4.recipe import Recipe


def run_quantize(
    source: Path, out: Path, recipe: Recipe, calibration: Path | None = None, **options: bool
) -> dict[str, object]:
    """Quantize in this process, with its progress on stderr."""
    request = Request(source=source, out=out, recipe=recipe, calibration=calibration, **options)
    return quantize(request, ProgressReporter(say=_say)).as_dict()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Interrupted(BaseException):
    """Ends a run in a test."""


def interrupt_after(
    count: int,
    source: Path,
    calibration: Path,
    out: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Begin a run into `out` that ends after so many shards."""
    real, calls = Journal.commit, []

    def commit(self: Journal, shard: CommittedShard) -> None:
        real(self, shard)
        calls.append(shard)
        if len(calls) == count:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Journal, "commit", commit)
        run_quantize(source, out, recipe, calibration)
    assert (out / ".moe4" / "journal.jsonl").read_bytes().count(b"\n") == count + 1
    return out


def keep_boundaries(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Have runs leave the hidden states between layers in what is returned, by file name."""
    kept: dict[str, bytes] = {}
    remove = ReleaseFolder.remove_work_folder

    def discard(path: Path) -> None:
        if path.name.startswith("hidden-"):
            kept[path.name] = path.read_bytes()
        path.unlink(missing_ok=True)

    def remove_work_folder(folder: ReleaseFolder) -> None:
        for path in folder.work.glob("hidden-*.bin"):
            discard(path)
        remove(folder)

    monkeypatch.setattr(commit, "discard", discard)
    monkeypatch.setattr(ReleaseFolder, "remove_work_folder", remove_work_folder)
    return kept


def run_cli(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run `moe4 ...` as the console script does; return the exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["moe4", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    output = capfd.readouterr()
    return int(exit_.value.code or 0), output.out, output.err


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a release; the report without its times."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(files["moe4-report.json"])
    report.pop("timing")
    files["moe4-report.json"] = json.dumps(report).encode()
    return files


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Say in which of the report's fields, or else in which files, two releases differ."""
    one, other = (json.loads(files["moe4-report.json"]) for files in (found, expected))
    for field in other:
        assert one[field] == other[field], field
    assert found == expected


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Forks:
    """Quantizes in forked processes: see fork_server.py."""

    def __enter__(self) -> "Forks":
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
        # A test that has vLLM in this process may have left a launcher's variables behind.
        own = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        environment = {**own, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, source: Path, out: Path, recipe: Recipe, calibration: Path, **request: Any) -> Any:
        """Return what became of the ranks, and the seconds it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        paths = {"source": str(source), "out": str(out), "calibration": str(calibration)}
        print(
            json.dumps({**paths, "recipe": recipe.to_dict(), **request}), file=self._process.stdin, flush=True
        )
        return json.loads(self._process.stdout.readline())


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint through its index, with safetensors itself."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: load_file(folder / name) for name in set(weight_map.values())}
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def decompress(folder: Path, *, exact: bool = False) -> dict[str, torch.Tensor]:
    """Return every weight of a release under its source's name, decoded by compressed-tensors.

    `exact` decodes in float32, where the product of a code and a bf16 scale is exact.
    """
    config = json.loads((folder / "config.json").read_text())
    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    (scheme,) = parsed.config_groups.values()
    stored, weights = load_folder(folder), {}
    for name, tensor in stored.items():
        base, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            leaves = ("weight_packed", "weight_scale", "weight_shape")
            state = {key: stored[f"{base}.{key}"] for key in leaves}
            if exact:
                state["weight_scale"] = state["weight_scale"].float()
            weights[f"{base}.weight"] = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        elif leaf not in ("weight_scale", "weight_shape"):
            weights[name] = tensor
    return weights


def transformers_model(folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """Build the whole model as transformers does, from plain weights under a checkpoint's names."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "model_type"):
        config.pop(key, None)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**config)).to(dtype).eval()
    state = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(1, config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts"
        each = [
            {part: weights[f"{prefix}.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down")}
            for expert in range(config["n_routed_experts"])
        ]
        state[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat((w["gate"], w["up"])) for w in each])
        state[f"{prefix}.down_proj"] = torch.stack([w["down"] for w in each])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert not unexpected
    return model


def tokenize(source: Path, calibration: Path, num_sequences: int) -> list[list[int]]:
    """The calibration tokens, by transformers alone."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    documents = [json.loads(line) for line in calibration.read_text().splitlines()]
    generator, chosen = random.Random(0), list(range(num_sequences))
    for number in range(num_sequences, len(documents)):
        slot = generator.randrange(number + 1)
        if slot < num_sequences:
            chosen[slot] = number
    sequences = []
    for number in sorted(chosen):
        document = documents[number]
        if "text" in document:
            sequences.append(tokenizer(document["text"])["input_ids"])
        else:
            sequences.append(tokenizer.apply_chat_template(document["messages"], return_dict=False))
    return sequences
