"""A study as tables for other programs: CSV of every trial and of every comparison, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segmint.config import write_atomic
from segmint.evaluation.tables import MEASURES
from segmint.study.answer import measure_name, points
from segmint.study.findings import Findings, Row

TRIALS, SUMMARY, LATEX = "trials.csv", "summary.csv", "table.tex"

_OF_TRIAL = (
    "strategy",
    "budget",
    "seed",
    "status",
    "reason",
    "steps",
    "shared_steps",
    "seconds",
    "shared_seconds",
    "run",
)


def write_exports(folder: Path, findings: Findings) -> list[Path]:
    """Write trials.csv, summary.csv and table.tex, each to a temporary name, then renamed; returns their paths."""
    texts = {TRIALS: trials_csv(findings), SUMMARY: summary_csv(findings), LATEX: latex(findings)}
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]


def trials_csv(findings: Findings) -> str:
    """A line for each trial that ended: what it was, how it ended, its steps, seconds and measures (as fractions)."""
    measured = [key for key in MEASURES if any(key in one.scores for one in findings.results)]
    lines = []
    for one in findings.results:
        line = {key: getattr(one, key) for key in _OF_TRIAL}
        line["budget"] = "all" if one.budget is None else one.budget
        lines.append([*line.values(), *(one.scores.get(key, "") for key in measured)])
    return _csv([*_OF_TRIAL, *measured], lines)


def summary_csv(findings: Findings) -> str:
    """A line for each strategy and budget: scores and gains (as fractions, gains positive where better) and cost."""
    rows = [_summary(row) for row in findings.rows]
    return _csv(list(rows[0]), [list(row.values()) for row in rows])


def _summary(row: Row) -> dict[str, Any]:
    level, one, cost, saved = row.level, row.comparison, row.cost, row.saved
    return {
        "strategy": row.strategy,
        "budget": "all" if row.budget is None else row.budget,
        "labels": row.labels or "",
        "done": row.done,
        "failed": row.failed,
        "mean": level.mean if level else "",
        "low": _plain(level.low) if level else "",
        "high": _plain(level.high) if level else "",
        "seed_deviation": _plain(level.deviation) if level else "",
        "gain": _plain(one.gain) if one else "",
        "gain_low": _plain(one.low) if one else "",
        "gain_high": _plain(one.high) if one else "",
        "simultaneous_low": _plain(one.wide_low) if one else "",
        "simultaneous_high": _plain(one.wide_high) if one else "",
        "p": _plain(one.p) if one else "",
        "p_holm": _plain(one.p_holm) if one else "",
        "verdict": row.verdict,
        "doubts": " ".join([*([one.why] if one and one.why else []), *row.doubts]),
        "baseline_needs": saved.words(saved.needed) if saved else "",
        "baseline_needs_low": saved.words(saved.low) if saved else "",
        "baseline_needs_high": saved.words(saved.high) if saved else "",
        "steps": cost.steps if cost else "",
        "shared_steps": cost.shared_steps if cost else "",
        "minutes": round(cost.own, 2) if cost else "",
        "shared_minutes": round(cost.shared, 2) if cost else "",
        "watt_hours": _plain(cost.energy) if cost else "",
        "still_improving": "" if row.trend is None else row.trend.improving,
    }


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return buffer.getvalue()


_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def latex(findings: Findings) -> str:
    """A table with booktabs: strategies by budgets, mean and standard deviation over seeds, beneath the gain.

    Gains that hold after Holm's correction and without doubt are bold (better) or in italics (worse).
    """
    study, budgets = findings.study, findings.study.every_budget
    heads = [escape("all labels" if budget is None else f"{budget} labels") for budget in budgets]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * len(budgets)}}}",
        "\\toprule",
        " & ".join(["strategy", *heads]) + r" \\",
        "\\midrule",
    ]
    for name in study.strategies:
        rows = [findings.row(name, budget) for budget in budgets]
        lines.append(" & ".join([escape(name), *(_score(findings, row) for row in rows)]) + r" \\")
        if name != study.baseline:
            lines.append(" & ".join(["", *(_gain(row) for row in rows)]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{{_caption(findings)}}}", "\\end{table}", ""]
    return "\n".join(lines)


def _score(findings: Findings, row: Row) -> str:
    if row.level is None:
        return "--" if row.trials else ""
    digits, scale = (3, 1) if findings.figures.lower else (1, 100)
    deviation = "" if math.isnan(row.level.deviation) else f" $\\pm$ {scale * row.level.deviation:.{digits}f}"
    return f"{scale * row.level.mean:.{digits}f}{deviation}"


def _gain(row: Row) -> str:
    one = row.comparison
    if one is None or math.isnan(one.gain):
        return ""
    bounds = "" if math.isnan(one.low) else f" [{points(one.low)}, {points(one.high)}]"
    told = escape(points(one.gain) + bounds)
    macro = {"better": "\\textbf", "worse": "\\textit"}.get(row.verdict)
    return f"{macro}{{{told}}}" if macro else told


def _caption(findings: Findings) -> str:
    study, name = findings.study, measure_name(findings.study.metric)
    unit = " (lower is better)" if findings.figures.lower else r" in \%"
    comparisons = study.comparisons
    baseline, images = escape(study.baseline), len(findings.figures.names)
    counts = sorted({row.done for row in findings.rows if row.done}) or [0]
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    taken = [row.cost.steps for row in findings.rows if row.cost is not None]
    after = f", all after {study.steps} steps" if all(steps == study.steps for steps in taken) else ""
    return (
        f"{escape(name)}{unit} on {escape(study.split)} ({images} images), mean and standard deviation over "
        f"{seeds} seeds{after}. Beneath, the paired gain over {baseline} in points "
        f"with its 95\\% interval; bold: better, italics: worse, after Holm's correction for {comparisons} "
        f"comparison{'s' * (comparisons > 1)}."
    )
