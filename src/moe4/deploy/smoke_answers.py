"""What an OpenAI-compatible server answers, as far as the smoke test looks at it."""

from typing import Annotated

from pydantic import Field

from moe4.schema import Foreign


class ListedModel(Foreign):
    """A model of the list."""

    id: str


class ModelList(Foreign):
    """The answer to `GET models`."""

    data: list[ListedModel]


class Function(Foreign):
    """What a tool call calls; the arguments are JSON in a string."""

    name: str
    arguments: str


class AnsweredCall(Foreign):
    """One of a message's calls."""

    id: str
    function: Function


class Message(Foreign):
    """What the assistant says, whole or a piece of it."""

    content: str | None = None
    tool_calls: list[AnsweredCall] | None = None


class Usage(Foreign):
    """The tokens of a request."""

    total_tokens: int


class CompletionUsage(Usage):
    """The same, with those of the answer alone."""

    completion_tokens: int


class Choice(Foreign):
    """One of the answers."""

    message: Message


class Completion(Foreign):
    """The answer to `POST chat/completions`."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: CompletionUsage


class Delta(Foreign):
    """What a piece adds."""

    content: str | None = None


class PieceOfChoice(Foreign):
    """A piece of one of the answers."""

    delta: Delta


class Chunk(Foreign):
    """A piece of a streamed answer; the last has the usage and no choices."""

    choices: list[PieceOfChoice]
    usage: Usage | None = None
