"""Losses of adversarial training, and augmentation through which gradients flow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.functional.losses import one_hot
from segmint.ranks import rand
from segmint.types import SegmintError

KINDS = ("bce", "hinge", "relativistic")


def check_kind(kind: str) -> None:
    """Refuse a loss that is not one of `KINDS`.

    Raises:
        SegmintError: naming the choices.
    """
    if kind not in KINDS:
        raise SegmintError(f"gan.loss: there is no {kind!r}; choose one of {', '.join(KINDS)}")


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises.

    Args:
        kind: "bce": the non-saturating game (Goodfellow 2014, eq. 1); "hinge" (Lim & Ye 2017); "relativistic": the
            pairing loss of RpGAN (Jolicoeur-Martineau 2019), as in R3GAN (Huang 2024, eq. 2).
        real, fake: logits of the same shape, higher means more real.
    """
    real, fake = real.float(), fake.float()
    if kind == "bce":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(fake - real).mean()


def generator_loss(kind: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimises.

    Args:
        kind: as for `discriminator_loss`.
        fake: logits of generated items.
        real: logits of as many real ones; only "relativistic" needs them.
    """
    fake = fake.float()
    if kind == "bce":
        return F.softplus(-fake).mean()
    if kind == "hinge":
        return -fake.mean()
    if real is None:
        raise ValueError("the relativistic loss needs the logits of real items")
    return F.softplus(real.float() - fake).mean()


def gradient_penalty(logits: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The mean squared norm of the gradient of each item's summed logits in its inputs.

    On real items it is R1 (Mescheder 2018, eq. 9, without the factor gamma / 2), on generated ones R2.

    Args:
        logits: [B, ...].
        inputs: tensors [B, ...] that require gradients and from which `logits` was computed.
    """
    gradients = torch.autograd.grad(logits.float().sum(), list(inputs), create_graph=True)
    squares = [gradient.float().square().flatten(1).sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0).mean()


def smoothed_truth(mask: Tensor, probabilities: Tensor, tau: float = 0.9) -> Tensor:
    """True masks as soft as predicted ones, so that softness does not tell them apart (Luc 2016, "scale").

    The true class of a pixel gets the predicted probability or `tau`, whichever is larger; the rest is shared among
    the other classes as they were predicted.

    Args:
        mask: int64 [B, H, W], class indices or `IGNORE`.
        probabilities: [B, K, H, W], what was predicted, summing to one over K.
        tau: smallest probability of the true class, 0..1.

    Returns:
        [B, K, H, W], summing to one over K; all zero where the mask is `IGNORE`.
    """
    truth = one_hot(mask, probabilities.shape[1])
    predicted = (probabilities * truth).sum(1, keepdim=True)
    raised = predicted.clamp_min(tau)
    others = probabilities * ((1 - raised) / (1 - predicted).clamp_min(torch.finfo(predicted.dtype).eps))
    return torch.where(truth, raised, others) * truth.any(1, keepdim=True)


def diff_augment(
    image: Tensor, mask: Tensor, *, color: float = 1.0, shift: float = 0.125, cutout: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Augment real and generated pairs alike so that the discriminator cannot memorise (Zhao 2020, DiffAugment).

    Differentiable in both arguments. Each item draws its own strengths (`segmint.ranks.rand`).

    Args:
        image: [B, C, H, W] in [-1, 1].
        mask: [B, K, H, W], one-hot or soft; moves with its image.
        color: strength of the changes of brightness, saturation and contrast; 1 as in the paper.
        shift: largest translation as a share of height and width; what enters is zero.
        cutout: side of a blanked rectangle as a share of height and width.
    """
    count, _, height, width = image.shape

    def uniform(low: float, high: float) -> Tensor:
        return rand(count, 1, 1, 1, device=image.device) * (high - low) + low

    if color:
        image = image + uniform(-0.5, 0.5) * color
        grey = image.mean(1, keepdim=True)
        image = (image - grey) * (1 + color * uniform(-1, 1)) + grey
        mean = image.mean((1, 2, 3), keepdim=True)
        image = (image - mean) * (1 + 0.5 * color * uniform(-1, 1)) + mean
    rows = torch.arange(height, device=image.device).view(1, -1, 1)
    columns = torch.arange(width, device=image.device).view(1, 1, -1)
    down = (uniform(-shift, shift).view(-1, 1, 1) * height).round().long()
    right = (uniform(-shift, shift).view(-1, 1, 1) * width).round().long()
    from_rows, from_columns = rows - down, columns - right
    inside = (from_rows >= 0) & (from_rows < height) & (from_columns >= 0) & (from_columns < width)
    centre_y, centre_x = uniform(0, 1).view(-1, 1, 1) * height, uniform(0, 1).view(-1, 1, 1) * width
    cut = ((rows - centre_y).abs() < cutout * height / 2) & ((columns - centre_x).abs() < cutout * width / 2)
    visible = (inside & ~cut).unsqueeze(1).to(image.dtype)
    index = from_rows.clamp(0, height - 1) * width + from_columns.clamp(0, width - 1)

    def moved(x: Tensor) -> Tensor:
        where = index.view(count, 1, -1).expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, where).view(x.shape) * visible

    return moved(image), moved(mask)
