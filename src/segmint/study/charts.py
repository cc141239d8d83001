"""Charts of a study in SVG: scores and gains over labels, gains beside cost, training and validation side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill
from typing import Any

import numpy as np

from segmint.evaluation.charts import SERIES, STYLE, TRAIN, VAL, new_figure, to_svg
from segmint.study.answer import images_name, measure_name
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
    """Scores over labels (logarithmic), and beside them the paired gains with intervals: a picture in SVG.

    Strategies without a finished trial are left out.
    """
    import matplotlib

    scale = 1 if findings.figures.lower else 100
    with matplotlib.rc_context(STYLE):
        figure = new_figure(10.6, 3.9)
        left, right = figure.subplots(1, 2)
        labels = sorted({row.labels for row in findings.rows if row.labels})
        room = 0.3 * _gap(labels)
        known = [row for row in findings.rows if row.labels and row.level is not None]
        shared = Counter(row.labels for row in known)
        reached = {row.strategy for row in known}
        painted = {name: color for name, color in colors(findings).items() if name in reached}
        for number, (name, color) in enumerate(painted.items()):
            shift = math.exp(room * (number / max(1, len(painted) - 1) - 0.5))
            rows = [row for row in known if row.strategy == name]
            places = [row.labels * (shift if shared[row.labels] > 1 else 1.0) for row in rows]
            words = name if color != FAINT else "others" if number == COLORED + 1 else None
            _levels(left, places, rows, color, words, scale)
            if name != findings.study.baseline:
                _gains(right, places, rows, color)
        right.axhline(0, color=BASELINE, linewidth=1.2)
        name = measure_name(findings.study.metric)
        left.set_title(
            f"{name} on {images_name(findings.study.split)}" + (" (lower is better)" if scale == 1 else ", %")
        )
        right.set_title(f"gain over {findings.study.baseline}, points")
        for panel in (left, right):
            _log(panel, labels, math.exp(room))
        figure.legend(loc="outside lower left", ncols=_columns(list(painted)))
        return to_svg(figure)


def _levels(panel: Any, x: Sequence[float], rows: Sequence[Row], color: str, words: str | None, scale: float) -> None:
    y, low, high = scale * np.array([_cell(row) for row in rows]).reshape(-1, 3).T
    panel.plot(x, y, "o-", color=color, linewidth=1.6, markersize=4.5, label=words)
    panel.vlines(x, low, high, color=color, linewidth=1, alpha=0.55)


def _cell(row: Row) -> tuple[float, float, float]:
    assert row.level is not None
    return row.level.mean, row.level.low, row.level.high


def _gains(panel: Any, places: Sequence[float], rows: Sequence[Row], color: str) -> None:
    pairs = zip(places, rows, strict=True)
    found = [(x, one.gain, one.low, one.high) for x, row in pairs if (one := row.comparison) is not None]
    table = np.array(found, float).reshape(-1, 4)
    panel.plot(table[:, 0], 100 * table[:, 1], "o-", color=color, linewidth=1.2, markersize=4.5)
    panel.vlines(table[:, 0], 100 * table[:, 2], 100 * table[:, 3], color=color, linewidth=1.8, alpha=0.7)


def _columns(names: Sequence[str]) -> int:
    """Of a legend: one for each name if they fit side by side."""
    widest = max(map(len, names), default=0)
    return len(names) if sum(map(len, names)) <= 70 else 4 if widest <= 24 else 3


def _gap(labels: Sequence[int]) -> float:
    """The least distance of two numbers of labels, on the logarithm."""
    return min((math.log(after / count) for count, after in pairwise(labels)), default=1.0)


def _log(panel: Any, labels: Sequence[int], margin: float) -> None:
    panel.set_xscale("log")
    apart = [count for count, after in zip(labels, [*labels[1:], math.inf], strict=True) if after / count > 1.25]
    panel.set_xticks(apart, [f"{count:,}" for count in apart])
    panel.minorticks_off()
    panel.set_xlim(labels[0] / margin, labels[-1] * margin)
    panel.set_xlabel("labelled images")


def gain_chart(findings: Findings, budget: int | None) -> bytes:
    """Gains over the baseline at one budget with their intervals, best first: a picture in SVG."""
    import matplotlib

    rows = [row for row in findings.rows if row.budget == budget and row.comparison is not None]
    rows = sorted((row for row in rows if not math.isnan(_of(row)[0])), key=lambda row: -_of(row)[0])
    paint = {"better": "#2f8f5b", "worse": "#c8324a", "in doubt": "#b0841f"}
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = new_figure(8.4, 0.7 + 0.34 * max(1, len(rows)))
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

    Each shows training and validation scores over the steps of the strategy's last training, one line a seed, and how
    far apart they are at the end; those that were never validated are left out.
    """
    import matplotlib

    shown = {one.strategy for one in findings.results if one.budget == budget and one.curve}
    names = [name for name in findings.study.strategies if name in shown]
    rows = math.ceil(len(names) / 4)
    columns = math.ceil(len(names) / rows)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(10.6 if columns > 2 else 3.4 * columns, 1.9 * rows + 0.45)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(panels, names, strict=False):
            some = [one for one in findings.results if (one.strategy, one.budget) == (name, budget)]
            for one in some:
                for points, color, dashes in ((one.train_curve, TRAIN, "--"), (one.curve, VAL, "-")):
                    steps, scores = np.array(points, float).reshape(-1, 2).T
                    panel.plot(steps, 100 * scores, color=color, linestyle=dashes, linewidth=1.2, alpha=0.8)
            if gaps := [one.train_curve[-1][1] - one.curve[-1][1] for one in some if one.curve and one.train_curve]:
                panel.text(0.97, 0.06, f"gap {100 * np.mean(gaps):.0f}", transform=panel.transAxes, ha="right")
            panel.set_title(name if len(name) < 34 else f"{name[:32]}…", fontsize=8)
        first = panels[0]
        first.plot([], [], color=VAL, label="validation mIoU, %")
        first.plot([], [], color=TRAIN, linestyle="--", label="training images, without augmentation")
        figure.legend(loc="outside lower left", ncols=2)
        return to_svg(figure)
