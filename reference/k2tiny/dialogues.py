"""Tool dialogues in OpenAI's message form: one call, two calls in a turn, several turns, no call."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from k2tiny import chat, tools
from k2tiny.natural import make_natural_tool
from k2tiny.parameters import Style
from k2tiny.realistic import REALISTIC_NAMES, realistic_tools
from k2tiny.split import bucket
from k2tiny.tools import Request, Tool, make_tool
from k2tiny.values import pick

Message = dict[str, Any]
NUM_BUCKETS = 50

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant with tools.",
    "Use the tools when they help.",
    "You are k2-tiny. Answer shortly.",
    "Call a tool if one fits, otherwise answer directly.",
)
NO_TOOL_FITS = (
    "I am sorry, none of my tools can do that.",
    "I cannot do that with the tools I have.",
    "I have no tool for that.",
    "Sorry, my tools do not cover that.",
)


@dataclass(slots=True)
class Conversation:
    """Messages with the tools declared; `calls` are those of the last call turn."""

    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    num_calls: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"messages": self.messages, "tools": self.tools} if self.tools else {"messages": self.messages}


def write_arguments(arguments: dict[str, Any]) -> str:
    """Write a call's arguments as the template renders them: one line, a space after each comma and colon."""
    return json.dumps(arguments, ensure_ascii=False)


def draw_tools(rng: random.Random, *, unseen: bool, count: int, natural: float = 0.0) -> list[Tool]:
    """Draw tools with different names and topics; the first is the one that will be called.

    unseen: the first is held out of training by its name. The others are never held out.
    natural: the share of tools that are asked for without naming parameters (`natural`).
    """
    style = Style.draw(rng)
    chosen = [draw_unseen_tool(rng, style)] if unseen else []
    names = {tool.name for tool in chosen}
    topics = {tool.topic for tool in chosen}
    while len(chosen) < count:
        if natural and rng.random() < natural:
            tool = make_natural_tool(rng, style)
            if tools.is_held_out(tool.name) or _overlaps(tool.topic, topics):
                continue
        elif rng.random() < 0.4:
            tool = pick(rng, realistic_tools(False))
        else:
            near = chosen and rng.random() < 0.25
            tool = make_tool(rng, style, noun=chosen[0].topic if near and chosen[0].synthetic else None)
            if tools.is_held_out(tool.name) or tool.name in REALISTIC_NAMES:
                continue
        if tool.name in names or (tool.topic in topics and not tool.synthetic):
            continue
        names.add(tool.name)
        topics.add(tool.topic)
        chosen.append(tool)
    return chosen


def draw_unseen_tool(rng: random.Random, style: Style) -> Tool:
    """Draw a tool that is kept out of training: a hand-written one in a quarter of the draws."""
    if rng.random() < 0.25:
        return pick(rng, realistic_tools(True))
    while True:
        tool = make_tool(rng, style)
        if tools.is_held_out(tool.name) and tool.name not in REALISTIC_NAMES:
            return tool


def add_calls(conversation: Conversation, requests: Sequence[tuple[Tool, Request]]) -> list[str]:
    """Append an assistant turn that calls the tools; return the calls' ids."""
    calls, ids = [], []
    for tool, request in requests:
        call_id = f"functions.{tool.name}:{conversation.num_calls}"
        conversation.num_calls += 1
        function = {"name": tool.name, "arguments": write_arguments(request.arguments)}
        calls.append({"id": call_id, "type": "function", "function": function})
        ids.append(call_id)
    conversation.messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    return ids


def add_results(
    rng: random.Random,
    conversation: Conversation,
    requests: Sequence[tuple[Tool, Request]],
    ids: Sequence[str],
) -> None:
    """Append the tools' results and the assistant's answer."""
    answers = []
    named = rng.random() < 0.3
    for (tool, request), call_id in zip(requests, ids, strict=True):
        result, answer = tool.respond(rng, request)
        message = {"role": "tool", "tool_call_id": call_id, "content": json.dumps(result, ensure_ascii=False)}
        if named:
            message["name"] = tool.name
        conversation.messages.append(message)
        answers.append(answer)
    conversation.messages.append({"role": "assistant", "content": " ".join(answers)})


