"""Does a study's verdict keep its promise? Simulated studies, judged by `segmint.study.statistics` and two rivals.

    python benchmarks/study_statistics.py --studies 1000 --out docs/results/study-statistics.json

Each simulated study has 100 images with 6 classes, a confusion table for each, and strategies that differ from the
baseline by nothing (how often is any of them called different?) or, one of them, by 2 points of mIoU (how often is it
found?). Noise is like that of segmenters trained on 30 labelled images: the difference of two of them has a standard
deviation over seeds of 0.7 points, of which 0.5 come from single images that one seed gets right and another wrong.

- identical: strategies that differ in their seeds alone; "seeds alone": all 0.7 points come from all images alike.
- equal: strategies that do better on some images and worse on others (0.3 points over 100 images), equal on average.
- unsteady: as identical, but the baseline, or one strategy, varies twice as much over seeds.

Rivals: `bootstrap` takes percentiles over resampled seeds and images, `t-test` each difference's own variance over
seeds and no image; both are corrected by Holm.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_1samp

from segmint.functional import metrics
from segmint.study.figures import Arm, Array, Figures
from segmint.study.results import Result
from segmint.study.statistics import LEVEL, compare_all

IMAGES, CLASSES, RESAMPLES = 100, 6, 1000
SLOPE = 1.18
"""By how much mIoU rises with pixel accuracy, near an accuracy of 0.7 with errors that are spread evenly."""
WITHIN, BETWEEN, COMMON = 0.05, 0.49, 0.03


@dataclass(frozen=True)
class Case:
    """What is simulated: `gain` of the first strategy in points; `unsteady` multiplies noise, baseline first.

    The standard deviations of a difference are `within` an image in one seed and `common` to an image in all seeds
    (mIoU, 0..1), and `between` seeds (points).
    """

    name: str
    gain: float = 0.0
    common: float = 0.0
    within: float = WITHIN
    between: float = BETWEEN
    unsteady: tuple[float, ...] = ()


CASES = (
    Case("identical"),
    Case("identical, seeds alone", within=0.01, between=0.69),
    Case("equal", common=COMMON),
    Case("baseline unsteady", unsteady=(2.0,)),
    Case("one unsteady", unsteady=(1.0, 1.0, 2.0)),
    Case("gain 2", gain=2.0),
    Case("gain 2, equal others", gain=2.0, common=COMMON),
)


def simulate(generator: np.random.Generator, case: Case, strategies: int, budgets: int, seeds: int) -> Figures:
    """The figures of one study."""
    arms = {}
    units = metrics.units([""] * IMAGES)
    for budget in range(1, budgets + 1):
        tables = torch.from_numpy(_tables(generator, case, strategies + 1, seeds)).transpose(0, 1)
        drawn = metrics.resample(tables, metrics.mean_iou, units, RESAMPLES, seed=budget).numpy()
        for number in range(strategies + 1):
            name = f"strategy {number}" if number else "baseline"
            results = tuple(Result(name, budget, seed, "done") for seed in range(seeds))
            arms[name, budget] = Arm(results, drawn[:, number].T, np.zeros((seeds, IMAGES)))
    return Figures(arms, "miou", "val", units=IMAGES)


def _tables(generator: np.random.Generator, case: Case, arms: int, seeds: int) -> Array:
    """Confusion tables of all arms and seeds at one budget: [A, N, S, K, K]."""
    scale = np.ones(arms)
    scale[: len(case.unsteady)] = case.unsteady
    # Each of the two arms of a difference brings half of its variance.
    noise = scale[:, None, None] / math.sqrt(2) / SLOPE
    own = case.within * noise * generator.standard_normal((arms, IMAGES, seeds))
    seed = case.between / 100 * noise * generator.standard_normal((arms, 1, seeds))
    common = case.common / math.sqrt(2) / SLOPE * generator.standard_normal((arms, IMAGES, 1))
    together = 0.005 * generator.standard_normal((1, 1, seeds)) + 0.1 * generator.standard_normal((1, IMAGES, 1))
    accuracy = 0.7 + own + seed + common + together
    accuracy[1:2] += case.gain / 100 / SLOPE
    accuracy = np.clip(accuracy, 0, 1)[..., None]
    pixels = 1000 * generator.dirichlet(np.ones(CLASSES), IMAGES)[None, :, None]
    missed = pixels * (1 - accuracy) / (CLASSES - 1)
    return missed[..., None] * (1 - np.eye(CLASSES)) + (pixels * accuracy)[..., None] * np.eye(CLASSES)


def moderated(figures: Figures) -> dict[str, float]:
    """Corrected p-values of `segmint study`, by arm."""
    return {f"{one.strategy}, {one.budget}": one.p_holm for one in compare_all(figures, "baseline")}


def t_test(figures: Figures) -> dict[str, float]:
    """Those of a paired t-test over the seeds of each difference alone."""
    changes = _changes(figures)
    return _holm({name: float(ttest_1samp(change[:, 0], 0).pvalue) for name, change in changes.items()})


def bootstrap(figures: Figures) -> dict[str, float]:
    """Those of percentiles over resampled pairs of seeds, and images."""
    generator, found = np.random.default_rng(0), {}
    for name, change in _changes(figures).items():
        seeds = len(change)
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), change.shape[1] - 1) / seeds
        resampled = np.concatenate([change[:, :1].mean(0), (change[:, 1:].T * drawn).sum(1)])
        found[name] = float(metrics.p_value(torch.from_numpy(resampled)))
    return _holm(found)


def _changes(figures: Figures) -> dict[str, Array]:
    return {
        f"{strategy}, {budget}": arm.figures - figures.arms["baseline", budget].figures
        for (strategy, budget), arm in figures.arms.items()
        if strategy != "baseline"
    }


def _holm(ps: dict[str, float]) -> dict[str, float]:
    return dict(zip(ps, metrics.holm(list(ps.values())), strict=True))


PROCEDURES: dict[str, Callable[[Figures], dict[str, float]]] = {
    "study": moderated,
    "t-test": t_test,
    "bootstrap": bootstrap,
}


def measure(case: Case, strategies: int, budgets: int, seeds: int, studies: int) -> dict[str, float]:
    """For each procedure the share of studies with a false claim, and with the true gain found at the first budget."""
    generator = np.random.default_rng([seeds, strategies, budgets])
    false, found = dict.fromkeys(PROCEDURES, 0), dict.fromkeys(PROCEDURES, 0)
    for _ in range(studies):
        figures = simulate(generator, case, strategies, budgets, seeds)
        for name, procedure in PROCEDURES.items():
            ps = procedure(figures)
            true = {key for key in ps if case.gain and key.startswith("strategy 1,")}
            false[name] += any(p < LEVEL for key, p in ps.items() if key not in true)
            found[name] += bool(case.gain) and ps["strategy 1, 1"] < LEVEL
    row = {f"{name}: false": count / studies for name, count in false.items()}
    return row | ({f"{name}: found": count / studies for name, count in found.items()} if case.gain else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--shapes", default="1x1,4x1,5x4", help="strategies x budgets")
    parser.add_argument("--seeds", default="3,5")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows, started = [], time.perf_counter()
    for seeds in map(int, told.seeds.split(",")):
        for strategies, budgets in (map(int, shape.split("x")) for shape in told.shapes.split(",")):
            for case in (case for case in CASES if len(case.unsteady) <= strategies + 1):
                shares = measure(case, strategies, budgets, seeds, told.studies)
                rows.append({"case": case.name, "seeds": seeds, "strategies": strategies, "budgets": budgets, **shares})
                figures = ", ".join(f"{key} {100 * share:.1f}%" for key, share in shares.items())
                print(f"{seeds} seeds, {strategies} x {budgets}, {case.name}: {figures}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if told.out:
        facts = {"studies": told.studies, "images": IMAGES, "level": LEVEL, "rows": rows}
        told.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
