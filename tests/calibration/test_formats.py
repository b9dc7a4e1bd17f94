"""Rows of calibration data: what data sets and OpenAI's API write, and what is recognized in them."""

import json
from typing import Any

import pytest

from moe4.calibration.formats import Row, parse_line
from moe4.errors import CalibrationError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c:0", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ANSWER = {"role": "assistant", "content": "Hello."}


def row(document: Any) -> Row:
    return parse_line(json.dumps(document).encode(), "c.jsonl:3")


def parse(document: Any) -> dict[str, Any]:
    return row(document).document


def test_a_plain_line_stays_as_it_is() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": {"city": "Paris"}}, "index": 4}
    turn = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "so"}
    document = {"messages": [{**USER, "name": "me"}, turn], "tools": [TOOL]}
    assert parse(document) == document
    assert parse({"text": "hello"}) == {"text": "hello"}
    assert (row(document).form, row({"text": "a"}).form) == ("OpenAI messages", "text")
    assert not row(document).ignored | row({"text": "a"}).ignored


def test_other_columns_are_named_and_null_is_as_if_absent() -> None:
    found = row({"messages": [{**USER, "weight": 1}], "tools": None, "prompt": "Hi", "id": 3, "x": None})
    assert found.document == {"messages": [USER]}
    assert found.ignored == {"prompt", "id", "messages[].weight"}
    assert row({"text": "hello", "messages": None, "meta": {}}).ignored == {"meta"}


def test_messages_come_before_text_that_someone_rendered() -> None:
    found = row({"messages": [USER], "text": "<|im_start|>Hi", "prompt": "Hi", "response": "x"})
    assert found.document == {"messages": [USER]}
    assert found.ignored == {"text", "prompt", "response"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"city": "Paris"}', {"city": "Paris"}), ({"a": 1}, {"a": 1}), ("", {}), (None, {})],
)
def test_arguments_are_decoded_once(arguments: Any, expected: dict[str, Any]) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    for calls in ([call], json.dumps([call])):
        (message,) = parse({"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]})[
            "messages"
        ]
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
        assert message["content"] == ""


@pytest.mark.parametrize("calls", [None, [], ""])
def test_no_calls_are_as_if_absent(calls: Any) -> None:
    assert parse({"messages": [{**USER, "tool_calls": calls}]}) == {"messages": [USER]}


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null"])
def test_no_tools_are_as_if_absent(tools: Any) -> None:
    if tools == "null":
        with pytest.raises(CalibrationError, match="tools must be a list"):
            parse({"messages": [USER], "tools": tools})
        return
    assert parse({"messages": [USER], "tools": tools}) == {"messages": [USER]}


def test_a_function_alone_is_a_tool_and_a_call() -> None:
    document = {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}]}
    found = parse({**document, "tools": json.dumps([TOOL["function"]])})
    assert found["tools"] == [TOOL]
    assert found["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]


def test_parts_are_kept_where_there_are_several() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert parse({"messages": [{"role": "user", "content": parts[:1]}]})["messages"][0]["content"] == "one"
    assert parse({"messages": [{"role": "user", "content": parts}]})["messages"][0]["content"] == parts
    found = parse({"messages": [{"role": "user", "content": ["one", parts[1]]}]})
    assert found["messages"][0]["content"] == parts


SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


def test_sharegpt() -> None:
    found = row({"id": "x_0", "conversations": SHAREGPT})
    assert found.document == {"messages": [USER, ANSWER]}
    assert (found.form, found.ignored) == ("ShareGPT conversations", {"id"})
    found = row({"conversations": SHAREGPT, "system": "Be brief.", "tools": "[]"})
    assert found.document["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(found.document["messages"]) == 3
    with_own = [{"from": "system", "value": "Be long."}, *SHAREGPT]
    assert parse({"conversations": with_own, "system": "Be brief."})["messages"][0]["content"] == "Be long."
    assert parse({"conversations": [USER, ANSWER]})["messages"] == [USER, ANSWER]


def test_sharegpt_with_tools() -> None:
    turns = [
        SHAREGPT[0],
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        SHAREGPT[1],
    ]
    found = parse({"conversations": turns, "tools": json.dumps([TOOL["function"]])})
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert found["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("document", "question", "ignored"),
    [
        ({"prompt": "Hi", "response": "Hello."}, "Hi", set()),
        ({"prompt": "Hi", "completion": "Hello.", "score": 1}, "Hi", {"score"}),
        (
            {"instruction": "Hi", "input": "", "output": "Hello.", "text": "x"},
            "Hi",
            {"input", "text"} - {"input"},
        ),
        ({"instruction": "Add", "input": "1 2", "output": "Hello."}, "Add\n1 2", set()),
        ({"question": "Hi", "answer": "Hello."}, "Hi", set()),
        ({"prompt": [USER], "completion": [ANSWER]}, "Hi", set()),
    ],
)
def test_a_prompt_and_its_response(document: dict[str, Any], question: str, ignored: set[str]) -> None:
    found = row(document)
    assert found.document == {"messages": [{"role": "user", "content": question}, ANSWER]}
    assert found.ignored == ignored


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], 'expected an object with "messages", "conversations"'),
        ({}, r"found \{\}"),
        ({"text": None}, "expected an object"),
        ({"prompt": "a"}, "found the columns prompt"),
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
        (
            {
                "messages": [
                    {**USER, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '"{}"'}}]}
                ]
            },
            "function.arguments must be an object",
        ),
        ({"messages": [{**ANSWER, "function_call": {"name": "f"}}]}, "function_call is OpenAI's older form"),
        ({"messages": [USER], "tools": {}}, "tools must be a list"),
        ({"messages": [USER], "tools": ["f"]}, r'tools\[0\] must be an object, found "f"'),
        ({"messages": [USER], "tools": [{"type": "function"}]}, r"tools\[0\].function is missing"),
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            'message 1 is from "narrator"; expected one',
        ),
        (
            {"conversations": [{"from": "function_call", "value": "f()"}]},
            "message 1 is a function_call and must",
        ),
        ({"prompt": 3, "response": "x"}, r"messages\[0\].content must be a string"),
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
