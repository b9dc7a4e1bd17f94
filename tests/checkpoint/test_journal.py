"""What a run says of a fingerprint that is not the one it was begun with."""

from typing import Any

import pytest

from moe4.checkpoint.journal import FINGERPRINT_TEXTS, describe_changes

BEFORE: dict[str, Any] = {
    "moe4": "0.1.0",
    "source": "a" * 64,
    "recipe": "b" * 64,
    "recipe_values": {"group_size": 128, "gptq": {"damping": 0.01, "descent_sweeps": 1}},
    "documents": None,
    "calibration": None,
    "probe": "c" * 64,
    "side_files": {"tokenizer.json": "d" * 64, "LICENSE": "e" * 64},
    "environment": {"threads": 2, "torch": "2.13.0"},
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"moe4": "0.2.0"}, "another version of moe4 (0.1.0, now 0.2.0)"),
        ({"source": "f" * 64}, "another source checkpoint"),
        ({"documents": "f" * 64, "calibration": "f" * 64}, "another calibration data"),
        ({"calibration": "f" * 64}, "another set of calibration tokens"),
        ({"recipe": "f" * 64}, "another recipe"),
        (
            {
                "recipe": "f" * 64,
                "recipe_values": {"group_size": 64, "gptq": {"damping": 0.02, "descent_sweeps": 1}},
            },
            "another recipe (gptq.damping 0.01, now 0.02; group_size 128, now 64)",
        ),
        (
            {"side_files": {"tokenizer.json": "0" * 64, "NOTICE": "e" * 64}},
            "another side file (LICENSE, NOTICE, tokenizer.json)",
        ),
        ({"side_files": None}, "another side file (LICENSE, tokenizer.json)"),
        (
            {"environment": {"threads": 4, "torch": "2.13.0"}, "probe": "f" * 64},
            "another tokenizer or chat template and another environment (threads 2, now 4)",
        ),
    ],
)
def test_what_differs_is_named_and_nothing_else(changes: dict[str, Any], text: str) -> None:
    assert describe_changes(BEFORE, {**BEFORE, **changes}) == text


@pytest.mark.parametrize("key", FINGERPRINT_TEXTS)
def test_every_part_of_a_fingerprint_is_compared(key: str) -> None:
    before = {**BEFORE, "recipe_values": {}}
    other = {"environment": {}, "side_files": {}}.get(key, "other")
    assert FINGERPRINT_TEXTS[key] in describe_changes(before, {**before, key: other})
