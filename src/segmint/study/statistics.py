"""Paired gains over the baseline, with intervals and p-values that hold with as few as three seeds.

A bootstrap over three seeds calls identical strategies different far too often where they vary by seed more than by
image, and t-tests on three seeds see next to nothing. What is done here lies between (benchmarks/study_statistics.py):

- The gain is the mean over seeds of the difference to the baseline with the same seed, on the same images.
- Its variance has two parts. Seeds: the variance of the differences, drawn towards that of the budget's other
  strategies (a moderated t-test, Smyth 2004, with a weight that is fixed and not estimated), and not less than what
  resampling images changes in each seed apart, which is a part of it. Images: what resampling them, or groups of them,
  changes in all seeds alike.
- Two parts with unequal degrees of freedom: critical values are Cochran and Cox's (1950), which Welch's would undercut.
  Half of the images' part in the variance over seeds counts as known as well as images are.
- All comparisons of a study are one family: p-values are corrected by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from segmint.functional.metrics import holm
from segmint.study.figures import Arm, Array, Figures, Place

LEVEL = 0.05
MIN_SEEDS = 3
MIN_UNITS = 5
BORROWED = 4.0
"""At most so many degrees of freedom are borrowed from other strategies."""
TRUSTED = 0.5
"""The share of the images' part in the variance over seeds that counts as known; more makes verdicts too bold."""
SMALLEST = 1e-9
"""No p-value is told smaller."""

Verdict = Literal["better", "worse", "neither", "no claim"]


@dataclass(frozen=True)
class Spread:
    """How sure a mean over seeds is.

    Attributes:
        seeds: its variance by seeds, with `df` degrees of freedom.
        images: its variance by images, the part common to all seeds, with `units` - 1 degrees of freedom.
        known: the part of `seeds` that is known as well as `images`.
    """

    seeds: float
    df: float
    images: float
    units: int
    known: float = 0.0

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.seeds + self.images)

    def critical(self, p: float) -> float:
        """How many standard errors from zero a mean is with a two-sided p-value of p (Cochran & Cox 1950)."""
        variance = self.seeds + self.images
        share = (self.seeds - self.known) / variance if variance else 1.0
        bounds = [-float(stdtrit(df, p / 2)) if df > 0 else math.inf for df in (self.df, self.units - 1)]
        return sum(part * bound for part, bound in zip((share, 1 - share), bounds, strict=True) if part > 0)

    def p_value(self, mean: float) -> float:
        """Two-sided, for "the mean is zero"; at least `SMALLEST`."""
        if mean == 0 or self.error == 0:
            return 1.0 if mean == 0 else SMALLEST
        size = abs(mean) / self.error
        low, high = math.log(SMALLEST), 0.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if size > self.critical(math.exp(middle)) else (middle, high)
        return math.exp(high)

    def interval(self, mean: float, p: float = LEVEL) -> tuple[float, float]:
        """The bounds of the 1 - p interval."""
        half = self.critical(p) * self.error if self.error else 0.0
        return mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """A strategy against the baseline, at one budget.

    Attributes:
        strategy, budget: which.
        seeds: those that both have finished.
        gain: in units of the measure; positive is better, whichever way the measure runs. nan without a common seed.
        low, high: its 95% interval; nan with fewer than two seeds. `wide_low`, `wide_high`: the same for all the
            study's comparisons at once (Bonferroni).
        seed_deviation: the standard deviation over seeds of the difference.
        spread: what the interval is made of; None with fewer than two seeds.
        p, p_holm: against "no difference", as it is and corrected for all comparisons; nan where no claim is made.
        verdict: "no claim" with fewer than three seeds or five images or groups.
        why: in a sentence why no claim is made; "" where one is.
    """

    strategy: str
    budget: int | None
    seeds: tuple[int, ...]
    gain: float
    low: float
    high: float
    wide_low: float
    wide_high: float
    seed_deviation: float
    spread: Spread | None
    p: float
    p_holm: float
    verdict: Verdict
    why: str

    @property
    def place(self) -> Place:
        """Strategy and budget."""
        return self.strategy, self.budget


