"""Whether one way of training is better than another: paired differences over the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmint.config import RunSettings, read_run
from segmint.evaluation.files import read_json, read_lines, write_json
from segmint.evaluation.tables import CLASS_MEASURES, MEASURES, Measure, as_interval, read_tables
from segmint.functional import metrics
from segmint.training.run import Run as TrainedRun
from segmint.types import SegmintError

LEVEL = 0.05


@dataclass(frozen=True)
class Run:
    """What is compared of a run: its settings and its tables, one row per image."""

    folder: Path
    settings: RunSettings
    entry: dict[str, Any]
    tables: dict[str, Tensor]
    generator: str

    @property
    def strategy(self) -> str:
        """What makes two runs the same strategy: all settings but the seed and what follows from it.

        Data and generated pairs are alike if their makers and their folders' names are; the folders may lie anywhere.
        Of runs that were given minutes, the steps that were measured to fit do not count.
        """
        derived = {"seed", "notes", "synthetic", "data", "method_settings", "masks_from", "init"}
        settings = self.settings.model_dump(mode="json", exclude=derived)
        if self.settings.minutes is not None:
            settings["training"].pop("steps")
        pairs = [Path(path).name for path in [self.settings.data, *self.settings.synthetic]]
        helped = [self.settings.masks_from is not None, self.settings.init is not None]
        return json.dumps([settings, self.generator, pairs, helped], sort_keys=True)


def compare(
    baseline: TrainedRun | str | Path,
    others: Sequence[TrainedRun | str | Path],
    split: str = "val",
    *,
    by: str = "miou",
    folder: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare runs with a baseline over the same images.

    Runs whose settings differ in nothing but the seed are one strategy: its figure is the mean over its
    seeds, and the difference is resampled over seeds and images (over images alone where there is one
    seed). Runs that share the baseline's settings are further seeds of the baseline. Where a strategy and the baseline
    have seeds in common, these alone make the difference: a seed also draws the labels, so others are no match.

    Args:
        baseline, others: runs, or their folders, with a metrics.json that has this split.
        split: which figures to compare.
        by: the measure that the verdict is about; see `segmint.evaluation.tables.MEASURES`.
        folder: where to write comparison.json; None: nowhere.
        resamples, seed: of the bootstrap.

    Returns:
        What comparison.json holds: "baseline" and "others" with their figures; of each other its "difference"
        with interval and p-value per measure, "per_class" differences of IoU, "verdict" ("better", "worse" or
        "neither", with Holm's correction over the others) and "sentence"; "lower" names the measures of which less is
        better; "answer" and "notes".

    Raises:
        SegmintError: a run was not evaluated on the split, or on other images, classes or sizes; or `by` is no measure
            that they all have.
    """
    runs = [_read(run.folder if isinstance(run, TrainedRun) else Path(run), split) for run in [baseline, *others]]
    for run in runs[1:]:
        _check_same(runs[0], run, split)
    strategies = _join(runs)
    if len(strategies) < 2:
        raise SegmintError(f"{baseline}: nothing to compare it with; name a run of another strategy as well")
    labels = _labels(strategies)
    units = metrics.units(runs[0].entry["per_image"]["groups"])
    bootstrap = _Bootstrap(units, runs[0].entry["classes"], resamples, seed)
    found = [bootstrap.differences(*_in_common(strategies[0], arm)) for arm in strategies[1:]]
    _check_measure(by, found)
    adjusted = metrics.holm([one["difference"][by]["p"] for one in found])
    results = []
    for arm, label, one, p in zip(strategies[1:], labels[1:], found, adjusted, strict=True):
        verdict = judge(one["difference"][by], p, by)
        change = _change(strategies[0][0], arm[0], labels[0], label)
        sentence = say(change, verdict, one["difference"][by], by)
        head = bootstrap.describe(arm, label)
        results.append({**head, **one, "p_holm": p, "verdict": verdict, "sentence": sentence})
    comparison = {
        "split": split,
        "images": len(runs[0].entry["per_image"]["names"]),
        "resampled": units.kind,
        "by": by,
        "lower": [key for key, measure in MEASURES.items() if measure.best == "min"],
        "baseline": bootstrap.describe(strategies[0], labels[0]),
        "others": results,
        "answer": " ".join(one["sentence"] for one in results),
        "notes": [*_notes(strategies, units, split), *_uneven(strategies, labels)],
    }
    if folder is not None:
        write_json(folder / "comparison.json", comparison)
    return comparison


