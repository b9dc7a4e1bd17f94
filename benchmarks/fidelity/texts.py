"""Token ids: what every method is calibrated on, and the held-out text it is measured on.

Held-out documents are those of reference/data, which can never be drawn for training or calibration: word
problems with their answers, four to a document; tool turns with the calls expected; chats. Models are folders
of checkpoints with k2-tiny's tokenizer and chat form.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
PROBLEMS_APART = "\n\n"
MAX_TOKENS = 1024

Sequences = list[list[int]]


@dataclass(frozen=True, slots=True)
class HeldOutDocument:
    """A document's token ids, and for each whether it belongs to an answer of the reference.

    Answers are what stands behind "Answer:", and the assistant's turns up to the mark of their end.
    """

    ids: list[int]
    is_answer: list[bool]


def calibration_sequences(model: Path, settings: Calibration) -> Sequences:
    """Return the token ids that `moe4 quantize --calibration reference` calibrates a model on."""
    config = build_config(parse_config(json.loads((model / "config.json").read_text())))
    return load_corpus(model, config, settings, Path("reference")).sequences


def heldout_documents(
    model: Path, num_problems: int, num_tool_turns: int, num_chats: int
) -> list[HeldOutDocument]:
    """Return held-out documents, each cut to MAX_TOKENS."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    rows = problem_rows(num_problems)
    documents = [
        _encode_problems(tokenizer, rows[start : start + PROBLEMS_A_DOCUMENT])
        for start in range(0, len(rows), PROBLEMS_A_DOCUMENT)
    ]
    for row in (*_tool_documents(num_tool_turns), *_rows("heldout-chats.jsonl", num_chats)):
        ids = tokenizer.apply_chat_template(
            row["messages"], tools=row.get("tools"), tokenize=True, return_dict=False
        )
        documents.append(HeldOutDocument(list(ids), mark_answers(ids, tokenizer)))
    return [HeldOutDocument(each.ids[:MAX_TOKENS], each.is_answer[:MAX_TOKENS]) for each in documents]


def problem_rows(num: int) -> list[dict[str, Any]]:
    """Return the first held-out word problems."""
    return _rows("heldout-problems.jsonl", num)


def _rows(name: str, num: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()[:num]]


def _encode_problems(tokenizer: Any, rows: list[dict[str, Any]]) -> HeldOutDocument:
    """Encode problems as one text. A token belongs to an answer if its first character does."""
    text, answers = "", list[range]()
    for row in rows:
        text += f"{PROBLEMS_APART if text else ''}Question: {row['question']}\nAnswer:"
        start = len(text)
        text += f" {row['answer']}"
        answers.append(range(start, len(text)))
    encoded = tokenizer(text, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    is_answer = [any(start in answer for answer in answers) for start in starts]
    return HeldOutDocument(list(encoded["input_ids"]), is_answer)


def mark_answers(ids: list[int], tokenizer: Any) -> list[bool]:
    """Say of each token of a rendered chat whether it stands in the body of an assistant's turn.

    The mark that ends the body counts; those before it do not.
    """
    assistant, middle, end = tokenizer.convert_tokens_to_ids(
        ["<|im_assistant|>", "<|im_middle|>", "<|im_end|>"]
    )
    marked, is_turn, is_body = list[bool](), False, False
    for token in ids:
        marked.append(is_body)
        is_turn = token == assistant or (is_turn and token != end)
        is_body = is_turn and (is_body or token == middle)
    return marked


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