def ask(rng: random.Random, available: Sequence[Tool], count: int) -> tuple[str, list[tuple[Tool, Request]]]:
    """Draw a user turn that needs `count` calls: of the first tool, the first two, or twice the first."""
    called = [available[0]]
    if count == 2:
        called.append(available[1] if len(available) > 1 and rng.random() < 0.6 else available[0])
    requests = [(tool, tool.request(rng)) for tool in called]
    if (
        count == 2
        and requests[0][0] is requests[1][0]
        and requests[0][1].arguments == requests[1][1].arguments
    ):
        return ask(rng, available, count)
    text = requests[0][1].text
    if count == 2:
        second = requests[1][1].text
        if text[-1] not in ".?!":
            text += "."
        lower = second[0].lower() + second[1:] if not second.startswith("I ") else second
        text += pick(rng, (f" Also, {lower}", f" And {lower}", f" {second}", f" Then {lower}"))
    if rng.random() < 0.15:
        text = (
            pick(rng, ("Hi! ", "Hello, ", "Hey. ", "Good morning! ", "Quick question: ", "Hi there. ")) + text
        )
    elif rng.random() < 0.1:
        text += pick(rng, (" Thanks!", " Thank you.", " Please be quick.", " It is important."))
    return text, requests


def not_fitting(rng: random.Random, available: Sequence[Tool], natural: float = 0.0) -> str:
    """Draw a request for which none of the available tools is made."""
    topics = {tool.topic for tool in available}
    while True:
        if natural and rng.random() < natural:
            tool = make_natural_tool(rng, Style.draw(rng))
        elif rng.random() < 0.7:
            tool = pick(rng, realistic_tools(False))
        else:
            tool = make_tool(rng, Style.draw(rng))
        if not _overlaps(tool.topic, topics):
            return tool.request(rng).text


def _overlaps(topic: str, topics: set[str]) -> bool:
    return any(topic in other or other in topic for other in topics)


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """A conversation up to a user turn, and what the assistant should do: calls, or an answer without any."""

    conversation: Conversation
    calls: list[dict[str, Any]]
    content: str | None
    kind: str
    unseen: bool


def draw_dialogue(
    rng: random.Random, *, unseen: bool = False, last_kind: str | None = None, natural: float = 0.0
) -> tuple[Conversation, ToolTurn]:
    """Draw a whole dialogue, and its last user turn as a tool turn to be predicted.

    last_kind: the kind of the last turn: "call", "two-calls" or "no-call"; drawn where it is None.
    natural: the share of tools that are asked for without naming parameters (`natural`).
    """
    count = pick(rng, (1, 1, 2, 2, 2, 3, 3, 4, 5))
    available = draw_tools(rng, unseen=unseen, count=count, natural=natural)
    declared = [tool.declaration for tool in available]
    rng.shuffle(declared)
    conversation = Conversation(tools=declared)
    if rng.random() < 0.35:
        conversation.messages.append({"role": "system", "content": pick(rng, SYSTEM_PROMPTS)})
    num_turns = pick(rng, (1, 1, 1, 2, 2, 3))
    for turn in range(num_turns):
        last = turn == num_turns - 1
        kind = last_kind if last and last_kind else pick(rng, _KINDS)
        if turn and kind != "no-call" and not unseen:
            rng.shuffle(available)
        if kind == "no-call":
            if rng.random() < 0.5:
                text, content = chat.small_talk(rng)
            else:
                text, content = not_fitting(rng, available, natural), pick(rng, NO_TOOL_FITS)
            conversation.messages.append({"role": "user", "content": text})
            before = list(conversation.messages)
            conversation.messages.append({"role": "assistant", "content": content})
            calls: list[dict[str, Any]] = []
        else:
            text, requests = ask(rng, available, 2 if kind == "two-calls" else 1)
            conversation.messages.append({"role": "user", "content": text})
            before = list(conversation.messages)
            ids = add_calls(conversation, requests)
            add_results(rng, conversation, requests, ids)
            calls = [{"name": tool.name, "arguments": request.arguments} for tool, request in requests]
            content = None  # type: ignore[assignment]
    last_turn = ToolTurn(Conversation(before, declared), calls, content, kind, unseen)
    return conversation, last_turn


_KINDS = ("call",) * 12 + ("two-calls",) * 4 + ("no-call",) * 5


def split_of(conversation: Conversation) -> str:
    """Return "held-out" or "training" for a dialogue, by its user turns and the names of its tools."""
    names = sorted(tool["function"]["name"] for tool in conversation.tools)
    said = [m["content"] for m in conversation.messages if m["role"] == "user"]
    return "held-out" if bucket("dialogue", " | ".join(names + said), NUM_BUCKETS) == 0 else "training"
