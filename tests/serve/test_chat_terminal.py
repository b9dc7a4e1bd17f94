"""`moe4 chat` in a terminal: typing, stopping an answer, leaving."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator

import pytest
from test_chat import MOE4, Api, url

__all__ = ["url"]  # the fixture


class Terminal:
    """A process whose terminal we hold."""

    def __init__(self, *arguments: str) -> None:
        self.handle, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*MOE4, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "dumb", "COLUMNS": "200"},
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def interrupt_until(self, text: str) -> None:
        """Type Ctrl-C until `text` comes.

        Between the prompt and its waiting for a key, CPython's input() may miss one until the next key.
        """
        for _ in range(20):
            self.type("\x03")
            if self._comes(text, 10):
                return
        pytest.fail(f"no {text!r}: {self.seen}")

    def wait_for(self, text: str) -> None:
        assert self._comes(text, 200), self.seen

    def _comes(self, text: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > deadline:
                return False
            if select.select([self.handle], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.handle, 4096).decode(errors="replace")
                except OSError:  # the process has closed its side
                    pytest.fail(f"ended before {text!r}: {self.seen}")
        self.seen = self.seen.partition(text)[2]
        return True


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(url: str) -> Iterator[Terminal]:
    terminal = Terminal("chat", "--base-url", url)
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.handle)


def test_a_conversation(terminal: Terminal) -> None:
    terminal.wait_for("you ")
    terminal.type("one\n")
    terminal.wait_for("you sent 1 messages")
    terminal.wait_for("you ")
    terminal.type("/reset\n")
    terminal.wait_for("forgotten")
    terminal.wait_for("you ")
    terminal.type("two\n")
    terminal.wait_for("you sent 1 messages")
    terminal.wait_for("you ")
    terminal.type("\x04")
    assert terminal.process.wait(100) == 0


def test_a_server_does_not_paint_the_terminal(url: str) -> None:
    Api.behaviour = "paints"
    terminal = Terminal("chat", "--base-url", url)
    try:
        terminal.wait_for(r"[red]\x1b]0;title\x07one")
        terminal.wait_for("you ")
        terminal.type("one\n")
        terminal.wait_for(r"[red]\x1b]0;title\x07one ")
        terminal.wait_for(r"[b]\x1b[2J\u202eyou sent 1 messages")
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.handle)


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal: Terminal) -> None:
    terminal.wait_for("you ")
    Api.behaviour = "waits"
    terminal.type("one\n")
    terminal.wait_for("you sent ")
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    Api.behaviour = "well"
    terminal.wait_for("you ")
    terminal.interrupt_until("Ctrl-D leaves")
    terminal.type("two\n")
    terminal.wait_for("you sent 3 messages")
    terminal.wait_for("you ")
    terminal.type("/exit\n")
    assert terminal.process.wait(100) == 0


def test_a_refused_message_is_told_and_the_chat_goes_on(terminal: Terminal) -> None:
    terminal.wait_for("you ")
    Api.behaviour = "refuses"
    terminal.type("one\n")
    terminal.wait_for("refused the request: the conversation is too long")
    Api.behaviour = "well"
    terminal.wait_for("you ")
    terminal.type("two\n")
    terminal.wait_for("you sent 1 messages")
