"""Two kinds of learning curve: over steps (had it stopped improving?) and over labels (what are they worth?)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import stdtrit

from segmint.study.figures import Array, Figures, Place
from segmint.study.statistics import Level

WORTH = 0.005
"""A rise of less than half a point over the last third of training is called none."""
MIN_POINTS = 4


@dataclass(frozen=True)
class Trend:
    """Where validation scores were going in the last third of training, mean over seeds.

    Attributes:
        rise: over that third, positive is better, in units of the score.
        low: the bound below which it lies with a probability of 1%, as far as noise goes.
    """

    rise: float
    low: float

    @property
    def improving(self) -> bool:
        """Whether it was still rising, beyond noise and by more than `WORTH`."""
        return self.low > 0 and self.rise >= WORTH


def trend(curves: Sequence[Sequence[tuple[int, float]]], lower: bool = False) -> Trend | None:
    """Whether trainings were still improving when they stopped.

    A line is fitted to each seed's validations in the last third of its steps. The error of the mean rise is the larger
    of two: that of the lines' residuals (widened where neighbours resemble each other), and that of the rises' own
    differences from seed to seed.

    Args:
        curves: (step, score) of each seed.
        lower: whether less is better.

    Returns:
        None where no curve has four validations in its last third: nothing is known then.
    """
    lines = [line for line in (_line(curve) for curve in curves) if line is not None]
    if not lines:
        return None
    rises = np.array([rise for rise, _, _ in lines]) * (-1 if lower else 1)
    error = math.sqrt(sum(variance for _, variance, _ in lines)) / len(lines)
    if len(lines) > 1:
        error = max(error, float(rises.std(ddof=1)) / math.sqrt(len(lines)))
    rise, freedom = float(rises.mean()), sum(df for _, _, df in lines)
    return Trend(rise, rise - float(stdtrit(freedom, 0.99)) * error)


def _line(curve: Sequence[tuple[int, float]]) -> tuple[float, float, int] | None:
    """The rise of a line through the last third, its variance and degrees of freedom."""
    last = curve[-1][0] if curve else 0
    points = [(step, score) for step, score in curve if step >= last * 2 / 3 and math.isfinite(score)]
    if len(points) < MIN_POINTS:
        return None
    across, up = np.array(points, float).T
    across = (across - across.mean()) / (last / 3)
    slope = float((across * up).sum() / (across**2).sum())
    residual = up - up.mean() - slope * across
    variance = float((residual**2).sum()) / (len(points) - 2) / float((across**2).sum())
    power = float((residual**2).sum())
    alike = float((residual[1:] * residual[:-1]).sum()) / power if power > 0 else 0.0
    alike = min(0.9, max(0.0, alike))
    return slope, variance * (1 + alike) / (1 - alike), len(points) - 2


@dataclass(frozen=True)
class Saved:
    """How many labels the baseline needs to match a strategy, interpolated on the logarithm of the labels.

    Attributes:
        labels: what the strategy had.
        needed: by the baseline; inf: more than the largest budget of the study, 0: no more than the smallest.
        low, high: its 95% interval, likewise; nan where a seed is not enough for one.
        least, most: the baseline's smallest and largest budgets.
    """

    labels: int
    needed: float
    low: float
    high: float
    least: int
    most: int

    def words(self, value: float) -> str:
        """A number of labels as people say it."""
        if math.isnan(value):
            return "?"
        if math.isinf(value):
            return f"more than {self.most}"
        return f"at most {self.least}" if value == 0 else f"{value:.0f}"

    def __str__(self) -> str:
        told = self.words(self.needed)
        if math.isnan(self.low) or told == self.words(self.low) == self.words(self.high):
            return told
        low, high = (
            self.words(value).replace("at most", "≤").replace("more than", ">") for value in (self.low, self.high)
        )
        return f"{told} ({low} to {high})"


def labels_saved(
    figures: Figures, levels: Mapping[Place, Level], baseline: str, labels: Mapping[int | None, int], seed: int = 0
) -> dict[Place, Saved]:
    """What each strategy is worth in labels, where the baseline has two budgets or more.

    The baseline's curve is made monotone (more labels are not worse; isotonic regression). The interval draws images by
    bootstrap, the same for all, and the noise of seeds from Student's t as the spread of each level has it.

    Args:
        figures: of the finished trials.
        levels: of the same arms, see `segmint.study.statistics.levels`.
        baseline: a strategy.
        labels: how many masks a budget keeps.
        seed: of the draws.

    Returns:
        By strategy and budget, without the baseline's own.
    """
    generator = np.random.default_rng(seed)
    sign = -1.0 if figures.lower else 1.0
    arms = sorted(figures.arms, key=lambda place: (place[0] != baseline, place[0], labels[place[1]]))
    drawn = {place: sign * _draws(figures, place, levels[place], generator) for place in arms}
    points = {labels[budget]: (name, budget) for name, budget in arms if name == baseline}
    if len(points) < 2:
        return {}
    sizes = sorted(points)
    curves = np.stack([drawn[points[size]] for size in sizes], -1)
    curves = np.stack([isotonic_regression(curve).x for curve in curves])
    known = all(levels[points[size]].spread is not None for size in sizes)
    found = {}
    for place in arms:
        if place[0] != baseline:
            needed = _needed(np.log(sizes), curves, drawn[place])
            low, high = np.quantile(needed[1:], [0.025, 0.975], method="inverted_cdf")
            if not known or levels[place].spread is None:
                low = high = math.nan
            found[place] = Saved(labels[place[1]], float(needed[0]), float(low), float(high), sizes[0], sizes[-1])
    return found


def _draws(figures: Figures, place: Place, level: Level, generator: np.random.Generator) -> Array:
    """The mean over seeds, then what it might have been: [1 + R]."""
    mean: Array = figures.arms[place].figures.mean(0)
    mean = np.where(np.isnan(mean), mean[0], mean)
    if level.spread is not None:
        noise = generator.standard_t(level.spread.df, len(mean) - 1) * math.sqrt(level.spread.seeds)
        mean = mean + np.concatenate([[0.0], noise])
    return mean


def _needed(places: Array, curves: Array, target: Array) -> Array:
    """The labels at which each rising curve reaches its target: log labels [B], [R, B], [R] -> [R]."""
    found = np.full(len(target), math.inf)
    for right in range(len(places) - 1, 0, -1):
        before, after = curves[:, right - 1], curves[:, right]
        rise = np.where(after > before, after - before, 1.0)
        share = np.clip((target - before) / rise, 0, 1)
        here = places[right - 1] + (places[right] - places[right - 1]) * share
        found = np.where((target > before) & (target <= after), np.exp(here), found)
    return np.where(target <= curves[:, 0], 0.0, found)
