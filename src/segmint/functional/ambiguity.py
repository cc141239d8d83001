"""Sets of masks of one image: how far draws and raters agree, and how far they differ among themselves.

Masks are compared by intersection over union (IoU), averaged over the classes present in either mask; two masks without
any of the classes agree (IoU 1). Pixels that are `IGNORE` in either mask are left out. All measures are computed from
small tables with one number for each pair of masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segmint.functional.metrics import majority
from segmint.types import IGNORE

ALIKE = 0.3
"""Draws are told apart where their groups are further from each other than this (1 - IoU)."""


def foreground(classes: int) -> tuple[int, ...]:
    """The classes that masks are compared by: of two only the second, as the first is background; else all K."""
    return (1,) if classes == 2 else tuple(range(classes))


def _overlaps(first: Tensor, second: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pixels that pairs share, and the sum of their areas: [..., N, H, W], [..., M, H, W] -> two of [..., N, M, K]."""
    a, b = first.flatten(-2), second.flatten(-2)
    exact = torch.float32 if a.shape[-1] < 2**24 else torch.float64
    known_a, known_b = (a != IGNORE).to(exact), (b != IGNORE).to(exact)
    shared, areas = [], []
    with torch.autocast(a.device.type, enabled=False):  # in bfloat16 counts would be rounded
        for index in classes:
            in_a, in_b = (a == index).to(exact), (b == index).to(exact)
            shared.append(in_a @ in_b.mT)
            areas.append(in_a @ known_b.mT + known_a @ in_b.mT)
    return torch.stack(shared, -1).double(), torch.stack(areas, -1).double()


