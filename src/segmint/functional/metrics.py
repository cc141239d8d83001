"""Measures of segmentation and what they are worth: intervals and paired differences by the bootstrap.

Every measure is computed from one small table per image (a confusion matrix, a row of bin sums). The tables
of a data set are added up, so measures stream, are those of the whole data set, and can be resampled by
adding again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.types import IGNORE

Statistic = Callable[[Tensor], Tensor]
"""From summed tables [R, ...] to one figure each, [R], or to one per class, [R, K]."""

MIN_GROUPS = 5
"""With fewer groups than this, resampling whole groups says little; images are resampled instead."""


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        prediction: integers [B, H, W] in 0..K-1.
        truth: integers [B, H, W] in 0..K-1, or `IGNORE`; ignored pixels are not counted.
        classes: K.

    Returns:
        int64 [B, K, K]; entry (b, i, j) counts pixels of image b of true class i that were called j.

    Raises:
        ValueError: a class index is out of range, or the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)} but truth is {tuple(truth.shape)}")
    known = truth != IGNORE
    item = torch.arange(len(truth), device=truth.device).view(-1, 1, 1).expand_as(truth)[known]
    true, called = truth[known].long(), prediction[known].long()
    if true.numel() and int(torch.maximum(true.max(), called.max())) >= classes:
        raise ValueError(f"a class index is not below {classes}")
    index = (item * classes + true) * classes + called
    return torch.bincount(index, minlength=len(truth) * classes**2).view(len(truth), classes, classes)


def _hits(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = confusion.double()
    return counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class: [..., K, K] -> float64 [..., K].

    A class absent from truth and prediction alike is nan.
    """
    hits, true, called = _hits(confusion)
    return hits / (true + called - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean intersection over union, [..., K, K] -> [...]: the mean over the classes that are not nan."""
    return class_iou(confusion).nanmean(-1)


def class_dice(confusion: Tensor) -> Tensor:
    """Dice coefficient (F1 over pixels) of each class: [..., K, K] -> float64 [..., K], nan where absent."""
    hits, true, called = _hits(confusion)
    return 2 * hits / (true + called)


def mean_dice(confusion: Tensor) -> Tensor:
    """Mean Dice over the classes that are not nan: [..., K, K] -> [...]."""
    return class_dice(confusion).nanmean(-1)


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of pixels called right: [..., K, K] -> float64 [...]."""
    hits, true, _ = _hits(confusion)
    return hits.sum(-1) / true.sum(-1)


def boundaries(mask: Tensor) -> Tensor:
    """The class of boundary pixels, -1 elsewhere: integers [B, H, W] -> int64 [B, H, W].

    A pixel is on the boundary of its class if a pixel above, below, left or right of it has another class.
    The picture's edge is no boundary, nor is the border with ignored pixels.
    """
    edge = torch.zeros_like(mask, dtype=torch.bool)
    known = mask != IGNORE
    across = (mask[:, :, 1:] != mask[:, :, :-1]) & known[:, :, 1:] & known[:, :, :-1]
    down = (mask[:, 1:] != mask[:, :-1]) & known[:, 1:] & known[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return torch.where(edge, mask.long(), -1)


def _near(points: Tensor, targets: Tensor, radius: float, classes: int) -> Tensor:
    """How many points have a target of their class no further than `radius`; labels [B, H, W] -> int64 [B, K].

    Boundaries are thin, so each point is looked up by itself, at ever larger distances until it finds a target.
    """
    reach = int(radius)
    padded = F.pad(targets, (reach, reach, reach, reach), value=-1)
    item, y, x = (points >= 0).nonzero(as_tuple=True)
    label = points[item, y, x]
    place = (item * padded.shape[1] + y + reach) * padded.shape[2] + x + reach
    span = range(-reach, reach + 1)
    disc = sorted((dy * dy + dx * dx, dy, dx) for dy in span for dx in span)
    found = torch.zeros(len(points) * classes, dtype=torch.int64, device=points.device)
    for square, dy, dx in disc:
        if square > radius**2:
            break
        hit = padded.view(-1)[place + dy * padded.shape[2] + dx] == label
        found += torch.bincount(item[hit] * classes + label[hit], minlength=len(found))
        item, label, place = item[~hit], label[~hit], place[~hit]
    return found.view(-1, classes)


def boundary_f1(prediction: Tensor, truth: Tensor, classes: int, tolerance: float = 0.0075) -> Tensor:
    """Boundary F1 of each image and class (Csurka et al. 2013, "What is a good evaluation measure for
    semantic segmentation?").

    Precision is the share of predicted boundary pixels within the tolerance of a true one; recall is the
    share of true boundary pixels within it of a predicted one.

    Args:
        prediction: integers [B, H, W] in 0..K-1.
        truth: integers [B, H, W]; ignored pixels are ignored in both masks.
        classes: K.
        tolerance: distance allowed, as a share of the picture's diagonal.

    Returns:
        float64 [B, K] in 0..1; nan where the class has no boundary in either mask.
    """
    prediction = torch.where(truth == IGNORE, truth, prediction.to(truth.dtype))
    radius = tolerance * float(np.hypot(*truth.shape[-2:]))
    true, called = boundaries(truth), boundaries(prediction)
    found, met = _near(called, true, radius, classes), _near(true, called, radius, classes)
    called_count, true_count = _near(called, called, 0, classes), _near(true, true, 0, classes)
    precision, recall = found.double() / called_count.clamp_min(1), met.double() / true_count.clamp_min(1)
    score = 2 * precision * recall / (precision + recall).clamp_min(1e-300)
    return score.masked_fill(called_count + true_count == 0, torch.nan)


def boundary_table(scores: Tensor) -> Tensor:
    """Scores with gaps as sums that can be added: float [B, K] with nan -> float64 [B, K, 2] (sum, count)."""
    return torch.stack([scores.nan_to_num(0).double(), (~scores.isnan()).double()], -1)


def class_boundary_f1(table: Tensor) -> Tensor:
    """Mean over images of each class's boundary F1: summed `boundary_table` [..., K, 2] -> [..., K]."""
    return table[..., 0] / table[..., 1]


def mean_boundary_f1(table: Tensor) -> Tensor:
    """Mean over classes of `class_boundary_f1`: [..., K, 2] -> [...]."""
    return class_boundary_f1(table).nanmean(-1)


def calibration_table(probabilities: Tensor, truth: Tensor, bins: int = 15) -> Tensor:
    """What the expected calibration error needs, image by image.

    Args:
        probabilities: float [B, K, H, W], summing to one over K.
        truth: integers [B, H, W]; ignored pixels are not counted.
        bins: number of bins of equal width; bin i holds confidences in (i/bins, (i+1)/bins].

    Returns:
        float64 [B, bins, 3]: pixels, sum of confidences, and pixels called right, in each bin.
    """
    confidence, called = probabilities.max(1)
    confidence = confidence.double()
    known = (truth != IGNORE).double()
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, (called == truth).double()], -1)
    table = torch.zeros(len(truth), bins, 3, dtype=torch.float64, device=truth.device)
    index = place.flatten(1)[..., None].expand(-1, -1, 3)
    return table.scatter_add_(1, index, (values * known[..., None]).flatten(1, 2))


