"""What the cells say together: tables for each amount of calibration text, as Markdown and as JSON."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from fidelity.yardstick.cells import Record, YardstickError, cell_of
from fidelity.yardstick.intervals import Array, Figure, Place, Sums, mean_over, ratio_over

PERCENT, THOUSANDTHS = 100.0, 1000.0
ONLY = -1  # the draw of a method that needs none


@dataclass(frozen=True, slots=True)
class Metric:
    """A sum over another (fields of `fidelity.measure.Divergence`), shown times `scale`."""

    title: str
    above: Callable[[Mapping[str, Array]], Array]
    below: str = "tokens"
    scale: float = 1.0
    digits: int = 2

    def sums(self, record: Record) -> Sums:
        documents = {name: np.array(values) for name, values in record["documents"].items()}
        return self.above(documents), documents[self.below]

    def show(self, figure: Figure) -> str:
        low, high = (f"{self.scale * end:.{self.digits}f}" for end in figure.interval.as_list())
        return f"{self.scale * figure.value:.{self.digits}f} [{low}, {high}]"


METRICS = {
    "kl": Metric("KL, 10⁻³ nats a token", lambda sums: sums["kl"], scale=THOUSANDTHS, digits=3),
    "agreed": Metric("same top token, %", lambda sums: sums["agreed"], scale=PERCENT),
    "overlap": Metric("overlap of the 5 likeliest, %", lambda sums: sums["overlap"], scale=PERCENT),
    "experts": Metric("experts unchanged, %", lambda sums: sums["experts"], scale=PERCENT),
    "last_experts": Metric("in the last layer, %", lambda sums: sums["last_experts"], scale=PERCENT),
    "answers": Metric(
        "answers' log-likelihood, 10⁻³ nats a token",
        lambda sums: sums["answer_after"] - sums["answer_before"],
        below="answer_tokens",
        scale=THOUSANDTHS,
        digits=3,
    ),
}
# What a method loses, which has a ratio to what another loses.
LOSSES = {
    "kl": Metric("KL", lambda sums: sums["kl"], digits=3),
    "agreed": Metric("changed top tokens", lambda sums: sums["tokens"] - sums["agreed"], digits=3),
    "experts": Metric("changed sets of experts", lambda sums: sums["tokens"] - sums["experts"], digits=3),
}


class Comparison:
    """Records by amount of calibration text, method and place. Raises YardstickError if there is none."""

    def __init__(self, records: Iterable[Record], titles: Mapping[str, str], ours: tuple[str, ...]) -> None:
        """titles: of the methods, in the order of the tables. ours: those compared with each other one."""
        self._records = {cell_of(record): record for record in records}
        if not self._records:
            raise YardstickError("no cell is done")
        self._titles, self._ours = titles, ours
        self.tokens = sorted({cell.tokens for cell in self._records if cell.tokens is not None}, reverse=True)
        self.models = sorted({cell.model for cell in self._records})

    def as_json(self) -> dict[str, Any]:
        """Return every figure: value, low, high, number of cells."""
        return {
            str(tokens): {
                "means": {
                    method: {key: _plain(figure) for key, figure in row.items()}
                    for method, row in self._means(tokens).items()
                },
                "ratios": {
                    f"{first}/{second}": {key: _plain(figure) for key, figure in row.items()}
                    for (first, second), row in self._ratios(tokens).items()
                },
            }
            for tokens in self.tokens
        }

    def markdown(self, commands: Sequence[str]) -> str:
        """Return the page; commands: what made the records, if the page is to say so."""
        lines = ["# Fidelity over models and draws of calibration documents", "", *self._introduction()]
        lines += ["", *(f"    {command}" for command in commands)] if commands else []
        for tokens in self.tokens:
            lines += ["", f"## About {tokens:,} calibration tokens", "", *self._table_of_means(tokens)]
            lines += ["", *self._table_of_ratios(tokens)]
        lines += ["", "## Seconds", "", *self._table_of_seconds(), "", *self._versions()]
        return "\n".join(lines) + "\n"

    def _cells(self, method: str, tokens: int) -> dict[Place, Record]:
        """Return a method's records; one that needs no calibration has a single place for each model."""
        return {
            (cell.model, ONLY if cell.draw is None else cell.draw): record
            for cell, record in self._records.items()
            if cell.method == method and cell.tokens in (tokens, None)
        }

    def _means(self, tokens: int) -> dict[str, dict[str, Figure]]:
        found = {method: self._cells(method, tokens) for method in self._titles}
        return {
            method: {
                key: mean_over({place: metric.sums(record) for place, record in cells.items()})
                for key, metric in METRICS.items()
            }
            for method, cells in found.items()
            if cells
        }

    def _ratios(self, tokens: int) -> dict[tuple[str, str], dict[str, Figure]]:
        """Return the ratios of our methods to each other one, where they share models and draws."""
        found = {}
        for first in self._ours:
            for second in self._titles:
                pair = self._paired(first, second, tokens)
                if first != second and pair and (second, first) not in found:
                    found[first, second] = {key: _ratio(pair, loss) for key, loss in LOSSES.items()}
        return found

    def _paired(self, first: str, second: str, tokens: int) -> dict[Place, tuple[Record, Record]]:
        above, below = self._cells(first, tokens), self._cells(second, tokens)
        partners = {place: below.get(place) or below.get((place[0], ONLY)) for place in above}
        return {place: (above[place], other) for place, other in partners.items() if other is not None}

    def _introduction(self) -> list[str]:
        heldout = next(iter(self._records.values()))["heldout"]
        return [
            f"Models: {', '.join(self.models)}. W4A16, symmetric, groups of 128, routed experts only. "
            f"Measured on {heldout['documents']:,} held-out documents of {heldout['tokens']:,} tokens, "
            "teacher-forced, in float32. KL is that of the release's next token from the source's. Experts "
            "are unchanged where a token is sent to the same set in a layer. The answers' log-likelihood is "
            "the release's minus the source's, on the tokens of the reference's answers.",
            "",
            "Brackets hold 95 % intervals: models, draws and held-out documents are resampled independently "
            "and crossed, which keeps together what cells share (a pigeonhole bootstrap). Ratios are "
            "geometric means over pairs of the same model and draw, that is, of the same calibration tokens. "
            "Where methods have different numbers of cells, compare ratios, not means. Few models cannot "
            "show more than their own range, so the last columns of ratios give each.",
        ]

    def _table_of_means(self, tokens: int) -> list[str]:
        lines = [
            f"| method | cells | {' | '.join(metric.title for metric in METRICS.values())} |",
            f"| --- | ---: |{' ---: |' * len(METRICS)}",
        ]
        for method, row in self._means(tokens).items():
            shown = [METRICS[key].show(figure) for key, figure in row.items()]
            lines.append(f"| {self._titles[method]} | {row['kl'].num_cells} | {' | '.join(shown)} |")
        return lines

    def _table_of_ratios(self, tokens: int) -> list[str]:
        lines = [
            f"| ratio | pairs | {' | '.join(loss.title for loss in LOSSES.values())} | "
            f"{' | '.join(f'KL, {model}' for model in self.models)} |",
            f"| --- | ---: |{' ---: |' * (len(LOSSES) + len(self.models))}",
        ]
        for (first, second), row in self._ratios(tokens).items():
            shown = [LOSSES[key].show(figure) for key, figure in row.items()]
            pairs = self._paired(first, second, tokens)
            for model in self.models:
                own = {place: pair for place, pair in pairs.items() if place[0] == model}
                shown.append(LOSSES["kl"].show(_ratio(own, LOSSES["kl"])) if own else "")
            titles = f"{self._titles[first]} / {self._titles[second]}"
            lines.append(f"| {titles} | {row['kl'].num_cells} | {' | '.join(shown)} |")
        return lines

    def _table_of_seconds(self) -> list[str]:
        """Return the mean seconds of a step, by machine and by how many cells ran at a time."""
        found: dict[tuple[int, str, str, str], list[float]] = {}
        for cell, record in self._records.items():
            for step, seconds in record["seconds"].items():
                key = (cell.tokens or 0, _machine(record), cell.method, step)
                found.setdefault(key, []).append(seconds)
        lines = ["| calibration tokens | machine | method | step | cells | mean, s | range, s |"]
        lines.append("| ---: | --- | --- | --- | ---: | ---: | ---: |")
        for (tokens, machine, method, step), seconds in sorted(found.items(), reverse=True):
            title = self._titles[method]
            least, most = min(seconds), max(seconds)
            lines.append(
                f"| {tokens:,} | {machine} | {title} | {step} | {len(seconds)} | {fmean(seconds):.1f} | "
                f"{least:.1f} to {most:.1f} |"
            )
        return lines

    def _versions(self) -> list[str]:
        found = set()
        for cell, record in self._records.items():
            own = {name: record["machine"][name] for name in ("moe4", "torch", "transformers")}
            versions = record["facts"].get("versions", own)
            listed = ", ".join(f"{name} {number}" for name, number in versions.items())
            found.add(f"- {self._titles[cell.method]}: {listed}.")
        return sorted(found)


def _ratio(pairs: Mapping[Place, tuple[Record, Record]], loss: Metric) -> Figure:
    return ratio_over(
        {place: loss.sums(first) for place, (first, _) in pairs.items()},
        {place: loss.sums(second) for place, (_, second) in pairs.items()},
    )


def _plain(figure: Figure) -> dict[str, Any]:
    low, high = figure.interval.as_list()
    return {"value": figure.value, "low": low, "high": high, "cells": figure.num_cells}


def _machine(record: Record) -> str:
    machine = record["machine"]
    where = machine.get("gpu") or machine["processor"]
    return f"{where}, {machine['num_threads']} threads a cell, {machine['jobs']} at a time"
