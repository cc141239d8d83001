"""A segmenter trained on masks alone: the honest baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from segmint.functional.losses import compose, settle
from segmint.methods.method import Facts, Method, Suit
from segmint.nets.segmenter import build_segmenter, logits_of
from segmint.seeds import Seeds
from segmint.types import Batch


class Supervised(Method):
    """A network from an image to class logits.

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
    """

    defaults: ClassVar = {"lr": 2e-3, "weight_decay": 1e-2, "augment": "strong", "ema": 0.99}

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
    ) -> None:
        super().__init__()
        self.classes = classes
        self.criterion = compose(loss, shares)
        self.network = build_segmenter(
            classes, in_channels, encoder_name, encoder_weights, decoder_channels, dropout, network
        )

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Choose the loss from the class shares where it is "auto" (the default of a training run)."""
        return settle(settings, facts.shares, facts.alike)

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Wherever there are masks."""
        if not facts.labelled:
            return Suit(0, "has no mask to learn from")
        told = "; where raters differ it gives one mask" if not facts.agreed else ""
        return Suit(1, f"is sound wherever there are masks, and quick to learn{told}")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen loss on the labelled pixels."""
        return self.criterion(self._logits(batch.image), batch.mask)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The same loss on validation images."""
        return self.loss(batch)

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W]; there is no randomness in them."""
        return self._logits(image)

    def _logits(self, image: Tensor) -> Tensor:
        return logits_of(self.network, image, self.classes)
