"""Closed forms of Gaussians, against torch.distributions and by Monte Carlo."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from segmint.functional.gaussian import LowRankNormal, kl_diagonal, kl_to_standard, soft_clamp


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_of_two_gaussians_agrees_with_torch():
    m, v, n, w = (numbers(4, 6, seed=seed) for seed in range(4))
    expected = kl_divergence(Normal(m, (0.5 * v).exp()), Normal(n, (0.5 * w).exp()))
    assert torch.allclose(kl_diagonal((m, v), (n, w)), expected, atol=1e-5)
    assert torch.allclose(kl_diagonal((m, v), (0 * m, 0 * v)), kl_to_standard(m, v), atol=1e-6)
    assert torch.allclose(kl_diagonal((m, v), (m, v)), torch.zeros(4, 6), atol=1e-6)


def test_a_soft_clamp_leaves_small_values_and_keeps_a_gradient():
    x = torch.tensor([-100.0, -8.0, 0.01, 8.0, 100.0], requires_grad=True)
    y = soft_clamp(x, 5.0)
    assert float(y.detach().abs().max()) <= 5
    assert abs(float(y[2].detach()) - 0.01) < 1e-6
    y.sum().backward()
    assert x.grad is not None
    assert bool((x.grad[1:4] > 0).all())


def test_samples_have_the_low_rank_covariance():
    items, rank, classes, height, width = 2, 3, 2, 2, 3
    normal = LowRankNormal(
        numbers(items, classes, height, width, seed=1),
        numbers(items, rank, classes, height, width, seed=2),
        numbers(items, classes, height, width, seed=3).abs(),
    )
    count = 40_000
    drawn = normal.sample(numbers(items, count, rank, seed=4), numbers(items, count, classes, height, width, seed=5))
    assert drawn.shape == (items, count, classes, height, width)
    for item in range(items):
        factor = normal.factor[item].flatten(1)
        expected = factor.T @ factor + normal.deviation[item].flatten().square().diag()
        assert torch.allclose(drawn[item].flatten(1).T.cov(), expected, atol=0.15)
        assert torch.allclose(drawn[item].mean(0), normal.mean[item], atol=0.05)
