"""The U-Net of the joint flow: several clocks in, an image and the logits of a mask out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.nets.layers import groups


def usual_patch(size: tuple[int, int]) -> int:
    """The side of the patches for images of this height and width: 4 from 64 pixels on, else 2."""
    return 4 if min(size) >= 64 else 2


class FourierFeatures(nn.Module):
    """Numbers in 0..1 as sines and cosines of `width` frequencies."""

    frequencies: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.logspace(-1, 2, width, base=4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N] -> [B, 2 N width]."""
        angles = (x.unsqueeze(-1) * self.frequencies).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Residual block whose second normalisation is scaled and shifted by the condition (Dhariwal 2021, section 3)."""

    def __init__(self, inputs: int, outputs: int, condition: int, attention: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(groups(inputs), inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(condition, 2 * outputs)
        self.second_norm = nn.GroupNorm(groups(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs) if attention else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, inputs, H, W], condition [B, D] -> [B, outputs, H, W]."""
        y = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.affine(condition)[:, :, None, None].chunk(2, 1)
        y = F.silu(torch.addcmul(shift, self.second_norm(y), scale + 1))
        y = self.skip(x) + self.second(self.dropout(y))
        z: Tensor = self.attention(y)
        return z


class Attention(nn.Module):
    """Self-attention over all positions of a coarse map, with a residual connection."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // width)
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.into = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        b, c, h, w = x.shape
        q, k, v = (
            self.into(self.norm(x)).flatten(2).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        y: Tensor = x + self.out(mixed)
        return y


class FlowUNet(nn.Module):
    """A U-Net on patches of its input (Ho 2020, Dhariwal 2021), with one clock for each of its inputs.

    Working on patches (a pixel-unshuffle) keeps the finest wide map small, where a CPU is slow; two narrow convolutions
    at full resolution mend the seams between patches at the end.

    Args:
        inputs: channels of everything it sees, at full resolution; `outputs`: of everything it predicts.
        clocks: how many clocks it is told; `extras`: length of the further vector it is told.
        widths: channels of each level, finest first.
        blocks: residual blocks per level, down and up.
        patch: pixels of a patch's side.
        attention: how many of the coarsest levels attend.
        narrow: channels of the mending at full resolution.
        dropout: in the residual blocks.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        clocks: int,
        extras: int,
        widths: Sequence[int] = (128, 192, 256),
        blocks: int = 1,
        patch: int = 4,
        attention: int = 1,
        narrow: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.stride = patch, patch * 2 ** (len(widths) - 1)
        self.fourier = FourierFeatures()
        told = clocks * 2 * len(self.fourier.frequencies) + extras
        condition = 2 * widths[-1]
        self.embed = nn.Sequential(nn.Linear(told, condition), nn.SiLU(), nn.Linear(condition, condition), nn.SiLU())
        self.first = nn.Conv2d(inputs * patch**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels = widths[0]
        kept: list[int] = []
        for level, width in enumerate(widths):
            attends = level >= len(widths) - attention
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(Block(channels, width, condition, attends, dropout))
                channels = width
                kept.append(width)
            self.down.append(stage)
        self.middle = Block(channels, channels, condition, attention > 0, dropout)
        for level, width in reversed(list(enumerate(widths))):
            attends = level >= len(widths) - attention
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(Block(channels + kept.pop(), width, condition, attends, dropout))
                channels = width
            self.up.append(stage)
        self.last_norm = nn.GroupNorm(groups(channels), channels)
        self.last = nn.Conv2d(channels, outputs * patch**2, 3, padding=1)
        self.mend = nn.Sequential(
            nn.Conv2d(outputs, narrow, 3, padding=1), nn.SiLU(), nn.Conv2d(narrow, outputs, 3, padding=1)
        )
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(nn.Conv2d, self.mend[2]).weight)
        self.middle_width = widths[-1]

    def forward(self, x: Tensor, clocks: Tensor, extras: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation.

        Args:
            x: [B, inputs, H, W]; any H and W (edges are repeated up to whole patches).
            clocks: [B, clocks] in 0..1; `extras`: [B, extras].

        Returns:
            [B, outputs, H, W], and the coarsest map [B, middle_width, h, w].
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        condition = self.embed(torch.cat([self.fourier(clocks), extras], 1))
        x = self.first(F.pixel_unshuffle(x, self.patch))
        kept: list[Tensor] = []
        for level, stage in enumerate(self.down):
            if level:
                x = F.avg_pool2d(x, 2)
            for block in cast(nn.ModuleList, stage):
                x = block(x, condition)
                kept.append(x)
        middle = x = self.middle(x, condition)
        for level, stage in enumerate(self.up):
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for block in cast(nn.ModuleList, stage):
                x = block(torch.cat([x, kept.pop()], 1), condition)
        x = F.pixel_shuffle(self.last(F.silu(self.last_norm(x))), self.patch)
        x = x + self.mend(x)
        return x[..., :height, :width], middle
