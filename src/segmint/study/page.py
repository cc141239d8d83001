"""A study as one self-contained page: the answer first, then the curve, the table, pictures, and all else below."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from segmint.config import write_atomic
from segmint.evaluation import tables
from segmint.evaluation.files import read_json
from segmint.evaluation.report import MEASURES, duration, write_report
from segmint.study import charts
from segmint.study.answer import Answer, decide, images_name, measure_name, minutes, points, with_labels, write_answer
from segmint.study.examples import write_examples
from segmint.study.exports import LATEX, SUMMARY, TRIALS, latex, write_exports
from segmint.study.figures import of_images
from segmint.study.findings import Findings, Row, find
from segmint.study.outcomes import current_results
from segmint.study.plan import FILE, read_study, told_budget
from segmint.study.results import Result
from segmint.study.statistics import BORROWED, MIN_SEEDS
from segmint.types import SegmintError

PAGE = "report.html"

MEANINGS: Mapping[str, str] = {
    **{key: words for key, (_, words) in MEASURES.items()},
    "ged": "generalised energy distance: how far the masks that are drawn lie from those of the raters",
}
"""What the measures are, in half a sentence."""


def report(folder: str | Path) -> Path:
    """Write report.html, one file that needs nothing else, of a run, a folder of runs, or a study.

    Of a study, running or done, its answer and tables are written as well (see `write_page`); of a folder of runs the
    page tells the whole story (see `segmint.evaluation.report.write_report`).

    Args:
        folder: a run folder of `segmint train`, a folder that contains some, or the folder of a study.

    Returns:
        The path of report.html.

    Raises:
        SegmintError: there is nothing to report, or a file is damaged; the message names it.
    """
    return write_page(folder) if is_study(folder) else write_report(folder)


def is_study(folder: str | Path) -> bool:
    """Whether a folder holds a study."""
    return (Path(folder) / FILE).is_file()


def write_page(folder: str | Path, *, pictures: bool = True) -> Path:
    """Write report.html of a study, as far as it has come, with answer.json, trials.csv, summary.csv and table.tex.

    Args:
        folder: the study's, with study.yaml and results.jsonl.
        pictures: whether to paint the masks of the images on which strategies differ most, where they have not been
            painted yet: that loads the runs and the data.

    Returns:
        The path of report.html.

    Raises:
        SegmintError: study.yaml or a line of results.jsonl is damaged, or trials were judged on different images.
    """
    folder = Path(folder)
    if not is_study(folder):
        raise SegmintError(f"{folder}: holds no {FILE}; name the folder of a study")
    study = read_study(folder)
    findings = find(folder, study, current_results(study, folder))
    answer = decide(findings)
    write_answer(folder, answer)
    write_exports(folder, findings)
    examples = write_examples(folder, findings) if pictures else {"missing": "No pictures were asked for."}
    write_atomic(folder / PAGE, render(folder, findings, answer, examples))
    return folder / PAGE


def render(folder: Path, findings: Findings, answer: Answer, examples: Mapping[str, Any]) -> str:
    """The page as HTML."""
    study, compared = findings.study, bool(findings.figures.arms)
    known = {row.labels for row in findings.rows if row.labels and row.level is not None}
    template = _environment(findings).get_template("study.html")
    return template.render(
        folder=folder.resolve().name,
        findings=findings,
        study=study,
        answer=answer,
        metric=measure_name(study.metric),
        images=images_name(study.split),
        meaning=_meaning(findings),
        names=_order(findings),
        budgets=findings.budgets,
        label_chart=_address(charts.label_chart(findings)) if len(known) > 1 else "",
        gain_charts=_gain_charts(findings),
        training={
            budget: _address(charts.training_chart(findings, budget))
            for budget in reversed(study.every_budget)
            if any(one.curve for one in findings.results if one.budget == budget)
        },
        examples=_embedded(folder, examples),
        accounts=_accounts(folder),
        failures=_failures(findings),
        missing={(row.strategy, row.budget): _missing(findings, row) for row in findings.rows},
        compared=compared,
        overfitting=compared and study.preset == "overfitting",
        energy=any(row.cost is not None and not math.isnan(row.cost.energy) for row in findings.rows),
        comparisons=study.comparisons,
        settings=(folder / FILE).read_text(encoding="utf-8"),
        latex=latex(findings),
        files=[TRIALS, SUMMARY, LATEX, "answer.json", "results.jsonl"],
        least=MIN_SEEDS,
        borrowed=f"{BORROWED:g}",
        version=version("segmint"),
    )


def _order(findings: Findings) -> list[str]:
    """The strategies as the table shows them: the baseline, then by gain."""
    return list(charts.colors(findings))


def _meaning(findings: Findings) -> str:
    """What the measure is, and which way it goes if that is downwards."""
    words = MEANINGS.get(findings.study.metric, "")
    way = "lower is better" if findings.figures.lower and "lower" not in words else ""
    return "; ".join(filter(None, (words, way)))


def _missing(findings: Findings, row: Row) -> str:
    """How its trials ended that came to nothing: "3 of 3 failed"; "" where there is none."""
    ended = Counter(one.status for one in findings.results if (one.strategy, one.budget) == (row.strategy, row.budget))
    ended.pop("done", None)
    return ", ".join(f"{count} of {row.trials} {status}" for status, count in ended.items())


def _failures(findings: Findings) -> list[tuple[Result, int]]:
    """The trials that did not end well: of those that ended alike the first, and how many they are."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for one in findings.results:
        if one.status != "done":
            found.setdefault((one.strategy, one.status, one.reason), []).append(one)
    return [(some[0], len(some)) for some in found.values()]


