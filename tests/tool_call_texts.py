"""Assistants' turns with tool calls, right and wrong, and what a server should make of them."""

import json
import random

from moe4.serve.tool_calls import (
    ARGUMENT_BEGIN,
    CALL_BEGIN,
    CALL_END,
    SECTION_BEGIN,
    SECTION_END,
    TURN_END,
)

S, E, B, A, C = SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENT_BEGIN, CALL_END
Calls = list[tuple[str, str, str]]
PARIS = '{"city": "Paris"}'

# text: content, calls as (id, name, arguments)
TEXTS: dict[str, tuple[str, Calls]] = {
    "Just < and <| and <think> in it.": ("Just < and <| and <think> in it.", []),
    f"{S}{B}functions.f:0{A}{PARIS}{C}{E}": ("", [("functions.f:0", "f", PARIS)]),
    f"I look.\n{S}{B}functions.f:0{A}{PARIS}{C}{E}": ("I look.\n", [("functions.f:0", "f", PARIS)]),
    f"{S}\n{B}\nfunctions.f:0\n{A}\n{PARIS}\n{C}\n{E}\n": ("", [("functions.f:0", "f", PARIS)]),
    f"{S}{B}functions.f:3{A}{{}}{C}{B}functions.g:4{A}{{}}{C}{E}": (
        "",
        [("functions.f:3", "f", "{}"), ("functions.g:4", "g", "{}")],
    ),
    f"{B}functions.f:0{A}{PARIS}{C}": ("", [("functions.f:0", "f", PARIS)]),
    f"{S}{B}f:0{A}{PARIS}{C}{E}": ("", [("f:0", "f", PARIS)]),
    f"{S}{B}functions.a.b-c:0{A}{{}}{C}{E}": ("", [("functions.a.b-c:0", "a.b-c", "{}")]),
    f"{S}{B}functions.functions.x:0{A}{{}}{C}{E}": ("", [("functions.functions.x:0", "functions.x", "{}")]),
    f"{S}{B}functions.server:tool:0{A}{{}}{C}{E}": ("", [("functions.server:tool:0", "server:tool", "{}")]),
    f"{S}{B}functions.f{A}{PARIS}{C}{E}": (
        "",
        [("functions.f:7", "f", PARIS)],
    ),  # the eighth of the conversation
    f"{S}{B}functions.now:0{A}{C}{E}": ("", [("functions.now:0", "now", "{}")]),
    f"{S}{B}functions.now:0{A} \n {C}{E}": ("", [("functions.now:0", "now", "{}")]),
    f"{S}{B}functions.f:0{A}city=Paris{C}{E}": ("", [("functions.f:0", "f", "city=Paris")]),
    f"{S}{B}functions.f:0{A}{{}}{C}{E}Done.": ("Done.", [("functions.f:0", "f", "{}")]),
    f"{S}{B}functions.f:0{A}{{}}{C}{E} and {S}{B}functions.g:1{A}{{}}{C}{E}": (
        " and ",
        [("functions.f:0", "f", "{}"), ("functions.g:1", "g", "{}")],
    ),
    f'{S}{B}functions.f:0{A}{{"a": 1}}{B}functions.g:1{A}{{"b": 2}}{C}{E}': (
        "",
        [("functions.f:0", "f", '{"a": 1}'), ("functions.g:1", "g", '{"b": 2}')],
    ),
    f"Hello.{S}{E}": ("Hello.", []),
    f"Hello.{TURN_END}{S}{B}functions.f:0{A}{{}}{C}{E}": ("Hello.", []),
    "  \n": ("  \n", []),
    # Cut off by a limit: nothing is invented.
    S: ("", []),
    f"{S}{B}": ("", []),
    f"{S}{B}functions.get_wea": ("", []),
    f"{S}{B}functions.f:0{A}": ("", []),
    f"{S}{B}functions.f:0{A} ": ("", []),
    f'{S}{B}functions.f:0{A}{{"city": "Par': ("", [("functions.f:0", "f", '{"city": "Par')]),
    f"{S}{B}functions.f:0{A}{{}}{C}{B}functions.g": ("", [("functions.f:0", "f", "{}")]),
    "Almost <|tool_calls_sec": ("Almost <|tool_calls_sec", []),
    # No name: nobody could be called.
    f"{S}{B}{A}{{}}{C}{E}": ("", []),
    f"{S}{B}:0{A}{{}}{C}{E}": ("", []),
}


def generated(number: int) -> str:
    """A turn: markers in and out of their order, text, JSON, spaces; half of them cut off somewhere."""
    draw = random.Random(number)
    header = (
        f"functions.{draw.choice(['f', 'get_weather', 'a:b', 'x.y-z', ''])}{draw.choice([':0', ':12', ''])}"
    )
    values = [
        f"{S}{B}{header}{A}{json.dumps({'city': draw.choice(['Zürich 東京 🎉', 'x}y', '<|', ''])})}{C}{E}",
        *(S, E, B, A, C, TURN_END),
        *(
            "Hello. ",
            " ",
            "\n",
            "<",
            "<|",
            "<|tool_call",
            header,
            "{}",
            '{"a": [1, {"b": null}]}',
            "not json",
        ),
    ]
    weights = [6, 2, 2, 4, 4, 4, 0.3, *[2] * 10]
    text = "".join(draw.choices(values, weights, k=draw.randint(1, 12)))
    return text[: draw.randint(0, len(text))] if draw.random() < 0.5 else text
