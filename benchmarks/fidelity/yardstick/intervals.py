"""Means and paired ratios over models, draws and documents, with intervals that respect what cells share.

Cells of one model share its weights, those of one draw their calibration documents, and all the held-out
documents. So models, draws and documents are resampled independently and crossed: Owen's pigeonhole bootstrap
(Ann. Appl. Stat. 1, 2007), which errs on the wide side. n - 1 of n are drawn, with replacement, since drawing
n of so few would make intervals too narrow (Rao and Wu, J. Am. Stat. Assoc. 83, 1988). Of a single model or
draw nothing can be learned of others: it stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe4.evaluate.statistics import DRAWS, LEVEL, SEED, Interval

Array = NDArray[np.float64]
Sums = tuple[Array, Array]
"""A cell's numerators and denominators [documents]; their sums' ratio is the cell's value."""
Place = tuple[str, int]
"""A model and a draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A value over so many cells, and its interval at the level of confidence `LEVEL`."""

    value: float
    interval: Interval
    num_cells: int


def mean_over(cells: Mapping[Place, Sums]) -> Figure:
    """Return the mean of the cells' values. Raises ValueError if there is no cell."""
    weights = _Resampled(cells)
    return weights.figure(weights.values(cells))


def ratio_over(above: Mapping[Place, Sums], below: Mapping[Place, Sums]) -> Figure:
    """Return the geometric mean of the ratios of two methods' cells, paired by place.

    Places that only one of them has are left out. Raises ValueError if they share none.
    """
    shared = sorted(above.keys() & below.keys())
    first, second = ({place: cells[place] for place in shared} for cells in (above, below))
    weights = _Resampled(first)
    logs = np.log(weights.values(first)) - np.log(weights.values(second))
    found = weights.figure(logs)
    interval = Interval(low=float(np.exp(found.interval.low)), high=float(np.exp(found.interval.high)))
    return Figure(value=float(np.exp(found.value)), interval=interval, num_cells=found.num_cells)


class _Resampled:
    """How often each cell and each document is drawn; row 0 has each once."""

    def __init__(self, cells: Mapping[Place, Sums]) -> None:
        if not cells:
            raise ValueError("there are no cells to compare")
        generator = np.random.default_rng(SEED)
        models, draws = (sorted(set(names)) for names in zip(*cells, strict=True))
        (num_documents,) = {len(above) for above, _ in cells.values()}
        of_models = _draw(generator, len(models))
        of_draws = _draw(generator, len(draws))
        self._documents = _draw(generator, num_documents)
        self._cells = np.stack(
            [
                of_models[:, models.index(model)] * of_draws[:, draws.index(draw)]
                for model, draw in sorted(cells)
            ],
            axis=1,
        )

    def values(self, cells: Mapping[Place, Sums]) -> Array:
        """Return [1 + DRAWS, cells]: the cells' values with each draw of documents."""
        above, below = (np.stack([cells[place][part] for place in sorted(cells)], axis=1) for part in (0, 1))
        return np.asarray((self._documents @ above) / (self._documents @ below))

    def figure(self, values: Array) -> Figure:
        """Return the mean of values [1 + DRAWS, cells]; a draw that meets none of the cells is left out."""
        totals = self._cells.sum(axis=1)
        met = totals > 0
        means = (self._cells * values).sum(axis=1)[met] / totals[met]
        low, high = np.quantile(means[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = Interval(low=float(low), high=float(high))
        return Figure(value=float(means[0]), interval=interval, num_cells=values.shape[1])


def _draw(generator: np.random.Generator, num: int) -> Array:
    """Return [1 + DRAWS, num] counts of num - 1 draws, after a row of ones."""
    if num == 1:
        return np.ones((1 + DRAWS, 1))
    counts = generator.multinomial(num - 1, np.full(num, 1 / num), size=DRAWS)
    return np.concatenate([np.ones((1, num)), counts])