def _gain_charts(findings: Findings) -> dict[int | None, str]:
    """By budget, for those with something to compare, the most labels first."""
    return {
        budget: _address(charts.gain_chart(findings, budget))
        for budget in reversed(findings.budgets)
        if any(row.comparison is not None for row in findings.rows if row.budget == budget)
    }


def _address(content: bytes, kind: str = "svg+xml") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _embedded(folder: Path, examples: Mapping[str, Any]) -> dict[str, Any]:
    """The examples with their pictures in place of the files."""
    if "missing" in examples:
        return dict(examples)

    def held(file: str) -> str:
        return _address((folder / file).read_bytes(), "png")

    images = [
        {
            **one,
            "image": held(one["image"]),
            "truth": held(one["truth"]),
            "masks": [{**mask, "file": held(mask["file"])} for mask in one["masks"]],
        }
        for one in examples["images"]
    ]
    return {**examples, "images": images}


def _accounts(folder: Path) -> dict[str, Any]:
    """What was done and shared, as pieces.json says; {} as long as it is not there."""
    path = folder / "pieces.json"
    return read_json(path, "run the study again to write it anew") if path.is_file() else {}


def _environment(findings: Findings) -> Environment:
    places = [PackageLoader("segmint.study", "."), PackageLoader("segmint.evaluation", ".")]
    environment = Environment(
        loader=ChoiceLoader(places), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    lower = findings.figures.lower

    def score(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.3f}" if lower else f"{100 * value:.1f}"

    def score_of_image(value: float) -> str:
        return score(value) if of_images(tables.MEASURES[findings.study.metric]) else f"mIoU {100 * value:.1f}"

    environment.filters.update(
        score=score,
        score_of_image=score_of_image,
        points=points,
        budget=told_budget,
        labels=with_labels,
        change=_change,
        breakable=_breakable,
        duration=duration,
        minutes=minutes,
        p=_p,
        steps=lambda value: f"{value:,.0f}",
    )
    environment.tests["known"] = lambda value: value is not None and not math.isnan(value)
    return environment


def _change(row: Row) -> Markup:
    """A gain with its interval, coloured where it is claimed."""
    one = row.comparison
    if one is None or math.isnan(one.gain):
        return Markup("")
    kind = row.verdict if row.verdict in ("better", "worse") else "neither"
    bounds = "" if math.isnan(one.low) else f"[{points(one.low)}, {points(one.high)}]"
    mark = {"in doubt": " ?", "no claim": " ·"}.get(row.verdict, "")
    html = Markup('<span class="change {}">{}{} <span class="range">{}</span></span>')
    return html.format(kind, points(one.gain), mark, bounds)


def _breakable(name: str) -> Markup:
    """A name that may be broken after its signs."""
    return Markup(re.sub(r"([_+-])", r"\1<wbr>", str(escape(name))))


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
