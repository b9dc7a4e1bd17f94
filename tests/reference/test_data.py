"""Tool dialogues, chats and the held-out files: right by their schemas, and disjoint from training."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from k2tiny import chat, corpus, dialogues, heldout, problems, tools
from k2tiny.realistic import HELD_OUT, REALISTIC_NAMES
from k2tiny.slots import CURRENCIES
from k2tiny.split import normalise

DATA = Path(__file__).resolve().parents[2] / "reference" / "data"
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def check_call(declared: list[Row], name: str, arguments: Row) -> None:
    """The call's arguments satisfy the JSON schema declared for its tool, as jsonschema judges."""
    (function,) = (tool["function"] for tool in declared if tool["function"]["name"] == name)
    Draft202012Validator.check_schema(function["parameters"])
    assert set(arguments) <= set(function["parameters"]["properties"])
    Draft202012Validator(function["parameters"]).validate(arguments)


@pytest.fixture(scope="module")
def conversations() -> list[dialogues.Conversation]:
    rng = random.Random("tests")
    return [dialogues.draw_dialogue(rng, unseen=i % 4 == 0)[0] for i in range(1500)]


def test_calls_satisfy_their_schemas_and_count_from_zero(conversations: list[dialogues.Conversation]) -> None:
    for conversation in conversations:
        number = 0
        open_ids: list[str] = []
        for message in conversation.messages:
            for call in message.get("tool_calls", ()):
                name, text = call["function"]["name"], call["function"]["arguments"]
                assert call["id"] == f"functions.{name}:{number}"
                arguments = json.loads(text)
                assert json.dumps(arguments, ensure_ascii=False) == text
                check_call(conversation.tools, name, arguments)
                open_ids.append(call["id"])
                number += 1
            if message["role"] == "tool":
                assert message["tool_call_id"] == open_ids.pop(0)
                json.loads(message["content"])
            elif not message.get("tool_calls"):
                assert not open_ids
        assert conversation.messages[-1]["role"] == "assistant"


def test_values_of_calls_stand_in_the_request(conversations: list[dialogues.Conversation]) -> None:
    """A model can copy what it passes on; only currency codes may be spelled out by the user."""

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    checked = 0
    for conversation in conversations:
        for before, message in zip(conversation.messages, conversation.messages[1:], strict=False):
            for call in message.get("tool_calls", ()):
                for leaf in leaves(json.loads(call["function"]["arguments"])):
                    if isinstance(leaf, bool) or leaf in CURRENCIES.values():
                        continue
                    assert str(leaf) in before["content"] or str(leaf).lower() in before["content"].lower(), (
                        call
                    )
                    checked += 1
    assert checked > 2000


def test_every_kind_of_dialogue_and_parameter_occurs(conversations: list[dialogues.Conversation]) -> None:
    text = json.dumps([conversation.tools for conversation in conversations])
    for kind in ("string", "integer", "number", "boolean", "array", "object"):
        assert f'"type": "{kind}"' in text
    assert '"enum"' in text
    declared = [tool["function"] for conversation in conversations for tool in conversation.tools]
    assert any(len(f["parameters"]["required"]) < len(f["parameters"]["properties"]) for f in declared)
    assert {len(c.tools) for c in conversations} == {1, 2, 3, 4, 5}
    turns = [m for c in conversations for m in c.messages if m["role"] == "assistant"]
    assert {len(m.get("tool_calls", ())) for m in turns} == {0, 1, 2}
    assert len({f["name"] for f in declared}) > 1000
    assert any(any(fits in m["content"] for fits in dialogues.NO_TOOL_FITS) for m in turns)
    names = {f["name"] for f in declared}
    assert any("-" in name for name in names)
    assert any("." in name for name in names)
    assert any(name != name.lower() for name in names)