def _over_present(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, averaged over the last dimension where whole > 0; 1 where it nowhere is."""
    present = (whole > 0).double()
    ratio = part / whole.clamp_min(1e-12) * present
    count = present.sum(-1)
    return torch.where(count > 0, ratio.sum(-1) / count.clamp_min(1), 1.0)


def iou(first: Tensor, second: Tensor, classes: Sequence[int]) -> Tensor:
    """Intersection over union of every mask of one set with every mask of another.

    Args:
        first: integers [..., N, H, W], class indices or `IGNORE`; `second`: [..., M, H, W].
        classes: which classes to average over; see `foreground`.

    Returns:
        float64 [..., N, M] in 0..1: the mean over the classes present in either mask, 1 if none is.
    """
    shared, areas = _overlaps(first, second, classes)
    return _over_present(shared, areas - shared)


def dice(first: Tensor, second: Tensor, classes: Sequence[int]) -> Tensor:
    """Dice coefficient of every pair, otherwise like `iou`: float64 [..., N, M]."""
    shared, areas = _overlaps(first, second, classes)
    return _over_present(2 * shared, areas)


def distances(first: Tensor, second: Tensor, classes: Sequence[int]) -> Tensor:
    """1 - IoU of every pair, 0..1; see `iou`."""
    return 1 - iou(first, second, classes)


def diversity(table: Tensor) -> Tensor:
    """Mean distance between two different members of a set: [..., N, N] -> [...], nan where there is only one."""
    count = table.shape[-1]
    return table.sum((-2, -1)) / (count * (count - 1))


def ged(across: Tensor, draws: Tensor, raters: Tensor, *, unbiased: bool = False) -> Tensor:
    """Squared generalised energy distance (Székely & Rizzo 2013; Kohl et al. 2018, "A probabilistic U-Net").

    2 E d(S, R) - E d(S, S') - E d(R, R').

    Args:
        across: distances [..., S, R] of draws from raters; `draws`: [..., S, S]; `raters`: [..., R, R].
        unbiased: leave out each mask's distance 0 from itself (U-statistic): its expected value is the same for any
            number of draws and raters, but estimates may lie below 0. Else the form that papers report
            (V-statistic), never below 0, and larger the fewer draws there are.

    Returns:
        float64 [...]; unbiased, nan where there is only one draw or rater.
    """
    within = diversity if unbiased else _mean
    return 2 * _mean(across) - within(draws) - within(raters)


def _mean(table: Tensor) -> Tensor:
    return table.mean((-2, -1))


def matched_iou(across: Tensor) -> float:
    """Hungarian-matched IoU (Kohl et al. 2019, "A hierarchical probabilistic U-Net").

    Both sets are repeated up to the least common multiple of their sizes; the masks are then paired one to one, so that
    the mean IoU of the pairs is as large as can be.

    Args:
        across: distances [S, R] of draws from raters.
    """
    from scipy.optimize import linear_sum_assignment

    size = math.lcm(*across.shape)
    table = across.cpu().numpy().repeat(size // across.shape[0], 0).repeat(size // across.shape[1], 1)
    rows, columns = linear_sum_assignment(table)
    return float(1 - table[rows, columns].mean())


def draw_quality(across: Tensor) -> Tensor:
    """Mean IoU of a draw with the rater nearest to it: distances [..., S, R] -> [...]. Low: draws nobody would draw."""
    return 1 - across.amin(-1).mean(-1)


def rater_coverage(across: Tensor) -> Tensor:
    """Mean IoU of a rater with the draw nearest to it: distances [..., S, R] -> [...]. Low: opinions never drawn."""
    return 1 - across.amin(-2).mean(-1)


def ged_of_raters(raters: Tensor, draws: int) -> Tensor:
    """Expected `ged` (V-statistic) of draws that are the raters' own masks, taken at random with replacement.

    With D the mean of all distances between raters, E d(S, R) = E d(R, R') = D and E d(S, S') = D (S - 1) / S, so it is
    D / S: what a perfect model of these raters gets.

    Args:
        raters: distances [..., R, R]; `draws`: S.
    """
    return _mean(raters) / draws


def ged_of_single(across: Tensor, raters: Tensor) -> Tensor:
    """`ged` of each of some masks, were it the only draw: distances [..., N, R] and [..., R, R] -> [..., N]."""
    return 2 * across.mean(-1) - _mean(raters)[..., None]


def single_masks(raters: Tensor, classes: int) -> Tensor:
    """Masks that sum up the raters, chosen with knowledge of them all.

    Args:
        raters: integers [R, H, W].
        classes: K; class 0 is taken for background.

    Returns:
        integers [2 + 2 R, H, W]: the majority, the empty mask, each rater's, and for n = 1..R the pixels on which at
        least n raters saw something (n = 1: the union, n = R: the intersection), of the class that most of them saw.
    """
    seen = torch.stack([(raters == index).sum(0) for index in range(1, classes)])
    likely = seen.argmax(0) + 1
    levels = [torch.where(seen.sum(0) >= least, likely, 0) for least in range(1, len(raters) + 1)]
    most = majority(raters, classes)
    return torch.stack([most, torch.zeros_like(most), *raters.to(most.dtype), *levels])


def clusters(table: Tensor, threshold: float = ALIKE) -> list[tuple[int, float]]:
    """The distinct ones among some masks (average linkage, Sokal & Michener 1958).

    The two nearest groups are joined again and again, until all are further apart than the threshold, by the mean
    distance of their members.

    Args:
        table: distances [N, N].
        threshold: 0..1.

    Returns:
        For each group, largest first, its medoid (the member with the least distance from the others) and its share of
        the masks.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    full = table.double().cpu().numpy()
    if len(full) == 1:
        return [(0, 1.0)]
    labels = fcluster(linkage(squareform(full, checks=False), "average"), threshold, "distance")
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        medoid = members[full[np.ix_(members, members)].sum(1).argmin()]
        found.append((int(medoid), len(members) / len(full)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def expected_dice(labels: Tensor, probabilities: Tensor, classes: Sequence[int], levels: int = 16) -> Tensor:
    """Dice that a mask may expect, from class probabilities alone.

    The truth is taken to be {pixels where p > u} in each class, with u uniform in 0..1: the coherent masks that have
    these probabilities. (Were pixels independent, an empty mask could never expect to be right.)

    Args:
        labels: integers [B, H, W].
        probabilities: float [B, K, H, W].
        classes: which to average over, as in `dice`.
        levels: how many values of u, evenly spread.

    Returns:
        float64 [B] in 0..1.
    """
    return dice_of(dice_counts(labels, probabilities, classes, levels))


def dice_counts(labels: Tensor, probabilities: Tensor, classes: Sequence[int], levels: int = 16) -> Tensor:
    """What `expected_dice` counts. Counts of the parts of an image add up to those of the whole.

    Returns:
        float64 [2, B, levels, classes]: pixels in both the mask and the truth of each level; both their areas together.
    """
    chosen = torch.stack([labels == index for index in classes], 1)
    likely = probabilities[:, list(classes)]
    area = chosen.sum((-2, -1)).double()
    shared, areas = [], []
    for level in range(levels):
        truth = likely > (level + 0.5) / levels
        shared.append((truth & chosen).sum((-2, -1)).double())
        areas.append(area + truth.sum((-2, -1)).double())
    return torch.stack([torch.stack(shared, 1), torch.stack(areas, 1)])


def dice_of(counts: Tensor) -> Tensor:
    """The mean Dice over levels, float64 [B], from `dice_counts`."""
    return _over_present(2 * counts[0], counts[1]).mean(1)
