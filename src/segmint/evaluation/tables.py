"""What `evaluate` keeps of each image, and the figures of a split that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from segmint.functional import metrics, selective

SETS = (
    *("ged", "ged_unbiased", "matched_iou", "draw_quality", "rater_coverage", "diversity_draws", "diversity_raters"),
    *("ged_raters", "ged_single", "ged_majority"),
)
"""The columns of table "sets": figures of an image's draws and raters, see `segmint.evaluation.ambiguity`."""


@dataclass(frozen=True)
class Measure:
    """A figure of a split: which per-image table it needs, and the statistic of the summed tables; what is best."""

    table: str
    of: metrics.Statistic
    best: Literal["max", "min", ""] = "max"


def _column(table: Tensor, column: str) -> Tensor:
    """Mean over images of a figure of table "sets": [..., F, 2] -> [...]."""
    return metrics.ratio(table[..., SETS.index(column), :])


def _diversity_ratio(table: Tensor) -> Tensor:
    """How much draws differ for each difference of the raters; 1 is right."""
    return _column(table, "diversity_draws") / _column(table, "diversity_raters")


MEASURES: Mapping[str, Measure] = {
    "miou": Measure("confusion", metrics.mean_iou),
    "dice": Measure("confusion", metrics.mean_dice),
    "accuracy": Measure("confusion", metrics.pixel_accuracy),
    "boundary_f1": Measure("boundary", metrics.mean_boundary_f1),
    "ece": Measure("calibration", metrics.calibration_error, "min"),
    "brier": Measure("brier", metrics.ratio, "min"),
    "nll": Measure("nll", metrics.ratio, "min"),
    "image_dice": Measure("image_dice", metrics.ratio),
    "expected_dice": Measure("expected_dice", metrics.ratio, ""),
    "aurc": Measure("selective", selective.aurc, "min"),
    "aurc_excess": Measure("selective", selective.excess_aurc, "min"),
    "kept_50": Measure("selective", selective.kept(0.5)),
    "kept_80": Measure("selective", selective.kept(0.8)),
    "kept_90": Measure("selective", selective.kept(0.9)),
    "error_auroc": Measure("detection", selective.auroc),
    "judge_auroc": Measure("judge", selective.auroc),
    "ged": Measure("sets", partial(_column, column="ged"), "min"),
    "ged_unbiased": Measure("sets", partial(_column, column="ged_unbiased"), "min"),
    "matched_iou": Measure("sets", partial(_column, column="matched_iou")),
    "draw_quality": Measure("sets", partial(_column, column="draw_quality")),
    "rater_coverage": Measure("sets", partial(_column, column="rater_coverage")),
    "diversity_draws": Measure("sets", partial(_column, column="diversity_draws"), ""),
    "diversity_ratio": Measure("sets", _diversity_ratio, ""),
}
OF_DATA: Mapping[str, Measure] = {
    name: Measure("sets", partial(_column, column=name), "")
    for name in ("diversity_raters", "ged_raters", "ged_single", "ged_majority")
}
"""What is known of the raters alone, the same for every run."""

CLASS_MEASURES: Mapping[str, Measure] = {
    "iou": Measure("confusion", metrics.class_iou),
    "dice": Measure("confusion", metrics.class_dice),
    "boundary_f1": Measure("boundary", metrics.class_boundary_f1),
}


def summarise(
    tables: Mapping[str, Tensor], units: metrics.Units, names: Sequence[str], resamples: int = 2000
) -> dict[str, Any]:
    """All measures of the tables that there are, each {"value", "low", "high"}, and "per_class" by name.

    A figure that no image defines is left out, but for those of every split; so are those of raters where each image
    has only one.
    """
    scores: dict[str, Any] = {}
    column = SETS.index("diversity_raters")
    compared = "sets" in tables and bool((tables["sets"][:, column, 1] > 0).any())
    for key, measure in {**MEASURES, **(OF_DATA if compared else {})}.items():
        if measure.table in tables:
            bounds = metrics.bootstrap(tables[measure.table], measure.of, units, resamples=resamples)
            if measure.table in ALWAYS or not bounds[0].isnan():
                scores[key] = as_interval(bounds)
    single = {
        key: metrics.bootstrap(tables[measure.table], measure.of, units, resamples=resamples)
        for key, measure in CLASS_MEASURES.items()
    }
    true = tables["confusion"].sum((0, 2)).double()
    scores["per_class"] = {
        name: {
            "share": float(true[k] / true.sum()),
            **{key: as_interval(bounds[:, k]) for key, bounds in single.items()},
        }
        for k, name in enumerate(names)
    }
    return scores


def as_interval(bounds: Tensor) -> dict[str, float]:
    """[3] -> {"value", "low", "high"}."""
    value, low, high = bounds.tolist()
    return {"value": value, "low": low, "high": high}


ALWAYS = ("confusion", "boundary", "calibration", "brier", "nll")
"""Stored as they are. Beside them lie "doubt" (expected and true Dice), and, where there are any, "detection", "judge"
and "sets"."""


def expand(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables as they can be summed, from what is stored: "doubt" [N, 2] and "sets" [N, F] have gaps (nan)."""
    tables = {key: table for key, table in found.items() if key not in ("doubt", "sets")}
    if "doubt" in found:
        confidence, dice = found["doubt"].double().unbind(-1)
        tables["expected_dice"] = metrics.boundary_table(confidence)
        tables["image_dice"] = metrics.boundary_table(dice)
        tables["selective"] = selective.curve_table(confidence, 1 - dice)
    if "sets" in found:
        tables["sets"] = metrics.boundary_table(_comparable(found["sets"]))
    return tables


def _comparable(sets: Tensor) -> Tensor:
    """Where some images have several raters, the diversity of draws is that on these images, as that of raters is."""
    draws, single = SETS.index("diversity_draws"), sets[:, SETS.index("diversity_raters")].isnan()
    if single.all():
        return sets
    sets = sets.clone()
    sets[single, draws] = torch.nan
    return sets


def pack(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tables as short lists, one per image; sums and figures keep four decimals, gaps are None."""
    return {
        key: [[_short(number) for number in row] for row in table.tolist()]
        for key, table in ((key, table.double().flatten(1)) for key, table in found.items())
    }


def _short(number: float) -> float | int | None:
    if number != number:
        return None
    return round(number, 4) if number % 1 else int(number)


def read_tables(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The per-image tables of an entry of metrics.json, as `evaluate` had them.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the entry is incomplete.
    """
    stored, classes = entry["per_image"], len(entry["classes"])
    shapes: dict[str, tuple[int, ...]] = {
        "confusion": (classes, classes),
        "boundary": (classes, 2),
        "calibration": (-1, 3),
        "brier": (2,),
        "nll": (2,),
    }
    optional: dict[str, tuple[int, ...]] = {
        "doubt": (2,),
        "detection": (-1, 2),
        "judge": (-1, 2),
        "sets": (len(SETS),),
    }
    shapes |= {key: shape for key, shape in optional.items() if key in stored}
    images = len(stored["names"])
    return expand({key: _tensor(stored[key]).view(images, *shape) for key, shape in shapes.items()})


def _tensor(rows: Sequence[Sequence[float | None]]) -> Tensor:
    filled = [[torch.nan if number is None else number for number in row] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)
