"""What several draws of a mask are worth beside the mask of one rater."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.functional.ambiguity import distances, diversity, foreground
from segmint.functional.labels import most_likely
from segmint.types import IGNORE


def log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """The log-probability of each pixel's class, in nats; its sum is that of the mask.

    Args:
        logits: [B, K, H, W].
        target: int64 [B, H, W].

    Returns:
        float32 [B, H, W], 0 or less; 0 where the target is IGNORE.
    """
    return -F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")


def mixture_nll(log_likelihoods: Tensor) -> Tensor:
    """Minus the log of the mean probability over draws: log M - logsumexp_m log p(y | draw m).

    For whole masks it is the bound of Monteiro et al. 2020, eq. 4: in expectation above the negative log-likelihood,
    and nearer to it with each further draw.

    Args:
        log_likelihoods: [M, ...], in nats: of M draws, for whole masks or for pixels.

    Returns:
        [...], in nats.
    """
    return math.log(len(log_likelihoods)) - log_likelihoods.logsumexp(0)


def energy_score(across: Tensor, draws: Tensor) -> Tensor:
    """E d(S, y) - 1/2 E d(S, S') over draws S, S' and one rater's mask y (Gneiting & Raftery 2007, section 4.3).

    Averaged over raters it is half the generalised energy distance plus a constant of the data, and it needs but one
    rater an image. Unbiased: no draw is compared with itself.

    Args:
        across: distances [B, S, 1] of draws from the rater, see `segmint.functional.ambiguity.distances`.
        draws: distances [B, S, S] between draws, S >= 2.

    Returns:
        [B], -0.5..1; smaller is better.
    """
    return across.mean((1, 2)) - diversity(draws) / 2


def judge(draws: Iterable[Tensor], target: Tensor) -> dict[str, Tensor]:
    """How well draws go with one rater's masks, for the log and for early stopping.

    Args:
        draws: two or more logits [B, K, H, W], draw by draw.
        target: int64 [B, H, W].

    Returns:
        "energy", the mean `energy_score`, and "nll", the mean `mixture_nll` in nats per known pixel, over the items
        with any known pixel (0 where there is none); "spread", the mean distance between draws in 0..1.
    """
    known = target != IGNORE
    labelled = known.flatten(1).any(1)
    masks, likelihoods, classes = [], [], 1
    for logits in draws:
        classes = logits.shape[1]
        likelihoods.append(log_likelihood(logits, target).flatten(1).sum(1))
        masks.append(most_likely(logits).where(known, IGNORE))
    drawn, compared = torch.stack(masks, 1), foreground(classes)
    among = distances(drawn, drawn, compared)
    energy = energy_score(distances(drawn, target.unsqueeze(1), compared), among)
    items = labelled.sum().clamp_min(1)
    nll = mixture_nll(torch.stack(likelihoods))
    return {
        "energy": (energy * labelled).sum() / items,
        "nll": (nll * labelled).sum() / known.sum().clamp_min(1),
        "spread": (diversity(among) * labelled).sum() / items,
    }
