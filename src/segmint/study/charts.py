"""Charts of a study in SVG: scores and gains over labels, gains beside cost, training and validation side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from segmint.evaluation.charts import SERIES, STYLE, TRAIN, VAL, new_figure, to_svg
from segmint.study.answer import measure_name
from segmint.study.findings import Findings, Row

BASELINE, FAINT = "#282c34", "#b9bec6"
COLORED = len(SERIES)
"""So many strategies have a colour of their own; the others are grey."""


def colors(findings: Findings) -> dict[str, str]:
    """A colour for each strategy: dark for the baseline, then by gain; grey for those beyond `COLORED`."""
    others = [name for name in findings.study.strategies if name != findings.study.baseline]
    others.sort(key=lambda name: -_gain(findings, name))
    chosen = {name: SERIES[place] if place < COLORED else FAINT for place, name in enumerate(others)}
    return {findings.study.baseline: BASELINE, **chosen}


def _gain(findings: Findings, name: str) -> float:
    gains = [row.comparison.gain for row in findings.rows if row.strategy == name and row.comparison is not None]
    gains = [gain for gain in gains if not math.isnan(gain)]
    return sum(gains) / len(gains) if gains else -math.inf


def label_chart(findings: Findings) -> bytes:
    """Scores over labels (logarithmic), and beside them the paired gains with intervals: a picture in SVG."""
    import matplotlib

    scale = 1 if findings.figures.lower else 100
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.6, 3.4)
        left, right = figure.subplots(1, 2)
        painted = colors(findings)
        for number, (name, color) in enumerate(painted.items()):
            rows = [row for row in findings.rows if row.strategy == name and row.labels and row.level is not None]
            shift = 1.0 if name == findings.study.baseline else 0.92 + 0.16 * number / len(painted)
            words = name if color != FAINT else "others" if number == COLORED + 1 else None
            _levels(left, rows, color, shift, words, scale)
            if name != findings.study.baseline:
                _gains(right, rows, color, shift)
        right.axhline(0, color=BASELINE, linewidth=1.2)
        name = measure_name(findings.study.metric)
        left.set_title(f"{name} of {findings.study.split}" + (" (lower is better)" if scale == 1 else ", %"))
        right.set_title(f"gain over {findings.study.baseline}, points")
        for panel in (left, right):
            _log(panel, sorted({row.labels for row in findings.rows if row.labels}))
        figure.legend(loc="outside lower left", ncols=2 if max(map(len, painted)) > 24 else 3)
        return to_svg(figure)


def _levels(panel: Any, rows: Sequence[Row], color: str, shift: float, words: str | None, scale: float) -> None:
    table = np.array([(row.labels * shift, *_cell(row)) for row in rows]).reshape(-1, 4)
    x, (y, low, high) = table[:, 0], table[:, 1:].T * scale
    panel.plot(x, y, "o-", color=color, linewidth=1.6, markersize=4.5, label=words)
    panel.vlines(x, low, high, color=color, linewidth=1, alpha=0.55)


def _cell(row: Row) -> tuple[float, float, float]:
    assert row.level is not None
    return row.level.mean, row.level.low, row.level.high


def _gains(panel: Any, rows: Sequence[Row], color: str, shift: float) -> None:
    found = [(row.labels * shift, one.gain, one.low, one.high) for row in rows if (one := row.comparison) is not None]
    table = np.array(found, float).reshape(-1, 4)
    panel.plot(table[:, 0], 100 * table[:, 1], "o-", color=color, linewidth=1.2, markersize=4.5)
    panel.vlines(table[:, 0], 100 * table[:, 2], 100 * table[:, 3], color=color, linewidth=1.8, alpha=0.7)


def _log(panel: Any, labels: Sequence[int]) -> None:
    panel.set_xscale("log")
    apart = [count for count, after in zip(labels, [*labels[1:], math.inf], strict=True) if after / count > 1.25]
    panel.set_xticks(apart, [f"{count:,}" for count in apart])
    panel.minorticks_off()
    panel.set_xlim(labels[0] / 1.35, labels[-1] * 1.35)
    panel.set_xlabel("labelled images")


def gain_chart(findings: Findings, budget: int | None) -> bytes:
    """Gains over the baseline at one budget with their intervals, best first: a picture in SVG."""
    import matplotlib

    rows = [row for row in findings.rows if row.budget == budget and row.comparison is not None]
    rows = sorted((row for row in rows if not math.isnan(_of(row)[0])), key=lambda row: -_of(row)[0])
    paint = {"better": "#2f8f5b", "worse": "#c8324a", "in doubt": "#b0841f"}
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = new_figure(7.2, 0.7 + 0.34 * max(1, len(rows)))
        panel = figure.subplots()
        for place, row in enumerate(rows):
            value, low, high = (100 * number for number in _of(row))
            color = paint.get(row.verdict, "#6b727c")
            panel.hlines(place, low, high, color=color, linewidth=2.2)
            panel.plot([value], [place], "o", color=color, markersize=6)
        panel.axvline(0, color=BASELINE, linewidth=1)
        panel.set_yticks(range(len(rows)), [fill(row.strategy, 30) for row in rows])
        panel.set_ylim(max(1, len(rows)) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(f"points of {measure_name(findings.study.metric)} gained over {findings.study.baseline}")
        return to_svg(figure)


def _of(row: Row) -> tuple[float, float, float]:
    one = row.comparison
    return (one.gain, one.low, one.high) if one else (math.nan, math.nan, math.nan)


def training_chart(findings: Findings, budget: int | None) -> bytes:
    """A panel for each strategy at a budget, all on one scale: a picture in SVG.

    Each shows training and validation scores over the steps of the strategy's last training, one line a seed.
    """
    import matplotlib

    names = list(findings.study.strategies)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.5 * columns + 0.3, 1.9 * rows + 0.45)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(panels, names, strict=False):
            for one in findings.results:
                if (one.strategy, one.budget) == (name, budget):
                    for points, color, dashes in ((one.train_curve, TRAIN, "--"), (one.curve, VAL, "-")):
                        steps, scores = np.array(points, float).reshape(-1, 2).T
                        panel.plot(steps, 100 * scores, color=color, linestyle=dashes, linewidth=1.2, alpha=0.8)
            panel.set_title(name if len(name) < 34 else f"{name[:32]}…", fontsize=8)
        first = panels[0]
        first.plot([], [], color=VAL, label="validation mIoU, %")
        first.plot([], [], color=TRAIN, linestyle="--", label="training images, without augmentation")
        figure.legend(loc="outside lower left", ncols=2)
        return to_svg(figure)
