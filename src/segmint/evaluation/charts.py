"""Curves and charts in SVG, legible on white; the page turns their colours round where it is dark."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]
TRAIN, VAL = "#3b6fb6", "#d9772b"
SERIES = (TRAIN, VAL, "#4c9f70", "#9a5fb5", "#b0a030", "#7f8894")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a8",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "xtick.color": "#50565f",
    "ytick.color": "#50565f",
    "svg.fonttype": "none",
    "svg.hashsalt": "segmint",
    "legend.frameon": False,
}


def to_svg(figure: Figure) -> bytes:
    """The figure as a picture in SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that DejaVu lacks is drawn by the browser's own fonts.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def curves(log: Sequence[Mapping[str, Any]], terms: Sequence[str], best_step: int | None = None) -> bytes:
    """Learning curves, one small panel per term: training and validation against the step, the best step
    dotted.

    Args:
        log: lines of a run's log.jsonl: "step", "split" ("train" or "val") and numbers.
        terms: which numbers, in order. A validation line's "TERM_train" is that term on training images without
            augmentation, drawn dashed.
        best_step: the step whose weights were kept.

    Returns:
        A picture in SVG.
    """
    import matplotlib

    columns = min(4, max(1, len(terms)))
    rows = math.ceil(len(terms) / columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.75 * columns, 1.95 * rows + 0.25)
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel in panels[len(terms) :]:
            panel.set_visible(False)
        for panel, term in zip(panels, terms, strict=False):
            _curve(panel, log, term)
            if best_step is not None:
                panel.axvline(best_step, color="#50565f", linewidth=0.9, linestyle=":")
        return to_svg(figure)


def _points(log: Sequence[Mapping[str, Any]], term: str, split: str) -> tuple[Array, Array]:
    pairs = [(line["step"], line[term]) for line in log if line.get("split") == split and _number(line.get(term))]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, float), np.array(values, float)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve(panel: Any, log: Sequence[Mapping[str, Any]], term: str) -> None:
    drawn = []
    lines = (
        (term, "train", "train", TRAIN, "-"),
        (f"{term}_train", "val", "train, as validated", TRAIN, "--"),
        (term, "val", "val", VAL, "-"),
    )
    for key, split, words, color, dashes in lines:
        steps, values = _points(log, key, split)
        if not len(steps):
            continue
        drawn.append(values)
        if len(values) > 40:
            panel.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            values = _running_mean(values, len(values) // 25)
        dots = "o" if len(values) < 25 else None
        panel.plot(
            steps, values, color=color, linewidth=1.5, marker=dots, markersize=2.6, label=words, linestyle=dashes
        )
    everything = np.concatenate(drawn) if drawn else np.zeros(1)
    if term != "lr" and everything.min() > 0 and everything.max() / everything.min() > 100:
        panel.set_yscale("log")
    else:
        panel.locator_params(axis="y", nbins=5)
        panel.yaxis.set_major_formatter(_short)
    panel.set_title(label(term))
    panel.locator_params(axis="x", nbins=4)
    if drawn and term != "lr" and "norm" not in term:
        panel.legend(fontsize=7.5, handlelength=1.6, borderaxespad=0.1, labelspacing=0.2)


def _short(value: float, position: int) -> str:
    return f"{value / 1000:.5g}k" if abs(value) >= 10000 else f"{value:.4g}"


def _running_mean(values: Array, window: int) -> Array:
    sums = np.cumsum(np.concatenate([[0.0], values]))
    place = np.arange(len(values))
    low, high = np.maximum(place - window, 0), np.minimum(place + window + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


LABELS = {
    "loss": "loss",
    "miou": "mIoU",
    "kl": "KL divergence",
    "l1_norm": "L1 norm of the weights",
    "l2_norm": "L2 norm of the weights",
    "lr": "learning rate",
}


def label(term: str) -> str:
    """A term of the log in words."""
    return LABELS.get(term, term.replace("_", " "))


def bar_chart(names: Sequence[str], series: Mapping[str, Array], unit: str = "%") -> bytes:
    """Horizontal bars, a group per name and a bar per series, with intervals where there are any.

    Args:
        names: one per group, N.
        series: by label: [N] values, or [N, 3] (value, low, high); nan is left out.
        unit: written on the axis.

    Returns:
        A picture in SVG.
    """
    import matplotlib

    thick = 0.8 / len(series)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = new_figure(7.2, 0.8 + len(names) * max(0.24, 0.15 * len(series)))
        panel = figure.subplots()
        for number, (words, values) in enumerate(series.items()):
            table = np.asarray(values, float)
            middle = table if table.ndim == 1 else table[:, 0]
            place = np.arange(len(names)) + (number + 0.5) * thick - 0.4
            panel.barh(place, middle, thick * 0.9, color=SERIES[number % len(SERIES)], label=words)
            if table.ndim == 2:
                panel.hlines(place, table[:, 1], table[:, 2], color="#282c34", linewidth=1)
        panel.set_yticks(np.arange(len(names)), names)
        panel.invert_yaxis()
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(unit)
        if len(series) > 1:
            columns = 4 if max(map(len, series)) < 20 else 2
            figure.legend(loc="outside upper left", ncols=min(columns, len(series)))
        return to_svg(figure)


def interval_chart(names: Sequence[str], intervals: Array, unit: str) -> bytes:
    """Differences with their intervals, beside a line at zero: [N, 3] (value, low, high) -> a picture in SVG.

    Intervals wholly above zero are green, wholly below red, others grey.
    """
    import matplotlib

    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = new_figure(7.2, 0.6 + 0.3 * len(names))
        panel = figure.subplots()
        for place, (value, low, high) in enumerate(np.asarray(intervals, float)):
            color = "#2f8f5b" if low > 0 else "#c8324a" if high < 0 else "#6b727c"
            panel.hlines(place, low, high, color=color, linewidth=2.2)
            panel.plot([value], [place], "o", color=color, markersize=6)
        panel.axvline(0, color="#282c34", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(unit)
        return to_svg(figure)


def line_chart(series: Mapping[str, tuple[Array, Array]], x: str, y: str) -> bytes:
    """Lines by label, each with its x [N] and y [N]; what the axes say -> a picture in SVG. The first is solid."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(5.0, 2.9)
        panel = figure.subplots()
        for number, (words, (across, up)) in enumerate(series.items()):
            color, dashes = SERIES[number % len(SERIES)], "-" if number == 0 else "--"
            panel.plot(across, up, color=color, linewidth=1.6, linestyle=dashes, label=words)
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.legend()
        return to_svg(figure)
