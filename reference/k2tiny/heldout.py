"""Write the held-out files of reference/data: `python -m k2tiny.heldout`.

What is in them can never be drawn for training: content decides the set, by its hash. The seeds below are
fixed, so the files come out the same byte for byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k2tiny import chat, dialogues, problems
from k2tiny.places import DATA

NUM_PROBLEMS, NUM_FEWSHOT, NUM_TOOL_TURNS, NUM_CHATS = 2000, 16, 300, 100
# How many tool turns of each kind: (kind of the turn, tools never seen in training).
TOOL_TURNS = {
    ("call", True): 110,
    ("call", False): 70,
    ("two-calls", True): 35,
    ("two-calls", False): 25,
    ("no-call", False): 60,
}

Row = dict[str, Any]


def problem_rows(split: str, num: int) -> Iterator[Row]:
    """Yield different word problems of one split."""
    rng = random.Random(f"k2-tiny {split} problems")
    seen: set[str] = set()
    while len(seen) < num:
        problem = problems.draw_from(split, rng)
        if problem.question not in seen:
            seen.add(problem.question)
            yield {"question": problem.question, "answer": problem.answer, "situation": problem.situation}


def tool_rows() -> Iterator[Row]:
    """Yield tool turns: a conversation up to a user's request, and the calls or the answer expected."""
    rng = random.Random("k2-tiny held-out tools")
    rows: list[Row] = []
    for (kind, unseen), num in TOOL_TURNS.items():
        found = 0
        while found < num:
            conversation, turn = dialogues.draw_dialogue(rng, unseen=unseen, last_kind=kind)
            if dialogues.split_of(conversation) != "held-out":
                continue
            found += 1
            expected: Row = {
                "kind": turn.kind,
                "unseen": unseen,
                "calls": turn.calls,
                "content": turn.content,
            }
            rows.append({**turn.conversation.as_dict(), "expected": expected})
    rng.shuffle(rows)
    yield from rows


def chat_rows() -> Iterator[Row]:
    """Yield whole conversations without tools; the word problems in them are held out too."""
    rng = random.Random("k2-tiny held-out chats")
    found = 0
    while found < NUM_CHATS:
        messages = chat.draw_chat(rng, lambda r: problems.draw_from("held-out", r))
        if chat.split_of(messages) == "held-out":
            found += 1
            yield {"messages": messages}


def files() -> dict[str, str]:
    """Return the content of every held-out file by its name."""
    contents = {
        "heldout-problems.jsonl": problem_rows("held-out", NUM_PROBLEMS),
        "fewshot-problems.jsonl": problem_rows("few-shot", NUM_FEWSHOT),
        "heldout-tools.jsonl": tool_rows(),
        "heldout-chats.jsonl": chat_rows(),
    }
    return {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, rows in contents.items()
    }


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(DATA)
