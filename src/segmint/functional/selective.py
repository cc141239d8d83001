"""Selective prediction: what is gained by leaving the least certain to a person.

As in `segmint.functional.metrics`, figures are statistics of summed tables, one table per image, so that they can be
resampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmint.functional.metrics import Statistic
from segmint.types import IGNORE

BINS = 512
"""Of images by confidence: exact up to so many images, and within 1/512 of the coverage beyond."""

PIXEL_BINS = 64


def curve_table(confidence: Tensor, risk: Tensor) -> Tensor:
    """What the risk-coverage curve needs, image by image.

    Args:
        confidence: float [N], any scale; `risk`: float [N], 0 or more. An image where either is nan counts nothing.

    Returns:
        float64 [N, 2, U, 2], U at most `BINS`: the image's count and risk in its bin, bins from the most confident to
        the least, and then again in order of the risk itself, which no confidence can better.
    """
    known = ~(confidence.isnan() | risk.isnan())
    orders = [_rank(-confidence.nan_to_num(0)), _rank(risk.nan_to_num(0))]
    table = torch.zeros(len(risk), 2, 1 + max(int(order.max()) for order in orders), 2, dtype=torch.float64)
    image = torch.arange(len(risk))
    values = torch.stack([torch.ones_like(risk), risk.nan_to_num(0)], -1).double() * known[:, None]
    for layer, order in enumerate(orders):
        table[image, layer, order] = values
    return table


def _rank(values: Tensor) -> Tensor:
    """The bin of each value, smallest first, equal values together: [N] -> int64 [N]."""
    different, rank = torch.unique(values, return_inverse=True)
    bins: Tensor = rank if len(different) <= BINS else rank * BINS // len(different)
    return bins


def _area(table: Tensor) -> Tensor:
    """Mean over n = 1..N of the mean risk of the n first: [..., U, 2] -> [...]; images of a bin in random order."""
    count, risk = table[..., 0], table[..., 1]
    mean = risk / count.clamp_min(1)
    until, total = count.cumsum(-1), risk.cumsum(-1)
    before, lost = until - count, total - risk
    harmonic = torch.digamma(until + 1) - torch.digamma(before + 1)
    area = (lost - before * mean) * harmonic + risk
    return area.sum(-1) / until[..., -1]


def aurc(table: Tensor) -> Tensor:
    """Area under the risk-coverage curve (Geifman & El-Yaniv 2017): summed `curve_table` [..., 2, U, 2] -> [...].

    The mean over n = 1..N of the mean risk of the n most confident images; lower is better.
    """
    return _area(table[..., 0, :, :])


def excess_aurc(table: Tensor) -> Tensor:
    """`aurc` less that of a confidence which orders the images by their risk (Geifman et al. 2019); 0 is best."""
    return aurc(table) - _area(table[..., 1, :, :])


def kept(coverage: float) -> Statistic:
    """A statistic of summed `curve_table`s: 1 less the mean risk of the most confident images.

    Args:
        coverage: which share of the images, above 0 and at most 1.

    A bin or an image that is only in part within the share counts for that part.
    """

    def statistic(table: Tensor) -> Tensor:
        count, risk = table[..., 0, :, 0], table[..., 0, :, 1]
        wanted = coverage * count.sum(-1, keepdim=True)
        inside = (wanted - (count.cumsum(-1) - count)).clamp_min(0).minimum(count)
        return 1 - (inside * risk / count.clamp_min(1)).sum(-1) / wanted[..., 0]

    return statistic


def risk_coverage(table: Tensor) -> tuple[Tensor, Tensor]:
    """The curve itself: a summed `curve_table` [2, U, 2] -> coverage, rising to 1, and mean risk, both [U']."""
    used = table[0][table[0, :, 0] > 0]
    count, risk = used.cumsum(0).unbind(-1)
    return count / count[-1], risk / count


def detection_table(doubt: Tensor, called: Tensor, truth: Tensor) -> Tensor:
    """Pixels called right and wrong by how doubtful they are, image by image.

    Args:
        doubt: float [B, H, W] in 0..1.
        called: integers [B, H, W]; `truth`: the same, `IGNORE` is not counted.

    Returns:
        float64 [B, 64, 2]: right and wrong pixels in bins of doubt, whose widths grow with the fourth power, as most
        pixels have next to none.
    """
    known = truth != IGNORE
    place = (doubt.double().clamp(0, 1).sqrt().sqrt() * PIXEL_BINS).long().clamp_max(PIXEL_BINS - 1)
    place = 2 * place + (called.long() != truth.long()).long()
    table = torch.zeros(len(truth), 2 * PIXEL_BINS, dtype=torch.float64, device=truth.device)
    table.scatter_add_(1, place.flatten(1), known.double().flatten(1))
    return table.view(-1, PIXEL_BINS, 2)


def auroc(table: Tensor) -> Tensor:
    """Area under the ROC curve of doubt as a detector of wrong pixels: summed `detection_table` [..., 64, 2] -> [...].

    The probability that a wrong pixel is more doubtful than a right one, pixels of one bin counting one half
    (Mann & Whitney 1947); nan where no pixel is wrong, or none right.
    """
    right, wrong = table[..., 0], table[..., 1]
    below = right.cumsum(-1) - right / 2
    return (wrong * below).sum(-1) / (wrong.sum(-1) * right.sum(-1))
