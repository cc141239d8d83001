"""Pre-training of a segmenter's encoder and decoder: noise is taken off images, no masks are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmint.methods.method import Facts, Method, Suit
from segmint.nets.encoders import build_encoder
from segmint.nets.unet import UNet
from segmint.ranks import rand, randn_like
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError

TARGETS = ("noise", "image")

STEPS = 4000
"""Of both trainings, from which on it pays: with 30 labels a segmenter learns for about 1,400 steps, then overfits, and
2,000, the usual training, is what must be left to it."""

FEW = 150
"""Labels, up to which other images have something to add."""

MANY = 4
"""Unlabelled images for each labelled one, from which on they have."""


class Denoise(Method):
    """Decoder denoising pre-training (DDeP, Brempong et al. 2022, arXiv 2205.11423) on all images, labelled or not.

    The U-Net of the segmenters sees sqrt(gamma) x + sqrt(1 - gamma) e, e from N(0, I), and says what e was. It
    neither segments nor generates: other methods start from its encoder and decoder, `--init RUN`, if they are built
    with the same encoder and decoder widths. Its head is its own (`denoiser`) and is never taken over. As the
    encoder's finest map may be coarser than the image, the head predicts a block of pixels at each of its places
    (sub-pixel convolution, Shi 2016).

    Args:
        classes: K of the segmenter to come; nothing here depends on it.
        in_channels: C of the images.
        image_size: height and width it is trained at.
        encoder_name: "efficientnet_lite0" or "plain".
        encoder_weights: "imagenet", or None to learn from nothing; "plain" has none.
        decoder_channels: widths of the U-Net decoder, coarsest first.
        gamma: share of the image in the variance, 0 < gamma < 1, or the bounds of a range from which each image
            draws its own uniformly. 0.95 is noise of standard deviation 0.22.
        target: "noise", or "image" to predict the clean image.
        freeze_encoder: train the decoder alone, with the encoder's weights and statistics left as they are; a training
            run does so, if not told otherwise, where the encoder starts from weights, as the paper has it.
    """

    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 1e-2, "augment": "weak", "ema": 0.99, "labelled_fraction": 0.0}
    uses_unlabelled = True
    prepares = True
    monitor = ("denoising_error", "min")

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        encoder_name: str = "efficientnet_lite0",
        encoder_weights: str | None = "imagenet",
        decoder_channels: Sequence[int] = (128, 64, 48, 32),
        gamma: float | Sequence[float] = 0.95,
        target: str = "noise",
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise SegmintError(f"denoise.target: there is no {target!r}; choose one of {', '.join(TARGETS)}")
        self.gamma, self.target, self.frozen = _bounds(gamma), target, freeze_encoder
        self.network = UNet(build_encoder(encoder_name, in_channels, encoder_weights), in_channels, decoder_channels)
        width, self.stride = self.network.head.in_channels, _stride(self.network.encoder, in_channels)
        # Without its head the network has no tensor that a segmenter should not take over, even where K = C.
        self.network.register_module("head", nn.Identity())
        self.denoiser = nn.Conv2d(width, in_channels * self.stride**2, 1)
        if freeze_encoder:
            self.network.encoder.requires_grad_(False)

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """No weights for an encoder that has none; one that starts from weights is left as it is."""
        settled = dict(settings)
        notes = [f"denoise: learns from all {facts.labelled + facts.unlabelled} images; masks are not used."]
        if settled.get("encoder_name") == "plain":
            settled.setdefault("encoder_weights", None)
        elif "freeze_encoder" not in settled and settled.get("encoder_weights", "imagenet") is not None:
            settled["freeze_encoder"] = True
            notes.append("freeze_encoder: true, since denoising would overwrite what the encoder knows of objects.")
        return settled, notes

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Before a segmenter with few masks, if there are many more images, and time for two trainings."""
        if not facts.unlabelled:
            return Suit(0, "learns from images without masks, and there are none")
        if not facts.agreed:
            return Suit(0, "is untried before methods that learn how raters differ")
        if facts.labelled > FEW:
            return Suit(0, f"adds little to {facts.labelled:,} labelled images; up to {FEW} it may")
        if facts.unlabelled < MANY * facts.labelled:
            return Suit(0, f"needs {MANY} or more unlabelled images for each labelled one")
        if facts.steps < STEPS:
            return Suit(0, f"pays where there is time for two trainings, {STEPS:,} steps or more, and there is less")
        return Suit(1, f"learns what {facts.unlabelled:,} images without masks look like before masks are needed")

    def train(self, mode: bool = True) -> Denoise:
        """A frozen encoder always normalises with the statistics that it came with."""
        super().train(mode)
        if self.frozen:
            self.network.encoder.eval()
        return self

    def forward(self, noisy: Tensor) -> Tensor:
        """Noisy images [B, C, H, W] -> what the target is predicted to be, float32 [B, C, H, W]."""
        blocks = self.denoiser(self.network.decode(self.network.encoder(noisy)))
        height, width = noisy.shape[-2:]
        return F.pixel_shuffle(blocks, self.stride)[..., :height, :width].float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean squared error of the prediction; predicting no noise at all gives 1."""
        place = rand(len(batch), 1, 1, 1, device=batch.image.device)
        return {"loss": self._error(batch.image, place, randn_like(batch.image))}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The same error on validation images, with the same noise each time."""
        seeds, device = Seeds.range(len(batch)), batch.image.device
        place, noise = seeds.rand(1, 1, 1, device=device), seeds.randn(*batch.image.shape[1:], device=device)
        return {"denoising_error": self._error(batch.image, place, noise)}

    def _error(self, image: Tensor, place: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error; `place` [B, 1, 1, 1] in 0..1 says where in its range each image's gamma lies."""
        gamma = self.gamma[0] + (self.gamma[1] - self.gamma[0]) * place
        predicted = self(mix_noise(image, noise, gamma))
        return F.mse_loss(predicted, noise if self.target == "noise" else image)


def mix_noise(image: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """sqrt(gamma) image + sqrt(1 - gamma) noise (DDeP, "scaled additive noise"): variance 1 if both have it.

    Args:
        image, noise: [B, C, H, W].
        gamma: [B, 1, 1, 1] in 0..1.
    """
    return gamma.sqrt() * image + (1 - gamma).sqrt() * noise


def _bounds(gamma: float | Sequence[float]) -> tuple[float, float]:
    """The lowest and highest gamma."""
    values = [gamma, gamma] if isinstance(gamma, int | float) else list(gamma)
    if len(values) != 2 or not 0 < values[0] <= values[1] < 1:
        raise SegmintError(f"denoise.gamma: must be a number between 0 and 1, or two in rising order, not {gamma}")
    return float(values[0]), float(values[1])


@torch.no_grad()
def _stride(encoder: nn.Module, channels: int) -> int:
    """How many times coarser than the image the encoder's finest map is."""
    trained = encoder.training
    finest: Tensor = encoder.eval()(torch.zeros(1, channels, 64, 64))[0]
    encoder.train(trained)
    return 64 // finest.shape[-1]
