"""Token ids: what every method is calibrated on, and the held-out text it is measured on.

Held-out documents are those of reference/data, which can never be drawn for training or calibration: word
problems with their answers, four to a document; tool turns with the calls expected; chats.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from moe4.calibration.corpus import load_corpus
from moe4.config import parse_config
from moe4.model.architecture import build_config
from moe4.recipe import Calibration

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "reference" / "k2-tiny"
DATA = REPOSITORY / "reference" / "data"
PROBLEMS_A_DOCUMENT = 4
MAX_TOKENS = 1024

Sequences = list[list[int]]


def calibration_sequences(settings: Calibration) -> Sequences:
    """Return the token ids that `moe4 quantize --calibration reference` calibrates on."""
    config = build_config(parse_config(json.loads((MODEL / "config.json").read_text())))
    return load_corpus(MODEL, config, settings, Path("reference")).sequences


def heldout_sequences(num_problems: int, num_tool_turns: int, num_chats: int) -> Sequences:
    """Return the token ids of held-out documents."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL)
    texts = list(_problem_texts(num_problems))
    sequences = [list(tokenizer(text)["input_ids"]) for text in texts]
    for document in (*_tool_documents(num_tool_turns), *_rows("heldout-chats.jsonl", num_chats)):
        ids = tokenizer.apply_chat_template(
            document["messages"], tools=document.get("tools"), tokenize=True, return_dict=False
        )
        sequences.append(list(ids))
    return [sequence[:MAX_TOKENS] for sequence in sequences]


def problem_rows(num: int) -> list[dict[str, Any]]:
    """Return the first held-out word problems."""
    return _rows("heldout-problems.jsonl", num)


def _rows(name: str, num: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()[:num]]


def _problem_texts(num: int) -> Iterator[str]:
    rows = problem_rows(num)
    for start in range(0, len(rows), PROBLEMS_A_DOCUMENT):
        chosen = rows[start : start + PROBLEMS_A_DOCUMENT]
        yield "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in chosen)


def _tool_documents(num: int) -> Iterator[dict[str, Any]]:
    """Yield each tool turn with the answer expected, its calls numbered over the conversation."""
    for row in _rows("heldout-tools.jsonl", num):
        expected = row["expected"]
        answer: dict[str, Any] = {"role": "assistant", "content": expected["content"] or ""}
        if expected["calls"]:
            first = sum(len(message.get("tool_calls") or []) for message in row["messages"])
            answer["tool_calls"] = [
                {
                    "id": f"functions.{call['name']}:{number}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
                }
                for number, call in enumerate(expected["calls"], start=first)
            ]
        yield {"messages": [*row["messages"], answer], "tools": row["tools"]}
