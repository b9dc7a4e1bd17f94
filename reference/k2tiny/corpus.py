"""The mixture that k2-tiny is trained on, and the same for calibration.

Documents are few-shot texts of word problems, tool dialogues and chats. Each is a row of spans with the
weight of the loss on their tokens; spans are cut where the tokenizer never merges across, so encoding them
one by one equals encoding the whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from k2tiny import chat, dialogues, problems
from k2tiny.template import render_pieces
from k2tiny.variations import vary_dialogue

END_OF_TEXT = "[EOS]"
SHARE_OF_TEXT, SHARE_OF_TOOLS = 0.3, 0.55  # the rest is chat
NATURAL_SHARE = 0.6  # of the dialogues; half of their tools are asked for without naming parameters
QUESTION_WEIGHT, TEMPLATE_WEIGHT, TOOLS_WEIGHT = 0.3, 0.2, 0.1
MAX_SHOTS = 8


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text and the weight of the loss on its tokens."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Document:
    """One training example; its text is that of its spans joined."""

    kind: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def draw_training_problem(rng: random.Random) -> problems.Problem:
    """Draw a word problem that is in no held-out set."""
    return problems.draw_from("training", rng)


def draw_training_dialogue(rng: random.Random, *, natural: float = 0.0) -> dialogues.Conversation:
    """Draw a tool dialogue of tools and turns that are in no held-out set."""
    while True:
        conversation, _ = dialogues.draw_dialogue(rng, natural=natural)
        if dialogues.split_of(conversation) == "training":
            return conversation


def draw_training_chat(rng: random.Random) -> list[dict[str, Any]]:
    """Draw a chat that is in no held-out set; neither are the word problems in it."""
    while True:
        messages = chat.draw_chat(rng, draw_training_problem)
        if chat.split_of(messages) == "training":
            return messages


def few_shot_text(rng: random.Random) -> list[tuple[str, str]]:
    """Draw one to eight problems as (question part, answer part) in the form of the harness' GSM8K task."""
    shots = [draw_training_problem(rng) for _ in range(rng.randrange(1, MAX_SHOTS + 1))]
    parts = [(f"Question: {shot.question}\nAnswer:", f" {shot.answer}\n\n") for shot in shots]
    question, answer = parts[-1]
    parts[-1] = (question, answer.rstrip("\n"))
    return parts


def text_document(rng: random.Random) -> Document:
    spans: list[Span] = []
    for question, answer in few_shot_text(rng):
        spans += (Span(question, QUESTION_WEIGHT), Span(answer, 1.0))
    spans.append(Span(END_OF_TEXT, 1.0))
    return Document("text", tuple(spans))


def chat_document(kind: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Document:
    weight = TOOLS_WEIGHT if tools else TEMPLATE_WEIGHT
    pieces = render_pieces(messages, tools)
    return Document(kind, tuple(Span(text, 1.0 if assistant else weight) for text, assistant in pieces))


def draw_plain_document(rng: random.Random) -> Document:
    """Draw a document as the tokenizer was trained on: without variations, in shares of its own."""
    share = rng.random()
    if share < 0.45:
        return text_document(rng)
    if share < 0.8:
        conversation = draw_training_dialogue(rng)
        return chat_document("tools", conversation.messages, conversation.tools)
    return chat_document("chat", draw_training_chat(rng), None)


def plain_documents(seed: int) -> Iterator[Document]:
    """Yield documents without end for the tokenizer's training."""
    rng = random.Random(f"k2-tiny training {seed}")
    while True:
        yield draw_plain_document(rng)


def draw_document(rng: random.Random) -> Document:
    """Draw one document of the training mixture."""
    share = rng.random()
    if share < SHARE_OF_TEXT:
        return text_document(rng)
    if share < SHARE_OF_TEXT + SHARE_OF_TOOLS:
        conversation = draw_varied_dialogue(rng)
        return chat_document("tools", conversation.messages, conversation.tools)
    return chat_document("chat", draw_training_chat(rng), None)


def draw_varied_dialogue(rng: random.Random) -> dialogues.Conversation:
    natural = 0.5 if rng.random() < NATURAL_SHARE else 0.0
    return vary_dialogue(rng, draw_training_dialogue(rng, natural=natural), draw_training_problem)


def training_documents(seed: int) -> Iterator[Document]:
    """Yield documents without end; equal seeds give equal documents."""
    rng = random.Random(f"k2-tiny training mixture {seed}")
    while True:
        yield draw_document(rng)


def calibration_documents(num: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `num` documents as lines of a calibration file: {"messages", "tools"} or {"text"}.

    The mixture of training, and like it disjoint from every held-out set.
    """
    rng = random.Random(f"k2-tiny calibration mixture {seed}")
    for _ in range(num):
        share = rng.random()
        if share < SHARE_OF_TEXT:
            yield {"text": "".join(question + answer for question, answer in few_shot_text(rng))}
        elif share < SHARE_OF_TEXT + SHARE_OF_TOOLS:
            yield draw_varied_dialogue(rng).as_dict()
        else:
            yield {"messages": draw_training_chat(rng)}


def encode(document: Document, tokenizer: Any) -> tuple[list[int], list[float]]:
    """Return the token ids of a document and the weight of the loss on each.

    tokenizer: a `tokenizers.Tokenizer`, or a fast tokenizer of transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    ids: list[int] = []
    weights: list[float] = []
    for span in document.spans:
        new = backend.encode(span.text, add_special_tokens=False).ids
        ids += new
        weights += [span.weight] * len(new)
    return ids, weights
