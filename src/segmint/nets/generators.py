"""Decoders from a vector to an image and a mask, by transposed convolution."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from segmint.nets.layers import groups


def stages_for(size: tuple[int, int], smallest: int = 4) -> tuple[int, tuple[int, int]]:
    """How often to double, and from which height and width, to reach at least `size`.

    The base is the last halving of `size`, rounded up, that keeps both sides at `smallest` or more (one doubling at
    least).
    """
    count, base = 0, size
    while count == 0 or min(-(-base[0] // 2), -(-base[1] // 2)) >= smallest:
        base = (-(-base[0] // 2), -(-base[1] // 2))
        count += 1
    return count, base


class UpBlock(nn.Module):
    """Transposed convolution that doubles the resolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        self.norm = _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, 2H, 2W]."""
        y: Tensor = torch.relu(self.norm(self.up(x)))
        return y


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(groups(channels), channels)


class SkipExcitation(nn.Module):
    """A coarse map decides which channels of a fine map count (FastGAN, Liu 2021, eq. 1)."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Conv2d(coarse, fine, 4, bias=False),
            nn.SiLU(),
            nn.Conv2d(fine, fine, 1),
            nn.Sigmoid(),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """coarse [B, Cc, h, w] and fine [B, Cf, H, W] -> [B, Cf, H, W]."""
        y: Tensor = fine * self.gate(coarse)
        return y


class PairDecoder(nn.Module):
    """A vector becomes an image and the logits of its mask.

    Fully connected to a coarse map, then transposed convolutions (DCGAN, Radford 2016) with skip-layer
    excitation (FastGAN, Liu 2021); two 3x3 heads on the last map.

    Args:
        latent: length of the vector.
        in_channels: C of the image; `classes`: K of the mask; `size`: height and width in pixels.
        width: channels of the finest map; they double at each coarser one up to `most`.
        norm: "batch" or "group".
        smallest: see `stages_for`.
    """

    def __init__(
        self,
        latent: int,
        in_channels: int,
        classes: int,
        size: tuple[int, int],
        width: int = 24,
        most: int = 192,
        norm: str = "batch",
        smallest: int = 4,
    ) -> None:
        super().__init__()
        count, self.base = stages_for(size, smallest)
        self.size = size
        widths = [min(width * 2**level, most) for level in range(count, -1, -1)]
        self.first = nn.Linear(latent, widths[0] * self.base[0] * self.base[1], bias=False)
        self.first_norm = _norm(norm, widths[0])
        self.ups = nn.ModuleList(UpBlock(a, b, norm) for a, b in pairwise(widths))
        # The map after stage s steers the one three stages on, as in FastGAN.
        self.skips = nn.ModuleDict(
            {str(s + 3): SkipExcitation(widths[s], widths[s + 3]) for s in range(count - 2) if s + 3 <= count}
        )
        self.image = nn.Conv2d(widths[-1], in_channels, 3, padding=1)
        self.mask = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, latent] -> image [B, C, H, W] in (-1, 1) and mask logits [B, K, H, W]."""
        x = self.first(z).view(len(z), -1, *self.base)
        maps = [torch.relu(self.first_norm(x))]
        for number, up in enumerate(self.ups, start=1):
            x = up(maps[-1])
            if str(number) in self.skips:
                x = self.skips[str(number)](maps[number - 3], x)
            maps.append(x)
        x = maps[-1][..., : self.size[0], : self.size[1]]
        # Averaging neighbours keeps the transposed convolutions' checkerboard out of the masks' outlines.
        logits = nn.functional.avg_pool2d(self.mask(x).float(), 3, 1, 1, count_include_pad=False)
        return torch.tanh(self.image(x).float()), logits
