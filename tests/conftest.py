"""Settings of all tests."""

import os
import signal

import pytest
from hypothesis import settings

# A busy machine is not a failure.
settings.register_profile("moe4", deadline=None)
settings.load_profile("moe4")

# A shell's background job ignores SIGINT, and so would every program that a test starts and stops with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# With pytest-xdist workers share the processors; torch and what tests start would each take all of them.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    num_processors = len(os.sched_getaffinity(0))
    share = num_processors // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a module's tests on one worker, and all that starts vLLM on one, first."""
    if IS_WORKER:
        items.sort(key=lambda item: item.get_closest_marker("vllm") is None)
        for item in items:
            group = "vllm" if item.get_closest_marker("vllm") else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))
