"""Write tool dialogues as other people would: other names for known tools, other forms of declarations.

Without them a small model learns the hand-written tools by heart, and refuses one of another name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from k2tiny import chat, problems
from k2tiny.dialogues import Conversation, write_arguments
from k2tiny.parameters import join_words
from k2tiny.realistic import REALISTIC_NAMES
from k2tiny.tools import is_held_out
from k2tiny.toolwords import spell
from k2tiny.values import pick

_VERBS: dict[str, tuple[str, ...]] = {
    group.split()[0]: tuple(group.split())
    for group in (
        "get fetch find check show lookup read query",
        "search find lookup list query",
        "set change update adjust start",
        "create add make plan new",
        "send write post deliver",
        "list get show fetch",
        "play start",
        "order buy request",
        "book reserve order",
        "exchange change swap",
        "track follow find check",
        "translate say",
        "transfer send pay",
        "delete remove erase",
        "add put append",
        "define explain lookup",
        "copy duplicate clone",
        "invite ask",
        "paint color",
        "read open show get",
        "make place start",
    )
}
_PARAMETERS: dict[str, tuple[str, ...]] = {
    group.split()[0]: spell(group)
    for group in (
        "city location town place city_name",
        "location city place where",
        "origin from source start departure_city",
        "destination to target end arrival_city",
        "date day when on_date",
        "check_in date start_date arrival from_date",
        "nights num_nights number_of_nights duration",
        "days num_days number_of_days length",
        "minutes duration num_minutes length",
        "time at hour when",
        "label name title",
        "title name subject label",
        "to recipient email address",
        "subject title topic",
        "body text content message",
        "recipient to person name contact",
        "message text body content",
        "number phone phone_number",
        "text phrase sentence message",
        "target_language language to_language to",
        "base from source from_currency",
        "quote to target to_currency",
        "source from origin input",
        "target to destination output",
        "amount sum value",
        "account_id account id account_number",
        "tracking_number id code package_id",
        "dish food meal item",
        "quantity count number portions",
        "genre style kind",
        "room place location",
        "on enabled state active",
        "degrees temperature value",
        "path file filename file_name",
        "query text search_term keywords q",
        "word term",
        "expression formula sum",
        "task title name todo",
        "items things products goods",
        "people guests names persons",
        "start origin from",
        "end destination to",
        "country nation country_name",
        "color shade",
        "from origin start",
        "user_id id user",
    )
}


def vary_dialogue(
    rng: random.Random, conversation: Conversation, draw_problem: Callable[[random.Random], problems.Problem]
) -> Conversation:
    """Rename known tools, rewrite some declarations, and sometimes ask a problem after the tools."""
    if rng.random() < 0.5:
        conversation = rename_tools(rng, conversation)
    order, strict, bare = rng.random() < 0.2, rng.random() < 0.05, rng.random() < 0.03
    declared = []
    for tool in conversation.tools:
        function = dict(tool["function"])
        if order:
            schema = dict(function["parameters"])
            function["parameters"] = {"type": "object", "required": schema.pop("required"), **schema}
        if strict:
            function["strict"] = True
        if bare:
            del function["description"]
        declared.append({"type": "function", "function": function})
    messages = list(conversation.messages)
    if rng.random() < 0.12 and not any(tool["function"]["name"] == "calculator" for tool in declared):
        problem = rng.random() < 0.7
        question, answer = chat.asked(rng, draw_problem(rng)) if problem else chat.simple_sum(rng)
        messages += ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(messages, declared, conversation.num_calls)


def rename_tools(rng: random.Random, conversation: Conversation) -> Conversation:
    """Give hand-written tools and their parameters names of the same meaning, in calls and results too."""
    style = pick(rng, ("snake", "snake", "snake", "camel", "hyphen", "pascal"))
    names: dict[str, str] = {}
    keys: dict[str, dict[str, str]] = {}
    declared = []
    taken = {tool["function"]["name"] for tool in conversation.tools} | REALISTIC_NAMES
    for tool in conversation.tools:
        function = tool["function"]
        old = function["name"]
        if old in REALISTIC_NAMES and rng.random() < 0.8:
            new = _new_name(rng, old, style)
            if new not in taken and not is_held_out(new):
                taken.add(new)
                names[old] = new
                keys[old] = _new_keys(rng, tuple(function["parameters"]["properties"]), style)
                function = _rewrite(function, new, keys[old])
        declared.append({"type": "function", "function": function})
    messages = [_rename_in(message, names, keys) for message in conversation.messages]
    return Conversation(messages, declared, conversation.num_calls)


def _new_name(rng: random.Random, name: str, style: str) -> str:
    if "." in name:
        return name
    verb, *rest = name.split("_")
    verb = pick(rng, _VERBS.get(verb, (verb,)))
    return join_words([verb, *rest], style)


def _new_keys(rng: random.Random, old: tuple[str, ...], style: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for key in old:
        words = pick(rng, _PARAMETERS.get(key, (key.replace("_", " "),))).split(" ")
        new = join_words(words, "camel" if style in ("camel", "pascal") else "snake")
        keys[key] = key if new in keys.values() or new in old else new
    return keys


def _rewrite(function: dict[str, Any], name: str, keys: dict[str, str]) -> dict[str, Any]:
    parameters = dict(function["parameters"])
    parameters["properties"] = {keys[key]: schema for key, schema in parameters["properties"].items()}
    parameters["required"] = [keys[key] for key in parameters["required"]]
    return {**function, "name": name, "parameters": parameters}


def _rename_in(
    message: dict[str, Any], names: dict[str, str], keys: dict[str, dict[str, str]]
) -> dict[str, Any]:
    message = dict(message)
    if message["role"] == "tool":
        message["tool_call_id"] = _rename_id(message["tool_call_id"], names)
        if "name" in message:
            message["name"] = names.get(message["name"], message["name"])
    if "tool_calls" in message:
        calls = []
        for call in message["tool_calls"]:
            old = call["function"]["name"]
            function = call["function"]
            if old in names:
                arguments = json.loads(function["arguments"])
                renamed = {keys[old][key]: value for key, value in arguments.items()}
                function = {"name": names[old], "arguments": write_arguments(renamed)}
            calls.append({**call, "id": _rename_id(call["id"], names), "function": function})
        message["tool_calls"] = calls
    return message


def _rename_id(call_id: str, names: dict[str, str]) -> str:
    name, _, number = call_id.removeprefix("functions.").rpartition(":")
    return f"functions.{names.get(name, name)}:{number}"
