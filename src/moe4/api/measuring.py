"""Measure what quantization cost (predictions, scores, tool calls) and which experts calibration reaches."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from moe4.api.operation import (
    PathLike,
    Positive,
    Source,
    Text,
    open_source,
    operation,
    optional_path,
    paths,
    say,
)
from moe4.api.results import ComparisonResult, PowerResult, ToolcheckResult
from moe4.arguments import argument
from moe4.errors import CalibrationError
from moe4.evaluate.result_files import to_json
from moe4.progress import OnProgress, Pace, ignore
from moe4.recipe import ComputeDtype

if TYPE_CHECKING:
    from moe4.evaluate.coverage.coverage import CoverageSummary
    from moe4.evaluate.harness.results import ScoreComparison
    from moe4.evaluate.without_tasks import Measured


@operation
def compare(
    source: Source,
    release: Source,
    *,
    revision: Text | None = None,
    data: PathLike | None = None,
    num_sequences: Positive = 100,
    max_tokens: Annotated[int, Field(ge=2)] = 1024,
    dtype: ComputeDtype = "bfloat16",
    device: str = "cpu",
    work: PathLike | None = None,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    output: PathLike | None = None,
    on_progress: OnProgress = ignore,
) -> ComparisonResult:
    """Compare a release's predictions with its source's on the same text, by token, layer and expert.

    source, release: folders, or ids on the hub. revision: the source's; give a release's as ID@REVISION.
    data: JSONL of held-out {messages} or {text}; moe4's own text if None; "reference" is k2-tiny's chats.
    num_sequences: documents to read. max_tokens: cut documents to this length. dtype: bfloat16 or float32,
    to compute in. device: cpu, cuda or cuda:N. work: folder for hidden states. family_as_is: try a family
    that is not listed. trust_remote_code: let the tokenizer run the checkpoint's code. output: JSON file for
    the result. on_progress: called at each step.
    Raises CheckpointError, HubError, CalibrationError, EvaluationError or OutputError.

        >>> moe4.compare("k2-tiny", "release", data="reference", num_sequences=4).top1_agreement > 0.8
        True
    """
    from moe4.evaluate.comparison.compare import CompareOptions
    from moe4.evaluate.comparison.compare import compare as run
    from moe4.evaluate.harness.evaluation import write_json
    from moe4.files.durable import check_output

    path = optional_path(output)
    if path is not None:
        check_output(path)
    options = CompareOptions(
        source=open_source(source, revision, on_progress),
        release=open_source(release, None, on_progress),
        data=optional_path(data),
        num_sequences=num_sequences,
        max_sequence_tokens=max_tokens,
        compute_dtype=dtype,
        device=device,
        work=optional_path(work),
        family_as_is=family_as_is,
        trust_remote_code=trust_remote_code,
    )
    found = run(options, say, on_progress)
    if path is not None:
        write_json(path, to_json(found))
    return ComparisonResult.model_construct(found.model_fields_set, **dict(found))


@operation
def coverage(
    source: Source,
    calibration: PathLike | None = None,
    *,
    revision: Text | None = None,
    num_documents: Positive | None = None,
    max_tokens: Positive = 1024,
    cold_tokens: Positive = 512,
    choose: Positive | None = None,
    output: PathLike | None = None,
    evaluation: Sequence[PathLike] = (),
    device: str = "cpu",
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> "CoverageSummary":
    """Count the calibration tokens that reach each expert; name cold experts, and documents to add.

    source: a folder, or an id on the hub, at `revision`. calibration: JSONL, or "reference".
    num_documents: only the first ones. max_tokens: cut documents to this length. cold_tokens: an expert with
    fewer tokens is cold. choose: choose this many documents that reach the experts evenly; output: JSONL file
    for them. evaluation: JSONL of questions that the calibration must not contain; see `ok`. device: cpu,
    cuda or cuda:N. family_as_is: try a family that is not listed. trust_remote_code: let the tokenizer run
    the checkpoint's code. on_progress: called at each step. Raises CheckpointError, HubError,
    CalibrationError or OutputError.

        >>> moe4.coverage("k2-tiny", "reference", num_documents=4).num_tokens > 0
        True
    """
    from moe4.evaluate.coverage import coverage as module
    from moe4.evaluate.coverage.overlap import find_overlap, read_questions
    from moe4.files.durable import check_output, write_output

    if (choose is None) != (output is None):
        raise CalibrationError(f"{argument('choose')} and {argument('output')} go together")
    if output is not None:
        check_output(Path(output))
    options = module.CoverageOptions(
        model=open_source(source, revision, on_progress),
        calibration=optional_path(calibration),
        num_documents=num_documents,
        max_sequence_tokens=max_tokens,
        cold_tokens=cold_tokens,
        choose=choose,
        device=device,
        family_as_is=family_as_is,
        trust_remote_code=trust_remote_code,
    )
    questions = [question for path in paths(evaluation) for question in read_questions(path)]
    found = module.measure(options, say, on_progress)
    chosen = None if choose is None else module.choose(found.counts, choose)
    taken = range(len(found.documents)) if chosen is None else chosen
    if output is not None:
        lines = [json.dumps(found.documents[place][1], ensure_ascii=False) for place in taken]
        write_output(Path(output), "\n".join(lines) + "\n")
    texts = [(found.documents[n][0], module.document_text(found.documents[n][1])) for n in taken]
    overlap = find_overlap(texts, questions) if questions else None
    return module.summarize(found, cold_tokens, chosen, overlap)


@operation
def eval(
    model: Source,
    *,
    against: Source | None = None,
    tasks: Sequence[Text] = (),
    limit: Positive | None = None,
    data_dir: PathLike | None = None,
    gsm8k_dir: PathLike | None = None,
    base_url: Text | None = None,
    tensor_parallel_size: Positive = 1,
    trust_remote_code: bool = False,
    include_path: PathLike | None = None,
    tokenizer: PathLike | None = None,
    cache: PathLike | None = None,
    use_cache: bool = True,
    revision: Text | None = None,
    output: PathLike | None = None,
    on_progress: OnProgress = ignore,
) -> "ScoreComparison | Measured":
    """Evaluate a model with lm-evaluation-harness, and compare it with a baseline if one is given.

    model, against: folders or ids on the hub; with base_url, names of models on that server. tasks: of the
    harness, or k2_tiny_problems; without any, compare predictions with `against`, or check a server's tool
    calls. limit: first questions of each task. data_dir, gsm8k_dir: folders of k2-tiny's problems and GSM8K.
    tensor_parallel_size: GPUs to split the model over. trust_remote_code: run the tokenizer's code.
    include_path: folder of more tasks. tokenizer, revision: with base_url, the tokenizer's folder and a name
    for the weights. cache, use_cache: folder of kept answers, and whether to reuse them. output: JSON file
    for scores and answers. on_progress: called at each step. Raises EvaluationError, CheckpointError,
    HubError, ServeError, OutputError or MissingDependencyError.

        >>> print(moe4.eval("release", against="k2-tiny", tasks=["k2_tiny_problems_0shot"], limit=8))
    """
    from moe4.evaluate.harness.evaluation import EvaluationOptions, run_evaluation, write_scores

    options = EvaluationOptions(
        model=os.fspath(model),
        against=None if against is None else os.fspath(against),
        tasks=tuple(tasks),
        limit=limit,
        data_folder=optional_path(data_dir),
        gsm8k_folder=optional_path(gsm8k_dir),
        base_url=base_url,
        tensor_parallel_size=tensor_parallel_size,
        trust_remote_code=trust_remote_code,
        output=optional_path(output),
        include_path=optional_path(include_path),
        tokenizer=optional_path(tokenizer),
        cache_folder=optional_path(cache),
        use_cache=use_cache,
        revision=revision,
    )
    if not options.names_a_task:
        from moe4.evaluate.without_tasks import measure_without_tasks

        return measure_without_tasks(options, say, on_progress)
    comparison = run_evaluation(options, say, on_progress)
    if options.output is not None:
        write_scores(options.output, comparison)
    return comparison


@operation
def toolcheck(
    url: Text,
    *,
    model: Text | None = None,
    against: Text | None = None,
    against_model: Text | None = None,
    requests: Sequence[PathLike] = (),
    reference: PathLike | None = None,
    output: PathLike | None = None,
    limit: Positive | None = None,
    concurrency: Positive = 8,
    retries: Annotated[int, Field(ge=0)] = 3,
    timeout: Annotated[float, Field(ge=1)] = 600.0,
    keep_sampling: bool = False,
    stream: bool = True,
    thresholds: Sequence[Text] = (),
    on_progress: OnProgress = ignore,
) -> ToolcheckResult:
    """Check a server's tool calls: decisions, schemas, ids, streaming. See `failures` of the result.

    url, model: the server, and the first model that it lists if None. against, against_model: the baseline's.
    requests: JSONL files of request bodies; moe4's hard cases if none; "reference" adds k2-tiny's turns.
    reference: results of another run, whose decisions to call are the reference. output: JSONL file for all
    answers; an interrupted run continues from it. limit: first requests of each file. concurrency: requests
    at the same time. retries: of a request that fails. timeout: seconds to wait for an answer.
    keep_sampling: send the requests' own temperature. stream: send each request streamed as well.
    thresholds: "NAME=SHARE". on_progress: called with a `Progress` at each step.
    Raises EvaluationError for bad requests, and ServeError if no server answers.

        >>> print(moe4.toolcheck("http://127.0.0.1:8000", limit=2))
    """
    from moe4.evaluate.toolcheck import ToolcheckOptions, run_toolcheck

    options = ToolcheckOptions(
        base_url=url,
        model=model,
        against=against,
        against_model=against_model,
        requests=paths(requests),
        reference=optional_path(reference),
        output=optional_path(output),
        limit=limit,
        concurrency=concurrency,
        max_retries=retries,
        timeout_seconds=timeout,
        keep_sampling=keep_sampling,
        stream=stream,
        thresholds=tuple(thresholds),
    )
    found = run_toolcheck(options, Pace(on_progress, "asking").count)
    return ToolcheckResult.model_construct(found.model_fields_set, **dict(found))


@operation
def power(
    source: Source,
    release: PathLike,
    *,
    revision: Text | None = None,
    data: PathLike | None = None,
    num_sequences: Positive = 20,
    max_tokens: Annotated[int, Field(ge=2)] = 1024,
    device: str = "cpu",
    work: PathLike | None = None,
    family_as_is: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress = ignore,
) -> PowerResult:
    """Plant faults in a release, in memory; find out which of its measures notice them, and how small ones.

    The result is written to RELEASE/proof/power.json, where `report` and `card` find it. source, revision,
    data, max_tokens, device, work, family_as_is, trust_remote_code, on_progress: as in `compare`.
    num_sequences: documents to read. Raises CheckpointError, HubError, CalibrationError, EvaluationError,
    ProbeError or OutputError.

        >>> print(moe4.power("k2-tiny", "release", data="reference", num_sequences=4))
    """
    from moe4.evaluate.comparison.compare import CompareOptions
    from moe4.power.run import measure_power

    options = CompareOptions(
        source=open_source(source, revision, on_progress),
        release=Path(release),
        data=optional_path(data),
        num_sequences=num_sequences,
        max_sequence_tokens=max_tokens,
        device=device,
        work=optional_path(work),
        family_as_is=family_as_is,
        trust_remote_code=trust_remote_code,
    )
    found = measure_power(options, lambda text: say(f"moe4: {text}"), on_progress)
    return PowerResult.model_construct(found.model_fields_set, **dict(found))
