"""Figures as people read them."""

import pytest

from moe4.units import clock, count_text, counted, duration, format_bytes, gigabytes, percent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(999), "999 B"),
        (format_bytes(1000), "1.0 kB"),
        (format_bytes(32_500_000), "32.5 MB"),
        (format_bytes(1.03e12), "1.03 TB"),
        (format_bytes(-2000), "-2.0 kB"),
        (gigabytes(546_640_000_000), "546.64 GB"),
        (gigabytes(99_000_000), "99.00 MB"),
        (count_text(146_490_000_000), "146.49B"),
        (count_text(1_200_000), "1.20M"),
        (count_text(999), "999"),
        (counted(1, "file"), "1 file"),
        (counted(0, "file"), "0 files"),
        (duration(12.34), "12.3 s"),
        (duration(200), "3 min 20 s"),
        (duration(7500), "2 h 05 min"),
        (clock(7509), "2:05:09"),
        (percent(0.9965), "99.65 %"),
        (percent(0.5, 0), "50 %"),
    ],
)
def test_figures(text: str, expected: str) -> None:
    assert text == expected
