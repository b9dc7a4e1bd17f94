"""Charts as HTML and SVG text, with no script; the page's style sheet gives sizes and colours.

Words stay words, in the page's own size, and what is drawn takes the width there is, so a chart fits a phone
as it fits a desk. Every chart has a title and a description, and a table says the same in numbers.
"""

import math
from collections.abc import Iterable, Sequence

from moe4.escape import html_text

NUM_SHADES = 9  # classes h0 .. h8 of the style sheet, from little to much


def heat_map(rows: Sequence[Sequence[float]], labels: Sequence[str], title: str, description: str) -> str:
    """Return a map of rows of cells, one shade a cell; shades are equal steps from the least to the most.

    A cell is 10 x 10 in a drawing that is stretched to fit. Cells of a shade are one path, so that the 23,000
    experts of a large model stay a small file.
    """
    values = [value for row in rows for value in row]
    low, high = min(values), max(values)
    widest = max(map(len, rows))
    gap = min(1.0, widest / 24) if widest <= 96 else 0.0
    paths: list[list[str]] = [[] for _ in range(NUM_SHADES)]
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            shade = 0 if high == low else min(NUM_SHADES - 1, int((value - low) / (high - low) * NUM_SHADES))
            paths[shade].append(f"M{x * 10} {y * 10}h{10 - gap:.3g}v9h{gap - 10:.3g}z")
    cells = "".join(
        f'<path class="h{shade}" d="{"".join(path)}"/>' for shade, path in enumerate(paths) if path
    )
    dense = " dense" if len(rows) > 30 else ""
    names = "".join(f"<span>{html_text(label)}</span>" for label in labels)
    legend = "".join(f'<i class="h{shade}"></i>' for shade in range(NUM_SHADES))
    return _figure(
        f"map{dense}",
        title,
        description,
        (
            f'<div class="rows" aria-hidden="true">{names}</div>',
            f'<svg preserveAspectRatio="none" viewBox="0 0 {widest * 10} {len(rows) * 10}" '
            f'style="--rows:{len(rows)}" aria-hidden="true">{cells}</svg>',
            f'<p class="axis" aria-hidden="true"><span>expert 0</span><span>expert {widest - 1}</span></p>',
            f'<p class="legend" aria-hidden="true"><span>{_short(low)}</span>{legend}'
            f"<span>{_short(high)}</span></p>",
        ),
    )


def bars(
    groups: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], title: str, description: str
) -> str:
    """Return horizontal bars: a group a label, one bar for each of `names`."""
    most = max((value for _, values in groups for value in values), default=0.0) or 1.0
    legend = "".join(
        f'<span><i class="b{place}"></i>{html_text(name)}</span>' for place, name in enumerate(names)
    )
    parts = [f'<p class="key" aria-hidden="true">{legend}</p>']
    for label, values in groups:
        tracks = "".join(
            f'<div class="track"><i class="b{place}" style="width:{max(0.4, 100 * value / most):.2f}%"></i>'
            f"<span>{_short(value)}</span></div>"
            for place, value in enumerate(values)
        )
        parts.append(
            f'<div class="group" aria-hidden="true"><span>{html_text(label)}</span><div>{tracks}</div></div>'
        )
    return _figure("bars", title, description, parts)


def intervals(
    rows: Sequence[tuple[str, float, float, float]], reference: float, title: str, description: str
) -> str:
    """Return a point with its interval for each (label, value, low, high), and a line at `reference`."""
    low = min([reference, *(row[2] for row in rows)])
    high = max([reference, *(row[3] for row in rows)])
    low, high = _round_outward(low, high)

    def place(value: float) -> float:
        return (value - low) / (high - low) * 100

    parts = []
    for label, value, begin, end in rows:
        parts.append(
            f'<div class="interval" aria-hidden="true"><span>{html_text(label)}</span><div class="line">'
            f'<b style="left:{place(reference):.2f}%"></b>'
            f'<i class="whisker" style="left:{place(begin):.2f}%;width:{place(end) - place(begin):.2f}%"></i>'
            f'<i class="point" style="left:{place(value):.2f}%"></i></div></div>'
        )
    marks = [f'<span style="left:{place(reference):.2f}%">{100 * reference:g} %</span>']
    if place(reference) > 25:
        marks.append(f'<span class="first" style="left:0">{100 * low:g} %</span>')
    if place(reference) < 75:
        marks.append(f'<span class="last" style="left:100%">{100 * high:g} %</span>')
    parts.append(f'<div class="scale" aria-hidden="true">{"".join(marks)}</div>')
    return _figure("intervals", title, description, parts)


def _round_outward(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an axis: the interval with a margin, to one digit of its width."""
    span = max(high - low, 1e-3)
    digits = -math.floor(math.log10(span))
    step, margin = 10.0**-digits, 0.04 * span
    ends = math.floor((low - margin) / step), math.ceil((high + margin) / step)
    return round(ends[0] * step, digits), round(ends[1] * step, digits)


def _figure(kind: str, title: str, description: str, parts: Iterable[str]) -> str:
    label = html_text(f"{title}. {description}")
    return f'<div class="chart {kind}" role="img" aria-label="{label}">{"".join(parts)}</div>'


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
