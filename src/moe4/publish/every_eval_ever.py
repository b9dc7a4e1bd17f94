"""The measured results in the form of every_eval_ever, which other tools read.

The form is the EvalEval coalition's: github.com/evaleval/every_eval_ever, its
every_eval_ever/schemas/eval.schema.json, version 0.3.0 of August 2026. There a log is of one model, so there
are two: the release's, and the source's on the same questions. `additional_details` and `details` hold
strings only.
"""

from collections.abc import Iterator
from datetime import datetime

from moe4.evaluate.result_files import Measure, Run, TaskResult
from moe4.evaluate.statistics import LEVEL
from moe4.publish.card import CardNames
from moe4.publish.proof import Proof
from moe4.strict_json import JsonObject

SCHEMA_VERSION = "0.3.0"
RELEASE_LOG, BASELINE_LOG = "every_eval_ever.json", "every_eval_ever-baseline.json"
# Where the questions of a task come from, for tasks whose data moe4 knows.
DATASETS = {"gsm8k": ("openai/gsm8k", "test")}


def evaluation_logs(proof: Proof, names: CardNames) -> dict[str, JsonObject]:
    """Return the logs by file name; none where nothing was measured, or where no result says when."""
    runs = proof.runs
    if not runs:
        return {}
    repo = names.repo_for(proof)
    release = [*_scores(proof, "release"), *_predictions(proof), *_tools(proof, "release")]
    logs = {RELEASE_LOG: _log(repo, runs, release, relationship="first_party")}
    baseline = [*_scores(proof, "baseline"), *_tools(proof, "baseline")]
    if baseline:
        source = names.base_model or f"unknown/{proof.source_name or 'source'}"
        logs[BASELINE_LOG] = _log(source, runs, baseline, relationship="third_party")
    return logs


def _log(model: str, runs: list[Run], results: list[JsonObject], *, relationship: str) -> JsonObject:
    run = runs[-1]
    seconds = str(int(datetime.fromisoformat(run.date).timestamp()))
    developer, _, name = model.partition("/")
    versions = {key: version for found in runs for key, version in found.versions.items()}
    log: JsonObject = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"moe4/{model}/{seconds}",
        "evaluation_timestamp": seconds,
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": "moe4 prove",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": relationship,
        },
        "eval_library": {"name": "lm_eval", "version": versions.get("lm_eval", "unknown")},
        "model_info": {
            "name": name,
            "id": model,
            "developer": developer,
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "machine": run.machine,
                "moe4_version": versions.get("moe4", "unknown"),
            },
        },
        "evaluation_results": results,
    }
    if "vllm" in versions:
        log["model_info"]["inference_engine"] = {"name": "vllm", "version": versions["vllm"]}
    return log


def _scores(proof: Proof, side: str) -> Iterator[JsonObject]:
    """Yield a result for each task that this side was asked."""
    for task, found in (proof.evaluation.tasks if proof.evaluation else {}).items():
        score = found.score if side == "release" else found.baseline_score
        if score is None:
            continue
        scores = (found.release if side == "release" else found.baseline) or {}
        uncertainty: JsonObject = {"num_samples": found.num_questions}
        if scores.get("stderr") is not None:
            uncertainty["standard_error"] = {"value": scores["stderr"], "method": "analytic"}
        result: JsonObject = {
            "evaluation_result_id": f"{task}/{found.metric}",
            "evaluation_name": task,
            "source_data": _dataset(task),
            "metric_config": _metric(found.metric, score, f"{found.metric} of {task}"),
            "score_details": {"score": score, "uncertainty": uncertainty},
            "generation_config": {"additional_details": {"num_fewshot": str(found.num_fewshot)}},
        }
        details = _change(found) if side == "release" else {}
        if details:
            result["score_details"]["details"] = details
        run = proof.evaluation.run if proof.evaluation else None
        if run:
            result["generation_config"]["generation_args"] = {"execution_command": " ".join(run.command)}
        yield result


