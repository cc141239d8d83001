"""Segmentation losses: pure functions of logits and target, and the little language that adds them up.

Every loss takes logits [B, K, H, W] and a target int64 [B, H, W] with class indices 0..K-1 or `IGNORE`, and
returns a scalar >= 0. Pixels marked `IGNORE` have no influence. Where nothing is labelled, the loss and its
gradient are exactly zero. Logits of lower precision are first converted to float32, so the losses are safe
under autocast. Where several processes train on one batch (`segmint.ranks`), what a loss divides by is that of the
whole batch, so that the mean of the processes' losses is the loss of the whole batch; `lovasz` alone is taken of
each process's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segmint.ranks import average
from segmint.types import IGNORE, SegmintError

Loss = Callable[[Tensor, Tensor], Tensor]


def _full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def one_hot(target: Tensor, classes: int) -> Tensor:
    """Which class each pixel has: int64 [B, H, W] -> bool [B, K, H, W]. A pixel marked `IGNORE` has none."""
    index = torch.arange(classes, device=target.device).view(1, -1, 1, 1)
    return target.unsqueeze(1) == index


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean negative log-probability of the true class, as `torch.nn.functional.cross_entropy` has it.

    Args:
        logits: [B, K, H, W].
        target: int64 [B, H, W].
        weight: [K], one weight per class; the mean is then over the weights of the labelled pixels.
        label_smoothing: in [0, 1]: the part of the target that is spread evenly over all classes.
    """
    logits = _full(logits)
    weight = None if weight is None else weight.to(logits)
    total = F.cross_entropy(
        logits, target, weight, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing
    )
    valid = target != IGNORE
    if weight is None:
        return total / average(valid.sum()).clamp_min(1)
    weights = weight[target.where(valid, 0)] * valid
    return total / average(weights.sum()).clamp_min(torch.finfo(logits.dtype).tiny)


def class_weights(shares: Sequence[float], power: float = 0.5, cap: float = 10.0) -> Tensor:
    """Weights that make rare classes count for more: share ** -power, so the inverse square root by default.

    A class weighs at most `cap` times as much as the commonest one, so that a handful of pixels cannot rule
    the gradient; classes never seen weigh as much as that. Normalised so that the expected weight of a
    labelled pixel is 1: the loss keeps its scale, and with it the learning rate.

    Args:
        shares: the share of each class among the labelled pixels, K numbers >= 0; need not sum to one.
        power: 0 gives equal weights, 1 gives every class the same total weight.
        cap: the largest ratio of two weights, >= 1.

    Returns:
        float32 [K].

    Raises:
        SegmintError: a share is negative or not a number, or all are zero.
    """
    share = torch.tensor(list(shares), dtype=torch.float64)
    if not bool((share >= 0).all()) or not 0 < float(share.sum()) < math.inf:
        raise SegmintError(f"loss: class shares must be >= 0 and not all zero, got {list(shares)}; label some pixels")
    weight = (share / share.max()).pow(-power).clamp_max(cap)
    return (weight * share.sum() / (weight * share).sum()).float()


