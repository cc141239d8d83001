"""Images painted for given masks, learnt against a discriminator that judges every pixel."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from segmint.functional.gaussian import kl_to_standard
from segmint.functional.losses import one_hot
from segmint.functional.oasis import fakeness, label_mix, mix_consistency, realness
from segmint.methods.method import Method, Optimizers, device_of
from segmint.nets.spade import NoiseEncoder, PixelDiscriminator, SpadeGenerator
from segmint.nets.vae import AggregatePosterior, sample_gaussian
from segmint.ranks import average, everywhere, randn
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError


class Spade(Method):
    """Mask to image (SPADE, Park 2019) with noise joined to the mask and a per-pixel game (OASIS, Schoenfeld 2021).

    The discriminator is a segmentation network with one class more, for generated pixels; so the generator learns that
    each pixel must look like its class, and needs no further perceptual loss for that. It is also held to judge a
    mixture of real and generated classes piece by piece (LabelMix). Unlabelled images teach it what is real.

    The noise is a vector, from which a style for each class and a plan of the image are made. An encoder finds that of
    real images, and half of the generated images are painted with it: these must resemble the real ones (`anchor`) in
    colour and in the frozen features of the discriminator, as in a conditional VAE/GAN (Larsen 2016; BicycleGAN, Zhu
    2017). The others are painted with noise from the Gaussian of all encoded images, and the encoder must find that
    again (`recover`), or else all backgrounds come out alike. For `warm_start` steps there is no game yet.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width of the images.
        latent: length of the noise vector.
        width: channels of the generator's finest map.
        discriminator: "projected" (on frozen ImageNet features) or "plain".
        balance: how much rare classes count, 0..1; see `segmint.functional.oasis.balance`.
        label_mix: weight of the LabelMix term; 0 for none.
        anchor: weight of the resemblance; 0 for none, and all images are painted with noise.
        kl: weight, against the resemblance, of the KL divergence of the found noise from N(0, I), in nats per value of
            the image.
        recover: weight of the error with which the encoder finds noise again; 0 for none.
        warm_start: steps before the game.
    """

    defaults: ClassVar = {
        "lr": 2e-4,
        "lr_of": {"generator": 4e-4, "discriminator": 4e-4},
        "betas": (0.0, 0.999),
        "weight_decay": 0.0,
        "clip": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "ema": 0.997,
        "augment": "weak",
        "labelled_fraction": 0.75,
        "steps": 4000,
        "batch_size": 8,
    }
    uses_unlabelled = True
    conditions = frozenset({"mask"})
    needs_mask = True
    monitor = None

    steps_done: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        latent: int = 128,
        width: int = 16,
        discriminator: str = "projected",
        balance: float = 0.5,
        label_mix: float = 10.0,
        anchor: float = 5.0,
        kl: float = 2.0,
        recover: float = 2.0,
        warm_start: int = 400,
    ) -> None:
        super().__init__()
        if discriminator not in ("projected", "plain"):
            raise SegmintError(f"spade.discriminator: there is no {discriminator!r}; choose projected or plain")
        self.classes, self.latent = classes, latent
        self.balance, self.label_mix, self.anchor, self.kl = balance, label_mix, anchor, kl
        self.recover = recover if anchor else 0.0
        self.warm_start = warm_start if anchor else 0
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.generator = SpadeGenerator(classes, in_channels, image_size, latent, width)
        self.encoder = NoiseEncoder(in_channels, classes, image_size, latent)
        self.aggregate = AggregatePosterior(latent)
        self.discriminator = PixelDiscriminator(in_channels, classes, projected=discriminator == "projected")

    def parts(self) -> dict[str, nn.Module]:
        """The generator with the encoder of its noise, and the discriminator."""
        return {
            "generator": nn.ModuleList([self.generator, self.encoder]),
            "discriminator": self.discriminator,
        }

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """Paint the labelled masks; one step of the discriminator, then one of the generator.

        Raises:
            SegmintError: there is no mask in the first batch, and so hardly in any.
        """
        count, done = int(batch.labelled.sum()), int(self.steps_done)
        seen = everywhere(count > 0)
        if not seen and not done:
            raise SegmintError(
                "spade: it learns to paint masks, and the first images have none; raise budget, or name synthetic "
                "pairs or a segmenter to take masks from"
            )
        warm = done < self.warm_start
        self.steps_done += 1
        if not seen:
            return {}
        batch = Batch.cat([batch[batch.labelled], batch[~batch.labelled]])
        masked = batch[:count]
        found = 0 if not self.anchor else count if warm else (count + 1) // 2
        classes = one_hot(masked.mask, self.classes).float()
        noise, terms = self._noise(masked.image, classes, found)
        fake = self.generator(classes, noise)
        with torch.no_grad():
            real_features = self.discriminator.features(masked.image if warm else batch.image)
        fake_features = self.discriminator.features(fake)
        total = torch.zeros((), device=fake.device)
        if found:
            terms["anchor"] = _distance(fake_features, real_features, found)
            total = self.anchor * (terms["anchor"] + self.kl * terms["kl"])
        if not warm:
            judged = self._teach(batch, real_features, fake.detach(), [x.detach() for x in fake_features])
            optimizers.minimize("discriminator", judged["discriminator"])
            terms |= judged
            terms["fooled"] = realness(self.discriminator.judge(fake_features), masked.mask, self.balance)
            total = total + terms["fooled"]
        if self.recover and found < count:
            terms["recovered"] = self._recovery(fake[found:], classes[found:], noise[found:])
            total = total + self.recover * terms["recovered"]
        optimizers.minimize("generator", total)
        return {key: value.detach() for key, value in {**terms, "generator": total}.items()}

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """Paint the given masks; unknown pixels (`IGNORE`) are filled in as the rest suggests.

        Raises:
            SegmintError: there is no mask.
        """
        self.refuse(previous=previous, image=image)
        if mask is None:
            raise SegmintError("spade: paints masks and makes none; give it masks to paint")
        device = device_of(self)
        noise = self.aggregate(seeds.randn(self.latent, device=device))
        return Batch(self.generator(one_hot(mask.to(device), self.classes).float(), noise), mask)

    def _noise(self, image: Tensor, classes: Tensor, found: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Noise [B, latent] to paint a batch with, the first `found` from their real images; the KL of these."""
        drawn: Tensor = self.aggregate(randn(len(image) - found, self.latent, device=image.device))
        if not found:
            return drawn, {}
        mean, log_variance = self.encoder(image[:found], classes[:found])
        self.aggregate.follow(mean, log_variance)
        nats = kl_to_standard(mean, log_variance).sum()
        return torch.cat([sample_gaussian(mean, log_variance), drawn]), {"kl": nats / image[:found].numel()}

    def _recovery(self, painted: Tensor, classes: Tensor, noise: Tensor) -> Tensor:
        """How far off the encoder is on painted images, relative to the size of the noise (BicycleGAN, eq. 7).

        Only the generator learns from it: the encoder could hide the noise where nobody sees it.
        """
        fixed = {key: value.detach() for key, value in self.encoder.named_parameters()}
        mean: Tensor = torch.func.functional_call(self.encoder, fixed, (painted, classes))[0]
        return (mean - noise).abs().mean() / average(noise.abs().mean())

    def _teach(
        self, batch: Batch, real_features: list[Tensor], fake: Tensor, fake_features: list[Tensor]
    ) -> dict[str, Tensor]:
        """The discriminator's loss: real pixels have their class, painted ones the last, mixtures both."""
        judge = self.discriminator.judge
        real_logits, fake_logits = judge(real_features), judge(fake_features)
        terms = {"real": realness(real_logits, batch.mask, self.balance), "fake": fakeness(fake_logits)}
        total = terms["real"] + terms["fake"]
        if self.label_mix:
            some = slice(0, (len(fake) + 1) // 2)  # half of them: the mixtures cost as much as the rest together
            choice = label_mix(batch.mask[some], self.classes)
            mixed = judge(self.discriminator.features(torch.where(choice, batch.image[some], fake[some])))
            terms["mix"] = mix_consistency(mixed, real_logits[some], fake_logits[some], choice)
            total = total + self.label_mix * terms["mix"]
        return {**terms, "discriminator": total}


def _distance(fake: list[Tensor], real: list[Tensor], count: int) -> Tensor:
    """The mean absolute difference of the first `count` items, relative to their size: half of it in colour, half in
    features, where there are any."""
    image, *features = (
        (a[:count].float() - b[:count].float()).abs().mean() / average(b[:count].float().abs().mean()).clamp_min(1e-3)
        for a, b in zip(fake, real, strict=True)
    )
    return (image + torch.stack(features).mean()) / 2 if features else image