def _change(found: TaskResult) -> dict[str, str]:
    """Return what changed from source to release, as strings."""
    change = found.change
    if change is None or found.baseline_score is None:
        return {}
    values = {
        "baseline_score": found.baseline_score,
        "recovery": change.recovery,
        "recovery_low": change.recovery_interval and change.recovery_interval[0],
        "recovery_high": change.recovery_interval and change.recovery_interval[1],
        "gained": change.gained,
        "lost": change.lost,
        "mcnemar_p": change.mcnemar_p,
        "smallest_detectable_loss": change.detectable_difference,
    }
    return {key: f"{value:.6g}" for key, value in values.items() if value is not None}


def _predictions(proof: Proof) -> Iterator[JsonObject]:
    """Yield KL divergence from the source, and how often the likeliest token is the source's."""
    found = proof.comparison
    if found is None:
        return
    source = {"dataset_name": found.data, "source_type": "other"}
    low, high = found.kl.interval
    kl = {
        "lower_is_better": True,
        "metric_id": "moe4.kl_divergence",
        "metric_name": "KL divergence from the source",
        "metric_unit": "nats a token",
        "score_type": "continuous",
        "min_score": 0,
        "max_score": "Infinity",
    }
    interval = {"lower": low, "upper": high, "confidence_level": LEVEL, "method": "bootstrap"}
    yield {
        "evaluation_result_id": "predictions/kl_divergence",
        "evaluation_name": "moe4.predictions",
        "source_data": source,
        "metric_config": kl,
        "score_details": {
            "score": found.kl.mean,
            "uncertainty": {"confidence_interval": interval, "num_samples": found.num_tokens},
        },
    }
    yield {
        "evaluation_result_id": "predictions/top1_agreement",
        "evaluation_name": "moe4.predictions",
        "source_data": source,
        "metric_config": _metric(
            "moe4.top1_agreement", found.top1_agreement, "likeliest next token the same as the source's"
        ),
        "score_details": {"score": found.top1_agreement, "uncertainty": {"num_samples": found.num_tokens}},
    }


def _tools(proof: Proof, side: str) -> Iterator[JsonObject]:
    """Yield a result for each check of tool calls."""
    found = proof.toolcheck
    if found is None:
        return
    endpoint = found.release if side == "release" else found.baseline
    if endpoint is None:
        return
    for check, measure in endpoint.measures.items():
        if measure is not None:
            yield _tool_result(check, measure, ", ".join(found.requests))


def _tool_result(check: str, measure: Measure, requests: str) -> JsonObject:
    low, high = measure.interval
    interval = {"lower": low, "upper": high, "confidence_level": LEVEL}
    return {
        "evaluation_result_id": f"tools/{check}",
        "evaluation_name": "moe4.toolcheck",
        "source_data": {"dataset_name": requests, "source_type": "other"},
        "metric_config": _metric(f"moe4.{check}", measure.value, check.replace("_", " ")),
        "score_details": {
            "score": measure.value,
            "uncertainty": {"confidence_interval": interval, "num_samples": measure.num},
        },
    }


def _dataset(task: str) -> JsonObject:
    if task in DATASETS:
        repo, split = DATASETS[task]
        return {"dataset_name": task, "source_type": "hf_dataset", "hf_repo": repo, "hf_split": split}
    details = {"task": f"lm-evaluation-harness task {task}"}
    return {"dataset_name": task, "source_type": "other", "additional_details": details}


def _metric(name: str, score: float, description: str) -> JsonObject:
    """Return a metric of which more is better: a share, or unbounded where the score is none."""
    is_share = 0 <= score <= 1
    return {
        "evaluation_description": description,
        "metric_id": name,
        "metric_name": name.removeprefix("moe4.").replace("_", " "),
        "metric_unit": "proportion" if is_share else "points",
        "lower_is_better": False,
        "score_type": "continuous",
        "min_score": 0 if is_share else "-Infinity",
        "max_score": 1 if is_share else "Infinity",
    }