def balanced_cross_entropy(logits: Tensor, target: Tensor, shares: Sequence[float]) -> Tensor:
    """`cross_entropy` with the `class_weights` of these class shares."""
    return cross_entropy(logits, target, class_weights(shares))


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss: the mean of -(1 - p)^gamma log p (Lin et al. 2017, eq. 4).

    p is the probability of the true class. `gamma` = 0 is cross-entropy; larger values care less for pixels
    that are already right.
    """
    valid = target != IGNORE
    logp = _full(logits).log_softmax(1).gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
    doubt = (-torch.expm1(logp)).clamp_min(torch.finfo(logp.dtype).eps)
    return -(doubt.pow(gamma) * logp * valid).sum() / average(valid.sum()).clamp_min(1)


def tversky(logits: Tensor, target: Tensor, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """One minus the soft Tversky index TP / (TP + alpha FP + beta FN), mean over classes (Salehi 2017).

    The sums run over all labelled pixels of the batch. Classes absent from the batch's target are left out
    of the average: their index would be 0 whatever the prediction. Probability given to them is still
    punished, as it is missing from the classes that are there.

    Args:
        logits: [B, K, H, W].
        target: int64 [B, H, W].
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0; above `alpha` it favours recall.
    """
    truth = one_hot(target, logits.shape[1])
    valid = (target != IGNORE).unsqueeze(1)
    probability = _full(logits).softmax(1)
    hit = average((probability * truth).sum((0, 2, 3)))
    claimed = average((probability * valid).sum((0, 2, 3)))
    count = average(truth.sum((0, 2, 3)))
    bottom = hit + alpha * (claimed - hit) + beta * (count - hit)
    index = hit / bottom.clamp_min(torch.finfo(bottom.dtype).eps)
    present = count > 0
    return ((1 - index) * present).sum() / present.sum().clamp_min(1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice coefficient 2 TP / (2 TP + FP + FN), mean over the classes in the batch.

    Sums over the batch as `tversky` does, of which this is the case alpha = beta = 1/2; classes absent from
    the target are left out of the average.
    """
    return tversky(logits, target, 0.5, 0.5)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász-softmax: the convex extension of one minus the Jaccard index (Berman et al. 2018, eq. 11).

    Averaged over the classes present in the batch, whose pixels are taken together. At hard predictions it
    equals one minus the mean Jaccard index.
    """
    truth = one_hot(target, logits.shape[1]).transpose(0, 1).flatten(1)
    probability = _full(logits).softmax(1).transpose(0, 1).flatten(1)
    error = (truth.to(probability) - probability).abs().masked_fill((target == IGNORE).flatten(), 0)
    growth = torch.zeros_like(error)
    present = truth.any(1)
    for index in present.nonzero().flatten().tolist():
        growth[index] = _jaccard_growth(error[index].detach(), truth[index])
    return (error * growth).sum() / present.sum().clamp_min(1)


def _jaccard_growth(error: Tensor, truth: Tensor) -> Tensor:
    """What each pixel [N] adds to the Jaccard loss once it is wrong, if pixels go wrong in falling order of error.

    Floats >= 0 are in the order of their bits, and PyTorch sorts rising integers many times faster than floats.
    """
    bits = error.view(torch.int64 if error.dtype == torch.float64 else torch.int32)
    order = bits.neg().sort().indices
    sorted_truth = truth[order]
    hits = sorted_truth.cumsum(0, dtype=torch.int32)
    intersection = hits[-1] - hits
    union = intersection + torch.arange(1, len(hits) + 1, dtype=torch.int32, device=hits.device)
    union, intersection = union.to(error), intersection.to(error)
    growth = torch.where(sorted_truth, 1 / union, intersection / (union * (union - 1).clamp_min(1)))
    return torch.empty_like(error).scatter_(0, order, growth)


def mse(logits: Tensor, target: Tensor) -> Tensor:
    """Brier score: the squared distance of the probabilities from the one-hot target, in [0, 2]."""
    valid = target != IGNORE
    probability = _full(logits).softmax(1)
    error = probability - one_hot(target, logits.shape[1]).to(probability)
    return (error.square().sum(1) * valid).sum() / average(valid.sum()).clamp_min(1)


_SIMPLE: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "tversky": tversky,
    "mse": mse,
}
_BALANCED = "balanced_cross_entropy"

NAMES = (*_SIMPLE, _BALANCED)
"""The losses that `compose` knows."""


def _term(text: str, spec: str) -> tuple[str, float]:
    """The name and weight in e.g. "0.5*focal"."""
    factor, star, name = text.rpartition("*")
    name = name.strip()
    if name not in NAMES:
        raise SegmintError(
            f"loss: there is no {name!r} (in {spec!r}); choose from {', '.join(NAMES)}, "
            'or add some of them up, e.g. "cross_entropy+0.5*dice"'
        )
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise SegmintError(f"loss: {factor.strip()!r} is not a weight (in {spec!r}); write a number above 0")
    return name, weight


def compose(spec: str, shares: Sequence[float] | None = None) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Make one loss of several: "cross_entropy", "cross_entropy+dice", "0.5*focal+lovasz".

    Args:
        spec: names of losses joined by "+", each with an optional weight before a "*".
        shares: the share of each class among the labelled pixels, which "balanced_cross_entropy" needs.

    Returns:
        A function of (logits, target): each term by name, unweighted, and their weighted sum as "loss".

    Raises:
        SegmintError: no text, unknown name, a name twice, a weight that is not a positive number, or shares missing.
    """
    if not isinstance(spec, str):
        raise SegmintError(f'loss: must be a name or a sum such as "cross_entropy+0.5*dice", not {spec!r}')
    terms = [_term(text, spec) for text in spec.split("+")]
    names = [name for name, _ in terms]
    if len(set(names)) < len(names):
        raise SegmintError(f"loss: {spec!r} names a loss twice; add up the weights and name it once")
    functions = dict(_SIMPLE)
    if _BALANCED in names:
        if shares is None:
            raise SegmintError(f"loss: {_BALANCED} needs the class shares of the data, and none were given")
        functions[_BALANCED] = partial(cross_entropy, weight=class_weights(shares))

    def total(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        values = {name: functions[name](logits, target) for name in names}
        loss = torch.stack([weight * values[name] for name, weight in terms]).sum()
        return {**values, "loss": loss}

    return total


COMMON = 0.05
"""From this share of the labelled pixels on, `choose` takes a class for common enough to need no help."""


def choose(shares: Sequence[float], agreed: bool = True) -> tuple[str, str]:
    """What `loss: auto` does: pick a loss from the class shares, and from whether raters agree.

    Where a class is rare, class weights and the Lovász loss together beat cross-entropy by far on mIoU; of two classes,
    Lovász without weights does (docs/results/baseline.md). Where raters disagree, neither does
    (docs/results/studies.md), and both bend the probabilities that doubt is read from.

    Args:
        shares: the share of each class among the labelled pixels, K numbers.
        agreed: whether the masks that an image has, if several, are much alike.

    Returns:
        A specification for `compose`, and a sentence that says why.
    """
    seen = [share for share in shares if share > 0]
    if not seen:
        return "cross_entropy", "cross_entropy, as no pixel is labelled and so nothing is known of the classes."
    if not agreed:
        return "cross_entropy", "cross_entropy, which says how likely a class is, as raters disagree."
    fact = f"the rarest class has {100 * min(seen):.2g}% of the labelled pixels"
    if min(seen) >= COMMON:
        return "cross_entropy", f"cross_entropy, as no class is rare: {fact}."
    if len(shares) == 2:
        spec = "cross_entropy+lovasz"
        return spec, f"{spec}, which aims at the mean IoU of the two classes: {fact}."
    spec = f"{_BALANCED}+lovasz"
    return spec, f"{spec}, which weights rare classes and aims at the mean IoU over classes: {fact}."


def settle(settings: Mapping[str, Any], shares: Sequence[float], agreed: bool) -> tuple[dict[str, Any], list[str]]:
    """What segmenters settle before they are built: `loss: auto` (the default of a training run) and its needs.

    Args:
        settings: constructor arguments as the user gave them.
        shares, agreed: see `choose`.

    Returns:
        The arguments with `loss` chosen, `shares`, and no weights for an encoder that has none; and what was chosen.
    """
    settled, notes = dict(settings), []
    if settled.get("loss", "auto") == "auto":
        settled["loss"], reason = choose(shares, agreed)
        notes.append(f"loss: {reason}")
    settled.setdefault("shares", list(shares))
    if settled.get("encoder_name") == "plain":
        settled.setdefault("encoder_weights", None)
    return settled, notes


def class_shares(mask: Tensor, classes: int) -> Tensor:
    """The share of each class among the known pixels of each mask: int64 [B, H, W] -> float32 [B, K]; 0 where none."""
    counts = one_hot(mask, classes).flatten(2).sum(2).float()
    return counts / counts.sum(1, keepdim=True).clamp_min(1)
