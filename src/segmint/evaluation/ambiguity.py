"""Draws beside the raters of each image: how alike the two sets are, and a picture of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from segmint.data.cache import Pixels
from segmint.evaluation import pictures as paint
from segmint.evaluation.tables import SETS
from segmint.functional import ambiguity
from segmint.inference.draws import DRAWS, Draws
from segmint.types import IGNORE

ROWS, RATERS, SHOWN = 6, 4, 6
"""Of the picture: images, and of each at most so many raters and draws."""


def raters_of(pixels: Pixels, index: int) -> Tensor:
    """The masks of all raters of an item, uint8 [R, H, W]."""
    return torch.from_numpy(np.asarray(pixels.masks[list(pixels.rows[index])]))


def set_figures(draws: Tensor, raters: Tensor, classes: int) -> Tensor:
    """The figures of `SETS` for one image.

    Args:
        draws: integers [S, H, W]; a single one stands for all draws, which do not differ.
        raters: integers [R, H, W].
        classes: K.

    Returns:
        float64 [F], nan where one rater does not define it. "ged_raters", "ged_single" and "ged_majority" are what the
        raters' own masks, the best of `ambiguity.single_masks`, and the majority would get for "ged".
    """
    chosen = ambiguity.foreground(classes)
    count = len(draws) if len(draws) > 1 else DRAWS
    draws = draws.expand(2, -1, -1) if len(draws) == 1 else draws
    across, own, among = (
        ambiguity.distances(*pair, chosen) for pair in ((draws, raters), (draws, draws), (raters, raters))
    )
    singles = ambiguity.ged_of_single(
        ambiguity.distances(ambiguity.single_masks(raters, classes), raters, chosen), among
    )
    found: dict[str, Tensor | float] = {
        "ged": ambiguity.ged(across, own, among),
        "ged_unbiased": ambiguity.ged(across, own, among, unbiased=True),
        "matched_iou": ambiguity.matched_iou(across),
        "draw_quality": ambiguity.draw_quality(across),
        "rater_coverage": ambiguity.rater_coverage(across),
        "diversity_draws": ambiguity.diversity(own),
        "diversity_raters": ambiguity.diversity(among),
        "ged_raters": ambiguity.ged_of_raters(among, count),
        "ged_single": singles.min(),
        "ged_majority": singles[0],
    }
    return torch.tensor([float(found[key]) for key in SETS], dtype=torch.float64)


def mean_dice(labels: Tensor, raters: Tensor, classes: int) -> float:
    """Dice of a mask [H, W] with the raters' [R, H, W], averaged over them; nan where no pixel's class is known."""
    if not bool((raters != IGNORE).any()):
        return math.nan
    return float(ambiguity.dice(labels[None], raters, ambiguity.foreground(classes)).mean())


def picture(pixels: Pixels, indices: Sequence[int], captions: Sequence[str], predict: Callable[[int], Draws]) -> Image:
    """Images, the masks of their raters, some draws, their mean and its uncertainty, a row for each image.

    Args:
        pixels: the data, decoded.
        indices: which items; `captions`: what is said of each.
        predict: gives the draws of one item.
    """
    colors, top = pixels.data.classes.colors, math.log(max(2, len(pixels.data.classes)))
    palette = torch.tensor(colors, dtype=torch.float32)
    raters = min(RATERS, max(len(pixels.rows[index]) for index in indices))
    rows, shown = [], 1
    for index in indices:
        said = predict(index)
        shown = min(SHOWN, len(said.masks))
        mixed = torch.einsum("khw,kc->hwc", said.probabilities[0].float().cpu(), palette).round().clamp(0, 255)
        masks = [*raters_of(pixels, index)[:raters], *said.masks[:shown, 0].cpu()]
        tiles = [_tile(paint.colorize(mask.numpy(), colors), smooth=False) for mask in masks]
        blank = [paint.note("", tiles[0].size)] * (raters - min(raters, len(pixels.rows[index])))
        tiles[len(tiles) - shown : len(tiles) - shown] = blank
        rows.append(
            [
                _tile(paint.to_rgb(np.asarray(pixels.images[index]))),
                *tiles,
                _tile(mixed.to(torch.uint8).numpy()),
                _tile(paint.heat(said.uncertainty[0].cpu().numpy(), top)),
            ]
        )
    heads = ["image", *_numbered("rater" if raters > 1 else "truth", raters), *_numbered("draw", shown)]
    heads += ["mean", "entropy"]
    table = paint.table_of_tiles(rows, heads, captions)
    return paint.framed(paint.beneath([table, paint.legend(pixels.data.classes.names, colors, table.width)], 14))


def _tile(values: paint.Array, *, smooth: bool = True) -> Image:
    return paint.tile(values, 112, smooth=smooth)


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word} {number}" for number in range(1, count + 1)]
