import math

import pytest
import torch

from segmint.functional.adversarial import (
    check_kind,
    diff_augment,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from segmint.functional.gaussian import calibrated_nll, covariance_root, free_bits, kl_to_standard, pair_nll
from segmint.types import IGNORE, Batch, SegmintError


def test_bce_is_the_log_likelihood_of_the_original_game():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.7, 2.0])
    expected = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())
    assert torch.allclose(discriminator_loss("bce", real, fake), expected)
    assert torch.allclose(generator_loss("bce", fake), -torch.sigmoid(fake).log().mean())


def test_hinge_is_zero_beyond_the_margin():
    assert float(discriminator_loss("hinge", torch.tensor([1.5]), torch.tensor([-2.0]))) == 0
    assert float(discriminator_loss("hinge", torch.tensor([0.0]), torch.tensor([0.0]))) == 2
    assert float(generator_loss("hinge", torch.tensor([0.5]))) == -0.5


def test_relativistic_sees_differences_only():
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.7, 2.0])
    for loss in (discriminator_loss, generator_loss):
        assert torch.allclose(loss("relativistic", real, fake), loss("relativistic", real + 5, fake + 5))
    with pytest.raises(ValueError, match="needs the logits of real items"):
        generator_loss("relativistic", fake)
    assert math.isclose(float(discriminator_loss("relativistic", real, real)), math.log(2), rel_tol=1e-6)


def test_unknown_losses_are_refused():
    check_kind("hinge")
    with pytest.raises(SegmintError, match=r"gan\.loss: there is no 'wasserstein'"):
        check_kind("wasserstein")


def test_gradient_penalty_of_a_linear_judge_is_its_squared_norm():
    w = torch.tensor([[1.0, 2.0, -2.0]])
    x = torch.randn(5, 3, requires_grad=True)
    assert torch.allclose(gradient_penalty(x @ w.T, [x]), torch.tensor(9.0))
    y = torch.randn(5, 2, requires_grad=True)
    both = gradient_penalty((x @ w.T) + 3 * y[:, :1], [x, y])
    assert torch.allclose(both, torch.tensor(18.0))


def test_gradient_penalty_is_differentiable():
    layer = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, requires_grad=True)
    gradient_penalty(layer(x).square(), [x]).backward()
    assert float(layer.weight.grad.abs().sum()) > 0


def test_diff_augment_moves_image_and_mask_alike():
    torch.manual_seed(0)
    mask = torch.zeros(8, 2, 24, 24)
    mask[:, 0] = 1
    mask[:, :, 8:16, 8:16] = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    image = mask[:, 1:].clone()
    out, moved = diff_augment(image, mask, color=0.0)
    assert torch.equal(out[:, 0], moved[:, 1])
    blank = moved.sum(1) == 0
    assert bool(blank.any())
    assert set(moved.sum(1).unique().tolist()) <= {0.0, 1.0}


def test_diff_augment_passes_gradients_to_what_is_visible():
    torch.manual_seed(0)
    image = torch.randn(4, 3, 16, 16, requires_grad=True)
    mask = torch.randn(4, 2, 16, 16, requires_grad=True)
    out, moved = diff_augment(image, mask)
    (out.sum() + moved.sum()).backward()
    assert float(image.grad.abs().sum()) > 0
    share = float((mask.grad != 0).float().mean())
    assert 0.3 < share < 1


def test_diff_augment_changes_brightness_by_at_most_a_half():
    torch.manual_seed(0)
    image, mask = torch.zeros(64, 1, 8, 8), torch.ones(64, 1, 8, 8)
    out, _ = diff_augment(image, mask, shift=0.0, cutout=0.0)
    assert 0.3 < float(out.abs().max()) <= 0.5


def test_kl_against_torch_distributions():
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(kl_to_standard(mean, log_variance), expected, atol=1e-6)
    assert torch.equal(kl_to_standard(torch.zeros(1), torch.zeros(1)), torch.zeros(1))


def test_free_bits_leave_small_dimensions_alone():
    kl = torch.tensor([[0.1, 3.0], [0.3, 1.0]], requires_grad=True)
    total = free_bits(kl, 0.5)
    assert float(total.detach()) == pytest.approx(0.5 + 2.0)
    total.backward()
    assert kl.grad[:, 0].abs().sum() == 0


@pytest.mark.parametrize("kind", ["mse", "l1"])
def test_calibrated_likelihood_is_the_best_over_scales(kind: str):
    torch.manual_seed(0)
    errors = torch.randn(500) * 0.3
    error = errors.square().mean() if kind == "mse" else errors.abs().mean()
    ours = float(calibrated_nll(error, 500, kind))
    family = torch.distributions.Normal if kind == "mse" else torch.distributions.Laplace
    scales = torch.linspace(0.05, 1.0, 400)
    best = min(float(-family(0.0, scale).log_prob(errors).sum()) for scale in scales)
    assert ours == pytest.approx(best, rel=1e-3)


def test_covariance_root():
    a = torch.randn(5, 5, dtype=torch.float64)
    covariance = a @ a.T
    root = covariance_root(covariance)
    assert torch.allclose(root @ root.T, covariance, atol=1e-8)
    flat = covariance_root(torch.diag(torch.tensor([1.0, -1e-9])))
    assert bool(torch.isfinite(flat).all())


def test_pair_likelihood_counts_known_pixels_only():
    image = torch.zeros(2, 1, 4, 4)
    mask = torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[1] = IGNORE
    logits = torch.zeros(2, 3, 4, 4)
    _, mask_nll = pair_nll(image, logits, Batch(image + 0.1, mask), "l1")
    assert float(mask_nll) == pytest.approx(16 * math.log(3), rel=1e-5)
