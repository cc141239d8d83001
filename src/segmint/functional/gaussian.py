"""Closed forms of Gaussians and of the likelihoods that a variational autoencoder needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.ranks import average
from segmint.types import IGNORE, Batch


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each dimension, in nats.

    Kingma & Welling 2014, appendix B: 1/2 (mean^2 + variance - 1 - log variance). All tensors have the same shape.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def kl_diagonal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """KL(one || other) of each dimension of two Gaussians with diagonal covariance, in nats.

    1/2 (log v' - log v + (v + (m - m')^2) / v' - 1), for (mean, log-variance) of each, all of the same shape.
    """
    (mean, log_variance), (other_mean, other_log_variance) = one, other
    difference = log_variance - other_log_variance
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (difference.exp() + distance - 1 - difference)


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    """x where it is small, held within -bound..bound with a gradient everywhere: bound tanh(x / bound)."""
    return bound * torch.tanh(x / bound)


@dataclass(frozen=True)
class LowRankNormal:
    """A normal distribution over maps of logits, whose covariance is P P^T + D (Monteiro et al. 2020, section 3.1).

    Attributes:
        mean: float32 [B, K, H, W].
        factor: float32 [B, R, K, H, W], the R columns of P: what varies together.
        deviation: float32 [B, K, H, W] >= 0, the root of the diagonal D: what each logit does on its own.
    """

    mean: Tensor
    factor: Tensor
    deviation: Tensor

    def sample(self, shared: Tensor, own: Tensor) -> Tensor:
        """mean + P shared + D^(1/2) own, for standard normal numbers.

        Args:
            shared: [B, M, R], of the factor; `own`: [B, M, K, H, W], of the diagonal.

        Returns:
            M samples of each item, [B, M, K, H, W].
        """
        with torch.autocast(shared.device.type, enabled=False):
            together = torch.bmm(shared, self.factor.flatten(2)).view(*shared.shape[:2], *self.mean.shape[1:])
        return torch.addcmul(together + self.mean.unsqueeze(1), own, self.deviation.unsqueeze(1))


def free_bits(kl: Tensor, least: float) -> Tensor:
    """KL per dimension [B, D] -> scalar: the batch mean of each, held at `least` nats or more, summed.

    Kingma 2016 (IAF), eq. 15: dimensions below the floor are not pushed further down.
    """
    return average(kl.mean(0)).clamp_min(least).sum()


def calibrated_nll(error: Tensor, count: int, kind: str) -> Tensor:
    """The negative log-likelihood of `count` values under the best single scale for a batch, in nats.

    sigma-VAE (Rybkin 2021, section 3.2): with the scale at its maximum-likelihood value, a Gaussian gives
    count/2 (log(2 pi e) + log MSE) and a Laplacian count (1 + log(2 MAE)).

    Args:
        error: the mean squared ("mse") or mean absolute ("l1") error, a positive scalar.
        count: how many values the error is the mean of, per item.
        kind: "mse" or "l1".
    """
    error = error.clamp_min(1e-6)
    if kind == "mse":
        return 0.5 * count * (error.log() + math.log(2 * math.pi * math.e))
    return count * (1 + (2 * error).log())


def covariance_root(covariance: Tensor, least: float = 1e-6) -> Tensor:
    """A matrix L with L L^T = covariance (eigenvalues held at `least`): float [D, D] -> [D, D]."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root: Tensor = vectors * values.clamp_min(least).sqrt()
    return root.to(covariance.dtype)


def pair_nll(image: Tensor, logits: Tensor, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of real pairs under a decoder's output, in nats per image and per labelled mask.

    Args:
        image: [B, C, H, W], the decoder's image; `logits`: [B, K, H, W], its mask.
        batch: the real pairs; pixels marked IGNORE do not count.
        kind: "mse" or "l1", see `calibrated_nll`.
    """
    difference = image - batch.image
    error = difference.square().mean() if kind == "mse" else difference.abs().mean()
    image_nll = calibrated_nll(average(error), batch.image[0].numel(), kind)
    mask_nll = F.cross_entropy(logits, batch.mask, ignore_index=IGNORE, reduction="sum")
    return image_nll, mask_nll / batch.labelled.sum().clamp_min(1)
