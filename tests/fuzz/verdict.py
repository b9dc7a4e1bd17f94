"""Was an ending one that a user can live with?"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from fuzz.sandbox import FUZZER_EXIT_CODE, Ending

from moe4.errors import UNREAD_EXIT_CODE

FRAME = re.compile(r'File "[^"\n]*/(moe4/[^"\n]+)", line (\d+)')
NET = ("moe4/cli/main.py", "moe4/cli/net.py", "moe4/cli/streams.py", "moe4/__main__.py")
UNCLEAR = re.compile(r"'\w+' object |'NoneType'|cannot unpack non-iterable|unhashable|must be an iterable")
LIBRARY = re.compile(
    r"(cannot be loaded|transformers cannot build this \w+ config): "
)  # then in its own words
LONGEST_LINE = 1200
ERROR = "moe4: error: "


@dataclass(frozen=True, slots=True)
class Fault:
    """kind: what is wrong; place: file:line in moe4, where that is known; detail: how it showed."""

    kind: str
    place: str
    detail: str


def judge(ending: Ending, arguments: list[str]) -> Fault | None:
    """Return what is wrong with how a case ended, if anything."""
    messages = ending.messages
    if ending.code == FUZZER_EXIT_CODE:
        return Fault("fuzzer", _place(messages), messages[-2000:])
    if ending.outside:
        return Fault("outside", "", ending.outside[:500])
    if ending.code is None:
        return Fault("hang", _place(ending.stack, newest_first=True), ending.stack[:3000])
    if ending.code < 0:
        return Fault(f"signal {-ending.code}", _place(ending.stack, newest_first=True), ending.stack[:3000])
    if ending.code == 70:
        return Fault("fault", _place(ending.saved or messages), _last_line(ending.saved) or messages[-500:])
    if "Traceback" in messages:
        return Fault("traceback", _place(messages), messages[-2000:])
    if ending.code not in (0, 1, 2, UNREAD_EXIT_CODE):
        return Fault(f"exit code {ending.code}", "", messages[-500:])
    if ending.code == 2:
        return _judge_message(messages)
    if ending.left_over:
        return Fault("left over", "", ", ".join(ending.left_over))
    if "--json" in arguments and "--print-script" not in arguments:
        return _judge_json(ending.output, arguments[0])
    return None


def _judge_message(messages: str) -> Fault | None:
    lines = messages.splitlines()
    told = [line for line in lines if line.startswith(ERROR)]
    if len(told) != 1 or lines[-1] != told[0] or len(told[0]) <= len(ERROR) + 5:
        return Fault("no clear line", "", messages[-500:])
    if (UNCLEAR.search(told[0]) and not LIBRARY.search(told[0])) or len(told[0]) > LONGEST_LINE:
        # Where it says so depends on the words, so the words are its place.
        return Fault("unclear line", re.sub(r"'[^']*'|/\S+|\d+", "_", told[0])[:80], told[0][:500])
    return None


def _judge_json(output: str, command: str) -> Fault | None:
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON")

    try:
        json.loads(output, parse_constant=refuse)
    except ValueError as error:
        return Fault("output is not JSON", command, f"{error}: {output[:300]}")
    return None


def _place(text: str, *, newest_first: bool = False) -> str:
    """Return the innermost place in moe4 of a traceback."""
    found = [f"{path}:{line}" for path, line in FRAME.findall(text) if path not in NET]
    if not found:
        return ""
    return found[0] if newest_first else found[-1]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:500]
