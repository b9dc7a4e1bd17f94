"""What a run says of a fingerprint that is not the one it was begun with."""

from typing import Any

import pytest

from moe4.fingerprint import FINGERPRINT_TEXTS, Fingerprint, describe_changes

ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "processor": "AuthenticAMD AVX2",
    "products": "float32",
    "columns": "avx2",
    "torch": "2.13.0",
    "transformers": "5.0.0",
    "variables": {},
    "threads": 2,
}
BEFORE: dict[str, Any] = {
    "moe4": "0.1.0",
    "source": "a" * 64,
    "recipe": "b" * 64,
    "documents": None,
    "calibration": None,
    "probe": "c" * 64,
    "side_files": {"tokenizer.json": "d" * 64, "LICENSE": "e" * 64},
    "environment": ENVIRONMENT,
}
RECIPE = {"group_size": 128, "gptq": {"damping": 0.01, "descent_sweeps": 1}}


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
            {"side_files": {"tokenizer.json": "0" * 64, "NOTICE": "e" * 64}},
            "another side file (LICENSE, NOTICE, tokenizer.json)",
        ),
        ({"side_files": {}}, "another side file (LICENSE, tokenizer.json)"),
        (
            {"environment": {**ENVIRONMENT, "threads": 4}, "probe": "f" * 64},
            "another tokenizer or chat template and another environment (threads 2, now 4)",
        ),
    ],
)
def test_what_differs_is_named_and_nothing_else(changes: dict[str, Any], text: str) -> None:
    assert describe_changes(Fingerprint(**BEFORE), Fingerprint(**{**BEFORE, **changes})) == text


def test_what_differs_in_a_recipe_is_named() -> None:
    other = {"group_size": 64, "gptq": {"damping": 0.02, "descent_sweeps": 1}}
    before, now = Fingerprint(**BEFORE), Fingerprint(**{**BEFORE, "recipe": "f" * 64})
    assert describe_changes(before, now, RECIPE, other) == (
        "another recipe (gptq.damping 0.01, now 0.02; group_size 128, now 64)"
    )


@pytest.mark.parametrize("key", FINGERPRINT_TEXTS)
def test_every_part_of_a_fingerprint_is_compared(key: str) -> None:
    other = {"environment": {**ENVIRONMENT, "torch": "2.14.0"}, "side_files": {}}.get(key, "0" * 64)
    now = Fingerprint(**{**BEFORE, key: other})
    assert FINGERPRINT_TEXTS[key] in describe_changes(Fingerprint(**BEFORE), now)


def test_a_report_from_before_there_was_an_environment() -> None:
    old = {key: value for key, value in BEFORE.items() if key not in ("environment", "side_files")}
    assert describe_changes(Fingerprint(**old), Fingerprint(**BEFORE)) == (
        'another side file (LICENSE, tokenizer.json) and another environment (columns null, now "avx2"; '
        'device null, now "cpu"; processor null, now "AuthenticAMD AVX2"; products null, now "float32"; '
        'threads null, now 2; torch null, now "2.13.0"; transformers null, now "5.0.0"; '
        "variables null, now {})"
    )