def compare_all(figures: Figures, baseline: str, planned: int | None = None) -> list[Comparison]:
    """Every strategy against the baseline at every budget.

    Args:
        figures: of the finished trials.
        baseline: a strategy.
        planned: how many comparisons the study makes when it is complete; None: those that there are. While a study
            runs, those to come count as well, so that a verdict does not fade as they come in.

    Returns:
        One for each arm but the baseline's whose budget the baseline has, too.
    """
    found = []
    for budget in dict.fromkeys(budget for _, budget in figures.arms):
        base = figures.arms.get((baseline, budget))
        if base is not None:
            arms = {place: arm for place, arm in figures.arms.items() if place[1] == budget and place[0] != baseline}
            found += _at_budget(base, arms, figures)
    able = [one for one in found if not one[2]]
    family = max(len(found), planned or 0)
    ps = [spread.p_value(float(change[:, 0].mean())) if spread else 1.0 for _, change, _, spread, _ in able]
    adjusted = holm([*ps, *[1.0] * (family - len(ps))])
    by_place = {one[0]: (p, p_holm) for one, p, p_holm in zip(able, ps, adjusted, strict=False)}
    return [_comparison(*one, by_place.get(one[0], (math.nan, math.nan)), family) for one in found]


_Found = tuple[Place, Array, str, Spread | None, tuple[int, ...]]


def _at_budget(base: Arm, arms: Mapping[Place, Arm], figures: Figures) -> list[_Found]:
    """Of each arm: its place, its gains [S, 1 + R], why no claim is made, their spread, the seeds."""
    sign = -1.0 if figures.lower else 1.0
    shared = {place: tuple(seed for seed in arm.seeds if seed in base.seeds) for place, arm in arms.items()}
    changes = {place: sign * (_rows(arm, shared[place]) - _rows(base, shared[place])) for place, arm in arms.items()}
    spreads = spread_all(list(changes.values()), [shared[place] for place in changes], figures.units)
    return [
        (place, changes[place], _why_not(changes[place], figures), spread, shared[place])
        for place, spread in zip(changes, spreads, strict=True)
    ]


def _rows(arm: Arm, seeds: Sequence[int]) -> Array:
    return arm.figures[[arm.seeds.index(seed) for seed in seeds]]


def _why_not(change: Array, figures: Figures) -> str:
    if len(change) < MIN_SEEDS:
        told = {0: "No seed is", 1: "Only one seed is"}.get(len(change), f"Only {len(change)} seeds are")
        return f"{told} finished by both; a claim takes {MIN_SEEDS} or more."
    if figures.units < MIN_UNITS:
        return f"Only {figures.units} images were judged; a claim takes {MIN_UNITS} or more."
    return ""


def spread_all(changes: Sequence[Array], seeds: Sequence[tuple[int, ...]], units: int) -> list[Spread | None]:
    """The spread of each of several mean differences to one baseline at one budget.

    Args:
        changes: of each strategy [S, 1 + R], as it is and with resampled images.
        seeds: of each strategy its S seeds.
        units: how many images or groups were resampled.

    Returns:
        None for those with fewer than two seeds.
    """
    able = [len(change) > 1 for change in changes]
    # Copies of the baseline do not vary at all and would make the others look steadier than they are.
    live = [place for place, change in enumerate(changes) if able[place] and np.any(change[:, 0])]
    borrowed = _borrowed([changes[place][:, 0] for place in live], [seeds[place] for place in live])
    found: list[Spread | None] = []
    for place, change in enumerate(changes):
        if not able[place]:
            found.append(None)
            continue
        own, df = float(change[:, 0].var(ddof=1)), len(change) - 1.0
        extra = min(BORROWED, (len(live) - 1) * df / 2) if place in live else 0.0
        variance = (df * own + extra * borrowed) / (df + extra) if extra > 0 else own
        found.append(_spread(change, variance, df + max(0.0, extra), units))
    return found


def _borrowed(changes: Sequence[Array], seeds: Sequence[tuple[int, ...]]) -> float:
    """The variance over seeds that a difference usually has at this budget.

    The larger of two estimates: the mean of the strategies' own, and twice the residual variance of all arms, baseline
    included, around the means of arms and of seeds, which is steadier but too small where the baseline varies most.
    """
    if not changes:
        return 0.0
    freedom = np.array([len(change) - 1 for change in changes])
    own = float(sum(change.var(ddof=1) * df for change, df in zip(changes, freedom, strict=True)) / freedom.sum())
    every = sorted(set.intersection(*map(set, seeds)))
    if len(every) < 2:
        return own
    table = np.stack(
        [change[[some.index(seed) for seed in every]] for change, some in zip(changes, seeds, strict=True)]
    )
    table = np.concatenate([np.zeros((1, len(every))), table])
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return max(own, 2 * float((residual**2).sum()) / (len(changes) * (len(every) - 1)))


