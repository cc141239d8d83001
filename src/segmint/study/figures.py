"""The figures of finished trials: of the split as it is, of resampled images, and of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segmint.evaluation.files import read_json
from segmint.evaluation.tables import MEASURES, Measure, read_tables
from segmint.functional import metrics
from segmint.study.results import Result
from segmint.types import SegmintError

Array = NDArray[np.float64]
Place = tuple[str, int | None]
"""A strategy and a budget (None: all labels)."""

RESAMPLES = 1000
_OF_AN_IMAGE = ("confusion", "boundary", "brier", "nll", "image_dice", "sets")


@dataclass(frozen=True)
class Arm:
    """A strategy at a budget: its finished trials, by seed.

    Attributes:
        results: S of them; `seeds`: theirs.
        figures: the measure of the split as it is (first column), then of resampled images, [S, 1 + R]. The same
            column is the same resample in every arm, so that differences are paired.
        images: the measure of each image, [S, N]; nan where an image does not define it.
    """

    results: tuple[Result, ...]
    figures: Array
    images: Array

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of `figures`."""
        return tuple(result.seed for result in self.results)


@dataclass(frozen=True)
class Figures:
    """All that is compared.

    Attributes:
        arms: by strategy and budget; those without a finished trial are missing.
        metric, split: what is compared, and where.
        lower: whether less is better.
        units: how many images or groups were resampled; `note` says which and why, `few_groups` that there were too
            few groups to resample these.
        names: of the images.
        problems: sentences about finished trials whose figures could not be read.
    """

    arms: dict[Place, Arm]
    metric: str
    split: str
    lower: bool = False
    units: int = 0
    note: str = ""
    names: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    few_groups: bool = False


def read_figures(
    folder: Path, results: Iterable[Result], metric: str, split: str, resamples: int = RESAMPLES
) -> Figures:
    """Read and resample the per-image tables of finished trials.

    Args:
        folder: the study's.
        results: of any status; those that are not done, or not judged on the split yet, are passed over.
        metric: one of `segmint.evaluation.tables.MEASURES`.
        split: which entry of each metrics.json.
        resamples: of the images.

    Raises:
        SegmintError: trials were judged on different images or classes.
    """
    measure = MEASURES[metric]
    done = [result for result in results if result.status == "done" and result.images]
    read: dict[Place, list[tuple[Result, Array, Array]]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    units: metrics.Units | None = None
    problems = []
    for result in done:
        path = folder / result.images
        try:
            entry = _entry(path, split)
            if entry is None:
                continue
            tables = read_tables(entry)
            table = tables[measure.table]
        except SegmintError as error:
            problems.append(f"A finished trial cannot be compared: {error}.")
            continue
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            problems.append(
                f"A finished trial cannot be compared: {path}: {split} lacks what {metric} needs ({error!r})."
            )
            continue
        if first is None or units is None:
            first, units = (path, entry), metrics.units(entry["per_image"]["groups"])
        _check_same(first, (path, entry))
        figures = metrics.resample(table, measure.of, units, resamples).numpy()
        read.setdefault((result.strategy, result.budget), []).append((result, figures, _of_images(measure, tables)))
    arms = {place: _arm(some) for place, some in read.items()}
    if first is None or units is None:
        return Figures({}, metric, split, measure.best == "min", problems=tuple(problems))
    names = tuple(first[1]["per_image"]["names"])
    groups = [group for group in first[1]["per_image"]["groups"] if group]
    few = units.kind == "images" and len(set(groups)) < len(groups)
    lower, told = measure.best == "min", tuple(problems)
    return Figures(arms, metric, split, lower, units.count, units.note, names, told, few)


def _entry(path: Path, split: str) -> dict[str, Any] | None:
    """What metrics.json says of the split; None where it has not been judged on it yet."""
    scores = read_json(path, f"remove {path.parent} and the trial's line in results.jsonl, and run the study again")
    entry: dict[str, Any] | None = scores.get(split)
    return entry


def of_images(measure: Measure) -> bool:
    """Whether each image defines a measure; where not, mIoU stands for it when images are compared."""
    return measure.table in _OF_AN_IMAGE


def _of_images(measure: Measure, tables: dict[str, torch.Tensor]) -> Array:
    """The measure of each image, [N]; mIoU for measures that only many images define."""
    chosen = measure if of_images(measure) else MEASURES["miou"]
    return np.asarray(chosen.of(tables[chosen.table]).double().numpy())


def _arm(read: Sequence[tuple[Result, Array, Array]]) -> Arm:
    ordered = sorted(read, key=lambda one: one[0].seed)
    results, figures, images = zip(*ordered, strict=True)
    return Arm(tuple(results), np.stack(figures), np.stack(images))


def _check_same(first: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> None:
    remedy = "the data changed during the study: start the study anew, in another folder"
    for key in ("classes", "size"):
        if first[1][key] != other[1][key]:
            raise SegmintError(f"{other[0]}: {key} {other[1][key]} differ from {first[0]}'s {first[1][key]}; {remedy}")
    for path, entry in (first, other):
        if entry.get("mirror"):
            raise SegmintError(
                f"{path}: was judged with --mirror, unlike the study's other runs; remove {path.parent} and the "
                "trial's line in results.jsonl, and run the study again"
            )
    if first[1]["per_image"]["names"] != other[1]["per_image"]["names"]:
        raise SegmintError(f"{other[0]}: was judged on other images than {first[0]}; {remedy}")
