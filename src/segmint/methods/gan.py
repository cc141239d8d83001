"""Image-and-mask pairs from noise, learnt against discriminators."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from segmint.functional.adversarial import (
    check_kind,
    diff_augment,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from segmint.functional.gaussian import kl_to_standard, pair_nll
from segmint.methods.method import Method, Optimizers
from segmint.nets.discriminators import ConvDiscriminator, Discriminator, ProjectedDiscriminator
from segmint.nets.generators import PairDecoder
from segmint.nets.layers import one_hot
from segmint.nets.vae import AggregatePosterior, PairEncoder, sample_gaussian
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError


class GAN(Method):
    """A generative adversarial network for pairs (Goodfellow 2014; DCGAN's transposed convolutions, Radford 2016).

    Two discriminators: one judges labelled pairs, one judges images alone and so learns from unlabelled ones too. The
    pair discriminator is also shown real images with the masks of others as fakes (Reed 2016), which makes it look at
    whether the mask fits. Masks go to it as one-hot maps; gradients pass through the softmax (straight-through), so
    that softness does not give the generated ones away.

    For `warm_start` steps the generator first learns as the decoder of a variational autoencoder (as in VAE/GAN,
    Larsen 2016), which settles the layout of the scene and keeps modes from being dropped; then the game begins, and
    noise comes from the Gaussian of all encoded training pairs.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width of the pairs.
        latent: length of the noise vector.
        width: channels of the generator's finest map and of the pair discriminator's first.
        loss: "hinge", "bce" or "relativistic".
        penalty: gamma of R1 + R2, gamma / 2 times each; None: 1 for "relativistic", which needs it, and 0 otherwise.
        image_discriminator: "projected" (on frozen ImageNet features), "convolutional", or "none".
        image_weight: weight of the image discriminator against the pair discriminator.
        augmentation: strength of DiffAugment, 0 for none.
        warm_start: steps as an autoencoder's decoder before the game; 0: noise from N(0, I) from the first step.
    """

    defaults: ClassVar = {
        "lr": 2e-4,
        "lr_of": {"autoencoder": 1e-3, "discriminator": 4e-4},
        "betas": (0.0, 0.99),
        "weight_decay": 0.0,
        "clip": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "ema": 0.995,
        "augment": "flip",
        "steps": 4000,
        "batch_size": 8,
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
        latent: int = 128,
        width: int = 24,
        loss: str = "hinge",
        penalty: float | None = None,
        image_discriminator: str = "projected",
        image_weight: float = 1.0,
        augmentation: float = 1.0,
        warm_start: int = 800,
    ) -> None:
        super().__init__()
        check_kind(loss)
        self.classes, self.latent, self.kind = classes, latent, loss
        self.penalty = penalty if penalty is not None else float(loss == "relativistic")
        self.image_weight, self.augmentation = image_weight, augmentation
        self.warm_start = warm_start
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.generator = PairDecoder(latent, in_channels, classes, image_size, width, norm="group")
        if warm_start:
            self.encoder = PairEncoder(in_channels, classes, latent, image_size, width)
            self.aggregate = AggregatePosterior(latent)
        self.discriminator = nn.ModuleDict({"pair": ConvDiscriminator(in_channels + classes, width)})
        if image_discriminator == "projected":
            self.discriminator["image"] = ProjectedDiscriminator(in_channels)
        elif image_discriminator == "convolutional":
            self.discriminator["image"] = ConvDiscriminator(in_channels, width)
        elif image_discriminator != "none":
            raise SegmintError(
                f"gan.image_discriminator: there is no {image_discriminator!r}; choose projected, convolutional or none"
            )

    def parts(self) -> dict[str, nn.Module]:
        """The generator and the discriminators, optimised in alternation, and what the warm start trains."""
        parts: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        if self.warm_start:
            parts["autoencoder"] = nn.ModuleList([self.encoder, self.generator])
        return parts

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One step of the discriminators, then one of the generator; or one of the warm start."""
        warm = int(self.steps_done) < self.warm_start
        self.steps_done += 1
        return self._warm_step(batch, optimizers) if warm else self._game_step(batch, optimizers)

    def _warm_step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(batch)
        self.aggregate.follow(mean, log_variance)
        image, logits = self.generator(sample_gaussian(mean, log_variance))
        image_nll, mask_nll = pair_nll(image, logits, batch, "l1")
        kl = kl_to_standard(mean, log_variance).sum(1).mean()
        share = batch.labelled.float().mean()
        total = (image_nll + share * mask_nll + kl) / batch.mask[0].numel()
        optimizers.minimize("autoencoder", total)
        return {"warm_image_nll": image_nll.detach(), "warm_mask_nll": mask_nll.detach(), "warm_kl": kl.detach()}

    def _game_step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self._pair(self._noise(batch))
        real = (batch.image, one_hot(batch.mask, self.classes))
        terms = self._judged(real, fake, batch.labelled, train="discriminator")
        optimizers.minimize("discriminator", terms["discriminator"])
        moved = self._judged(real, self._pair(self._noise(batch)), batch.labelled, train="generator")
        optimizers.minimize("generator", moved["generator"])
        return {key: value.detach() for key, value in {**terms, **moved}.items()}

    def generate(self, seeds: Seeds, mask: Tensor | None = None, previous: Tensor | None = None) -> Batch:
        """One pair per seed; its masks are its own."""
        if mask is not None or previous is not None:
            raise SegmintError(
                "gan: makes its own masks and single images; use spade or flow to paint a mask or a sequence"
            )
        noise = seeds.randn(self.latent, device=self.generator.first.weight.device)
        image, logits = self.generator(self._from_prior(noise))
        return Batch(image, logits.argmax(1))

    def _noise(self, batch: Batch) -> Tensor:
        return self._from_prior(torch.randn(len(batch), self.latent, device=batch.image.device))

    def _from_prior(self, noise: Tensor) -> Tensor:
        """Standard normal numbers [B, latent] -> the generator's input."""
        vector: Tensor = self.aggregate(noise) if self.warm_start else noise
        return vector

    def _pair(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image in (-1, 1) and one-hot mask whose gradient is that of the softmax."""
        image, logits = self.generator(z)
        soft = logits.softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return image, hard + soft - soft.detach()

    def _judged(
        self, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], labelled: Tensor, train: str
    ) -> dict[str, Tensor]:
        """The losses of one side, and what the discriminators think of either."""
        real, fake = self._augmented(*real), self._augmented(*fake)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=labelled.device)
        if bool(labelled.any()):
            count = int(labelled.sum())
            pairs = torch.cat(real, 1)[labelled], torch.cat(fake, 1)[:count]
            total = total + self._duel("pair", *pairs, train=train, terms=terms)
            if train == "discriminator" and count > 1:
                mismatched = torch.cat([real[0][labelled], real[1][labelled].roll(1, 0)], 1)
                total = total + 0.5 * self._duel("pair", pairs[0], mismatched, train=train, terms={})
        if "image" in self.discriminator:
            total = total + self.image_weight * self._duel("image", real[0], fake[0], train=train, terms=terms)
        return {train: total, **terms}

    def _duel(self, name: str, real: Tensor, fake: Tensor, *, train: str, terms: dict[str, Tensor]) -> Tensor:
        judge = cast(Discriminator, self.discriminator[name])
        inputs = judge.features(real), judge.features(fake)
        if train == "generator":
            with torch.no_grad():
                seen = judge.judge(inputs[0])
            return generator_loss(self.kind, seen, judge.judge(inputs[1]))
        if self.penalty:
            inputs = tuple([x.detach().requires_grad_() for x in side] for side in inputs)  # type: ignore[assignment]
        logits = judge.judge(inputs[0]), judge.judge(inputs[1])
        terms[f"{name}_real"], terms[f"{name}_fake"] = logits[0].float().mean(), logits[1].float().mean()
        loss = discriminator_loss(self.kind, *logits)
        if self.penalty:
            r1, r2 = (gradient_penalty(y, x) for y, x in zip(logits, inputs, strict=True))
            terms[f"{name}_r1"], terms[f"{name}_r2"] = r1, r2
            loss = loss + self.penalty / 2 * (r1 + r2)
        return loss

    def _augmented(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.augmentation:
            return image, mask
        return diff_augment(image, mask, color=self.augmentation)
