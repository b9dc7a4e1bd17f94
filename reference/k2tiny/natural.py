# ruff: noqa: E501  (tables: one kind a row)
"""Synthetic tools asked for as people ask: "I need a guide in Oslo for 3 days from 2026-01-02".

A request names no parameter. The thing wanted tells the tool, and the form of a value and the preposition before it
tell the parameter, so a model that learns from these has to read the declaration of a tool it has never seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from k2tiny import slots, values, words
from k2tiny.parameters import Draw, Style, join_words
from k2tiny.tools import Request, Tool, capitalise, declare, draw_noun, draw_response
from k2tiny.toolwords import VERBS, spell
from k2tiny.values import pick


@dataclass(frozen=True, slots=True)
class Slot:
    """A kind of argument: its family (one of each in a tool), names, JSON type, and how it is said."""

    family: str
    draw: Draw
    type: str
    names: tuple[str, ...]
    phrases: tuple[str, ...]


def _slot(family: str, draw: Draw, names: str, *phrases: str, type: str = "string") -> Slot:
    return Slot(family, draw, type, spell(names), phrases)


def _duration(unit: str) -> Slot:
    names = f"{unit} num_{unit} number_of_{unit} duration length"
    return _slot("duration", slots.draw_small, names, f"for {{}} {unit}", type="integer")


_SLOTS = (
    _slot("city", values.draw_city, "city location town place city_name area", "in {}", "in {}", "near {}"),
    _slot("date", values.draw_date, "date day start_date when first_day from_date", "on {}", "from {}", "starting {}"),
    _slot("until", values.draw_date, "end_date until last_day return_date due", "until {}", "by {}"),
    _slot("time", values.draw_time, "time start_time hour pickup_time at", "at {}"),
    _slot("person", values.draw_person, "person name recipient guest customer owner contact", "for {}", "with {}"),
    _slot("people", values.draw_list(values.draw_person), "people guests members attendees names", "with {}", type="array"),
    *(_duration(unit) for unit in ("days", "nights", "hours", "minutes", "weeks")),
    _slot("seats", slots.draw_small, "people seats guests party_size persons", "for {} people", "for {} persons", type="integer"),
    _slot("text", values.draw_phrase, "text message title subject query topic note label body", "{}", "about {}", "called {}", "saying {}", "with the text {}"),
    _slot("id", values.draw_id, "id number code reference key customer_id account_id user_id order_id", "{}", "number {}", "of customer {}", "of account {}", "with id {}"),
    _slot("symbol", slots.draw_symbol, "symbol ticker code", "{}", "of {}", "for {}"),
    _slot("file", values.draw_file, "file path filename document", "{}", "from {}", "in {}"),
    _slot("email", values.draw_email, "email address to recipient", "to {}", "for {}"),
    _slot("color", values.draw_color, "color shade", "in {}"),
    _slot("items", values.draw_list(values.draw_of([many for _, many in words.FRUIT])), "items ingredients products fruits things", "with {}", "of {}", type="array"),
    _slot("limit", values.draw_amount, "amount budget limit max_price price", "for up to {}", "under {}", type="number"),
    _slot("language", values.draw_of(slots.LANGUAGES), "language target_language to_language", "in {}", "into {}"),
    _slot("dish", values.draw_of(slots.DISHES), "dish food meal", "with {}", "for {}"),
    _slot("room", values.draw_of(slots.ROOMS), "room place location", "in the {}", "for the {}"),
    _slot("country", values.draw_of(words.COUNTRIES), "country nation region", "of {}", "in {}"),
)  # fmt: skip
_ROUTE = (
    _slot("city", values.draw_city, "origin from start from_city start_city source", "from {}"),
    _slot("to", values.draw_city, "destination to end to_city end_city target", "to {}"),
)
_MONEY = (
    _slot("limit", values.draw_amount, "amount sum value quantity", "{}", type="number"),
    _slot("currency", slots.draw_currency, "from_currency source currency base from", "{}"),
    _slot("to_currency", slots.draw_currency, "to_currency target quote to target_currency", "to {}", "in {}", "into {}"),
)  # fmt: skip
_ASKING = frozenset(("get", "fetch", "list", "find", "search", "lookup", "check", "track"))
_QUESTIONS = (
    "What is the {noun}{rest}?",
    "Show me the {noun}{rest}.",
    "Where is the {noun}{rest}?",
    "How is the {noun}{rest}?",
    "Tell me the {noun}{rest}.",
    "I am looking for {a} {noun}{rest}.",
    "Is there {a} {noun}{rest}?",
    "{verb} the {noun}{rest}.",
    "{verb} {a} {noun}{rest}.",
    "{Noun}{rest}, please.",
)
_ORDERS = (
    "I need {a} {noun}{rest}.",
    "I want {a} {noun}{rest}.",
    "{verb} {a} {noun}{rest}.",
    "{verb} {a} {noun}{rest}.",
    "{verb} the {noun}{rest}.",
    "{verb} my {noun}{rest}, please.",
    "{Noun}{rest}, please.",
)


def make_natural_tool(rng: random.Random, style: Style) -> Tool:
    """Draw a tool whose requests name the thing wanted and its values, but no parameter."""
    verb = pick(rng, tuple(VERBS))
    noun = values.coined_word(rng) if rng.random() < 0.35 else draw_noun(rng)
    plural = rng.random() < 0.2
    name = join_words([verb, *(noun + "s" if plural else noun).split(" ")], style.tools)
    chosen = _draw_slots(rng)
    names: list[str] = []
    for slot in chosen:
        free = [option for option in slot.names if option not in names]
        names.append(pick(rng, free))
    keys = [join_words(option.split(" "), style.parameters) for option in names]
    properties = {key: _schema(rng, slot, style) for key, slot in zip(keys, chosen, strict=True)}
    fixed = len(chosen) > 1 and chosen[1].family in ("to", "currency")
    required = [key for i, key in enumerate(keys) if i == 0 or fixed or rng.random() < 0.6]
    a = "an" if noun[0] in "aeiou" else "a"
    thing = pick(rng, (f"{a} {noun}", f"the {noun}", f"{noun}s"))
    declaration = declare(name, f"{verb.capitalize()} {thing}", properties, required)

    def request(rng: random.Random) -> Request:
        said = [
            (key, slot, *slot.draw(rng))
            for key, slot in zip(keys, chosen, strict=True)
            if key in required or rng.random() < 0.6
        ]
        arguments = {key: value for key, _, value, _ in said}
        parts = [pick(rng, slot.phrases).replace("{}", spoken) for _, slot, _, spoken in said]
        if not fixed and rng.random() < 0.5:
            rng.shuffle(parts)
        rest = "".join(f" {part}" for part in parts)
        form = pick(rng, _QUESTIONS if verb in _ASKING else _ORDERS)
        text = form.format(verb=pick(rng, VERBS[verb]), a=a, noun=noun, Noun=capitalise(noun), rest=rest)
        if text.startswith("Can you "):
            text = text.rstrip(".") + "?"
        return Request(text, arguments)

    def respond(rng: random.Random, request: Request) -> tuple[Any, str]:
        return draw_response(rng, noun)

    return Tool(name, declaration, noun, request, respond)


def _draw_slots(rng: random.Random) -> list[Slot]:
    kind = rng.random()
    if kind < 0.08:
        return list(_MONEY)
    chosen = list(_ROUTE) if kind < 0.2 else []
    count = len(chosen) + pick(rng, (0, 1, 1, 2)) if chosen else pick(rng, (1, 1, 2, 2, 3))
    while len(chosen) < count:
        slot = pick(rng, _SLOTS)
        if slot.family not in [other.family for other in chosen]:
            chosen.append(slot)
    return chosen


def _schema(rng: random.Random, slot: Slot, style: Style) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": slot.type}
    if slot.type == "array":
        schema["items"] = {"type": "string"}
    if "currency" in slot.family:
        schema["description"] = f"Currency code, for example {pick(rng, tuple(slots.CURRENCIES.values()))}"
    elif style.described and rng.random() < 0.3:
        schema["description"] = pick(rng, _ABOUT.get(slot.family, ("The value",)))
    return schema


_ABOUT: dict[str, tuple[str, ...]] = {
    "city": ("City", "Name of the city"),
    "to": ("City", "City of arrival"),
    "date": ("Date as YYYY-MM-DD", "YYYY-MM-DD"),
    "until": ("Date as YYYY-MM-DD", "Last day"),
    "time": ("Time as HH:MM", "HH:MM"),
    "duration": ("How long",),
    "person": ("Name of a person",),
    "id": ("Identifier",),
    "symbol": ("Ticker symbol",),
    "text": ("Text",),
    "file": ("Name of a file",),
    "email": ("Email address",),
}
