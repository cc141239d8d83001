"""Whether trainings had stopped improving, and what strategies are worth in labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segmint.study.curves import Saved, labels_saved, trend
from segmint.study.figures import Arm, Figures
from segmint.study.results import Result
from segmint.study.statistics import levels


def curves(rise: float, noise: float, seeds: int = 3, count: int = 20, start: int = 0) -> list[list[tuple[int, float]]]:
    """Scores that rise by `rise` over the last third of 600 steps."""
    steps = np.linspace(600 / count, 600, count)
    found = []
    for seed in range(start, start + seeds):
        scores = 0.5 + rise * (steps - 600) / 200 + np.random.default_rng(seed).normal(0, noise, count)
        found.append([(int(step), float(score)) for step, score in zip(steps, scores, strict=True)])
    return found


def test_a_steady_rise_is_seen_and_told():
    found = trend(curves(0.03, 0.002))
    assert found.improving
    assert found.rise == pytest.approx(0.03, abs=0.006)


def test_where_less_is_better_a_rise_is_none():
    assert not trend(curves(0.03, 0.002), lower=True).improving
    assert trend(curves(-0.03, 0.002), lower=True).improving


def test_noise_is_no_rise():
    called = sum(trend(curves(0.0, 0.01, start=3 * number)).improving for number in range(300))
    assert called <= 12


def test_a_rise_too_small_to_matter_is_none():
    assert not trend(curves(0.002, 0.0)).improving


def test_one_seed_that_rises_among_three_is_not_enough():
    assert not trend([*curves(0.0, 0.001, seeds=2), *curves(0.05, 0.001, seeds=1)]).improving


def test_noise_that_wanders_is_trusted_less():
    wander = np.cumsum(np.random.default_rng(0).normal(0, 0.005, 200)) + np.linspace(0, 0.1, 200)
    jumpy = np.random.default_rng(0).permutation(wander - np.linspace(0, 0.1, 200)) + np.linspace(0, 0.1, 200)
    slow, quick = (trend([list(enumerate(map(float, 0.3 + some), 1))]) for some in (wander, jumpy))
    assert slow.rise - slow.low > quick.rise - quick.low


@pytest.mark.parametrize("some", [[], [[]], [[(600, 0.5)]], curves(0.1, 0, count=6)])
def test_too_few_validations_say_nothing(some):
    assert trend(some) is None


SIZES = {10: 10, 40: 40, 160: 160, None: 640}


def figures(base: list[float], other: dict[int | None, float], noise: float = 0.0, seeds: int = 3) -> Figures:
    """A baseline at the budgets 10, 40, 160 and all, and another at some."""
    generator, arms = np.random.default_rng(0), {}
    drawn = generator.normal(0, noise, 201) * (np.arange(201) > 0)
    for name, scores in (("base", dict(zip(SIZES, base, strict=True))), ("other", other)):
        for budget, score in scores.items():
            table = score + drawn + generator.normal(0, noise, (seeds, 1))
            results = tuple(Result(name, budget, seed, "done") for seed in range(seeds))
            arms[name, budget] = Arm(results, table, np.zeros((seeds, 4)))
    return Figures(arms, "miou", "val", units=100)


def saved(found: Figures, labels: dict[int | None, int] | None = None) -> dict:
    return labels_saved(found, levels(found), "base", labels or SIZES)


def test_labels_are_interpolated_on_their_logarithm():
    found = saved(figures([0.1, 0.2, 0.3, 0.4], {10: 0.25, 40: 0.4, 160: 0.5, None: 0.05}))
    assert found["other", 10].needed == pytest.approx(80)
    assert found["other", 40].needed == pytest.approx(640)
    assert math.isinf(found["other", 160].needed)
    assert str(found["other", 160]) == "more than 640"
    assert found["other", None].needed == 0
    assert str(found["other", None]) == "at most 10"
    assert str(found["other", 10]) == "80"


def test_a_baseline_that_dips_is_made_monotone():
    found = saved(figures([0.1, 0.35, 0.25, 0.5], {10: 0.4}))
    assert found["other", 10].needed == pytest.approx(160 * 4 ** (0.1 / 0.2))


def test_a_curve_that_is_all_but_level_overflows_nowhere():
    found = saved(figures([0.1, 0.3, 0.3 + 1e-9, 0.3 + 2e-9], {10: 0.9, 40: 0.2}))
    assert math.isinf(found["other", 10].needed)
    assert found["other", 40].needed == pytest.approx(20)


def test_the_interval_holds_what_is_needed_and_grows_with_the_noise():
    some, more = (saved(figures([0.1, 0.2, 0.3, 0.4], {10: 0.25}, noise))["other", 10] for noise in (0.005, 0.02))
    assert some.low < 80 < some.high
    assert more.high / more.low > some.high / some.low
    assert str(some) == f"{some.needed:.0f} ({some.low:.0f} to {some.high:.0f})"


def test_where_less_is_better_the_curve_falls():
    found = figures([0.4, 0.3, 0.2, 0.1], {10: 0.25})
    lower = Figures(found.arms, "ged", "val", lower=True, units=100)
    assert saved(lower)["other", 10].needed == pytest.approx(80)


def test_one_seed_has_no_interval_and_one_budget_no_curve():
    found = saved(figures([0.1, 0.2, 0.3, 0.4], {10: 0.25}, seeds=1))
    assert math.isnan(found["other", 10].low)
    assert str(found["other", 10]) == "80"
    one = figures([0.1, 0.2, 0.3, 0.4], {10: 0.25})
    assert saved(Figures({k: v for k, v in one.arms.items() if k[1] == 10}, "miou", "val", units=100)) == {}


def test_numbers_of_labels_in_words():
    one = Saved(10, 25.4, 0.0, math.inf, 10, 600)
    assert str(one) == "25 (≤ 10 to > 600)"
    assert one.words(math.nan) == "?"
