"""The training mixture: its shares, its weights, its speed of generation, and the form the harness uses."""

import time
from collections import Counter
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from k2tiny.corpus import Document, calibration_documents, encode, training_documents

TOKENIZER = Tokenizer.from_file(
    str(Path(__file__).resolve().parents[2] / "reference" / "k2-tiny" / "tokenizer.json")
)


def sample(num: int, seed: int = 1) -> list[Document]:
    return list(islice(training_documents(seed), num))


def test_shares() -> None:
    counts = Counter(document.kind for document in sample(3000))
    for kind, share in (("text", 0.30), ("tools", 0.55), ("chat", 0.15)):
        assert abs(counts[kind] / 3000 - share) < 0.04  # four standard deviations


def test_equal_seeds_give_equal_documents() -> None:
    assert sample(40, seed=7) == sample(40, seed=7)
    assert sample(40, seed=7) != sample(40, seed=8)


def test_few_shot_texts_have_the_harness_form() -> None:
    lengths = set()
    for document in sample(600):
        if document.kind != "text":
            continue
        text = document.text
        assert text.endswith("[EOS]")
        shots = text.removesuffix("[EOS]").split("\n\n")
        lengths.add(len(shots))
        for shot in shots:
            question, answer = shot.split("\nAnswer: ")
            assert question.startswith("Question: ")
            assert "\n#### " in answer
    assert lengths == set(range(1, 9))


def test_weights_are_one_on_what_the_assistant_writes_alone() -> None:
    for document in sample(600):
        for span in document.spans:
            assistant = span.weight == 1.0
            if document.kind == "text":
                assert assistant == (not span.text.startswith("Question: "))
            else:
                assert assistant == (
                    not span.text.startswith("<|im_system|>") and "<|im_user|>" not in span.text
                )
                assert span.text.endswith("<|im_end|>" if assistant else "<|im_middle|>")
            assert span.weight in (1.0, 0.3, 0.2, 0.1)


def test_generation_and_encoding_keep_a_gpu_fed() -> None:
    """60,000 tokens a second and core are wanted; a third of it passes on a busy machine."""
    start = time.process_time()
    tokens = sum(len(encode(document, TOKENIZER)[0]) for document in islice(training_documents(2), 400))
    assert tokens / (time.process_time() - start) > 20_000


def test_calibration_documents() -> None:
    documents = list(calibration_documents(300, seed=0))
    assert documents == list(calibration_documents(300, seed=0))
    assert {frozenset(document) for document in documents} == {
        frozenset({"text"}),
        frozenset({"messages"}),
        frozenset({"messages", "tools"}),
    }
