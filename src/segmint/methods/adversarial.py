"""A segmenter against a discriminator over masks, which unlabelled images train too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmint.functional.adversarial import smoothed_truth
from segmint.functional.labels import most_likely
from segmint.functional.losses import compose, cross_entropy, settle
from segmint.methods.method import Facts, Method, Optimizers, Suit
from segmint.nets.discriminators import LinearDiscriminant, MaskDiscriminator
from segmint.nets.segmenter import build_segmenter, logits_of
from segmint.ranks import average
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError


class Adversarial(Method):
    """A segmenter that must also fool a fully convolutional discriminator, pixel by pixel.

    On labelled images alone this is Luc et al. 2016 (arXiv 1611.08408); with unlabelled ones Hung et al. 2018
    (arXiv 1802.07934): their predictions must fool the discriminator too, and where it takes them for real, the most
    probable class is learnt as if it were true (self-taught). The discriminator learns from labelled images only. It
    is shown true masks as soft as the predicted ones (`segmint.functional.adversarial.smoothed_truth`), and nothing
    of a labelled image where its mask is unknown, neither truth nor prediction.

    With `training.labelled_fraction` at 1 no unlabelled image is shown, and it is Luc's whatever the data.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width it is trained at; it segments any size.
        encoder_name: "efficientnet_lite0" or "plain".
        encoder_weights: "imagenet", or None to learn from nothing; "plain" has none.
        decoder_channels: widths of the U-Net decoder, coarsest first.
        dropout: probability with which channels before the head are dropped, 0..1.
        loss: "auto", or a sum such as "cross_entropy+0.5*dice"; see `segmint.functional.losses.compose`.
        shares: class shares of the training pixels, which class-balanced losses need; found by `adapt`.
        network: any module from [B, C, H, W] to [B, K, h, w] (or to an object with such `logits`) instead of the
            U-Net, or the dotted path of a function that makes one, "package.module:function".
        adversarial_weight: of fooling the discriminator with predictions for labelled images.
        unlabelled_weight: the same for unlabelled ones.
        self_taught_weight: of the cross-entropy of unlabelled pixels with their own most probable class.
        threshold: only pixels with a confidence of the discriminator above this teach themselves, 0..1. One half is
            what it gives a pixel that it cannot tell from a true one.
        self_taught_from: the step from which on they do; `adapt` makes it a quarter of the training's steps.
        tau: smallest probability of the true class in what the discriminator is shown as real, 0..1.
        sees_image: whether the discriminator is shown the image beside the mask (Luc 2016) or not (Hung 2018).
        width: channels of the discriminator after its first convolution.
        depth: number of its halvings; its map has 1 / 2^depth of the resolution.
    """

    defaults: ClassVar = {
        "lr": 2e-3,
        "lr_of": {"discriminator": 5e-4},
        "weight_decay": 1e-2,
        "augment": "strong",
        "ema": 0.99,
    }
    uses_unlabelled = True

    rounds: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        encoder_name: str = "efficientnet_lite0",
        encoder_weights: str | None = "imagenet",
        decoder_channels: Sequence[int] = (128, 64, 48, 32),
        dropout: float = 0.1,
        loss: str = "cross_entropy",
        shares: Sequence[float] | None = None,
        network: nn.Module | str | None = None,
        adversarial_weight: float = 0.01,
        unlabelled_weight: float = 0.001,
        self_taught_weight: float = 0.1,
        threshold: float = 0.2,
        self_taught_from: int = 500,
        tau: float = 0.9,
        sees_image: bool = False,
        width: int = 32,
        depth: int = 3,
    ) -> None:
        super().__init__()
        _check(threshold=threshold, tau=tau)
        self.classes, self.sees_image = classes, sees_image
        self.weights = (adversarial_weight, unlabelled_weight, self_taught_weight)
        self.threshold, self.self_taught_from, self.tau = threshold, self_taught_from, tau
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.criterion = compose(loss, shares)
        self.network = build_segmenter(
            classes, in_channels, encoder_name, encoder_weights, decoder_channels, dropout, network
        )
        self.discriminator = MaskDiscriminator(classes + in_channels * sees_image, width, depth=depth)
        self.suspicion = LinearDiscriminant()

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Choose the loss from the class shares where it is "auto", and when pixels begin to teach themselves.

        Raises:
            SegmintError: no image is labelled; the discriminator would never see a true mask.
        """
        if not facts.labelled:
            raise SegmintError("adversarial: no image has a mask to learn from; give a budget of 1 or more")
        settled, notes = settle(settings, facts.shares, facts.alike)
        if not facts.unlabelled:
            return settled, [*notes, "adversarial: there are no unlabelled images; it learns from labelled ones alone."]
        if "self_taught_from" not in settled:
            settled["self_taught_from"] = facts.steps // 4
            notes.append(f"self_taught_from: step {facts.steps // 4}, after a quarter of the training.")
        return settled, notes

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Where there are masks, but not before it has beaten them alone."""
        if not facts.labelled:
            return Suit(0, "has no mask to learn from")
        return Suit(0.4, "learns from images without masks, too, but has yet to beat masks alone at equal steps")

    def parts(self) -> dict[str, nn.Module]:
        """The segmenter and the discriminator, optimised in alternation."""
        return {"network": self.network, "discriminator": self.discriminator}

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One step of the discriminator on labelled images, then one of the segmenter on all."""
        teaches_itself = int(self.rounds) >= self.self_taught_from
        self.rounds += 1
        logits = self._logits(batch.image)
        terms = self._teach(batch, logits.detach(), optimizers)
        terms |= self._fool(batch, logits, teaches_itself)
        optimizers.minimize("network", terms["loss"])
        return {key: value.detach() for key, value in terms.items()}

    def _teach(self, batch: Batch, logits: Tensor, optimizers: Optimizers) -> dict[str, Tensor]:
        """Show the discriminator true and predicted masks; learn what its logits say of errors."""
        batch, logits = batch[batch.labelled], logits[batch.labelled]
        known = batch.mask != IGNORE
        if not float(average(known.sum())):
            return {"discriminator": logits.new_zeros(())}
        predicted = logits.softmax(1)
        real = self._judge(smoothed_truth(batch.mask, predicted, self.tau), batch.image, known)
        fake = self._judge(predicted, batch.image, known)
        loss = _doubt(real, known) + _doubt(-fake, known)
        optimizers.minimize("discriminator", loss)
        self.suspicion.follow(fake.detach()[known], (most_likely(logits) != batch.mask)[known])
        return {"discriminator": loss}

    def _fool(self, batch: Batch, logits: Tensor, teaches_itself: bool) -> dict[str, Tensor]:
        """The segmenter's loss and its terms (Hung 2018, eqs. 2 to 5)."""
        known, hidden = batch.mask != IGNORE, ~batch.labelled.view(-1, 1, 1).expand_as(batch.mask)
        judged = self._judge(logits.softmax(1), batch.image, known | hidden)
        confident = (judged.detach().sigmoid() > self.threshold) & hidden
        own = most_likely(logits).where(confident & teaches_itself, IGNORE)
        terms = self.criterion(logits, batch.mask)
        extra = {
            "adversarial": _doubt(judged, known),
            "unlabelled": _doubt(judged, hidden),
            "self_taught": cross_entropy(logits, own),
        }
        weighted = [weight * term for weight, term in zip(self.weights, extra.values(), strict=True)]
        share = confident.sum() / average(hidden.sum()).clamp_min(1)
        return {**terms, **extra, "confident": share, "loss": terms["loss"] + torch.stack(weighted).sum()}

    def _judge(self, probabilities: Tensor, image: Tensor, visible: Tensor) -> Tensor:
        """The discriminator's logits [B, H, W] of [B, K, H, W], blind where `visible` [B, H, W] is False."""
        shown = torch.cat([probabilities, image], 1) if self.sees_image else probabilities
        logits: Tensor = self.discriminator(shown * visible.unsqueeze(1))
        return logits

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The segmentation loss on validation images."""
        return self.criterion(self._logits(batch.image), batch.mask)

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W]; there is no randomness in them."""
        return self._logits(image)

    def errors(self, image: Tensor, logits: Tensor) -> Tensor:
        """The probability of each pixel's most probable class being wrong, as the discriminator sees it.

        The posterior of "wrong" given the discriminator's logit, if the logits of right and of wrong pixels are two
        Gaussians of one variance (`segmint.nets.discriminators.LinearDiscriminant`), whose moments are those of the
        augmented labelled training images over the last 20 steps or so. It ranks pixels by how little their
        surroundings look like a true mask. Its level is that of training images: where there are few labels, and they
        are known by heart, errors on new images are more frequent than it says.

        Returns:
            float32 [B, H, W] in 0..1.
        """
        visible = torch.ones_like(image[:, 0], dtype=torch.bool)
        wrong: Tensor = self.suspicion(self._judge(logits.float().softmax(1), image, visible)).sigmoid()
        return wrong

    def _logits(self, image: Tensor) -> Tensor:
        return logits_of(self.network, image, self.classes)


def _doubt(judged: Tensor, where: Tensor) -> Tensor:
    """Mean cross-entropy of "real" over chosen pixels of the map (Goodfellow 2014); zero if there are none."""
    return (F.softplus(-judged) * where).sum() / average(where.sum()).clamp_min(1)


def _check(**shares: float) -> None:
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise SegmintError(f"adversarial.{key}: must be from 0 to 1, not {value}")
