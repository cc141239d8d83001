"""Gains, their intervals and p-values: closed forms, SciPy, and simulated studies."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from segmint.study.figures import Arm, Figures
from segmint.study.results import Result
from segmint.study.statistics import Spread, compare_all, image_variances, levels

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "study_statistics.py"


def arm(name: str, figures: np.ndarray, budget: int = 10, seeds: tuple[int, ...] | None = None) -> Arm:
    seeds = seeds or tuple(range(len(figures)))
    results = tuple(Result(name, budget, seed, "done") for seed in seeds)
    return Arm(results, figures, np.zeros((len(figures), 5)))


def study(**scores: list[float]) -> Figures:
    """Arms whose figures do not depend on the images."""
    arms = {(name, 10): arm(name, np.repeat(np.array(some)[:, None], 51, 1)) for name, some in scores.items()}
    return Figures(arms, "miou", "val", units=100)


def only(figures: Figures, name: str = "other"):
    return next(one for one in compare_all(figures, "base") if one.strategy == name)


def test_without_noise_of_images_one_strategy_is_judged_by_the_paired_t_test():
    base, other = [0.50, 0.52, 0.49, 0.51], [0.53, 0.54, 0.53, 0.52]
    one, test = only(study(base=base, other=other)), stats.ttest_rel(other, base)
    assert one.p == pytest.approx(test.pvalue, rel=1e-3)
    assert (one.low, one.high) == pytest.approx(test.confidence_interval())
    assert one.gain == pytest.approx(0.025)
    assert one.seed_deviation == pytest.approx(np.std(np.subtract(other, base), ddof=1))


def test_with_noise_of_images_alone_the_interval_is_theirs():
    spread = Spread(0.0, 2.0, 0.01, 101)
    assert spread.critical(0.05) == pytest.approx(stats.t.isf(0.025, 100))
    assert spread.interval(1.0)[1] == pytest.approx(1 + stats.t.isf(0.025, 100) * 0.1)


@pytest.mark.parametrize("images", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("p", [0.2, 0.01, 1e-6])
def test_the_p_value_is_where_the_interval_touches_zero(images, p):
    spread = Spread(0.4, 3.0, images, 100)
    mean = spread.critical(p) * spread.error
    assert spread.p_value(mean) == pytest.approx(p, rel=1e-3)
    assert spread.p_value(-mean) == pytest.approx(p, rel=1e-3)
    assert spread.interval(mean, p)[0] == pytest.approx(0, abs=1e-9)


def test_no_difference_and_no_variance_have_a_p_value_too():
    still = Spread(0.0, 2.0, 0.0, 100)
    assert still.p_value(0.0) == 1
    assert still.p_value(0.1) < 1e-6
    assert still.interval(0.1) == (0.1, 0.1)


def test_the_image_variances_of_images_is_told_apart_from_that_of_each_seed():
    generator = np.random.default_rng(0)
    common, own = generator.normal(0, 2, (1, 40000)), generator.normal(0, 3, (4, 40000))
    change = np.concatenate([np.zeros((4, 1)), common + own], 1)
    assert image_variances(change) == pytest.approx((4, 9), rel=0.05)
    assert image_variances(np.concatenate([np.zeros((4, 1)), own], 1)) == pytest.approx((0, 9), rel=0.05, abs=0.1)
    assert image_variances(change[:1]) == pytest.approx((13, 0), rel=0.05)
    assert image_variances(change[:, :2]) == (0, 0)


def test_seeds_that_happen_to_agree_are_not_trusted_beyond_what_their_images_tell():
    generator = np.random.default_rng(0)
    drawn = 0.02 + generator.normal(0, 0.005, (3, 501))
    drawn[:, 0] = [0.02, 0.0201, 0.0199]
    arms = {("base", 10): arm("base", np.zeros((3, 501))), ("other", 10): arm("other", drawn)}
    spread = only(Figures(arms, "miou", "val", units=100)).spread
    assert spread.seeds == pytest.approx(0.005**2 / 3, rel=0.1)


def test_copies_of_the_baseline_are_no_different_and_lend_no_steadiness():
    base, other = [0.50, 0.53, 0.49], [0.53, 0.54, 0.53]
    alone = only(study(base=base, other=other))
    beside = only(study(base=base, other=other, copy=base))
    copy = only(study(base=base, other=other, copy=base), "copy")
    assert copy.p == 1
    assert copy.verdict == "neither"
    assert (copy.low, copy.high) == (0, 0)
    assert beside.spread.seeds == pytest.approx(alone.spread.seeds)


def test_other_strategies_lend_their_variance():
    generator = np.random.default_rng(1)
    scores = {f"s{n}": list(0.5 + generator.normal(0, 0.02, 3)) for n in range(6)}
    calm = only(study(base=[0.5, 0.5, 0.5], other=[0.5101, 0.51, 0.5102], **scores))
    alone = only(study(base=[0.5, 0.5, 0.5], other=[0.5101, 0.51, 0.5102]))
    assert alone.p < 0.001
    assert calm.p > 0.1
    assert calm.spread.df == 6


def test_where_less_is_better_a_gain_is_a_fall():
    figures = study(base=[0.50, 0.52, 0.49], other=[0.40, 0.42, 0.40])
    assert only(figures).gain < 0
    assert only(figures).verdict == "worse"
    lower = Figures(figures.arms, "ged", "val", lower=True, units=100)
    assert only(lower).gain > 0
    assert only(lower).verdict == "better"


def test_fewer_than_three_seeds_make_no_claim():
    two = only(study(base=[0.5, 0.51], other=[0.9, 0.91]))
    assert two.verdict == "no claim"
    assert "2 seeds" in two.why
    assert math.isnan(two.p)
    one = only(study(base=[0.5], other=[0.9]))
    assert one.verdict == "no claim"
    assert math.isnan(one.low)
    assert one.gain == pytest.approx(0.4)
    assert "Only one seed" in one.why


def test_only_seeds_that_both_have_count():
    flat = np.repeat(np.array([0.5, 0.6, 0.7, 0.8])[:, None], 9, 1)
    arms = {
        ("base", 10): arm("base", flat),
        ("other", 10): arm("other", flat[:2] + 0.1, seeds=(1, 7)),
        ("third", 10): arm("third", flat + 0.2, seeds=(5, 6, 7, 8)),
    }
    found = {one.strategy: one for one in compare_all(Figures(arms, "miou", "val", units=100), "base")}
    assert found["other"].seeds == (1,)
    assert found["other"].gain == pytest.approx(0.0)
    assert found["third"].seeds == ()
    assert "No seed" in found["third"].why
    assert math.isnan(found["third"].gain)


def test_a_handful_of_images_makes_no_claim():
    figures = study(base=[0.5, 0.51, 0.52], other=[0.9, 0.91, 0.93])
    one = only(Figures(figures.arms, "miou", "val", units=4))
    assert one.verdict == "no claim"
    assert "4 images" in one.why


def test_a_budget_without_its_baseline_is_not_compared():
    figures = study(base=[0.5, 0.51, 0.52], other=[0.6, 0.61, 0.6])
    figures.arms["other", 30] = figures.arms["other", 10]
    assert [one.budget for one in compare_all(figures, "base")] == [10]


def test_comparisons_to_come_count_in_the_correction():
    figures = study(base=[0.50, 0.52, 0.49, 0.51], other=[0.53, 0.54, 0.53, 0.52])
    one, of_many = only(figures), compare_all(figures, "base", planned=10)[0]
    assert of_many.p == one.p
    assert of_many.p_holm == pytest.approx(10 * one.p)
    assert of_many.wide_high > one.wide_high == pytest.approx(one.high)


def test_levels_are_those_of_the_t_interval_where_there_is_one_arm():
    scores = [0.50, 0.53, 0.49]
    level = levels(study(base=scores))["base", 10]
    bounds = stats.ttest_1samp(scores, 0).confidence_interval()
    assert (level.mean, level.low, level.high) == pytest.approx((np.mean(scores), *bounds))
    assert level.deviation == pytest.approx(np.std(scores, ddof=1))
    assert levels(study(base=[0.5]))["base", 10].spread is None


def test_levels_stay_where_scores_can_be():
    high, low = (levels(study(base=scores))["base", 10] for scores in ([0.99, 0.90, 1.0], [0.01, 0.1, 0.0]))
    assert high.high == 1
    assert low.low == 0
    assert high.low > 0.5
    figures = study(base=[0.01, 1.9, 0.2])
    distance = levels(Figures(figures.arms, "ged", "val", lower=True, units=100))["base", 10]
    assert distance.low == 0
    assert distance.high > 1


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("study_statistics", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_statistics"] = module
    spec.loader.exec_module(module)
    module.RESAMPLES = 100
    module.PROCEDURES = {"study": module.moderated}
    yield module
    del sys.modules["study_statistics"]


@pytest.mark.parametrize("name", ["identical", "identical, seeds alone", "equal"])
def test_strategies_that_do_not_differ_are_called_different_in_one_study_of_twenty_at_most(simulation, name):
    case = next(case for case in simulation.CASES if case.name == name)
    assert simulation.measure(case, strategies=4, budgets=1, seeds=3, studies=200)["study: false"] <= 0.05


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.6), (5, 0.9)])
def test_a_true_gain_of_two_points_is_found(simulation, seeds, least):
    case = next(case for case in simulation.CASES if case.name == "gain 2")
    shares = simulation.measure(case, strategies=4, budgets=1, seeds=seeds, studies=60)
    assert shares["study: found"] >= least
    assert shares["study: false"] <= 0.05
