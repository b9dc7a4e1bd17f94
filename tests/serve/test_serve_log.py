"""The reason why vLLM stopped, found in lines that vLLM 0.32 wrote."""

import io
from pathlib import Path

import pytest

from moe4.serve.log import last_error
from moe4.serve.process import LogFollower

# Each is cut from a real log of vLLM 0.32 on CPU.
NUMA = """\
(EngineCore pid=8554) ERROR 11-23 14:41:50 [core.py:1510] EngineCore failed to start.
(EngineCore pid=8554) ERROR 11-23 14:41:50 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=8554) ERROR 11-23 14:41:50 [core.py:1510]   File "vllm/v1/engine/core.py", line 1482, in run
(EngineCore pid=8554) ERROR 11-23 14:41:50 [core.py:1510] AssertionError: Not enough allowed NUMA nodes.
Process EngineCore:
Traceback (most recent call last):
AssertionError: Not enough allowed NUMA nodes.
(APIServer pid=8400) Traceback (most recent call last):
(APIServer pid=8400)   File "vllm/v1/engine/utils.py", line 1431, in wait_for_engine_startup
(APIServer pid=8400)     raise RuntimeError(
(APIServer pid=8400) RuntimeError: Engine core initialization failed. See root cause above.
"""
NUMA_REASON = "AssertionError: Not enough allowed NUMA nodes."
PYDANTIC = """\
(APIServer pid=1)     s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=1)   Value error, User-specified max_model_len (9999) is too large. [type=value_error]
(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.12/v/value_error
"""
USAGE = """\
INFO 11-23 15:00:00 [__init__.py:1] Automatically detected platform cpu.
usage: vllm serve [model_tag] [options]
vllm: error: unrecognized arguments: --no-such-option 3
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (NUMA, NUMA_REASON),
        (PYDANTIC, "User-specified max_model_len (9999) is too large."),
        (USAGE, "vllm: error: unrecognized arguments: --no-such-option 3"),
        ("ModuleNotFoundError: No module named 'x'\n", "ModuleNotFoundError: No module named 'x'"),
        (
            "(EngineCore pid=7) ERROR 11-23 14:41:50 [core.py:1] RuntimeError: NCCL error\n"
            "(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
            "See stack trace (above) for the root cause.\n"
            "(APIServer pid=1) asyncio.exceptions.CancelledError\n",
            "RuntimeError: NCCL error",
        ),
        ("torch.OutOfMemoryError: no memory\nKilled\n", "torch.OutOfMemoryError: no memory"),
        (
            "pydantic_core.ValidationError: 2 validation errors for X\n",
            "pydantic_core.ValidationError: 2 valida",
        ),
        ("INFO 11-23 15:00:00 [api.py:1] Route: /v1/models\nan Error: within text\n", None),
        ("", None),
    ],
)
def test_last_error(log: str, reason: str | None) -> None:
    found = last_error(log)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(reason)


def test_a_log_is_followed_from_when_it_is_there(tmp_path: Path) -> None:
    log, stream = tmp_path / "vllm.log", io.StringIO()
    follow = LogFollower(log, stream)
    log.write_text("one\n")
    follow()
    with log.open("a") as file:
        file.write("two\n")
    follow()
    assert stream.getvalue() == "one\ntwo\n"
