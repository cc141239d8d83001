"""The U-Net decoder over any encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.nets.encoders import Encoder
from segmint.nets.layers import conv_norm, resize


class DecoderBlock(nn.Module):
    """Double the resolution, join the encoder's map of that size, convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs + skip, outputs)
        self.second = conv_norm(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, inputs, h, w] and skip [B, skip, H, W] -> [B, outputs, H, W]."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
        y: Tensor = self.second(self.first(torch.cat([x, skip], 1)))
        return y


class UNet(nn.Module):
    """Encoder, decoder with skip connections, and a 1x1 head (Ronneberger 2015).

    Args:
        encoder: gives feature maps, finest first, and their `channels`.
        classes: K, channels of the output.
        decoder_channels: widths of the decoder's blocks, coarsest first; one fewer than the feature maps.
        dropout: probability with which whole channels before the head are dropped in training.
    """

    def __init__(self, encoder: Encoder, classes: int, decoder_channels: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        *skips, deepest = encoder.channels
        if len(decoder_channels) != len(skips):
            raise ValueError(f"decoder_channels must be {len(skips)} numbers, not {len(decoder_channels)}")
        blocks, inputs = [], deepest
        for skip, outputs in zip(reversed(skips), decoder_channels, strict=True):
            blocks.append(DecoderBlock(inputs, skip, outputs))
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(inputs, classes, 1)

    def expect(self, shares: Sequence[float]) -> None:
        """Begin with predictions of these class shares, so that no step goes to learning them (Lin 2017, 4.1)."""
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor(shares).clamp_min(1e-4).log())  # type: ignore[union-attr]

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, finest first -> the decoder's last map, at the finest map's resolution."""
        *skips, x = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(x, skip)
        return x

    def forward(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] -> logits [B, classes, H, W]; bilinear from the finest feature map's resolution."""
        logits = self.head(self.dropout(self.decode(self.encoder(image))))
        return resize(logits, (int(image.shape[-2]), int(image.shape[-1])))
