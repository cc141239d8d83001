"""Image-and-mask pairs from a low-dimensional Gaussian, learnt by the variational bound."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from segmint.functional.gaussian import free_bits, kl_to_standard, pair_nll
from segmint.functional.labels import most_likely
from segmint.methods.method import Method, Optimizers
from segmint.nets.generators import PairDecoder
from segmint.nets.vae import AggregatePosterior, PairEncoder, sample_gaussian
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError


class VAE(Method):
    """A variational autoencoder of pairs (Kingma & Welling 2014).

    It minimises, in nats per pair, the negative log-likelihood of the image and of the known mask pixels plus the KL
    divergence to a standard normal. The image's likelihood has one scale, at its maximum-likelihood value
    (sigma-VAE, Rybkin 2021), so that nothing has to be balanced by hand. Unlabelled images count by their image term.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width of the pairs.
        latent: dimensions of the Gaussian.
        width: channels of the finest map of encoder and decoder.
        reconstruction: "mse" (Gaussian) or "l1" (Laplacian) for the image; masks have cross-entropy.
        beta: weight of the KL term (Higgins 2017).
        warmup: steps over which the KL term's weight rises from 0 to `beta` (Bowman 2016).
        free_bits: nats that each dimension may hold at no cost (Kingma 2016).
        mask_weight: weight of the mask's cross-entropy; 1 is the bound, more draws small classes sooner.
        prior: where `generate` samples: "standard", N(0, I), or "aggregate", the Gaussian with the mean and
            covariance of all encoded training pairs, which leaves out regions that the decoder never saw (Ghosh 2020).
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "augment": "flip",
        "ema": 0.995,
        "steps": 3000,
        "batch_size": 16,
        "clip": 0.0,
    }
    uses_unlabelled = True
    monitor = None

    steps_done: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        latent: int = 64,
        width: int = 24,
        reconstruction: str = "l1",
        beta: float = 1.0,
        warmup: int = 500,
        free_bits: float = 0.0,
        mask_weight: float = 4.0,
        prior: str = "aggregate",
    ) -> None:
        super().__init__()
        for key, value, choices in (
            ("reconstruction", reconstruction, ("mse", "l1")),
            ("prior", prior, ("standard", "aggregate")),
        ):
            if value not in choices:
                raise SegmintError(f"vae.{key}: there is no {value!r}; choose one of {', '.join(choices)}")
        self.classes, self.latent, self.reconstruction, self.prior = classes, latent, reconstruction, prior
        self.beta, self.warmup, self.free_bits, self.mask_weight = beta, warmup, free_bits, mask_weight
        self.encoder = PairEncoder(in_channels, classes, latent, image_size, width)
        self.decoder = PairDecoder(latent, in_channels, classes, image_size, width, norm="group")
        self.aggregate = AggregatePosterior(latent)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The bound's terms in nats per pair: "image_nll", "mask_nll" and "kl"; "loss" is per pixel."""
        mean, log_variance = self.encoder(batch)
        if self.training:
            self.aggregate.follow(mean, log_variance)
        image, logits = self.decoder(sample_gaussian(mean, log_variance))
        image_nll, mask_nll = pair_nll(image, logits, batch, self.reconstruction)
        kl = kl_to_standard(mean, log_variance)
        weight = self.beta * min(1.0, float(self.steps_done) / self.warmup) if self.warmup else self.beta
        penalty = free_bits(kl, self.free_bits) if self.free_bits else kl.sum(1).mean()
        share = batch.labelled.float().mean()
        total = image_nll + self.mask_weight * share * mask_nll + weight * penalty
        return {
            "loss": total / batch.mask[0].numel(),
            "image_nll": image_nll,
            "mask_nll": mask_nll,
            "kl": kl.sum(1).mean(),
            "image_error": (image - batch.image).abs().mean(),
        }

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One step down the bound."""
        terms = super().step(batch, optimizers)
        self.steps_done += 1
        return terms

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The same terms on validation pairs; "elbo" is the bound itself, in nats per pair."""
        terms = self.loss(batch)
        return {**terms, "elbo": -(terms["image_nll"] + terms["mask_nll"] + terms["kl"])}

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """One pair per seed; its masks are its own."""
        self.refuse(mask=mask, previous=previous, image=image)
        z = seeds.randn(self.latent, device=self.aggregate.mean.device)
        image, logits = self.decoder(self.aggregate(z) if self.prior == "aggregate" else z)
        return Batch(image, most_likely(logits))