def test_training_and_held_out_do_not_overlap() -> None:
    """20,000 training examples: none is in a held-out file, nor would its content put it there."""
    rng = random.Random("overlap")
    held = rows("heldout-problems.jsonl") + rows("fewshot-problems.jsonl")
    questions = {normalise(row["question"]) for row in held}
    assert len(questions) == 2016
    for _ in range(12_000):
        question = corpus.draw_training_problem(rng).question
        assert normalise(question) not in questions
        assert problems.split_of(question) == "training"

    turns = rows("heldout-tools.jsonl")
    requests = {normalise(row["messages"][-1]["content"]) for row in turns if row["expected"]["calls"]}
    unseen = {c["name"] for row in turns if row["expected"]["unseen"] for c in row["expected"]["calls"][:1]}
    assert len(unseen) > 50
    for _ in range(4000):
        conversation = corpus.draw_training_dialogue(rng)
        assert dialogues.split_of(conversation) == "training"
        names = {tool["function"]["name"] for tool in conversation.tools}
        assert not names & unseen
        assert not names & HELD_OUT
        assert all(name in REALISTIC_NAMES or not tools.is_held_out(name) for name in names)
        said = {normalise(m["content"]) for m in conversation.messages if m["role"] == "user"}
        long = {text for text in said & requests if len(text) > 60}
        assert not long

    chats = {normalise(json.dumps(row["messages"])) for row in rows("heldout-chats.jsonl")}
    assert len(chats) > 95
    for _ in range(4000):
        messages = corpus.draw_training_chat(rng)
        assert normalise(json.dumps(messages)) not in chats
        assert chat.split_of(messages) == "training"


def test_problems_in_chats_and_calibration_are_of_training() -> None:
    """Whatever carries a word problem outside the held-out files carries one of the training split."""
    held = {row["question"] for row in rows("heldout-problems.jsonl") + rows("fewshot-problems.jsonl")}
    for document in corpus.calibration_documents(1500, seed=3):
        texts = [document["text"]] if "text" in document else [m["content"] for m in document["messages"]]
        joined = "\n".join(texts)
        assert not any(question in joined for question in held)
        if "text" in document:
            for part in document["text"].split("\n\n"):
                question = part.removeprefix("Question: ").split("\nAnswer:")[0]
                assert problems.split_of(question) == "training"


def test_held_out_sets_are_what_they_say() -> None:
    assert len(rows("heldout-problems.jsonl")) == 2000
    assert all(problems.split_of(row["question"]) == "held-out" for row in rows("heldout-problems.jsonl"))
    assert len(rows("fewshot-problems.jsonl")) == 16
    assert all(problems.split_of(row["question"]) == "few-shot" for row in rows("fewshot-problems.jsonl"))
    assert len(rows("heldout-chats.jsonl")) == 100
    assert all(chat.split_of(row["messages"]) == "held-out" for row in rows("heldout-chats.jsonl"))

    turns = rows("heldout-tools.jsonl")
    assert len(turns) == 300
    for row in turns:
        assert row["messages"][-1]["role"] == "user"
        expected = row["expected"]
        assert len(expected["calls"]) == {"call": 1, "two-calls": 2, "no-call": 0}[expected["kind"]]
        assert (expected["content"] is None) == bool(expected["calls"])
        for call in expected["calls"]:
            check_call(row["tools"], call["name"], call["arguments"])
        if expected["unseen"]:
            name = expected["calls"][0]["name"]
            assert name in HELD_OUT or (tools.is_held_out(name) and name not in REALISTIC_NAMES)
    kinds = [(row["expected"]["kind"], row["expected"]["unseen"]) for row in turns]
    assert {kind: kinds.count(kind) for kind in heldout.TOOL_TURNS} == heldout.TOOL_TURNS


def test_the_generator_writes_the_held_out_files_byte_for_byte() -> None:
    for name, text in heldout.files().items():
        assert (DATA / name).read_text(encoding="utf-8") == text, name


def test_a_name_is_held_out_in_every_style() -> None:
    rng = random.Random("styles")
    for _ in range(200):
        tool = tools.make_tool(rng, tools.Style("snake", "snake", True))
        parts = tool.name.split("_")
        styles = ("_".join(parts), "-".join(parts), parts[0] + "".join(map(str.capitalize, parts[1:])))
        assert len({tools.is_held_out(name) for name in styles}) == 1
