"""A release with results of every kind, as the commands write them; numbers chosen so that they are known."""

import json
from pathlib import Path
from typing import Any

from model_fixtures import random_state, reference_config, write_checkpoint, write_rounded_release

from moe4.evaluate.harness.results import ScoreComparison, score
from moe4.evaluate.harness.samples import Sample, TaskSamples
from moe4.evaluate.result_files import to_json

SMALL = {"num_hidden_layers": 3, "n_routed_experts": 4, "vocab_size": 64, "intermediate_size": 128}
TASK = "k2_tiny_problems_0shot"
RUN = {
    "date": "2026-11-27T10:20:30Z",
    "command": ["moe4", "prove", "SOURCE", "OUT", "--task", TASK, "--data", "my text.jsonl"],
    "versions": {"moe4": "0.1.0", "vllm": "0.32.0", "lm_eval": "0.4.13"},
    "machine": "AMD EPYC, 2 CPUs",
}


def write_measured_release(folder: Path, group_size: int = 64) -> Path:
    """Write a small release with moe4-report.json and proof/; its text holds what HTML must escape."""
    config = reference_config(**SMALL)
    source = write_checkpoint(folder / "source", config, random_state(config))
    out = write_rounded_release(source, folder / "a-release", group_size)
    (out / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    (out / "moe4-report.json").write_text(json.dumps(report(out)))
    proof = out / "proof"
    proof.mkdir()
    scores = scored()
    (proof / "evaluation.json").write_text(json.dumps({**to_json(scores.to_file(3)), "run": RUN}))
    (proof / "comparison.json").write_text(json.dumps({**comparison(), "run": RUN}))
    (proof / "toolcheck.json").write_text(json.dumps({**toolcheck(), "run": RUN}))
    (proof / "power.json").write_text(json.dumps({**power(), "run": {**RUN, "command": ["moe4", "power"]}}))
    (proof / "probe.json").write_text(json.dumps({"passed": True, "summary": "PASS", "run": RUN}))
    return out


def report(out: Path) -> dict[str, Any]:
    def matrix(error: float) -> dict[str, Any]:
        return {"method": "gptq", "error": error, "rtn_error": 4 * error}

    def expert(layer: int, number: int) -> dict[str, Any]:
        error = 0.001 * (1 + layer) * (1 + number)
        return {
            "num_tokens": 100 * (number + 1),
            **{part: matrix(error) for part in ("gate", "up", "down")},
        }

    layers = [{"layer": 0, "shard": "a", "experts": [], "linears": {}}]
    layers += [
        {"layer": n, "shard": "b", "experts": [expert(n, e) for e in range(4)], "linears": {}} for n in (1, 2)
    ]
    return {
        "versions": {"moe4": "0.1.0", "torch": "2.13.0"},
        "recipe": {"method": "gptq", "targets": ["experts"], "group_size": 64, "gptq": {"damping": 0.01}},
        "source": {"model_type": "kimi_k2", "num_bytes": 4_000_000},
        "calibration": {"data": "chats <of> mine.jsonl", "num_sequences": 12, "num_tokens": 3456},
        "release": {
            "num_bytes": 1_000_000,
            "shards": {"model-00001.safetensors": {"num_bytes": 1_000_000, "sha256": "ab" * 32}},
            "side_files": [],
        },
        "summary": {
            "num_matrices": 24,
            "mean_error": 0.005,
            "mean_rtn_error": 0.02,
            "fallbacks": [{"matrix": "layer 2 expert 3 down_proj", "why": "not better"}],
            "worst": [],
        },
        "layers": layers,
        "timing": {"seconds": 3725.0, "layer_seconds": [1.0], "peak_memory_bytes": 2_500_000_000},
    }


def evaluation() -> dict[str, Any]:
    """What the scores come to."""
    return scored().as_dict()


def scored() -> ScoreComparison:
    """1,000 questions: 990 right before; 3 lost, 1 gained."""

    def answers(right: set[int]) -> Any:
        samples = (
            Sample(
                number=n, question=f"q{n}", target="7", response=f"so {n}\n#### 7", value=float(n in right)
            )
            for n in range(1000)
        )
        return score(TaskSamples(metric="exact_match", num_fewshot=0, samples=tuple(samples)))

    before = set(range(990))
    after = (before - {1, 2, 3}) | {995}
    return ScoreComparison(
        release="/data/out",
        scores={TASK: answers(after)},
        baseline="/data/the-source",
        baseline_scores={TASK: answers(before)},
    )


def comparison() -> dict[str, Any]:
    token = {
        "sequence": 0,
        "kl": 0.5,
        "context": "<script>alert(1)</script>",
        "token": "&",
        "source_best": "&",
        "release_best": "x",
        "source_probability": 0.75,
        "release_probability": 0.25,
    }
    layers: list[dict[str, Any]] = [{"layer": 0, "error": 0.0, "kl": 0.0}]
    layers += [
        {
            "layer": n,
            "error": 0.001 * n,
            "added_error": 0.0005,
            "kl": 0.002 * n,
            "experts_error": 0.01,
            "same_experts": 0.99,
            "expert_errors": [0.1] * 4,
            "expert_tokens": [5] * 4,
        }
        for n in (1, 2)
    ]
    return {
        "data": "held-out.jsonl",
        "num_sequences": 10,
        "num_tokens": 1234,
        "kl": {"mean": 0.00123, "interval": [0.001, 0.0015], "median": 0.0, "p99": 0.01, "max": 0.5},
        "top1_agreement": 0.9876,
        "top5_agreement": 0.95,
        "perplexity": {"source": 2.5, "release": 2.51},
        "worst_tokens": [token],
        "layers": layers,
    }


def toolcheck() -> dict[str, Any]:
    def measure(value: float, **more: Any) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.05, value], "num": 40, **more}

    measures = {
        "tool_call_f1": measure(0.9, threshold=0.8, ok=True),
        "schema_accuracy": measure(0.7, threshold=0.95, ok=False),
        "id_form": None,
    }
    return {
        "requests": ["hard-cases.jsonl"],
        "num_requests": 40,
        "greedy": True,
        "release": {"model": "r", "measures": measures, "num_requests": 40, "faults": []},
        "baseline": {"model": "b", "measures": measures, "num_requests": 40, "faults": []},
        "agreement": {"num": 40, "decision_agreement": measure(0.975)},
    }


def power() -> dict[str, Any]:
    def noticed(value: float, limit: float, smallest: float | None = None) -> dict[str, Any]:
        return {"value": value, "limit": limit, "noticed": value > limit, "smallest": smallest}

    return {
        "data": "held-out.jsonl",
        "num_sequences": 10,
        "num_tokens": 1234,
        "num_asked": 64,
        "num_experts": 8,
        "faults_planted": [
            {
                "name": "scaled_expert",
                "title": "scales of one expert too large",
                "unit": "factor",
                "size": 0.05,
                "measures": {"verify": noticed(0.01, 0.5), "probe": noticed(1.25, 1.0, 0.02)},
            },
            {
                "name": "rounded_experts",
                "title": "experts rounded to <nearest>",
                "unit": "experts",
                "size": 1,
                "measures": {"kl": noticed(0.001, 0.002, 8.0), "experts": noticed(0.2, 0.1, 1.0)},
            },
            {
                "name": "template",
                "title": "another chat template",
                "measures": {"verify": noticed(1.0, 0.0), "top1": noticed(0.9, 0.95)},
            },
        ],
        "left_out": {"router's bias": "this model's router has no bias"},
    }
