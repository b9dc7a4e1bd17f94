"""moe4's tool parser inside vLLM's own: what a chat server makes of an answer, whole and streamed."""

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")

from tool_call_texts import TEXTS, generated  # noqa: E402

from moe4.serve.command import TOOL_PARSER_FILE  # noqa: E402
from moe4.vllm_facts.flags import OUR_KIMI_PARSER  # noqa: E402

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def parser_class() -> Any:
    """As `vllm serve` finds it, with the options that `moe4 serve` gives."""
    from vllm.parser.parser_manager import ParserManager
    from vllm.tool_parsers.abstract_tool_parser import ToolParserManager

    ToolParserManager.import_tool_parser(str(TOOL_PARSER_FILE))
    assert OUR_KIMI_PARSER in ToolParserManager.list_registered()
    return ParserManager.get_parser(tool_parser_name=OUR_KIMI_PARSER, enable_auto_tools=True)


def request(**changes: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL] * 7},
        *({"role": "tool", "tool_call_id": "functions.f:0", "content": "1"} for _ in range(7)),
    ]
    return ChatCompletionRequest(model="m", messages=messages, tools=TOOLS, **changes)


def whole(parser_class: Any, text: str, **changes: Any) -> tuple[str, list[tuple[str, str, str]]]:
    asked = request(**changes)
    _, content, calls = parser_class(SimpleNamespace(), asked.tools).parse(
        text, asked, enable_auto_tools=True
    )
    return content or "", [(call.id, call.name, call.arguments) for call in calls or []]


def streamed(parser_class: Any, parts: list[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """What the deltas add up to in OpenAI's client: by index, names and ids once, arguments joined."""
    asked = request()
    parser = parser_class(SimpleNamespace(), asked.tools)
    content, calls = "", dict[int, list[str]]()
    for number, part in enumerate(parts):
        delta = parser.parse_delta(part, [1], asked, prompt_token_ids=[1], finished=number == len(parts) - 1)
        content += (delta.content or "") if delta else ""
        for call in delta.tool_calls if delta else []:
            entry = calls.setdefault(call.index, ["", "", ""])
            for place, value in enumerate((call.id, call.function.name, call.function.arguments)):
                entry[place] += value or ""
    return content, [(identity, name, arguments) for identity, name, arguments in calls.values()]


def cut(text: str, draw: random.Random, most: int) -> list[str]:
    parts, start = [], 0
    while start < len(text):
        size = draw.randint(1, most)
        parts.append(text[start : start + size])
        start += size
    return parts or [""]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_known_texts(parser_class: Any, text: str) -> None:
    assert whole(parser_class, text) == TEXTS[text]
    for most in (1, 4, 1000):
        assert streamed(parser_class, cut(text, random.Random(most), most)) == TEXTS[text]


def test_whole_and_streamed_are_equal_on_2000_texts(parser_class: Any) -> None:
    for number in range(2000):
        text = generated(number)
        parts = cut(text, random.Random(number), 12)
        assert streamed(parser_class, parts) == whole(parser_class, text), repr(text)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_call_that_is_required_is_read_in_the_models_own_form(parser_class: Any, choice: Any) -> None:
    text = next(text for text, (_, calls) in TEXTS.items() if len(calls) == 1)
    assert whole(parser_class, text, tool_choice=choice) == TEXTS[text]


def test_markers_are_asked_for_only_where_there_are_tools(parser_class: Any) -> None:
    parser = parser_class(SimpleNamespace(), None).tool_parser
    assert parser.adjust_request(request()).skip_special_tokens is False
    assert parser.adjust_request(request(tool_choice="none")).skip_special_tokens is True


def test_an_answer_that_was_cut_off_says_length() -> None:
    spec = importlib.util.spec_from_file_location("moe4_tool_parser", TOOL_PARSER_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def results() -> AsyncIterator[Any]:
        for reasons in ((None, None, None), ("length", "stop", "length")):
            yield SimpleNamespace(
                outputs=[SimpleNamespace(index=place, finish_reason=why) for place, why in enumerate(reasons)]
            )

    async def vllms(_: Any, __: Any, found: AsyncIterator[Any]) -> Any:
        async for _ in found:
            pass
        reasons = ("tool_calls", "tool_calls", "length")
        return SimpleNamespace(
            choices=[SimpleNamespace(index=place, finish_reason=why) for place, why in enumerate(reasons)]
        )

    response = asyncio.run(module.say_length(vllms)(None, None, results()))
    assert [choice.finish_reason for choice in response.choices] == ["length", "tool_calls", "length"]
