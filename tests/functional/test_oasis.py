from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segmint.functional.oasis import balance, fakeness, label_mix, mix_consistency, realness
from segmint.types import IGNORE


def random_case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    mask = torch.randint(3, (2, 5, 6), generator=generator)
    return logits, mask


def test_weights_are_those_of_the_shares_and_have_mean_one():
    mask = torch.tensor([[[0] * 6, [0] * 3 + [1] + [IGNORE] * 2]])
    weight = balance(mask, 3, power=0.5)
    assert weight[0, 1, 3] / weight[0, 0, 0] == pytest.approx(3.0)
    assert float(weight[mask != IGNORE].mean()) == pytest.approx(1.0)
    assert weight[0, 1, 4:].tolist() == [1.0, 1.0]
    assert balance(mask, 3, power=1.0, cap=2.0)[0, 1, 3] / balance(mask, 3, power=1.0, cap=2.0)[0, 0, 0] == 2.0
    assert bool((balance(mask, 3, power=0.0) == 1).all())
    assert bool((balance(torch.full((1, 2, 2), IGNORE), 3) == 1).all())


def test_known_pixels_pay_cross_entropy_with_the_generated_as_one_class_more():
    logits, mask = random_case()
    assert float(realness(logits, mask, power=0)) == pytest.approx(float(F.cross_entropy(logits, mask)), rel=1e-5)
    full = (balance(mask, 3) * F.cross_entropy(logits, mask, reduction="none")).mean()
    assert float(realness(logits, mask)) == pytest.approx(float(full), rel=1e-5)
    everywhere = torch.full_like(mask, 3)
    assert float(fakeness(logits)) == pytest.approx(float(F.cross_entropy(logits, everywhere)), rel=1e-5)


def test_unknown_pixels_only_must_not_be_generated():
    logits, mask = random_case()
    fake = logits.softmax(1)[:, -1]
    unknown = torch.full_like(mask, IGNORE)
    assert float(realness(logits, unknown)) == pytest.approx(float(-(1 - fake).log().mean()), rel=1e-5)
    uniform = torch.zeros(1, 4, 2, 2)
    assert float(realness(uniform, torch.full((1, 2, 2), IGNORE))) == pytest.approx(-math.log(3 / 4))


def test_gradients_stay_finite_where_the_discriminator_is_sure():
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, -1] = 200.0
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(realness(logits, torch.full((1, 2, 2), IGNORE)), logits)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[:, -1].min()) > 0


def test_a_mixture_takes_whole_classes():
    torch.manual_seed(0)
    mask = torch.randint(3, (64, 6, 6))
    mask[:, 0] = IGNORE
    choice = label_mix(mask, 3)
    assert choice.shape == (64, 1, 6, 6)
    for value in (0, 1, 2, IGNORE):
        shares = [float(c[0][m == value].float().mean()) for c, m in zip(choice, mask, strict=True)]
        assert set(shares) == {0.0, 1.0}
        assert 0.25 < sum(shares) / 64 < 0.75


def test_consistency_is_zero_for_the_mixed_logits():
    real, _ = random_case(1)
    fake, mask = random_case(2)
    choice = label_mix(mask, 3)
    mixed = torch.where(choice, real, fake)
    assert float(mix_consistency(mixed, real, fake, choice)) == 0
    assert float(mix_consistency(mixed + 2, real, fake, choice)) == pytest.approx(4.0, rel=1e-5)
