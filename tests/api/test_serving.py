"""`moe4.serve` without vLLM: the stand-in of tests/serve in its place."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import random_state, reference_config, write_checkpoint, write_rounded_release

import moe4
from moe4.errors import ServeError
from moe4.serve import process, run
from moe4.serve.host import Host

STAND_IN = Path(__file__).parents[1] / "serve" / "stand_in.py"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    config = reference_config(num_hidden_layers=2, n_routed_experts=4, vocab_size=64)
    source = write_checkpoint(folder / "source", config, random_state(config))
    return write_rounded_release(source, folder / "release")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have a stand-in of some behaviour started where vLLM would be."""
    monkeypatch.setattr(process, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.05)
    real = run.build_command

    def use(behaviour: str) -> Path:
        pids = tmp_path / f"{behaviour}.pids"

        def build(model: Any, host: Host, options: Any, environment: Any) -> Any:
            command = (sys.executable, str(STAND_IN), behaviour, str(options.port), str(pids))
            return replace(real(model, host, options, environment), arguments=command)

        monkeypatch.setattr(run, "build_command", build)
        return pids

    yield use


def ended(pids: Path, seconds: float = 10) -> bool:
    """Say whether the server and its engine are gone, or are soon."""
    deadline = time.monotonic() + seconds
    while not gone(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(pids: Path) -> bool:
    """Say whether the processes are gone, or dead and only not yet waited for."""
    for pid in pids.read_text().split():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
        except FileNotFoundError:
            pass
    return True


def test_the_server_is_there_inside_and_gone_afterwards(release: Path, stand_in: Any) -> None:
    pids = stand_in("obedient")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with moe4.serve(release, api_key="k", check=False) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.url.endswith("/v1")
        assert (server.model, server.key, server.probe) == ("release", "k", None)
        assert server.is_running
        assert "k" not in repr(server).replace("k2", "").split("key=")[-1][:3] or "key=" not in repr(server)
        pytest.importorskip("openai")
        client = server.client()
        assert str(client.base_url).rstrip("/") == server.url
        assert client.api_key == "k"
        inside = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        assert inside == before
        log = server.log
    assert ended(pids)
    assert not log.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_stops_it(release: Path, stand_in: Any, error: type[BaseException]) -> None:
    pids = stand_in("obedient")
    with pytest.raises(error), moe4.serve(release, check=False):
        raise error
    assert ended(pids)


@pytest.mark.parametrize("behaviour", ["stubborn", "untidy"])
def test_nothing_is_left_of_one_that_does_not_listen(release: Path, stand_in: Any, behaviour: str) -> None:
    pids = stand_in(behaviour)
    with moe4.serve(release, check=False):
        pass
    assert ended(pids)


def test_why_it_did_not_start_is_said(release: Path, stand_in: Any, tmp_path: Path) -> None:
    stand_in("dies")
    with (
        pytest.raises(ServeError, match=r"vLLM did not start: ValueError: no such weights") as caught,
        moe4.serve(release, log=tmp_path / "vllm.log"),
    ):
        pytest.fail("it is not ready")
    assert str(caught.value).endswith(f"its log: {tmp_path / 'vllm.log'}")


def test_one_that_ends_by_itself_is_an_error(release: Path, stand_in: Any) -> None:
    stand_in("crashes")
    with pytest.raises(ServeError, match="vLLM stopped: killed by signal 9"), moe4.serve(release) as server:
        while server.is_running:
            pass


def test_it_starts_in_any_thread(release: Path, stand_in: Any) -> None:
    stand_in("obedient")
    found: list[Any] = []

    def work() -> None:
        try:
            with moe4.serve(release, check=False) as server:
                found.append(server.is_running)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_log_without_a_folder_is_refused_first(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="there is no folder"):
        moe4.serve(release, log=tmp_path / "none" / "log")
