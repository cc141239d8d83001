"""A segmenter that draws coherent masks: a low-rank Gaussian over the logits (Stochastic Segmentation Networks)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segmint.functional.draws import judge, log_likelihood, mixture_nll
from segmint.functional.gaussian import LowRankNormal, soft_clamp
from segmint.methods.method import Facts, Method, Suit
from segmint.nets.encoders import build_encoder
from segmint.nets.layers import resize
from segmint.nets.unet import UNet
from segmint.ranks import average, randn
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

STEPS = 500
"""From which on it is worth it: on lung nodules draws went with the raters after 800."""

SAMPLES, COPIES = 20, 5
"""Samples in each loss, and how many tensors as large as all of them a step holds: measured with 2 and 11 classes."""


class Stochastic(Method):
    """A U-Net whose logits are jointly normal over all pixels and classes (Monteiro et al. 2020).

    Three 1x1 heads on the decoder's features give the mean, the R columns of a covariance factor P and a diagonal D;
    the covariance is P P^T + D, so that what belongs together changes together from draw to draw. It learns from one
    rater per visit by the likelihood of whole masks, -log mean_m p(y | logits_m).

    That alone is content with a single good sample among M: where all raters agree, mean and covariance grow together
    without end, and many draws are wrong (the authors cut the background out of brain scans for that reason). So the
    likelihood of each pixel under the mean over samples is added. Both are proper scores, least where the draws are
    as diverse as the raters. Neither has class weights, which would distort the probabilities and with them how often
    draws are empty where raters drew nothing; an empty mask is as good an answer as any. Pixels marked IGNORE take no
    part, and so none in what the covariance learns.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width it is trained at; it segments any size.
        encoder_name: "efficientnet_lite0" or "plain".
        encoder_weights: "imagenet", or None to learn from nothing; "plain" has none.
        decoder_channels: widths of the U-Net decoder, coarsest first.
        shares: class shares of the training pixels, which the first predictions are; found by `adapt`.
        dropout: probability with which channels before the heads are dropped, 0..1.
        rank: R, columns of the covariance factor.
        samples: M, samples of the logits in each loss.
        marginal: weight of the pixels' likelihood beside that of the whole mask, which weighs 1. 0 is the loss of the
            paper: on lung nodules, some of its draws were whole images; the more, the fewer and the tamer the draws.
        empty: the value, in every channel, of pixels outside the picture (-1 for the black around a scan); there
            the covariance is zero, as nothing else would bound it. Train with an augmentation that leaves this value
            alone, such as `training.augment=flip`. None: images are content throughout.
    """

    defaults: ClassVar = {"lr": 2e-3, "weight_decay": 1e-2, "augment": "weak", "ema": 0.99}
    draws_differ = True
    monitor = ("energy", "min")

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        encoder_name: str = "efficientnet_lite0",
        encoder_weights: str | None = "imagenet",
        decoder_channels: Sequence[int] = (128, 64, 48, 32),
        shares: Sequence[float] | None = None,
        dropout: float = 0.1,
        rank: int = 10,
        samples: int = SAMPLES,
        marginal: float = 0.25,
        empty: float | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("rank", rank), ("samples", samples)):
            if value < 1:
                raise SegmintError(f"stochastic.{key}: must be 1 or more, not {value}")
        if marginal < 0:
            raise SegmintError(f"stochastic.marginal: must be 0 or more, not {marginal}")
        self.classes, self.rank, self.samples, self.marginal, self.empty = classes, rank, samples, marginal, empty
        encoder = build_encoder(encoder_name, in_channels, encoder_weights)
        self.network = UNet(encoder, classes, decoder_channels, dropout)
        if shares is not None:
            self.network.expect(shares)
        self.factor = nn.Conv2d(decoder_channels[-1], rank * classes, 1)
        self.diagonal = nn.Conv2d(decoder_channels[-1], classes, 1)
        nn.init.zeros_(self.diagonal.weight)
        nn.init.constant_(self.diagonal.bias, -2.0)  # type: ignore[arg-type]

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """The class shares, and no weights for an encoder that has none."""
        settled = {"shares": list(facts.shares), **settings}
        if settled.get("encoder_name") == "plain":
            settled.setdefault("encoder_weights", None)
        return settled, []

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Where raters disagree, if its samples of all logits fit into memory."""
        if facts.agreed:
            return Suit(0, facts.agreed)
        if facts.steps < STEPS:
            return Suit(0, f"needs {STEPS:,} steps to learn how raters differ, more than there are")
        pixels = facts.size[0] * facts.size[1]
        need = COPIES * 4 * facts.batch_size * SAMPLES * facts.classes * pixels / 2**30
        if need > facts.hardware.memory / 2:
            return Suit(
                0, f"needs some {need:.0f} GiB of memory for its samples, and {facts.hardware.memory:.0f} are there"
            )
        return Suit(1.8, "learns to draw masks as different as the raters'; each step costs more than with codes")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihoods in nats per known pixel; with one sample and no covariance all are cross-entropy.

        Returns:
            "loss"; "joint", of whole masks; "pixelwise"; "deviation", the mean standard deviation of a logit.
        """
        normal = self._normal(batch.image)
        count, device = len(batch), batch.image.device
        shared = randn(count, self.samples, self.rank, device=device)
        own = randn(count, self.samples, *normal.mean.shape[1:], device=device)
        logits = normal.sample(shared, own).flatten(0, 1)
        likelihood = log_likelihood(logits, batch.mask.repeat_interleave(self.samples, 0))
        likelihood = likelihood.view(count, self.samples, *batch.mask.shape[1:]).transpose(0, 1)
        known = average((batch.mask != IGNORE).sum()).clamp_min(1)
        joint = mixture_nll(likelihood.flatten(2).sum(2)).sum() / known
        pixelwise = mixture_nll(likelihood).sum() / known
        with torch.no_grad():
            deviation = (normal.factor.square().sum(1) + normal.deviation.square()).sqrt().mean()
        loss = (joint + self.marginal * pixelwise) / (1 + self.marginal)
        return {"loss": loss, "joint": joint, "pixelwise": pixelwise, "deviation": deviation}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """How eight draws go with the rater: the "energy" score, which falls with the energy distance, and "nll"."""
        return judge(self.draws(batch.image, Seeds.range(len(batch)), 8), batch.mask)

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """One sample of the logits, [B, K, H, W]."""
        return _drawn(self._normal(image), seeds)

    def draws(self, image: Tensor, seeds: Seeds, count: int) -> Iterator[Tensor]:
        """Samples of the logits; network and heads run once."""
        normal = self._normal(image)
        yield from (_drawn(normal, seeds.fork("draw", number)) for number in range(count))

    def _normal(self, image: Tensor) -> LowRankNormal:
        """The distribution of the logits at the image's size, in float32 whatever the precision around it."""
        network = self.network
        features = network.dropout(network.decode(network.encoder(image)))
        with torch.autocast(image.device.type, enabled=False):
            features, size = features.float(), (int(image.shape[-2]), int(image.shape[-1]))
            mean = resize(network.head(features), size)
            factor = resize(self.factor(features), size) / math.sqrt(self.rank)
            deviation = (0.5 * soft_clamp(resize(self.diagonal(features), size), 10.0)).exp()
        if self.empty is not None:
            content = (image.float() != self.empty).any(1, keepdim=True)
            factor, deviation = factor * content, deviation * content
        return LowRankNormal(mean, factor.view(len(image), self.rank, *mean.shape[1:]), deviation)


def _drawn(normal: LowRankNormal, seeds: Seeds) -> Tensor:
    device, shape = normal.mean.device, normal.mean.shape[1:]
    shared = seeds.randn(normal.factor.shape[1], device=device)
    return normal.sample(shared.unsqueeze(1), seeds.randn(*shape, device=device).unsqueeze(1)).squeeze(1)
