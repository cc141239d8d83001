"""A segmenter that draws coherent masks: a conditional variational autoencoder (Probabilistic U-Net)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from segmint.functional.draws import judge
from segmint.functional.gaussian import kl_diagonal, kl_to_standard
from segmint.functional.losses import cross_entropy
from segmint.methods.method import Facts, Method, Optimizers, Suit
from segmint.nets.encoders import build_encoder
from segmint.nets.layers import resize
from segmint.nets.unet import UNet
from segmint.nets.vae import Combination, GaussianHead, MaskPosterior, sample_gaussian
from segmint.ranks import average
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

STEPS = 500
"""From which on it is worth it: the code becomes useful in the first quarter, and on lung nodules draws went with the
raters after 800."""


class Variational(Method):
    """A U-Net whose last layers are told a latent code z, one per mask (Kohl et al. 2018).

    A prior p(z | x) reads the encoder's deepest features, a posterior q(z | x, y) the image with one rater's mask.
    Both are Gaussians with diagonal covariance. Training minimises, per known pixel, the cross-entropy of the mask
    under a z from q, plus beta KL(q || p); a draw takes its z from p, and nothing but the last 1x1 layers depends on
    it. The cross-entropy is plain, being a likelihood: class weights would distort the probabilities, and with them
    how often the draws leave a mask empty where raters drew nothing.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width it is trained at; it segments any size.
        encoder_name: "efficientnet_lite0" or "plain".
        encoder_weights: "imagenet", or None to learn from nothing; "plain" has none.
        decoder_channels: widths of the U-Net decoder, coarsest first.
        shares: class shares of the training pixels, which the first predictions are; found by `adapt`.
        dropout: probability with which channels before the last layers are dropped, 0..1.
        latent: dimensions of z.
        balance: what sets beta. "ramp": it rises from 0 to `beta` over `warmup` steps. "geco": 1 / lambda, where the
            multiplier lambda rises while the cross-entropy is above `kappa` and falls while it is below (Rezende &
            Viola 2018, algorithm 1); it starts at 1 / `beta`.
        beta: weight of the KL divergence; 1 is the variational bound on the likelihood of whole masks.
        warmup: steps of the ramp, in which the code becomes useful before it has to be cheap (Bowman 2016); a
            quarter of the training unless given.
        kappa: cross-entropy in nats per known pixel that "geco" aims at, and cannot do without: a little above the
            best that "ramp" reaches ("cross_entropy" in log.jsonl). Far above that, the code collapses.
        anchor: weight of KL(p || N(0, I)), a weak pull without which nothing holds the scale of z.
    """

    defaults: ClassVar = {"lr": 2e-3, "weight_decay": 1e-2, "augment": "weak", "ema": 0.99}
    draws_differ = True
    monitor = ("energy", "min")

    steps_done: Tensor
    log_multiplier: Tensor
    excess: Tensor

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
        latent: int = 6,
        balance: str = "ramp",
        beta: float = 1.0,
        warmup: int = 500,
        kappa: float | None = None,
        anchor: float = 0.01,
    ) -> None:
        super().__init__()
        if balance not in ("ramp", "geco"):
            raise SegmintError(f"variational.balance: there is no {balance!r}; choose ramp or geco")
        if balance == "geco" and kappa is None:
            raise SegmintError(
                "variational.kappa: balance=geco aims at a cross-entropy, and none is given; train with balance=ramp, "
                "read cross_entropy in its log.jsonl, and set kappa a little above it"
            )
        for key, value in (("latent", latent), ("beta", beta), ("kappa", 1.0 if kappa is None else kappa)):
            if value <= 0:
                raise SegmintError(f"variational.{key}: must be above 0, not {value}")
        self.latent, self.balance, self.beta, self.warmup = latent, balance, beta, warmup
        self.kappa, self.anchor = kappa, anchor
        encoder = build_encoder(encoder_name, in_channels, encoder_weights)
        self.network = UNet(encoder, classes, decoder_channels, dropout)
        if shares is not None:
            self.network.expect(shares)
        self.prior = GaussianHead(encoder.channels[-1], latent)
        self.posterior = MaskPosterior(in_channels, classes, latent)
        self.combination = Combination(decoder_channels[-1], latent, classes)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("log_multiplier", torch.tensor(-math.log(beta)))
        self.register_buffer("excess", torch.zeros(()))

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """The class shares; a ramp of a quarter of the training; no weights for an encoder that has none."""
        settled: dict[str, Any] = {"shares": list(facts.shares), **settings}
        notes = []
        if settled.get("balance", "ramp") == "ramp" and "warmup" not in settled:
            settled["warmup"] = facts.steps // 4
            notes.append(f"warmup: the KL term's weight rises over {settled['warmup']} steps, a quarter of them.")
        if settled.get("encoder_name") == "plain":
            settled.setdefault("encoder_weights", None)
        return settled, notes

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Where raters disagree."""
        if facts.agreed:
            return Suit(0, facts.agreed)
        if facts.steps < STEPS:
            return Suit(0, f"needs {STEPS:,} steps to learn how raters differ, more than there are")
        return Suit(2, "learns to draw masks as different as the raters', and its draws cost hardly more than one")

    def starting_weights(self) -> dict[str, Tensor]:
        """The networks' alone: how the KL term is weighed is found out anew."""
        return {key: value for key, value in self.state_dict().items() if key not in ("log_multiplier", "excess")}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The bound's terms; the loss is cross_entropy + beta kl / pixels.

        Returns:
            "loss"; "cross_entropy" in nats per known pixel; "kl" in nats per mask; "beta"; "prior_deviation", the mean
            standard deviation of the prior, about 1 where all is well.
        """
        shared = self._shared(batch.image)
        posterior = self.posterior(batch)
        reconstruction = cross_entropy(self._logits(shared, sample_gaussian(*posterior)), batch.mask)
        divergence = kl_diagonal(posterior, shared.prior).sum(1)
        pull = self.anchor * kl_to_standard(*shared.prior).sum(1)
        labelled = batch.labelled
        pixels = average((batch.mask != IGNORE).sum()).clamp_min(1)
        beta = self._beta()
        return {
            "loss": reconstruction + ((beta * divergence + pull) * labelled).sum() / pixels,
            "cross_entropy": reconstruction,
            "kl": (divergence * labelled).sum() / average(labelled.sum()).clamp_min(1),
            "beta": beta,
            "prior_deviation": (0.5 * shared.prior[1].detach()).exp().mean(),
        }

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One step down the loss, then one of the multiplier."""
        terms = super().step(batch, optimizers)
        self._balance(terms["cross_entropy"])
        return terms

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the bound, "bound" itself in nats per known pixel, and how draws from the prior do.

        The "energy" score of eight draws beside the rater's mask falls with the energy distance to the raters; the
        bound alone says nothing of codes that the prior draws and the posterior never does.
        """
        terms = self.loss(batch)
        pixels = (batch.mask != IGNORE).sum() / batch.labelled.sum().clamp_min(1)
        bound = terms["cross_entropy"] + terms["kl"] / pixels.clamp_min(1)
        judged = judge(self.draws(batch.image, Seeds.range(len(batch)), 8), batch.mask)
        return {"cross_entropy": terms["cross_entropy"], "kl": terms["kl"], "bound": bound, **judged}

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W] under one code from the prior."""
        return self._drawn(self._shared(image), seeds)

    def draws(self, image: Tensor, seeds: Seeds, count: int) -> Iterator[Tensor]:
        """Logits under several codes from the prior; only the last layers run for each."""
        shared = self._shared(image)
        yield from (self._drawn(shared, seeds.fork("draw", number)) for number in range(count))

    def _shared(self, image: Tensor) -> _Shared:
        maps = self.network.encoder(image)
        features = self.network.dropout(self.network.decode(maps))
        size = (int(image.shape[-2]), int(image.shape[-1]))
        return _Shared(self.network.head(features), self.combination.of_features(features), self.prior(maps[-1]), size)

    def _drawn(self, shared: _Shared, seeds: Seeds) -> Tensor:
        mean, log_variance = shared.prior
        return self._logits(shared, mean + (0.5 * log_variance).exp() * seeds.randn(self.latent, device=mean.device))

    def _logits(self, shared: _Shared, z: Tensor) -> Tensor:
        return resize(shared.logits + self.combination(shared.features, z), shared.size).float()

    def _beta(self) -> Tensor:
        if self.balance == "geco":
            return (-self.log_multiplier).exp()
        progress = self.steps_done / self.warmup if self.warmup else torch.ones_like(self.excess)
        return self.beta * progress.clamp(max=1)

    @torch.no_grad()
    def _balance(self, reconstruction: Tensor) -> None:
        """Move the multiplier by the running mean of how far, relatively, the cross-entropy is above its aim."""
        if self.kappa is not None:
            excess = (average(reconstruction) / self.kappa - 1).clamp(max=1)
            self.excess.copy_(torch.where(self.steps_done > 0, self.excess.lerp(excess, 0.05), excess))
            self.log_multiplier.add_(0.02 * self.excess).clamp_(-5, 5)
        self.steps_done += 1


class _Shared(NamedTuple):
    """What all draws of a batch have in common: logits without a code, features for the codes, the prior, the size."""

    logits: Tensor
    features: Tensor
    prior: tuple[Tensor, Tensor]
    size: tuple[int, int]
