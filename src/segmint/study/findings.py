"""All that a study has found so far, a row for each strategy and budget: what page, answer and exports say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segmint.evaluation.files import read_json
from segmint.study.curves import Saved, Trend, labels_saved, trend
from segmint.study.figures import RESAMPLES, Arm, Figures, read_figures
from segmint.study.plan import Study, by_size
from segmint.study.results import Result
from segmint.study.statistics import Comparison, Level, compare_all, levels

TOLERANCE = 0.01
"""Steps that differ by less are equal."""


@dataclass(frozen=True)
class Cost:
    """Of a trial, mean over the finished ones.

    Attributes:
        own, shared: minutes of the commands that it alone needed, and of those that others needed as well.
        steps: that count; `shared_steps`: those of generators.
        energy: watt-hours, own and shared, where the study says how many watts the machine takes; else nan.
    """

    own: float
    shared: float
    steps: float
    shared_steps: float
    energy: float


@dataclass(frozen=True)
class Row:
    """A strategy at a budget.

    Attributes:
        strategy, budget: which; `labels`: how many masks that is, 0 where not known yet.
        trials: planned; `done`: finished and judged; `failed`: ended otherwise.
        level: what it reaches; None without a finished trial.
        comparison: with the baseline; None for the baseline, or where either has no finished trial.
        trend: whether its mIoU was still improving; None where not known.
        saved: what it is worth in labels; None where not known.
        cost: None without a finished trial.
        doubts: in sentences, why a better result is not claimed all the same.
    """

    strategy: str
    budget: int | None
    labels: int
    trials: int
    done: int
    failed: int
    level: Level | None
    comparison: Comparison | None
    trend: Trend | None
    saved: Saved | None
    cost: Cost | None
    doubts: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """That of the comparison; "baseline" or "" where there is none; "in doubt" for what is not claimed."""
        if self.comparison is None:
            return ""
        doubtful = self.doubts and self.comparison.verdict in ("better", "worse")
        return "in doubt" if doubtful else self.comparison.verdict


@dataclass(frozen=True)
class Findings:
    """Of a study so far.

    Attributes:
        study: its settings.
        results: of all trials that ended.
        rows: by strategy, then budget, as the study names them.
        figures: what was compared.
        notes: sentences about what is missing or damaged.
    """

    study: Study
    results: tuple[Result, ...]
    rows: tuple[Row, ...]
    figures: Figures
    notes: tuple[str, ...]

    @property
    def planned(self) -> int:
        """How many trials there are in all."""
        return sum(row.trials for row in self.rows)

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        return len(self.results) >= self.planned

    @property
    def budgets(self) -> list[int | None]:
        """Those of all strategies, from the fewest labels to the most."""
        return by_size(self.study.budgets)

    def row(self, strategy: str, budget: int | None) -> Row:
        """That of a strategy and budget; one without trials where they are no part of the study."""
        none = Row(strategy, budget, 0, 0, 0, 0, None, None, None, None, None)
        return next((row for row in self.rows if (row.strategy, row.budget) == (strategy, budget)), none)


def find(folder: Path, study: Study, results: Sequence[Result], resamples: int = RESAMPLES) -> Findings:
    """Compare all that is finished.

    Args:
        folder: the study's.
        study: its settings.
        results: its trials that ended, see `segmint.study.outcomes.current_results`.
        resamples: of the images.

    Raises:
        SegmintError: trials were judged on different images.
    """
    figures = read_figures(folder, results, study.metric, study.split, resamples)
    labels = {budget: _labels(folder, budget, results) for budget in study.every_budget}
    reached = levels(figures)
    comparisons = {one.place: one for one in compare_all(figures, study.baseline, study.comparisons)}
    known = replace(figures, arms={place: arm for place, arm in figures.arms.items() if labels[place[1]]})
    saved = labels_saved(known, reached, study.baseline, labels)
    places = [(name, at) for name in study.strategies for at in study.every_budget if name in study.strategies_at(at)]
    trends = {place: trend([one.curve for one in _of(results, *place) if one.status == "done"]) for place in places}
    rows = []
    for name, budget in places:
        place, ended = (name, budget), _of(results, name, budget)
        arm, comparison = figures.arms.get(place), comparisons.get(place)
        base = figures.arms.get((study.baseline, budget))
        rows.append(
            Row(
                name,
                budget,
                labels[budget],
                len(study.seeds),
                len(arm.results) if arm else 0,
                sum(one.status != "done" for one in ended),
                reached.get(place),
                comparison,
                trends[place],
                saved.get(place),
                _cost(arm, study) if arm else None,
                _doubts(arm, base, comparison, trends[place], trends[study.baseline, budget]),
            )
        )
    return Findings(study, tuple(results), tuple(rows), figures, figures.problems)


def _of(results: Sequence[Result], name: str, budget: int | None) -> list[Result]:
    return [one for one in results if (one.strategy, one.budget) == (name, budget)]


def _labels(folder: Path, budget: int | None, results: Sequence[Result]) -> int:
    """How many masks a budget keeps, for "all" as a finished run says; 0 where not known."""
    if budget is not None:
        return budget
    for one in results:
        path = folder / one.run / "summary.json"
        if one.budget is None and one.status == "done" and path.is_file():
            return int(read_json(path).get("labelled") or 0)
    return 0


def _cost(arm: Arm, study: Study) -> Cost:
    count = len(arm.results)
    own, shared = (sum(getattr(one, key) for one in arm.results) / count for key in ("seconds", "shared_seconds"))
    steps, shared_steps = (sum(getattr(one, key) for one in arm.results) / count for key in ("steps", "shared_steps"))
    energy = math.nan if study.watts is None else study.watts * (own + shared) / 3600
    return Cost(own / 60, shared / 60, steps, shared_steps, energy)


def _doubts(
    arm: Arm | None, base: Arm | None, comparison: Comparison | None, own: Trend | None, baseline: Trend | None
) -> tuple[str, ...]:
    """Why a verdict is not claimed."""
    if arm is None or base is None or comparison is None:
        return ()
    steps, usual = (sum(one.steps for one in some.results) / len(some.results) for some in (arm, base))
    found = []
    if comparison.verdict == "better" and steps > usual * (1 + TOLERANCE):
        found.append(f"It took {steps:.0f} steps and the baseline {usual:.0f}: not like for like.")
    if comparison.verdict == "worse" and steps < usual * (1 - TOLERANCE):
        found.append(f"It took only {steps:.0f} steps and the baseline {usual:.0f}: not like for like.")
    if comparison.verdict == "better" and baseline is not None and baseline.improving:
        found.append("The baseline was still improving when it stopped: a gain over it is worth nothing.")
    if comparison.verdict == "worse" and own is not None and own.improving:
        found.append("It was still improving when it stopped, and might catch up.")
    return tuple(found)
