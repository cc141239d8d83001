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
from segmint.functional.labels import most_likely
from segmint.functional.losses import cross_entropy, one_hot
from segmint.methods.method import Method, Optimizers
from segmint.nets.discriminators import ConvDiscriminator, Discriminator, ProjectedDiscriminator
from segmint.nets.generators import PairDecoder
from segmint.nets.vae import AggregatePosterior, PairEncoder, sample_gaussian
from segmint.ranks import before, everywhere, randn, whole
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError

Pair = tuple[Tensor, Tensor]
"""Images [B, C, H, W] and masks [B, K, H, W], one-hot."""


class GAN(Method):
    """A generative adversarial network for pairs (Goodfellow 2014; DCGAN's transposed convolutions, Radford 2016).

    Two discriminators: one judges labelled pairs, one judges images alone and so learns from unlabelled ones too. The
    pair discriminator is also shown real images with the masks of others as fakes (Reed 2016), which makes it look at
    whether the mask fits. Masks go to it as one-hot maps; gradients pass through the softmax (straight-through), so
    that softness does not give the generated ones away.

    For `warm_start` steps the generator first learns as the decoder of a variational autoencoder (as in VAE/GAN,
    Larsen 2016), which settles the layout of the scene and keeps modes from being dropped; then the game begins, and
    noise comes from the Gaussian of all encoded training pairs. From then on half of the generator's fakes are decoded
    training pairs, which it must also resemble a little (`anchor`), so that it goes on covering all of them.

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
        warm_start: steps as an autoencoder's decoder before the game; 0: noise from N(0, I) at once.
        anchor: weight of the absolute error and cross-entropy of decoded training pairs, after a warm start.
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
        warm_start: int = 600,
        anchor: float = 1.0,
    ) -> None:
        super().__init__()
        check_kind(loss)
        self.classes, self.latent, self.kind = classes, latent, loss
        self.penalty = penalty if penalty is not None else float(loss == "relativistic")
        self.image_weight, self.augmentation = image_weight, augmentation
        self.warm_start, self.anchor = warm_start, anchor
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.generator = PairDecoder(latent, in_channels, classes, image_size, width, norm="group")
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
        autoencoder = nn.ModuleList([self.encoder, self.generator])
        return {"generator": self.generator, "discriminator": self.discriminator, "autoencoder": autoencoder}

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
            fake = self._pair(*self.generator(self._noise(len(batch), batch)))
        real = (batch.image, one_hot(batch.mask, self.classes).float())
        terms = self._teach(real, fake, batch.labelled)
        optimizers.minimize("discriminator", terms["discriminator"])
        decoded = len(batch) // 2 if self.warm_start and self.anchor else 0
        image, logits = self.generator(
            torch.cat([self._codes(batch[:decoded]), self._noise(len(batch) - decoded, batch)])
        )
        moved = {"generator": self._fool(real, self._pair(image, logits), batch.labelled)}
        if decoded:
            moved["anchor"] = (image[:decoded] - batch.image[:decoded]).abs().mean()
            moved["anchor"] = moved["anchor"] + cross_entropy(logits[:decoded], batch.mask[:decoded])
            moved["generator"] = moved["generator"] + self.anchor * moved["anchor"]
        optimizers.minimize("generator", moved["generator"])
        return {key: value.detach() for key, value in {**terms, **moved}.items()}

    def _codes(self, batch: Batch) -> Tensor:
        """Samples of the encodings of some pairs, [B, latent]."""
        if not len(batch):
            return torch.empty(0, self.latent, device=batch.image.device)
        with torch.no_grad():
            return sample_gaussian(*self.encoder(batch))

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """One pair per seed; its masks are its own."""
        self.refuse(mask=mask, previous=previous, image=image)
        noise = seeds.randn(self.latent, device=self.generator.first.weight.device)
        image, logits = self.generator(self._from_prior(noise))
        return Batch(image, most_likely(logits))

    def _noise(self, count: int, batch: Batch) -> Tensor:
        return self._from_prior(randn(count, self.latent, device=batch.image.device))

    def _from_prior(self, noise: Tensor) -> Tensor:
        """Standard normal numbers [B, latent] -> the generator's input."""
        vector: Tensor = self.aggregate(noise) if self.warm_start else noise
        return vector

    @staticmethod
    def _pair(image: Tensor, logits: Tensor) -> Pair:
        """The image, and a one-hot mask whose gradient is that of the softmax."""
        soft = logits.softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return image, hard + soft - soft.detach()

    def _teach(self, real: Pair, fake: Pair, labelled: Tensor) -> dict[str, Tensor]:
        """The discriminators' loss, and what they think of either side."""
        real, fake = self._augmented(*real), self._augmented(*fake)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=labelled.device)
        count = int(labelled.sum())
        if everywhere(count > 0):
            pairs, fakes = torch.cat(real, 1)[labelled], [(1.0, torch.cat(fake, 1)[:count])]
            if everywhere(whole(count) > 1):
                fakes.append((0.5, torch.cat([real[0][labelled], before(real[1][labelled])], 1)))
            total = total + self._duel("pair", pairs, fakes, terms)
        if "image" in self.discriminator:
            total = total + self.image_weight * self._duel("image", real[0], [(1.0, fake[0])], terms)
        return {"discriminator": total, **terms}

    def _duel(self, name: str, real: Tensor, fakes: list[tuple[float, Tensor]], terms: dict[str, Tensor]) -> Tensor:
        """One discriminator's weighted loss between real items and several kinds of fakes; adds to `terms`."""
        judge = cast(Discriminator, self.discriminator[name])
        logits, penalty = self._judged(judge, real)
        terms[f"{name}_real"] = logits.float().mean()
        loss = self.penalty / 2 * penalty
        for number, (weight, fake) in enumerate(fakes):
            doubted, penalty = self._judged(judge, fake)
            if number == 0:
                terms[f"{name}_fake"] = doubted.float().mean()
            loss = loss + weight * (discriminator_loss(self.kind, logits, doubted) + self.penalty / 2 * penalty)
        return loss

    def _judged(self, judge: Discriminator, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of real or generated items, and their gradient penalty where there is one."""
        features = judge.features(x)
        if not self.penalty:
            return judge.judge(features), torch.zeros((), device=x.device)
        features = [feature.detach().requires_grad_() for feature in features]
        logits = judge.judge(features)
        return logits, gradient_penalty(logits, features)

    def _fool(self, real: Pair, fake: Pair, labelled: Tensor) -> Tensor:
        """The generator's loss; only the relativistic one looks at real items as well."""
        fake = self._augmented(*fake)
        total = torch.zeros((), device=labelled.device)
        for name, module in self.discriminator.items():
            judge = cast(Discriminator, module)
            x = torch.cat(fake, 1) if name == "pair" else fake[0]
            seen = None
            if self.kind == "relativistic":
                image, mask = self._augmented(*real)
                y = torch.cat([image, mask], 1)[labelled] if name == "pair" else image
                if not everywhere(len(y) > 0):
                    continue
                x = x[: len(y)]
                with torch.no_grad():
                    seen = judge.judge(judge.features(y))
            weight = 1.0 if name == "pair" else self.image_weight
            total = total + weight * generator_loss(self.kind, judge.judge(judge.features(x)), seen)
        return total

    def _augmented(self, image: Tensor, mask: Tensor) -> Pair:
        if not self.augmentation:
            return image, mask
        return diff_augment(image, mask, color=self.augmentation)
