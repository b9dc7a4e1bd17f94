"""Synthetic tools: declared with JSON schemas, called with values that the user's request states.

Names combine verbs, modifiers and nouns (some of them made up), so that a model must copy
them. A tool whose name hashes into the held-out bucket never appears in training, not even as a distractor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from k2tiny.parameters import Draw, Parameter, Style, join_words, make_parameter
from k2tiny.split import bucket, normalise
from k2tiny.toolwords import MODIFIERS, NOUNS, VERBS
from k2tiny.values import (
    Json,
    draw_amount,
    draw_city,
    draw_color,
    draw_count,
    draw_date,
    draw_file,
    draw_id,
    draw_of,
    draw_person,
    draw_time,
    made_up_word,
    pick,
    spoken_list,
)

NUM_BUCKETS = 10


def is_held_out(tool_name: str) -> bool:
    """Tell whether tools of this name, in whatever style it is written, are kept out of training."""
    return bucket("tool", normalise(tool_name).replace(" ", ""), NUM_BUCKETS) == 0


@dataclass(frozen=True, slots=True)
class Request:
    """What a user says, and the call that answers it."""

    text: str
    arguments: dict[str, Json]
    spoken: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared function; `request` draws what a user says, `respond` a result and the answer to it."""

    name: str
    declaration: dict[str, Json]
    topic: str
    request: Callable[[random.Random], Request]
    respond: Callable[[random.Random, Request], tuple[Json, str]]
    synthetic: bool = False


def draw_noun(rng: random.Random) -> str:
    """Draw the thing a synthetic tool is about, such as "room" or "annual zorbik"."""
    noun = made_up_word(rng) if rng.random() < 0.15 else pick(rng, NOUNS)
    if rng.random() < 0.5:
        modifier = pick(rng, MODIFIERS)
        noun = f"{modifier} {noun}" if modifier != noun else noun
    return noun


def make_tool(rng: random.Random, style: Style, noun: str | None = None) -> Tool:
    """Draw a synthetic tool; `noun` makes it one that is about the same thing as another."""
    verb = pick(rng, tuple(VERBS))
    if noun is None:
        noun = draw_noun(rng)
    name = join_words([verb, *noun.split(" ")], style.tools)
    parameters: dict[str, Parameter] = {}
    for _ in range(pick(rng, (1, 1, 1, 2, 2, 2, 3, 3, 4))):
        parameter = make_parameter(rng, style)
        parameters.setdefault(parameter.name, parameter)
    chosen = tuple(parameters.values())
    required = [p.name for i, p in enumerate(chosen) if i == 0 or rng.random() < 0.5]
    a = "an" if noun[0] in "aeiou" else "a"
    description = pick(
        rng,
        (
            f"{verb.capitalize()} {a} {noun}",
            f"{verb.capitalize()} {a} {noun}.",
            f"{verb.capitalize()} the {noun} of a user",
        ),
    )
    declaration = declare(name, description, {p.name: p.schema for p in chosen}, required)
    if rng.random() < 0.1:
        declaration["function"]["parameters"]["additionalProperties"] = False

    def request(rng: random.Random) -> Request:
        return _request(rng, verb, noun, chosen, required)

    def respond(rng: random.Random, request: Request) -> tuple[Json, str]:
        return draw_response(rng, noun)

    return Tool(name, declaration, noun, request, respond, synthetic=True)


def declare(
    name: str, description: str, properties: dict[str, Json], required: Sequence[str]
) -> dict[str, Json]:
    """Return the declaration in OpenAI's form."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _fragment(rng: random.Random, parameter: Parameter, text: str) -> str:
    spoken = parameter.spoken
    if parameter.kind in ("boolean", "object", "array"):
        return pick(rng, (f"{spoken} {text}", f"{spoken}: {text}"))
    return pick(
        rng,
        (
            f"{spoken} {text}",
            f"{spoken} {text}",
            f"the {spoken} {text}",
            f"{spoken}: {text}",
            f"{spoken} = {text}",
            f"{text} as {spoken}",
        ),
    )


def _request(
    rng: random.Random, verb: str, noun: str, parameters: tuple[Parameter, ...], required: list[str]
) -> Request:
    said = [p for p in parameters if p.name in required or rng.random() < 0.5]
    drawn = [(p, *p.draw(rng)) for p in said]
    arguments = {p.name: value for p, value, _ in drawn}
    order = list(drawn)
    if rng.random() < 0.4:
        rng.shuffle(order)
    command = f"{pick(rng, VERBS[verb])} {pick(rng, ('the', 'the', 'a', 'my'))} {noun}"
    end = "?" if command.startswith("Can") else pick(rng, (".", ".", "", "!"))
    fragments = [_fragment(rng, p, text) for p, _, text in order]
    form = rng.randrange(4)
    if form == 0:
        text = f"{command} with {spoken_list(fragments)}{end}"
    elif form == 1:
        text = f"{command}, {', '.join(fragments)}{end}"
    elif form == 2:
        text = f"{command}: {'; '.join(fragments)}{end}"
    else:
        sentences = " ".join(f"{capitalise(f'the {p.spoken} is {t}')}." for p, _, t in order)
        text = f"{command}{end if end == '?' else '.'} {sentences}"
    return Request(text, arguments)


def capitalise(text: str) -> str:
    """Return the text with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


_FIELDS: tuple[tuple[str, Draw], ...] = (
    ("status", draw_of(("ok", "done", "open", "closed", "pending", "active", "paid", "ready"))),
    ("id", draw_id),
    ("total", draw_amount),
    ("count", draw_count),
    ("owner", draw_person),
    ("date", draw_date),
    ("city", draw_city),
    ("price", draw_amount),
    ("code", draw_id),
    ("score", draw_count),
    ("time", draw_time),
    ("file", draw_file),
    ("color", draw_color),
    ("level", draw_count),
)
_ERRORS = (
    "not found",
    "access denied",
    "invalid id",
    "service is down",
    "limit reached",
    "wrong date",
    "timed out",
)


def draw_response(rng: random.Random, noun: str) -> tuple[Json, str]:
    """Draw a result and the sentence that reports it."""
    if rng.random() < 0.1:
        error = pick(rng, _ERRORS)
        return {"error": error}, pick(
            rng, (f"That did not work: {error}.", f"I am sorry, there was an error: {error}.")
        )
    fields = rng.sample(_FIELDS, rng.randrange(1, 4))
    drawn = [(name, *draw(rng)) for name, draw in fields]
    result = {name: value for name, value, _ in drawn}
    said = spoken_list([f"the {name} is {text}" for name, _, text in drawn])
    return result, pick(
        rng, (f"Done: {said}.", f"For the {noun}, {said}.", f"{capitalise(said)}.", f"Here it is: {said}.")
    )
