"""Tool calls as a server sends them: however a text is cut into pieces, they are the same."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_call_texts import TEXTS, A, B, C, Calls, E, S, generated

from moe4.serve.tool_calls import TURN_END, AnswerPiece, AnswerStream, parse_answer


def joined(pieces: list[AnswerPiece]) -> tuple[str, Calls]:
    content, calls = "", list[list[str]]()
    for piece in pieces:
        if piece.call is None:
            content += piece.text
        elif piece.call == len(calls):
            assert piece.id is not None
            assert piece.name is not None
            calls.append([piece.id, piece.name, piece.text])
        else:
            assert (piece.id, piece.name) == (None, None)
            assert piece.call == len(calls) - 1
            calls[-1][2] += piece.text
    return content, [(identity, name, arguments) for identity, name, arguments in calls]


def read(parts: list[str]) -> tuple[str, Calls]:
    stream = AnswerStream(num_earlier_calls=7)
    pieces = [piece for part in parts for piece in stream.feed(part)]
    return joined([*pieces, *stream.finish()])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_known_texts(text: str) -> None:
    assert read([text]) == TEXTS[text]
    for size in range(1, 12):
        assert read([text[start : start + size] for start in range(0, len(text), size)]) == TEXTS[text]


def test_streamed_and_whole_are_equal_on_2000_texts() -> None:
    with_calls = 0
    for number in range(2000):
        text = generated(number)
        whole = read([text])
        with_calls += bool(whole[1])
        draw = random.Random(-number)
        for most in (1, 3, 20):
            parts, start = [], 0
            while start < len(text):
                size = draw.randint(1, most)
                parts.append(text[start : start + size])
                start += size
            assert read(parts) == whole, repr(text)
    assert with_calls > 500


@pytest.mark.parametrize("number", range(0, 2000, 10))
def test_calls_are_those_of_parse_answer(number: int) -> None:
    """All of them that have a name and whose arguments begin, in their order."""
    text = generated(number)
    answer, (content, calls) = parse_answer(text), read([text])
    assert content == (answer.content if answer.content.strip() or not calls else "")
    given = iter([(call.name, call.arguments) for call in answer.calls if call.name])
    for _, name, arguments in calls:
        assert any(name == other and arguments in (found, "{}") for other, found in given), repr(text)
    assert len(calls) >= sum(call.complete for call in answer.calls)


@given(st.lists(st.sampled_from([S, E, B, A, C, TURN_END, "functions.f:0", "{", "}", " ", "x", "<", "<|"])))
@settings(max_examples=200)
def test_any_text_may_be_cut_anywhere(parts: list[str]) -> None:
    text = "".join(parts)
    assert read(parts) == read([text]) == read(list(text))
