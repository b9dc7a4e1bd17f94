"""Settings of all tests."""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from hypothesis import settings
from vllm_forks import VllmForks

# A busy machine is not a failure.
settings.register_profile("moe4", deadline=None)
settings.load_profile("moe4")

# A shell's background job ignores SIGINT, nohup's SIGHUP, and so would all that a test stops with them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Typer assembles all commands anew for each invocation of an app, which takes longer than many of them.
typer.testing._get_command = cache(typer.testing._get_command)

# With pytest-xdist workers share the processors; torch and what tests start would each take all of them.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    num_processors = len(os.sched_getaffinity(0))
    share = num_processors // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


@cache
def starts_vllm(file: str) -> bool:
    """Say whether a test file, relative to the project's folder, has tests that are marked so."""
    return "mark.vllm" in (Path(__file__).parents[1] / file).read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have a worker begin with the files that start vLLM, which take the longest."""
    if IS_WORKER:
        items.sort(key=lambda item: not starts_vllm(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests on one worker, and all files that start vLLM on one: one vLLM at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "vllm" if starts_vllm(file) else file

    return ByFile(config, log)


PRELOADED = os.environ.get("LD_PRELOAD")


@pytest.fixture(autouse=True)
def _preloads() -> Iterator[None]:
    """Undo what vLLM's CPU platform sets in the process that asks it: other programs would inherit it."""
    yield
    if PRELOADED is None:
        os.environ.pop("LD_PRELOAD", None)
    else:
        os.environ["LD_PRELOAD"] = PRELOADED


@pytest.fixture(scope="session")
def vllm_forks() -> Iterator[VllmForks]:
    """VLLM in processes of its own, imported once."""
    with VllmForks() as forks:
        yield forks
