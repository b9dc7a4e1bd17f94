"""`moe4 chat`."""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

import moe4
from moe4.cli.messages import echo, echo_json
from moe4.cli.progress import progress
from moe4.errors import ServeError
from moe4.escape import visible, visible_lines

if TYPE_CHECKING:
    from moe4.serve.chat import Conversation

HINT = "Ctrl-C stops an answer, /reset forgets the conversation, /exit or Ctrl-D leaves"


EXAMPLES = (
    "moe4 chat",
    "moe4 chat --base-url http://127.0.0.1:8080 --system 'Answer in one word.'",
    "moe4 chat --message 'What is 2 + 2?' --temperature 0 --json",
)

BaseUrl: TypeAlias = Annotated[str, typer.Option(help="The server's address, with or without /v1.")]
Model: TypeAlias = Annotated[
    str | None, typer.Option(help="Model name; by default the first that the server lists.")
]
System: TypeAlias = Annotated[
    str | None, typer.Option(help="System message; the chat template's by default.")
]
MaxTokens: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature: TypeAlias = Annotated[
    float | None,
    typer.Option(min=0, help="0 takes the likeliest token each time; the model's own by default."),
]
Message: TypeAlias = Annotated[str | None, typer.Option(help="Send one message, print the answer and exit.")]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print each answer as a JSON object on a line.")
]


def command(
    base_url: BaseUrl = "http://127.0.0.1:8000/v1",
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    message: Message = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a served model in the terminal.

    Without a terminal, it reads one message per line.
    """
    for option, given in (("--message", message), ("--system", system)):
        if given is not None:
            _check_text(given, option)
    with progress("connecting"):
        conversation = moe4.chat(
            base_url, model=model, system=system, max_tokens=max_tokens, temperature=temperature
        )
    if message is not None:
        _answer(conversation, message, as_json)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        _talk(conversation)
    else:
        for number, line in enumerate(_messages(), start=1):
            _check_text(line, f"line {number} of standard input")
            if not _obey(conversation, line.strip()):
                return
            if line.strip() and not line.startswith("/"):
                _answer(conversation, line.strip(), as_json)


def _messages() -> Iterator[str]:
    """Yield the lines of standard input; bytes that are no UTF-8 stay, as surrogates."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield from sys.stdin


def _check_text(text: str, where: str) -> None:
    """Refuse what cannot be sent: bytes that are no UTF-8, which Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"{where} is not UTF-8 text, at character {error.start + 1}: convert it, as with iconv"
        raise ServeError(why) from None


def _obey(conversation: "Conversation", line: str) -> bool:
    """Follow /reset; say whether the conversation goes on."""
    if line == "/reset":
        conversation.reset()
    return line != "/exit"


def _answer(conversation: "Conversation", text: str, as_json: bool) -> None:
    if not as_json:
        for piece in conversation.ask(text):
            echo(piece, nl=False)
        echo()
        return
    content = "".join(conversation.ask(text))
    answer = {
        "model": conversation.model,
        "content": content,
        "finish_reason": conversation.finish_reason,
        "usage": conversation.usage,
    }
    echo_json(answer)


def _talk(conversation: "Conversation") -> None:
    """Ask and answer in the terminal until the user leaves."""
    from rich.console import Console

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing and history

    console = Console(highlight=False)
    console.print(f"[bold]{_plain(conversation.model)}[/bold]  [dim]{HINT}[/dim]")
    for text in _lines(console):
        if not _obey(conversation, text):
            return
        if text == "/reset":
            console.print("[dim]the conversation is forgotten[/dim]")
        elif text.startswith("/"):
            console.print(f"[dim]{HINT}[/dim]")
        elif text:
            _stream(conversation, text, console)


def _lines(console: Any) -> Iterator[str]:
    """Yield the lines that the user types, until Ctrl-D."""
    while True:
        try:
            # The prompt is readline's own: it must know how wide it is, to redraw the line that is edited.
            yield input("you ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print(f"\n[dim]{HINT}[/dim]")


def _stream(conversation: "Conversation", text: str, console: Any) -> None:
    console.print(f"[bold green]{_plain(conversation.model)}[/bold green] ", end="")
    pieces = conversation.ask(text)
    try:
        for piece in pieces:
            console.out(visible_lines(piece), end="", highlight=False)
            console.file.flush()
        reason = conversation.finish_reason
        console.print("" if reason == "stop" else f" [dim]({_plain(str(reason))})[/dim]")
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # a generator: closing it stops the answer at the server
        console.print(" [dim](stopped)[/dim]")
    except ServeError as error:
        console.print(f"[red]{_plain(str(error))}[/red]")


def _plain(text: str) -> str:
    """Return a server's text for rich: nothing in it is hidden or markup."""
    from rich.markup import escape

    return escape(visible(text))
