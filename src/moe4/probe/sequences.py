"""Choose a model's probe sequences: built-in prompts through its own tokenizer and chat template.

Sequences end at the start of an assistant's turn, where much is possible, and inside one, where little is.
The same model folder gives the same sequences: no clock, nothing random.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe4.calibration.chat import tokenize
from moe4.calibration.corpus import within_bounds
from moe4.errors import CalibrationError, ProbeError
from moe4.probe.form import Kind
from moe4.strict_json import JsonObject

PROMPTS = Path(__file__).parent / "data" / "prompts.json"
NUM_SEQUENCES = 64
LONGEST = 512  # tokens; prompts are shorter unless a tokenizer takes many tokens for them
# Around blocks of the KV cache, 16 tokens on GPUs and 128 on CPUs, and beyond two of the latter.
TEXT_LENGTHS = (300, 257, 200, 160, 129, 128, 127, 96, 80, 64, 48, 33, 32, 31, 24, 17, 16, 15, 12, 8)
INSIDE = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 7 / 8)  # where sequences end inside assistant turns, in turn

Message = JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """One sequence of token ids."""

    kind: Kind
    tokens: list[int]


@dataclass(kw_only=True, slots=True)
class _Selection:
    """Sequences chosen so far, no two of them alike, and what is to be said about them."""

    sequences: list[Chosen] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, kind: Kind, tokens: list[int]) -> bool:
        """Add a sequence unless it is there already; say whether it was added."""
        tokens = tokens[:LONGEST]
        if any(chosen.tokens == tokens for chosen in self.sequences):
            return False
        self.sequences.append(Chosen(kind=kind, tokens=tokens))
        return True


def choose_sequences(tokenizer: Any, vocab_size: int) -> tuple[list[Chosen], list[str]]:
    """Return the sequences, and remarks about those that text had to stand in for.

    Raises ProbeError if the tokenizer and the vocabulary do not belong together, TemplateError if the chat
    template takes too much time or memory.
    """

    def choose(_what: str) -> Any:
        sequences, remarks = _choose(tokenizer, vocab_size)
        return [[chosen.kind, chosen.tokens] for chosen in sequences], remarks

    items = ["the built-in prompts"]
    [(sequences, remarks)] = within_bounds(choose, items, str, lambda _: PROMPTS.stat().st_size)
    return [Chosen(kind=kind, tokens=tokens) for kind, tokens in sequences], remarks


def _choose(tokenizer: Any, vocab_size: int) -> tuple[list[Chosen], list[str]]:
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    selection = _Selection()
    _add_chats(selection, tokenizer, prompts["chats"])
    _add_tool_chats(selection, tokenizer, prompts["tool_chats"])
    _add_texts(selection, tokenizer, prompts["texts"])
    largest = max(max(chosen.tokens) for chosen in selection.sequences)
    if largest >= vocab_size:
        raise ProbeError(
            f"the tokenizer gives token {largest}, but the model's vocabulary has {vocab_size}; "
            "tokenizer and model do not belong together"
        )
    return selection.sequences, selection.remarks


def _add_chats(selection: _Selection, tokenizer: Any, chats: Sequence[JsonObject]) -> None:
    """Add two sequences of each chat: one at the start of its last turn, one inside."""
    refused = []
    for number, chat in enumerate(chats):
        try:
            last = len(chat["messages"]) - 1
            for tokens in _cut_turn(tokenizer, chat["messages"], None, last, INSIDE[number % len(INSIDE)]):
                selection.add("chat", tokens)
        except CalibrationError as error:
            refused.append(str(error))
    if refused:
        selection.remarks.append(f"text in place of {len(refused)} of {len(chats)} chats: {refused[0]}")


def _add_tool_chats(selection: _Selection, tokenizer: Any, chats: Sequence[JsonObject]) -> None:
    """Add two sequences of each call and of each turn after a result."""
    try:
        for tool_chat in chats:
            _check_tools(tokenizer, tool_chat)
        found = [
            (kind, tokens)
            for tool_chat in chats
            for place, (turn, kind) in enumerate(_tool_turns(tool_chat["messages"]))
            for tokens in _cut_turn(
                tokenizer,
                tool_chat["messages"],
                tool_chat["tools"],
                turn,
                INSIDE[place % len(INSIDE)],
            )
        ]
    except CalibrationError as error:
        selection.remarks.append(f"text in place of all chats with tools: {error}")
        return
    for kind, tokens in found:
        selection.add(kind, tokens)


def _tool_turns(messages: Sequence[Message]) -> Iterator[tuple[int, Kind]]:
    """Yield (number, kind) of the turns that call a tool and of those that follow a tool's result."""
    for number, message in enumerate(messages):
        if message.get("tool_calls"):
            yield number, "tool_call"
        elif message["role"] == "assistant" and messages[number - 1]["role"] == "tool":
            yield number, "tool_result"


def _check_tools(tokenizer: Any, chat: JsonObject) -> None:
    """Raise CalibrationError if the template leaves out the tools."""
    question = chat["messages"][:1]
    if _render(tokenizer, question, chat["tools"]) == _render(tokenizer, question, None):
        raise CalibrationError("the model's chat template leaves out the tools")


def _cut_turn(
    tokenizer: Any, messages: Sequence[Message], tools: list[Any] | None, turn: int, share: float
) -> Iterator[list[int]]:
    """Yield the tokens up to an assistant's turn, and those up to `share` of it."""
    start = _render(tokenizer, messages[:turn], tools, add_generation_prompt=True)
    yield start
    whole = _render(tokenizer, messages[: turn + 1], tools)
    same = next(
        (place for place, pair in enumerate(zip(start, whole, strict=False)) if pair[0] != pair[1]),
        min(len(start), len(whole)),
    )
    yield whole[: same + max(1, round(share * (len(whole) - same)))]


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: list[Any] | None,
    *,
    add_generation_prompt: bool = False,
) -> list[int]:
    document: JsonObject = {"messages": list(messages)}
    if tools is not None:
        document["tools"] = tools
    return tokenize(tokenizer, document, "a built-in prompt", add_generation_prompt=add_generation_prompt)


def _add_texts(selection: _Selection, tokenizer: Any, texts: Sequence[JsonObject]) -> None:
    """Add texts cut at lengths around blocks of the KV cache, then as many as are missing."""
    tokenized = [tokenize(tokenizer, text, "a built-in text") for text in texts]
    for place, length in enumerate(TEXT_LENGTHS):
        _add_text(selection, tokenized, place, length)
    for place in range(10 * NUM_SEQUENCES):
        if len(selection.sequences) >= NUM_SEQUENCES:
            break
        _add_text(selection, tokenized, place, 10 + 37 * place % 290)


def _add_text(selection: _Selection, texts: Sequence[list[int]], place: int, length: int) -> None:
    """Add a text's first `length` tokens: of the text at `place`, or the next that is long enough."""
    turned = [texts[(place + step) % len(texts)] for step in range(len(texts))]
    fitting = [text for text in turned if len(text) >= length]
    for text in fitting or [max(turned, key=len)]:
        if selection.add("text", text[:length]):
            return
