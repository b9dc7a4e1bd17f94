"""What is said where a server's answers are not the release's."""

from pathlib import Path
from typing import Any

import pytest

from moe4.progress import ignore
from moe4.serve import run
from moe4.serve.command import ServeCommand


@pytest.mark.parametrize(
    ("ok", "rest", "said"),
    [
        (True, "int4", ["figures"]),
        (None, "int4", ["figures"]),
        (False, "bfloat16", ["figures", run.NOT_THE_RELEASE]),
        (False, "int4", ["figures", run._further_rounded("int4")]),
    ],
)
def test_who_chose_to_round_is_told_so(
    monkeypatch: pytest.MonkeyPatch, ok: bool | None, rest: str, said: list[str]
) -> None:
    monkeypatch.setattr(run, "check_when_ready", lambda *_, **__: (ok, "figures"))
    built = ServeCommand(arguments=("vllm",), model_name="m", rest=rest, url="http://127.0.0.1:1/v1", port=1)

    class Running:
        stopping = False

    lines: list[str] = []
    server: Any = Running()
    assert run._check(built, Path("release"), server, lines.append, ignore) is ok
    assert lines == said
