"""Kimi's tool calls in vLLM's chat API, read by `moe4.serve.tool_calls`; `moe4 serve` passes it to vLLM.

vLLM's own parser for them gives other calls whole than streamed: a truncated call becomes one of an invented
function, a call without arguments has `{}` or nothing, names are cut at a colon.

vLLM loads the file by `--tool-parser-plugin` in the process of the API server alone.
"""

import functools
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.logger import init_logger
from vllm.tool_parsers.abstract_tool_parser import (
    DeltaMessage,
    ExtractedToolCallInformation,
    ToolParser,
    ToolParserManager,
)

from moe4.serve.tool_calls import AnswerPiece, AnswerStream
from moe4.vllm_facts.flags import OUR_KIMI_PARSER

logger = init_logger("vllm.plugins.moe4")

# These have moved between versions of vLLM; they lie where the message lies that holds them.
_protocol = sys.modules[DeltaMessage.__module__]
DeltaFunctionCall, DeltaToolCall = _protocol.DeltaFunctionCall, _protocol.DeltaToolCall
FunctionCall, ToolCall = _protocol.FunctionCall, _protocol.ToolCall


class KimiToolParser(ToolParser):  # type: ignore[misc]  # vllm is untyped here
    """Reads Kimi's tool calls, whole and streamed by the same code. One object serves one answer."""

    structural_tag_model = "kimi"  # so that strict tools and a required call constrain what is generated
    engine_based_streaming = True  # so that vLLM asks for what is left at the end, and takes our content

    def __init__(self, tokenizer: Any, tools: Any = None, **_: Any) -> None:
        super().__init__(tokenizer, tools)
        self._stream: AnswerStream | None = None

    def adjust_request(self, request: Any) -> Any:
        """Have the markers of calls, which are special tokens, in the text."""
        if request.tools and request.tool_choice != "none":
            request.skip_special_tokens = False
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Return the content and the calls of a whole answer."""
        stream = AnswerStream(count_earlier_calls(request))
        content, calls = join_pieces([*stream.feed(model_output), *stream.finish()])
        found = [
            ToolCall(id=identity, function=FunctionCall(name=name, arguments=arguments))
            for identity, name, arguments in calls
        ]
        return ExtractedToolCallInformation(
            tools_called=bool(found), tool_calls=found, content=content or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Return what a delta adds to the content and the calls, None if nothing."""
        if self._stream is None:
            self._stream = AnswerStream(count_earlier_calls(request))
        return _delta(self._stream.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """Return what is known only at the end of the answer."""
        return None if self._stream is None else _delta(self._stream.finish())


def join_pieces(pieces: Sequence[AnswerPiece]) -> tuple[str, list[tuple[str, str, str]]]:
    """Return an answer's content, and the id, name and arguments of its calls."""
    content, calls = "", list[tuple[str, str, str]]()
    for piece in pieces:
        if piece.call is None:
            content += piece.text
        elif piece.id is not None and piece.name is not None:
            calls.append((piece.id, piece.name, piece.text))
        else:
            identity, name, arguments = calls[piece.call]
            calls[piece.call] = identity, name, arguments + piece.text
    return content, calls


def count_earlier_calls(request: Any) -> int:
    """Return how many tool calls a request's conversation holds."""
    messages = getattr(request, "messages", None) or []
    return sum(
        len(list(message.get("tool_calls") or [])) for message in messages if isinstance(message, dict)
    )


def _delta(pieces: list[AnswerPiece]) -> DeltaMessage | None:
    if not pieces:
        return None
    content = "".join(piece.text for piece in pieces if piece.call is None)
    calls: dict[int, Any] = {}
    for piece in pieces:
        if piece.call is None:
            continue
        if piece.call in calls:
            calls[piece.call].function.arguments += piece.text
        elif piece.id is None:
            calls[piece.call] = DeltaToolCall(
                index=piece.call, function=DeltaFunctionCall(arguments=piece.text)
            )
        else:
            calls[piece.call] = DeltaToolCall(
                index=piece.call,
                id=piece.id,
                type="function",
                function=DeltaFunctionCall(name=piece.name, arguments=piece.text),
            )
    return DeltaMessage(content=content or None, tool_calls=list(calls.values()))


def say_length(whole: Any) -> Any:
    """Have a whole answer that was cut off say `length`, as a streamed one does, also if it has calls."""

    @functools.wraps(whole)
    async def generate(self: Any, request: Any, results: AsyncIterator[Any], *args: Any, **named: Any) -> Any:
        reasons: dict[int, str | None] = {}

        async def watched() -> AsyncIterator[Any]:
            async for result in results:
                reasons.update((output.index, output.finish_reason) for output in result.outputs)
                yield result

        response = await whole(self, request, watched(), *args, **named)
        for choice in getattr(response, "choices", ()):
            if choice.finish_reason == "tool_calls" and reasons.get(choice.index) == "length":
                choice.finish_reason = "length"
        return response

    return generate


ToolParserManager.register_module(OUR_KIMI_PARSER, module=KimiToolParser)
if hasattr(OpenAIServingChat, "chat_completion_full_generator"):
    OpenAIServingChat.chat_completion_full_generator = say_length(
        OpenAIServingChat.chat_completion_full_generator
    )
else:
    logger.warning("this vLLM makes whole answers elsewhere: one that is cut off in a call says tool_calls")
