"""What to use on this data, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmint.evaluation.files import write_json
from segmint.study.findings import Findings, Row
from segmint.study.plan import told_budget
from segmint.study.statistics import MIN_SEEDS

FILE = "answer.json"

NAMES: Mapping[str, str] = {"miou": "mIoU", "ged": "GED", "matched_iou": "matched IoU", "dice": "Dice", "ece": "ECE"}


@dataclass(frozen=True)
class Answer:
    """What a study says.

    Attributes:
        recommended: the strategy to train on all labels; None as long as nothing is finished.
        decided: whether that is a finding; False where too few seeds are finished or a doubt stands in the way, and the
            baseline is recommended for want of anything better.
        kind: "better" (a strategy beats the baseline), "neither", or "open" (not decided).
        headline: the answer in a sentence or two; `details`: why, in some more.
        by_budget: for each budget, fewest labels first, {"budget", "recommended", "gain"}.
        claims: each comparison with its figures and a sentence.
        cautions: in sentences, what to mind.
        finished: whether all trials have ended.
    """

    recommended: str | None
    decided: bool
    kind: str
    headline: str
    details: str
    by_budget: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    cautions: list[str]
    finished: bool


def write_answer(folder: Path, answer: Answer) -> Path:
    """Write answer.json to a temporary name, then rename it; its "reason" is headline and details together."""
    reason = f"{answer.headline} {answer.details}".strip()
    return write_json(folder / FILE, {"recommended": answer.recommended, "reason": reason, **asdict(answer)})


def decide(findings: Findings) -> Answer:
    """The answer that the findings allow.

    What is recommended is what was best with the most labels: of the strategies that are better there beyond chance and
    doubt, the one with the largest gain; else the baseline.
    """
    baseline, budgets = findings.study.baseline, findings.budgets
    best = {budget: _best(findings, budget) for budget in budgets}
    most = budgets[-1]
    reached = [budget for budget in budgets if findings.row(baseline, budget).level is not None]
    claims = [_claim(findings, row) for row in findings.rows if row.comparison is not None]
    rivals = _rivals(findings)
    decided = best[most] is not None or (
        not all(map(_unjudged, rivals)) and not any(_might_win(findings, row) for row in rivals)
    )
    by_budget = [
        {
            "budget": budget,
            "recommended": row.strategy if (row := best[budget]) else baseline if budget in reached else None,
            "gain": row.comparison.gain if row and row.comparison else None,
        }
        for budget in budgets
    ]
    if not findings.figures.arms:
        head, why, kind = "No trial is finished yet: there is nothing to say.", "", "open"
    elif best[most] is not None:
        head, why, kind = *_win(findings, best[most]), "better"
    elif not decided:
        head, why = _undecided(findings, best)
        kind = "open"
    else:
        head, why, kind = *_no_win(findings, best), "neither"
    winner = best[most]
    return Answer(
        recommended=winner.strategy if winner else baseline if reached else None,
        decided=decided,
        kind=kind,
        headline=head,
        details=why,
        by_budget=by_budget,
        claims=claims,
        cautions=_cautions(findings),
        finished=findings.finished,
    )


def _rivals(findings: Findings) -> list[Row]:
    """What is compared with the baseline at the most labels."""
    baseline, most = findings.study.baseline, findings.budgets[-1]
    return [row for row in findings.rows if row.budget == most and row.strategy != baseline]


def _unjudged(row: Row) -> bool:
    """Whether there are too few finished trials to say anything of a strategy."""
    return row.verdict in ("", "no claim")


def _might_win(findings: Findings, row: Row) -> bool:
    """Whether a strategy that is not shown to be better is not shown to be no better, either."""
    if row.comparison is None:
        return not findings.finished
    return row.verdict in ("in doubt", "no claim") and row.comparison.gain > 0


def _best(findings: Findings, budget: int | None) -> Row | None:
    rows = [row for row in findings.rows if row.budget == budget and row.verdict == "better"]
    return max(rows, key=lambda row: row.comparison.gain if row.comparison else 0.0, default=None)


def _claim(findings: Findings, row: Row) -> dict[str, Any]:
    one = row.comparison
    assert one is not None
    return {
        "strategy": row.strategy,
        "budget": row.budget,
        "seeds": list(one.seeds),
        "gain": one.gain,
        "low": one.low,
        "high": one.high,
        "p": one.p,
        "p_holm": one.p_holm,
        "verdict": row.verdict,
        "sentence": _sentence(findings, row),
    }


def measure_name(metric: str) -> str:
    """As people write it."""
    return NAMES.get(metric, metric.replace("_", " "))


def images_name(split: str) -> str:
    """ "test images", "validation images"."""
    return f"{'validation' if split == 'val' else split} images"


def points(value: float, digits: int = 1) -> str:
    """A difference in points (hundredths), with its sign."""
    return "?" if math.isnan(value) else f"{100 * value:+.{digits}f}".replace("-", "−")


def with_labels(row: Row) -> str:
    """ "30 labels", "all 600 labels"."""
    return f"all {row.labels} labels" if row.budget is None and row.labels else told_budget(row.budget)


def _gain(findings: Findings, row: Row) -> str:
    """A gain in words, the way the measure goes: "mIoU 1.3 points [0.4, 2.2] higher"."""
    one, name = row.comparison, measure_name(findings.study.metric)
    if one is None or math.isnan(one.gain):
        return f"{name} not known"
    sign = 1 if one.gain >= 0 else -1
    way = "higher" if (sign > 0) != findings.figures.lower else "lower"
    bounds = (
        ""
        if math.isnan(one.low)
        else "[{}, {}] ".format(*(_number(x) for x in sorted((sign * one.low, sign * one.high))))
    )
    return f"{name} {_number(abs(one.gain))} points {bounds}{way}"


def _number(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _sentence(findings: Findings, row: Row) -> str:
    one = row.comparison
    assert one is not None
    words = {
        "better": "better",
        "worse": "worse",
        "neither": "no difference beyond chance",
        "in doubt": "not claimed",
        "no claim": "no claim",
    }[row.verdict]
    told = (
        f"{row.strategy} with {with_labels(row)}: {_gain(findings, row)} than with {findings.study.baseline}: {words}"
    )
    return " ".join([f"{told}.", *([one.why] if one.why else []), *row.doubts])


def _value(findings: Findings, row: Row) -> str:
    if row.level is None:
        return "?"
    value, name = row.level.mean, measure_name(findings.study.metric)
    return f"{name} {value:.3f}" if findings.figures.lower else f"{100 * value:.1f}% {name}"


def _win(findings: Findings, row: Row | None) -> tuple[str, str]:
    assert row is not None
    baseline = findings.study.baseline
    head = f"Use {row.strategy}: with {with_labels(row)}, {_gain(findings, row)} than with {baseline}."
    why = [f"It reaches {_value(findings, row)}, {baseline} {_value(findings, findings.row(baseline, row.budget))}."]
    if row.saved is not None and row.saved.needed > row.labels:
        why.append(f"To match it, {baseline} would need {row.saved} labels.")
    why += _price(findings, row)
    others = [other for other in findings.rows if other.budget == row.budget and other.verdict == "better"]
    rivals = [other.strategy for other in others if other is not row]
    if rivals:
        why.append(f"Better than {baseline} as well: {_and(rivals)}.")
    why += _not_judged(findings)
    elsewhere = [
        with_labels(other)
        for other in findings.rows
        if other.strategy == row.strategy and other is not row and other.verdict not in ("better", "")
    ]
    if elsewhere:
        why.append(f"It is not shown to be better with {_and(elsewhere)}.")
    return head, " ".join(why)


def _price(findings: Findings, row: Row) -> list[str]:
    base = findings.row(findings.study.baseline, row.budget)
    if row.cost is None or base.cost is None:
        return []
    ours, theirs = row.cost.own + row.cost.shared, base.cost.own + base.cost.shared
    if theirs <= 0:
        return []
    ratio = ours / theirs
    times = "as long as" if 0.95 < ratio < 1.05 else f"{ratio:.1f} times as long as"
    return [f"A trial takes {minutes(ours)}, {times} {findings.study.baseline}."]


def minutes(value: float) -> str:
    """Minutes as people say them."""
    if value >= 90:
        return f"{value / 60:.1f} hours"
    return f"{value:.0f} minutes" if value >= 2 else f"{60 * value:.0f} seconds"


def _given_up(findings: Findings) -> list[str]:
    return list(dict.fromkeys(result.strategy for result in findings.results if result.status == "given up"))


def _not_judged(findings: Findings) -> list[str]:
    given_up = _given_up(findings)
    names = [row.strategy for row in _rivals(findings) if _unjudged(row) and row.strategy not in given_up]
    return [f"Not judged, for want of {MIN_SEEDS} finished trials of both: {_and(names)}."] if names else []


def _undecided(findings: Findings, best: Mapping[int | None, Row | None]) -> tuple[str, str]:
    most, baseline = findings.budgets[-1], findings.study.baseline
    rows = _rivals(findings)
    doubtful = [row for row in rows if row.verdict == "in doubt" and _might_win(findings, row)]
    where = with_labels(findings.row(baseline, most))
    if not rows:
        return f"Only {baseline} was asked for: there is nothing to compare it with.", ""
    if doubtful:
        head = f"No answer yet with {where}, for {doubtful[0].strategy} is in doubt: {doubtful[0].doubts[0]}"
    elif findings.finished:
        enough = len(findings.study.seeds) >= MIN_SEEDS
        seeds = len(findings.study.seeds)
        lack = "too few trials ended well" if enough else f"{seeds} seed{'s are' if seeds > 1 else ' is'} too few"
        head = f"No claim is made with {where}: {lack} (it takes {MIN_SEEDS} seeds of both)."
    else:
        head = f"No answer yet with {where}: too few trials are finished (it takes {MIN_SEEDS} seeds of both)."
    compared = [row for row in rows if row.comparison is not None]
    leading = max(compared, key=lambda row: row.comparison.gain if row.comparison else -math.inf, default=None)
    why = [] if leading is None else [f"In front so far, which proves nothing: {_lead(findings, leading)}."]
    unjudged = [] if all(map(_unjudged, rows)) else _not_judged(findings)
    return head, " ".join([*why, *unjudged, *_fewer(findings, best)])


def _lead(findings: Findings, row: Row) -> str:
    ahead = row.comparison is not None and row.comparison.gain > 0
    return f"{row.strategy} ({_gain(findings, row)})" if ahead else findings.study.baseline


def _no_win(findings: Findings, best: Mapping[int | None, Row | None]) -> tuple[str, str]:
    baseline, most = findings.study.baseline, findings.budgets[-1]
    rows = [row for row in _rivals(findings) if not _unjudged(row)]
    where = with_labels(findings.row(baseline, most))
    count = len(rows)
    whom = f"none of the {count} others beat" if count > 1 else f"{rows[0].strategy} did not beat"
    some = any(best.values())
    what = f"train {baseline}" if some else f"train {baseline}, and label more"
    head = f"With {where}, {what}: {whom} it beyond chance."
    why = _fewer(findings, best)
    leading = max(rows, key=lambda row: row.comparison.gain if row.comparison else -math.inf)
    if leading.comparison is not None and leading.comparison.gain > 0:
        why.append(f"Nearest came {leading.strategy}: {_gain(findings, leading)}.")
        if leading.comparison.low > 0:
            many = findings.study.comparisons
            why.append(f"Of {many} comparisons one may come out like that by chance; more seeds would tell.")
    worse = [row.strategy for row in rows if row.verdict == "worse"]
    if worse:
        why.append(f"Worse than {baseline}: {_and(worse)}.")
    return head, " ".join([*why, *_not_judged(findings), *_labelling(findings)])


def _fewer(findings: Findings, best: Mapping[int | None, Row | None]) -> list[str]:
    """What wins with fewer labels than the most."""
    rows = [row for budget in findings.budgets[:-1] if (row := best[budget]) is not None]
    found = []
    for row in rows:
        worth = f"; to match it, {findings.study.baseline} would need {row.saved} labels" if row.saved else ""
        found.append(f"With {with_labels(row)} use {row.strategy}: {_gain(findings, row)}{worth}.")
    return found


def _labelling(findings: Findings) -> list[str]:
    """What the next larger budget brought the baseline; the last one, where the answer is about the largest."""
    baseline, most = findings.study.baseline, findings.budgets[-1]
    rows = [findings.row(baseline, budget) for budget in findings.study.every_budget]
    rows = [row for row in rows if row.labels and (row.level is not None or row.budget == most)]
    place = next((number for number, row in enumerate(rows) if row.budget == most), 0)
    pair = rows[place : place + 2] if place + 1 < len(rows) else rows[place - 1 : place + 1] if place else []
    if len(pair) < 2 or pair[0].level is None or pair[1].level is None:
        return []
    gain = (pair[1].level.mean - pair[0].level.mean) * (-1 if findings.figures.lower else 1)
    return [f"{pair[1].labels} labels instead of {pair[0].labels} brought {baseline} {points(gain)} points."]


def _cautions(findings: Findings) -> list[str]:
    study, found = findings.study, []
    if not findings.finished:
        found.append(f"{len(findings.results)} of {findings.planned} trials have ended: all this may still change.")
    base = [row for row in findings.rows if row.strategy == study.baseline and row.level is not None]
    if unknown := [with_labels(row) for row in base if row.trend is None]:
        found.append(
            f"With {_and(unknown)} it is not known whether the baseline was still improving: it was validated too "
            "seldom. Raise steps in study.yaml, or lower training.validate_every."
        )
    for row in base:
        if row.trend is not None and row.trend.improving:
            compared = row.budget in study.budgets
            what = "gains over it are worth nothing" if compared else "it may need fewer labels than is said here"
            found.append(
                f"With {with_labels(row)} the baseline was still improving when it stopped "
                f"({points(row.trend.rise)} points in the last third of its steps): {what}. Raise steps in study.yaml."
            )
    late = [
        f"{row.strategy} ({with_labels(row)})"
        for row in findings.rows
        if row.strategy != study.baseline and row.trend is not None and row.trend.improving
    ]
    if late:
        found.append(f"Still improving when they stopped, and so perhaps better than they look: {_and(late)}.")
    if given_up := _given_up(findings):
        found.append(f"Given up early, so not compared: {_and(given_up)}.")
    failed = [result for result in findings.results if result.status not in ("done", "given up")]
    if failed:
        found.append(f"{len(failed)} of {len(findings.results)} trials did not end well; see the list of trials.")
    if findings.figures.few_groups:
        found.append(
            "The images come from too few groups (patients, drives, videos) to resample these: the true uncertainty is "
            "larger than the intervals say."
        )
    if study.split == "val":
        found.append("Validation images also chose which weights were kept: figures on them are a little high.")
    if len(study.seeds) < MIN_SEEDS:
        count = f"{len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}"
        found.append(f"{count} only: no claim is made with fewer than {MIN_SEEDS}.")
    return [*found, *findings.notes]


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
