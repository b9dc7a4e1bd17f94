"""Charts as SVG text, with no script and no font of their own; colours come from the page's style sheet.

Every chart has a title and a description, and a table beside it says the same in numbers.
"""

import math
from collections.abc import Sequence

from moe4.escape import html_text

NUM_SHADES = 9  # classes h0 .. h8 of the style sheet, from little to much


def heat_map(rows: Sequence[Sequence[float]], labels: Sequence[str], title: str, description: str) -> str:
    """Return a map of rows of cells, one shade a cell; shades are equal steps from the least to the most.

    Cells of a shade are one path, so that the 23,000 experts of a large model stay a small file.
    """
    values = [value for row in rows for value in row]
    low, high = min(values), max(values)
    widest = max(map(len, rows))
    cell = 16 if widest <= 48 else max(2.0, 800 / widest)
    height = 16 if len(rows) <= 30 else 10
    left, top = 64, 4
    paths: list[list[str]] = [[] for _ in range(NUM_SHADES)]
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            shade = 0 if high == low else min(NUM_SHADES - 1, int((value - low) / (high - low) * NUM_SHADES))
            gap = 1 if cell >= 8 else 0
            paths[shade].append(
                f"M{left + x * cell:g} {top + y * height:g}h{cell - gap:g}v{height - gap:g}h{gap - cell:g}z"
            )
    parts = [f'<path class="h{shade}" d="{"".join(path)}"/>' for shade, path in enumerate(paths) if path]
    for y, label in enumerate(labels):
        if height >= 12 or y % 5 == 0:
            baseline = top + y * height + height - 4
            parts.append(f'<text x="{left - 6}" y="{baseline:g}" text-anchor="end">{html_text(label)}</text>')
    bottom = top + len(rows) * height + 14
    parts.append(f'<text x="{left}" y="{bottom}">expert 0 to {widest - 1}</text>')
    legend = bottom + 8
    for shade in range(NUM_SHADES):
        parts.append(f'<path class="h{shade}" d="M{left + shade * 20} {legend}h20v10h-20z"/>')
    parts.append(f'<text x="{left - 6}" y="{legend + 9}" text-anchor="end">{_short(low)}</text>')
    parts.append(f'<text x="{left + NUM_SHADES * 20 + 6}" y="{legend + 9}">{_short(high)}</text>')
    return _svg(left + widest * cell + 4, legend + 16, title, description, parts)


def bars(
    groups: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], title: str, description: str
) -> str:
    """Return horizontal bars: a group a label, one bar for each of `names`."""
    left, width, bar, gap, top = 64, 520, 13, 8, 22
    most = max((value for _, values in groups for value in values), default=0.0) or 1.0
    parts, y = [], float(top)
    for place, name in enumerate(names):
        x = left + place * 190
        parts.append(
            f'<path class="b{place}" d="M{x} 4h10v10h-10z"/>'
            f'<text x="{x + 15}" y="13">{html_text(name)}</text>'
        )
    for label, values in groups:
        middle = y + bar * len(values) / 2 + 4
        parts.append(f'<text x="{left - 6}" y="{middle:g}" text-anchor="end">{html_text(label)}</text>')
        for place, value in enumerate(values):
            length = max(1.0, value / most * width)
            parts.append(f'<path class="b{place}" d="M{left} {y:g}h{length:.1f}v{bar - 1}h-{length:.1f}z"/>')
            parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 10:g}">{_short(value)}</text>')
            y += bar
        y += gap
    return _svg(left + width + 70, y + 2, title, description, parts)


def intervals(
    rows: Sequence[tuple[str, float, float, float]], reference: float, title: str, description: str
) -> str:
    """Return a point with its interval for each (label, value, low, high), and a line at `reference`."""
    left, width, height, top = 190, 430, 26, 6
    low = min([reference, *(row[2] for row in rows)])
    high = max([reference, *(row[3] for row in rows)])
    margin = max((high - low) * 0.08, 1e-4)
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * width

    bottom = top + height * len(rows)
    parts = [f'<path class="reference" d="M{place(reference):.1f} {top}V{bottom}"/>']
    for number, (label, value, begin, end) in enumerate(rows):
        y = top + height * number + height / 2
        parts.append(f'<text x="{left - 8}" y="{y + 4:g}" text-anchor="end">{html_text(label)}</text>')
        parts.append(f'<path class="whisker" d="M{place(begin):.1f} {y:g}H{place(end):.1f}"/>')
        parts.append(f'<circle class="point" cx="{place(value):.1f}" cy="{y:g}" r="4"/>')
    for value in (low + margin, reference, high - margin):
        parts.append(
            f'<text x="{place(value):.1f}" y="{bottom + 14}" text-anchor="middle">{100 * value:.2f} %</text>'
        )
    return _svg(left + width + 40, bottom + 20, title, description, parts)


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    label = html_text(f"{title}. {description}")
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width:g}px">{"".join(parts)}</svg>'
    )


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
