"""What the page says of a run's doubt: a curve, and figures in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segmint.evaluation import charts
from segmint.evaluation.tables import read_tables
from segmint.functional import selective
from segmint.types import SegmintError

SELECTIVE = {
    "image_dice": "Dice of an image with its masks (those of all raters), averaged over images",
    "expected_dice": "the Dice that the run itself expects; the nearer to the line above, the better",
    "kept_90": "mean Dice of the 90% of images that it is most sure of, the rest left to a person",
    "kept_80": "the same, of 80%",
    "kept_50": "the same, of 50%",
    "aurc": "area under the risk-coverage curve, risk being 1 - Dice; lower is better",
    "aurc_excess": "how much of it is due to the wrong order of images; 0 is best",
    "error_auroc": "a wrong pixel has more entropy than a right one with this probability; 0.5 is chance",
    "judge_auroc": "the same for the method's own judge of errors",
}
SETS = {
    "ged": "squared generalised energy distance of draws from raters, as papers report it; lower is better",
    "ged_unbiased": "the same for endless draws and raters",
    "ged_raters": "GED of as many draws of the raters' own masks: about the best that can be had",
    "ged_single": "GED of the best single mask for each image, chosen with knowledge of its raters",
    "ged_majority": "GED of the raters' majority",
    "matched_iou": "mean IoU of draws and raters paired one to one (Hungarian matching)",
    "draw_quality": "mean IoU of a draw with the rater nearest to it: poor draws can lower GED, but not raise this",
    "rater_coverage": "mean IoU of a rater with the draw nearest to it",
    "diversity_draws": "mean distance (1 - IoU) between two draws",
    "diversity_raters": "mean distance between two raters",
}
NAMES = {
    "image_dice": "Dice by image", "expected_dice": "expected Dice",
    "kept_90": "Dice kept at 90%", "kept_80": "Dice kept at 80%", "kept_50": "Dice kept at 50%",
    "aurc": "AURC", "aurc_excess": "excess AURC",
    "error_auroc": "AUROC of errors by entropy", "judge_auroc": "AUROC of errors by judge",
    "ged": "GED", "ged_unbiased": "GED, unbiased", "ged_raters": "GED of raters",
    "ged_single": "GED of best single mask", "ged_majority": "GED of majority", "matched_iou": "matched IoU",
}  # fmt: skip

Row = tuple[str, str, Mapping[str, float]]


def tell(path: Path, split: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one split's entry of a metrics.json.

    Returns:
        "chart", an SVG of Dice against the share of images that are not left to a person, and the rows (name, words,
        cell) "selective" and "sets"; {} for entries of an earlier version, which have none of this.

    Raises:
        SegmintError: the entry is damaged.
    """
    if "aurc" not in entry:
        return {}
    try:
        table = read_tables(entry)["selective"].sum(0)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SegmintError(f"{path}: {split}: damaged ({error!r}); evaluate again") from error
    curves = {}
    for words, layer in (("by expected Dice", 0), ("best order", 1)):
        coverage, risk = (points.numpy() for points in selective.risk_coverage(table[layer : layer + 1]))
        curves[words] = (100 * np.append(0, coverage), 1 - np.append(risk[0], risk))
    chart = charts.line_chart(curves, "share of images not left to a person, %", "mean Dice of these")
    return {"chart": chart, "selective": _rows(entry, SELECTIVE), "sets": _rows(entry, SETS)}


def _rows(entry: Mapping[str, Any], words: Mapping[str, str]) -> list[Row]:
    return [(NAMES.get(key, key.replace("_", " ")), told, entry[key]) for key, told in words.items() if key in entry]
