"""The game of a discriminator that gives every pixel a class, or calls it generated (OASIS, Schoenfeld 2021).

Its logits are [B, K + 1, H, W]: the K classes of real pixels, and last the class of generated ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.ranks import average, rand
from segmint.types import IGNORE


def balance(mask: Tensor, classes: int, power: float = 0.5, cap: float = 10.0) -> Tensor:
    """Weights of the pixels of a batch that make its rare classes count for more.

    Proportional to (share of the class in the batch) ** -power; OASIS (eq. 1) has power 1, which leaves a large
    background next to no say. No class weighs more than `cap` times the commonest.

    Args:
        mask: int64 [B, H, W], class indices or `IGNORE`.
        classes: K.
        power: 0 gives equal weights.
        cap: the largest ratio of two weights, >= 1.

    Returns:
        float32 [B, H, W] with mean 1 over the pixels of known class, and 1 where it is unknown.
    """
    known = mask != IGNORE
    index = mask.where(known, 0)
    counts = torch.zeros(classes, device=mask.device).scatter_add_(0, index.flatten(), known.flatten().float())
    counts = average(counts)
    weight = (counts / counts.max().clamp_min(1)).pow(-power).clamp_max(cap)
    weight = weight * counts.sum() / (weight * counts).sum().clamp_min(1)
    return weight[index].where(known, torch.ones_like(weight[0]))


def realness(logits: Tensor, mask: Tensor, power: float = 0.5) -> Tensor:
    """How far pixels are from being taken for real ones of their class: what the discriminator minimises on real
    images, and the generator on its own (OASIS, eqs. 1 and 2).

    Cross-entropy, weighted by `balance`. Where the class is unknown, any real one will do:
    -log(1 - p(generated)), as in semi-supervised GANs (Salimans 2016, section 5).

    Args:
        logits: [B, K + 1, H, W].
        mask: int64 [B, H, W], class indices or `IGNORE`.
        power: see `balance`.

    Returns:
        A scalar, the mean over all pixels.
    """
    log_probability = logits.float().log_softmax(1)
    known = mask != IGNORE
    own = log_probability.gather(1, mask.where(known, 0).unsqueeze(1)).squeeze(1)
    any_real = log_probability[:, :-1].logsumexp(1)
    return -(balance(mask, logits.shape[1] - 1, power) * own.where(known, any_real)).mean()


def fakeness(logits: Tensor) -> Tensor:
    """The mean of -log p(generated), which the discriminator minimises on generated images (OASIS, eq. 1)."""
    return -logits.float().log_softmax(1)[:, -1].mean()


def label_mix(mask: Tensor, classes: int) -> Tensor:
    """Which pixels of a LabelMix come from the real image: whole classes at random (OASIS, section 3.2).

    Each item draws one bit for each class, and one for all pixels of unknown class (`segmint.ranks.rand`).

    Args:
        mask: int64 [B, H, W], class indices or `IGNORE`.
        classes: K.

    Returns:
        bool [B, 1, H, W].
    """
    bits = rand(len(mask), classes + 1, device=mask.device) < 0.5
    index = mask.where(mask != IGNORE, classes)
    return bits.gather(1, index.flatten(1)).view(mask.shape).unsqueeze(1)


def mix_consistency(mixed: Tensor, real: Tensor, fake: Tensor, choice: Tensor) -> Tensor:
    """The mean squared distance of the logits of a mixed image from the mixed logits (OASIS, eq. 3).

    Args:
        mixed, real, fake: logits [B, K + 1, H, W] of the mixed, real and generated images.
        choice: bool [B, 1, H, W] of `label_mix`.
    """
    return F.mse_loss(mixed.float(), torch.where(choice, real.float(), fake.float()))