def _in_common(baseline: Sequence[Run], arm: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of both with the seeds that both have, in the same order; all runs if they have none in common."""
    sides = [sorted(side, key=lambda run: run.settings.seed) for side in (baseline, arm)]
    shared = set.intersection(*({run.settings.seed for run in side} for side in sides))
    kept = [[run for run in side if run.settings.seed in shared or not shared] for side in sides]
    return kept[0], kept[1]


def judge(difference: dict[str, float], p: float, by: str = "miou") -> str:
    """The verdict on a difference of a measure, with its corrected p-value.

    Returns:
        "better" or "worse" if the interval leaves out zero and p is below 0.05, else "neither".
    """
    more, less = ("worse", "better") if MEASURES[by].best == "min" else ("better", "worse")
    if p < LEVEL and difference["low"] > 0:
        return more
    return less if p < LEVEL and difference["high"] < 0 else "neither"


def say(change: str, verdict: str, difference: dict[str, float], by: str = "miou") -> str:
    """The verdict in a sentence, in points (hundredths) of the measure."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    digits = 1 if max(abs(low), abs(high)) >= 1 or value == 0 else 2
    words = "mIoU" if by == "miou" else by
    figures = f"{value:+.{digits}f} points of {words} [{low:+.{digits}f}, {high:+.{digits}f}]"
    if verdict == "neither":
        return f"{change} made the segmenter neither better nor worse beyond chance: {figures}."
    return f"{change} made the segmenter {verdict}: {figures}."


def _read(folder: Path, split: str) -> Run:
    remedy = f"run `segmint evaluate {folder} DATA --split {split}` first"
    scores = read_json(folder / "metrics.json", remedy)
    if split not in scores:
        has = ", ".join(scores) or "nothing"
        raise SegmintError(f"{folder / 'metrics.json'}: has no split {split!r} (it has {has}); {remedy}")
    settings = read_run(folder)
    try:
        tables = read_tables(scores[split])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SegmintError(f"{folder / 'metrics.json'}: {split}: incomplete ({error!r}); {remedy}") from error
    return Run(folder, settings, scores[split], tables, _generator(settings.synthetic))


def _check_measure(by: str, found: Sequence[dict[str, Any]]) -> None:
    """Raise a SegmintError unless this is a measure with a better and a worse that all comparisons have."""
    able = [key for key in MEASURES if MEASURES[key].best and all(key in one["difference"] for one in found)]
    if by not in able:
        raise SegmintError(f"--by: {by!r} cannot be compared; these runs have {', '.join(able)}")


def _generator(synthetic: Sequence[str]) -> str:
    """The methods that made the generated pairs, as their manifests say; else the folders' names."""
    makers = []
    for path in map(Path, synthetic):
        manifest = path / "manifest.jsonl"
        first = read_lines(manifest)[:1] if manifest.is_file() else []
        makers.append(str(first[0].get("method", path.name)) if first else path.name)
    return " and ".join(dict.fromkeys(makers))


def _maker(pairs: Path) -> RunSettings | None:
    """The settings of the run that made generated pairs, where it is still there."""
    manifest = pairs / "manifest.jsonl"
    first = read_lines(manifest)[:1] if manifest.is_file() else []
    folder = Path(str(first[0].get("run", ""))) if first else Path()
    return read_run(folder) if (folder / "config.yaml").is_file() else None


def _check_same(first: Run, run: Run, split: str) -> None:
    remedy = f"evaluate both on the same data and size with --split {split}"
    for key, words in (("classes", "classes"), ("size", "image sizes")):
        if run.entry[key] != first.entry[key]:
            raise SegmintError(
                f"{run.folder}: {words} {run.entry[key]} differ from {first.folder}'s {first.entry[key]}; {remedy}"
            )
    mirrored = [bool(one.entry.get("mirror")) for one in (first, run)]
    if mirrored[0] != mirrored[1]:
        one, other = (first, run) if mirrored[0] else (run, first)
        raise SegmintError(
            f"{one.folder}: was evaluated with --mirror on {split}, {other.folder} without; evaluate both alike"
        )
    ours, theirs = first.entry["per_image"]["names"], run.entry["per_image"]["names"]
    if ours != theirs:
        raise SegmintError(
            f"{run.folder}: was evaluated on {len(theirs)} images of {split}, "
            f"which are not the {len(ours)} of {first.folder}; {remedy}"
        )
    true = [one.tables["confusion"].sum(2) for one in (first, run)]
    if not torch.equal(*true):
        changed = ours[int((true[0] != true[1]).any(1).nonzero()[0])]
        raise SegmintError(
            f"{run.folder}: was evaluated on other masks than {first.folder}, that of {changed!r} for one; {remedy}"
        )


def _join(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one strategy together, by seed; the first run's strategy first.

    A run that repeats a seed is a strategy of its own.
    """
    strategies: list[list[Run]] = []
    for run in runs:
        for arm in strategies:
            seeds = [other.settings.seed for other in arm]
            if arm[0].strategy == run.strategy and run.settings.seed not in seeds:
                arm.append(run)
                break
        else:
            strategies.append([run])
    return [sorted(arm, key=lambda run: run.settings.seed) for arm in strategies]


def title(method: str) -> str:
    """A method's name in a sentence: short names are abbreviations."""
    return method.upper() if len(method) <= 3 else method


def _labels(strategies: Sequence[Sequence[Run]]) -> list[str]:
    labels = []
    for arm in strategies:
        run = arm[0]
        label = run.settings.method
        if run.generator:
            label += f" + pairs from {' and '.join(title(name) for name in run.generator.split(' and '))}"
        label += " + predicted masks" * bool(run.settings.masks_from) + ", pre-trained" * bool(run.settings.init)
        labels.append(label)
    return [
        f"{label} ({arm[0].folder.name})" if labels.count(label) > 1 else label
        for label, arm in zip(labels, strategies, strict=True)
    ]


def _change(baseline: Run, other: Run, before: str, after: str) -> str:
    sides = [(one.method, bool(one.masks_from), bool(one.init)) for one in (baseline.settings, other.settings)]
    if sides[0] == sides[1] and other.generator and not baseline.generator:
        makers = " and ".join(f"the {title(name)}" for name in other.generator.split(" and "))
        return f"Training on pairs from {makers} as well"
    return f"Using {after} instead of {before}"


@dataclass(frozen=True)
class _Bootstrap:
    """How figures are resampled; the same for every strategy, so that differences are paired."""

    units: metrics.Units
    names: Sequence[str]
    resamples: int
    seed: int
    known: dict[tuple[Path, Measure], Tensor] = field(default_factory=dict)
    """Resampled figures of single runs: the baseline's are needed for every other strategy."""

    def resampled(self, run: Run, measure: Measure) -> Tensor:
        """A measure of one run: [1 + R] or [1 + R, K]; row 0 is that of the data as they are."""
        key = run.folder, measure
        if key not in self.known:
            table = run.tables[measure.table]
            self.known[key] = metrics.resample(table, measure.of, self.units, self.resamples, self.seed)
        return self.known[key]

    def figures(self, arm: Sequence[Run], measure: Measure) -> Tensor:
        """The mean over seeds of a measure: [1 + R] or [1 + R, K]; row 0 is that of the data as they are."""
        figures = torch.stack([self.resampled(run, measure) for run in arm], 1)
        generator = np.random.default_rng([self.seed, *(run.settings.seed for run in arm)])
        drawn = generator.multinomial(len(arm), np.full(len(arm), 1 / len(arm)), self.resamples)
        weight = torch.cat([torch.ones(1, len(arm), dtype=torch.float64), torch.from_numpy(drawn).double()])
        weight = weight.view(*weight.shape, *[1] * (figures.ndim - 2)).expand_as(figures)
        weight = weight.masked_fill(figures.isnan(), 0)
        return (figures.nan_to_num(0) * weight).sum(1) / weight.sum(1)

    def measures(self, runs: Sequence[Run]) -> dict[str, Measure]:
        """The measures that all the runs have."""
        return {key: measure for key, measure in MEASURES.items() if all(key in run.entry for run in runs)}

    def differences(self, baseline: Sequence[Run], arm: Sequence[Run]) -> dict[str, Any]:
        """Of every measure, and of each class's IoU: arm less baseline, with interval and p-value."""
        difference = {}
        for key, measure in self.measures([*baseline, *arm]).items():
            change = self.figures(arm, measure) - self.figures(baseline, measure)
            difference[key] = {**as_interval(metrics.interval(change)), "p": float(metrics.p_value(change))}
        change = self.figures(arm, CLASS_MEASURES["iou"]) - self.figures(baseline, CLASS_MEASURES["iou"])
        bounds, p = metrics.interval(change), metrics.p_value(change)
        per_class = {name: {**as_interval(bounds[:, k]), "p": float(p[k])} for k, name in enumerate(self.names)}
        return {"difference": difference, "per_class": per_class}

    def describe(self, arm: Sequence[Run], label: str) -> dict[str, Any]:
        """A strategy's runs and figures."""
        measures = self.measures(arm)
        scores = {key: metrics.interval(self.figures(arm, measure)) for key, measure in measures.items()}
        iou = metrics.interval(self.figures(arm, CLASS_MEASURES["iou"]))
        return {
            "label": label,
            "runs": [run.folder.name for run in arm],
            "seeds": [run.settings.seed for run in arm],
            "scores": {key: as_interval(bounds) for key, bounds in scores.items()},
            "iou": {name: as_interval(iou[:, k]) for k, name in enumerate(self.names)},
        }


def _uneven(strategies: Sequence[Sequence[Run]], labels: Sequence[str]) -> list[str]:
    """A note on each strategy with other seeds than the baseline."""
    notes, base = [], {run.settings.seed for run in strategies[0]}
    for arm, label in zip(strategies[1:], labels[1:], strict=True):
        own = {run.settings.seed for run in arm}
        if own != base and own & base:
            shared = ", ".join(map(str, sorted(own & base)))
            notes.append(f"{label} and {labels[0]} have other seeds: their difference is over seed {shared} alone.")
        elif not own & base:
            notes.append(f"{label} and {labels[0]} have no seed in common: train them with the same ones to compare.")
    return notes


def _notes(strategies: Sequence[Sequence[Run]], units: metrics.Units, split: str) -> list[str]:
    seeds = min(len(arm) for arm in strategies)
    notes = [
        "Brackets are 95% bootstrap intervals of the paired difference over the same images.",
        units.note,
    ]
    if split == "val":
        notes.append("Validation images also chose which weights were kept, so figures on them are a little high.")
    if split == "train":
        notes.append("These are training images: the figures do not say how the runs do on new ones.")
    if seeds == 1:
        notes.append(
            "One seed was used: the intervals say how sure the difference is on further images like these, "
            "not how much it would change if training were repeated with another seed."
        )
    else:
        notes.append(f"Figures are means over at least {seeds} seeds; seeds are resampled as well as images.")
        if seeds < 5:
            notes.append("With so few seeds the intervals are somewhat too narrow.")
    if len(strategies) > 2:
        notes.append(f"Verdicts are corrected for {len(strategies) - 1} comparisons (Holm 1979).")
    unfair = "so the comparison is not like for like."
    if len({arm[0].settings.budget for arm in strategies}) > 1:
        notes.append(f"The runs did not have the same number of labelled images, {unfair}")
    for run in (run for arm in strategies for run in arm):
        for folder in map(Path, run.settings.synthetic):
            maker = _maker(folder)
            if maker is not None and (maker.budget, maker.seed) != (run.settings.budget, run.settings.seed):
                notes.append(
                    f"The pairs in {folder.name} were learnt with budget {maker.budget} and seed {maker.seed}, not "
                    f"with those of {run.folder.name}: they may bring labels that the baseline did not have, {unfair}"
                )
    if len({arm[0].settings.training.steps for arm in strategies}) > 1:
        notes.append(f"The runs were not given the same number of steps, {unfair}")
    return notes