def calibration_error(table: Tensor) -> Tensor:
    """Expected calibration error (Guo 2017) of a summed `calibration_table`: [..., bins, 3] -> [...]."""
    gap = (table[..., 1] - table[..., 2]).abs().sum(-1)
    return gap / table[..., 0].sum(-1)


def brier_table(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Brier score sums: squared distance of probabilities from the one-hot truth, summed over classes, 0..2.

    Args:
        probabilities: float [B, K, H, W].
        truth: integers [B, H, W]; ignored pixels are not counted.

    Returns:
        float64 [B, 2]: sum over pixels, and number of pixels.
    """
    known = truth != IGNORE
    right = probabilities.gather(1, torch.where(known, truth, 0).long()[:, None])[:, 0].double()
    squares = torch.zeros_like(right)
    for share in probabilities.unbind(1):  # all classes at once in double precision would be gigabytes
        squares += share.double().square()
    return _sums(squares - 2 * right + 1, known)


def nll_table(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Negative log likelihood sums in nats; like `brier_table`. Probabilities are kept above 1e-12."""
    known = truth != IGNORE
    right = probabilities.gather(1, torch.where(known, truth, 0).long()[:, None])[:, 0]
    return _sums(-right.double().clamp_min(1e-12).log(), known)


def _sums(values: Tensor, known: Tensor) -> Tensor:
    kept = values.masked_fill(~known, 0)
    return torch.stack([kept.sum((-2, -1)), known.sum((-2, -1)).double()], -1)


def ratio(table: Tensor) -> Tensor:
    """Sum over count: [..., 2] -> [...]."""
    return table[..., 0] / table[..., 1]


def majority(masks: Tensor, classes: int) -> Tensor:
    """The class most raters chose, pixel by pixel; ties go to the lowest class index.

    Args:
        masks: integers [R, H, W], one mask per rater; `IGNORE` is no vote.
        classes: K.

    Returns:
        int64 [H, W], `IGNORE` where nobody voted.
    """
    votes = torch.stack([(masks == index).sum(0) for index in range(classes)])
    return torch.where(votes.sum(0) > 0, votes.argmax(0), IGNORE)


@dataclass(frozen=True)
class Units:
    """What is drawn when a data set is resampled.

    Attributes:
        index: int64 [N], the unit that each image belongs to; `count`: number of units U.
        kind: "images" or "groups".
        note: a sentence that says what is resampled and why.
    """

    index: Tensor
    count: int
    kind: str
    note: str


def units(groups: Sequence[str]) -> Units:
    """Decide what to resample: whole groups (drives, patients) if there are at least five, else images.

    Args:
        groups: the group of each image; "" where an image belongs to none and stands for itself.
    """
    names = [group or f"\0{position}" for position, group in enumerate(groups)]
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    images = len(names)
    if len(order) == images:
        return Units(torch.arange(images), images, "images", f"Intervals resample the {images} images.")
    if len(order) >= MIN_GROUPS:
        note = f"Intervals resample whole groups ({len(order)} groups, {images} images)."
        return Units(torch.tensor([order[name] for name in names]), len(order), "groups", note)
    few = "one group" if len(order) == 1 else f"only {len(order)} groups"
    note = (
        f"Intervals resample single images, because they come from {few}: images of a group resemble "
        "each other, so the true uncertainty is larger than the intervals say."
    )
    return Units(torch.arange(images), images, "images", note)


def weights(count: int, resamples: int = 2000, seed: int = 0) -> Tensor:
    """How often each unit is drawn in each bootstrap resample: float64 [resamples, count]."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.multinomial(count, np.full(count, 1 / count), resamples).astype(float))


def resample(tables: Tensor, statistic: Statistic, groups: Units, resamples: int = 2000, seed: int = 0) -> Tensor:
    """A statistic of resampled data sets. The same `groups` and `seed` draw the same images: runs are paired.

    Args:
        tables: one table per image, [N, ...].
        statistic: of summed tables.

    Returns:
        [1 + resamples] or [1 + resamples, K], float64; the first is the statistic of the data as they are.
    """
    flat = tables.double().flatten(1)
    summed = torch.zeros(groups.count, flat.shape[1], dtype=torch.float64).index_add_(0, groups.index, flat)
    drawn = torch.cat([torch.ones(1, groups.count, dtype=torch.float64), weights(groups.count, resamples, seed)])
    return statistic((drawn @ summed).view(-1, *tables.shape[1:]))


def interval(figures: Tensor, confidence: float = 0.95) -> Tensor:
    """Percentile interval (Efron 1979) of `resample`'s figures: [1 + R, ...] -> [3, ...] (value, low, high).

    Resamples in which the figure is undefined (a class that was not drawn) are left out.
    """
    tail = (1 - confidence) / 2
    bounds = figures[1:].nanquantile(torch.tensor([tail, 1 - tail], dtype=figures.dtype), 0)
    return torch.cat([figures[:1], bounds])


def bootstrap(tables: Tensor, statistic: Statistic, groups: Units, *, resamples: int = 2000, seed: int = 0) -> Tensor:
    """A statistic of a data set with its 95% bootstrap interval: [3] or [3, K] (value, low, high)."""
    return interval(resample(tables, statistic, groups, resamples, seed))


def p_value(differences: Tensor) -> Tensor:
    """Two-sided bootstrap p-value for "no difference": [1 + R, ...] -> [...].

    Twice the smaller share of resamples on either side of zero, counting the data themselves once (Davison &
    Hinkley 1997, eq. 4.11), so it is never 0. The first row, the data as they are, is left out.
    """
    drawn = differences[1:]
    total = (~drawn.isnan()).sum(0) + 1
    tail = torch.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0)) + 1
    return (2 * tail / total).clamp_max(1).double()


def bootstrap_difference(
    baseline: Tensor,
    other: Tensor,
    statistic: Statistic,
    groups: Units,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The paired difference other - baseline over the same images.

    Args:
        baseline, other: one table per image, [N, ...], in the same order.

    Returns:
        ([3] or [3, K] (value, low, high), p-values [] or [K]).
    """
    arms = [resample(tables, statistic, groups, resamples, seed) for tables in (baseline, other)]
    return interval(arms[1] - arms[0]), p_value(arms[1] - arms[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for several comparisons (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