def image_variances(change: Array) -> tuple[float, float]:
    """The variance by images that all seeds have in common, and that of each apart: [S, 1 + R] -> both, at least 0.

    Resampling images changes each seed's difference by a common part, of variance c, and by one of its own, of
    variance i: the mean over seeds varies by c + i / S, a single seed by c + i.
    """
    count = len(change)
    drawn = change[:, 1:]
    drawn = drawn[:, ~np.isnan(drawn).any(0)]
    if drawn.shape[1] < 2:
        return 0.0, 0.0
    mean, single = float(drawn.mean(0).var(ddof=1)), float(drawn.var(1, ddof=1).mean())
    if count < 2:
        return mean, 0.0
    return max(0.0, (count * mean - single) / (count - 1)), max(0.0, (single - mean) * count / (count - 1))


def _spread(change: Array, variance: float, df: float, units: int) -> Spread:
    """That of a mean over seeds, whose variance over seeds is not less than that which images bring to each apart."""
    (common, apart), count = image_variances(change), len(change)
    return Spread(max(variance, apart) / count, df, common, units, TRUSTED * apart / count)


def _comparison(
    place: Place,
    change: Array,
    why: str,
    spread: Spread | None,
    seeds: tuple[int, ...],
    ps: tuple[float, float],
    family: int,
) -> Comparison:
    gain = float(change[:, 0].mean()) if len(change) else math.nan
    low = high = wide_low = wide_high = deviation = math.nan
    if spread is not None:
        deviation = float(change[:, 0].std(ddof=1))
        low, high = spread.interval(gain)
        wide_low, wide_high = spread.interval(gain, LEVEL / max(1, family))
    verdict: Verdict = "no claim" if why else "neither"
    if not why and ps[1] < LEVEL:
        verdict = "better" if gain > 0 else "worse"
    return Comparison(*place, seeds, gain, low, high, wide_low, wide_high, deviation, spread, *ps, verdict, why)


@dataclass(frozen=True)
class Level:
    """What an arm reaches: the mean over seeds, with its 95% interval over seeds and images (nan with one seed).

    The interval is cut off where no score can be: below 0, and above 1 where more is better.

    Attributes:
        deviation: the standard deviation over seeds; nan with one.
        spread: what the interval is made of; None with one seed.
    """

    mean: float
    low: float
    high: float
    deviation: float
    spread: Spread | None


def levels(figures: Figures) -> dict[Place, Level]:
    """The mean of every arm, in units of the measure. Variances over seeds are moderated as those of gains are."""
    found: dict[Place, Level] = {}
    for budget in dict.fromkeys(budget for _, budget in figures.arms):
        arms = {place: arm for place, arm in figures.arms.items() if place[1] == budget}
        own = [(arm.figures[:, 0].var(ddof=1), len(arm.seeds) - 1) for arm in arms.values() if len(arm.seeds) > 1]
        freedom = sum(df for _, df in own)
        usual = float(sum(variance * df for variance, df in own) / freedom) if own else 0.0
        for place, arm in arms.items():
            found[place] = _level(arm, usual, freedom - len(arm.seeds) + 1, figures)
    return found


def _level(arm: Arm, usual: float, others: int, figures: Figures) -> Level:
    mean, count = float(arm.figures[:, 0].mean()), len(arm.seeds)
    if count < 2:
        return Level(mean, math.nan, math.nan, math.nan, None)
    variance, df = float(arm.figures[:, 0].var(ddof=1)), count - 1
    extra = min(BORROWED, float(others))
    moderated = (df * variance + extra * usual) / (df + extra)
    spread = _spread(arm.figures, moderated, df + extra, figures.units)
    low, high = spread.interval(mean)
    low, high = max(low, min(0.0, mean)), high if figures.lower else min(high, max(1.0, mean))
    return Level(mean, low, high, math.sqrt(variance), spread)
