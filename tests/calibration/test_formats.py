"""Lines of calibration data: what data sets and OpenAI's API write, and what a template gets of it."""

import json
from typing import Any

import pytest

from moe4.calibration.formats import join_parts, parse_line
from moe4.errors import CalibrationError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c:0", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}


def parse(document: Any) -> dict[str, Any]:
    return parse_line(json.dumps(document).encode(), "c.jsonl:3")


def test_a_plain_line_stays_as_it_is() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": {"city": "Paris"}}, "index": 4}
    turn = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "so"}
    document = {"messages": [{**USER, "name": "me"}, turn], "tools": [{"type": "function"}]}
    assert parse(document) == document
    assert parse({"text": "hello"}) == {"text": "hello"}


def test_other_columns_and_null_are_passed_over() -> None:
    assert parse({"messages": [USER], "tools": None, "prompt": "Hi", "id": 3}) == {"messages": [USER]}
    assert parse({"text": "hello", "messages": None, "meta": {}}) == {"text": "hello"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"city": "Paris"}', {"city": "Paris"}), ({"a": 1}, {"a": 1}), ("", {}), (None, {})],
)
def test_arguments_are_decoded_once(arguments: Any, expected: dict[str, Any]) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    (message,) = parse({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})[
        "messages"
    ]
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
    assert message["content"] == ""


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_as_if_absent(calls: Any) -> None:
    assert parse({"messages": [{**USER, "tool_calls": calls}]}) == {"messages": [USER]}


def test_parts_are_joined_as_a_server_joins_them() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (message,) = parse({"messages": [{"role": "user", "content": parts[:1]}]})["messages"]
    assert message["content"] == "one"
    messages = parse({"messages": [{"role": "user", "content": parts}]})["messages"]
    assert messages[0]["content"] == parts
    assert join_parts(messages)[0]["content"] == "one\ntwo"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], 'expected an object with either "messages" or "text"'),
        ({"text": "a", "messages": [USER]}, "either"),
        ({"text": None}, "either"),
        ({"text": ""}, "text must be a string that is not empty"),
        ({"text": 3}, "text must be a string, found 3"),
        ({"messages": []}, "messages must have at least 1 entry"),
        ({"messages": "hi"}, 'messages must be a list, found "hi"'),
        ({"messages": [3]}, r"messages\[0\] must be an object, found 3"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role is missing"),
        (
            {"messages": [{**USER, "content": 3}]},
            r"messages\[0\].content must be a string, a list of parts or null",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}]},
            r'content\[0\].type must be "text", found',
        ),
        (
            {"messages": [{**USER, "tool_calls": [{"function": {}}]}]},
            r"tool_calls\[0\].function.name is missing",
        ),
        (
            {"messages": [{**USER, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]},
            r'function.arguments must be an object, or one as JSON in a string, found "{"',
        ),
        ({"messages": [USER], "tools": {}}, "tools must be a list"),
        ({"messages": [USER], "tools": ["f"]}, r'tools\[0\] must be an object, found "f"'),
    ],
)
def test_a_bad_line_is_named(document: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        parse(document)
    assert str(caught.value).startswith("c.jsonl:3: ")
    assert "\n" not in str(caught.value)


def test_what_is_not_json_is_named() -> None:
    for line in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(CalibrationError, match=r"c\.jsonl:3: not JSON"):
            parse_line(line, "c.jsonl:3")
