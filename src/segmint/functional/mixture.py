"""Gaussian mixtures over pixels, and smooth random fields: the mathematics of `segmint.methods.gmm`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def pixels(image: Tensor) -> Tensor:
    """Colour and position of each pixel: [C, H, W] -> float64 [H * W, C + 2], y and x in (-1, 1)."""
    height, width = image.shape[-2:]
    position = grid(height, width, image.device)
    return torch.cat([image.double().flatten(1).T, position], 1)


def grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The centres (y, x) of the pixels of an image that spans [-1, 1] both ways: float64 [H * W, 2]."""
    y = (2 * torch.arange(height, device=device, dtype=torch.float64) + 1) / height - 1
    x = (2 * torch.arange(width, device=device, dtype=torch.float64) + 1) / width - 1
    return torch.cartesian_prod(y, x)


def expand(x: Tensor) -> Tensor:
    """A Gaussian's sufficient statistics (1, x_i, x_i x_j for i <= j): [P, D] -> [P, 1 + D + D(D+1)/2]."""
    row, column = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([torch.ones_like(x[:, :1]), x, x[:, row] * x[:, column]], 1)


def natural(log_weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """The matrix W [F, G] for which `expand(x) @ W` is log weight + log density of each of G Gaussians."""
    dimension = means.shape[1]
    factor = torch.linalg.cholesky(covariances)
    precision = torch.cholesky_inverse(factor)
    linear = (precision @ means.unsqueeze(2)).squeeze(2)
    half_determinant = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = log_weights - half_determinant - (means * linear).sum(1) / 2
    constant = constant - dimension * math.log(2 * math.pi) / 2
    row, column = torch.triu_indices(dimension, dimension, device=means.device)
    quadratic = -precision[:, row, column] * torch.where(row == column, 0.5, 1.0)
    return torch.cat([constant.unsqueeze(1), linear, quadratic], 1).T


def kmeans(x: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007).

    Args:
        x: float64 [P, D] on the CPU, P >= 1.
        count: the number of clusters; some stay empty where x has fewer distinct rows.
        generator: the source of randomness.
        rounds: the number of passes of Lloyd's algorithm.

    Returns:
        int64 [P], the cluster of each row.
    """
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    for _ in range(count - 1):
        nearest = torch.cdist(x, x[chosen]).square().amin(1)
        chance = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
    centres = x[chosen]
    for _ in range(rounds):
        member = nn.functional.one_hot(torch.cdist(x, centres).argmin(1), count).to(x)
        size = member.sum(0).unsqueeze(1)
        centres = torch.where(size > 0, member.T @ x / size.clamp_min(1), centres)
    return torch.cdist(x, centres).argmin(1)


def smooth_basis(size: int, length: float, device: torch.device | str = "cpu") -> Tensor:
    """A factor A [size, R] of a Gaussian-shaped covariance, A A^T, with ones on the diagonal.

    `A z` for standard normal z is a smooth random function of unit variance whose values `length` pixels
    apart correlate by exp(-1/2). Small eigenvalues are dropped, so R is small where the function is smooth.
    """
    place = torch.arange(size, dtype=torch.float64)
    covariance = torch.exp(-((place.unsqueeze(1) - place) / length).square() / 2)
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > 1e-4 * values[-1]
    basis = vectors[:, keep] * values[keep].sqrt()
    return nn.functional.normalize(basis).to(device)


def gumbel(field: Tensor) -> Tensor:
    """Standard normal values to Gumbel values by the probability integral transform; same shape."""
    log_uniform = torch.special.log_ndtr(field)
    return -torch.log(-log_uniform)
