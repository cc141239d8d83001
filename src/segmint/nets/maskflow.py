"""The network of the flow over masks: a small U-Net that cleans a noisy mask, told what an image encoder has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.nets.flow import Block, FourierFeatures
from segmint.nets.layers import groups, resize


class MaskDenoiser(nn.Module):
    """A U-Net on patches of a noisy mask, with a clock (after Ho 2020): the mask comes in cells and goes out in pixels.

    What depends on the image alone is computed once, by `look`; each evaluation then adds it to the first map.

    Args:
        inputs: channels of the noisy mask; `outputs`: of what it says about the clean one, K.
        features: channels of the image's features.
        widths: channels of each level, finest first; the coarsest attends to all of its positions.
        patch: side of a patch in pixels, an even number: the finest level has 1/patch of the image's resolution.
        cell: side of a cell in pixels, which divides `patch`.
    """

    def __init__(self, inputs: int, outputs: int, features: int, widths: Sequence[int], patch: int, cell: int) -> None:
        super().__init__()
        if patch < 2 or patch % 2 or cell < 1 or patch % cell:
            raise ValueError(f"patch must be an even number of pixels that cell divides, not {patch} with cell {cell}")
        self.patch, self.cell, self.stride = patch, cell, patch * 2 ** (len(widths) - 1)
        self.seen = nn.Conv2d(features * (patch // 2) ** 2, widths[0], 3, padding=1)
        self.first = nn.Conv2d(inputs * (patch // cell) ** 2, widths[0], 3, padding=1)
        self.fourier = FourierFeatures()
        told, condition = 2 * len(self.fourier.frequencies), 2 * widths[-1]
        self.embed = nn.Sequential(nn.Linear(told, condition), nn.SiLU(), nn.Linear(condition, condition), nn.SiLU())
        coarsest = len(widths) - 1
        before = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(
            Block(inner, outer, condition, level == coarsest)
            for level, (inner, outer) in enumerate(zip(before, widths, strict=True))
        )
        self.middle = Block(widths[-1], widths[-1], condition, attention=True)
        below = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Block(coarse + width, width, condition, level == coarsest)
            for level, (coarse, width) in enumerate(zip(below, widths, strict=True))
        )
        self.last_norm = nn.GroupNorm(groups(widths[0]), widths[0])
        self.last = nn.Conv2d(widths[0], outputs * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def look(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """What every evaluation is told of the image.

        Args:
            features: [B, features, h, w], of any resolution.
            size: height and width of the image in pixels.

        Returns:
            [B, widths[0], h', w'] at 1/patch of the resolution of the image, padded to whole strides.
        """
        half = resize(features, ((size[0] + 1) // 2, (size[1] + 1) // 2))
        rows, columns = (-(-side // self.stride) * self.stride // 2 for side in size)
        half = F.pad(half, (0, columns - half.shape[-1], 0, rows - half.shape[-2]), mode="replicate")
        seen: Tensor = self.seen(F.pixel_unshuffle(half, self.patch // 2))
        return seen

    def forward(self, state: Tensor, clock: Tensor, seen: Tensor) -> Tensor:
        """One evaluation.

        Args:
            state: noisy masks [N, inputs, H, W] in cells; any H and W (edges are repeated up to whole strides).
            clock: [N] in 0..1.
            seen: [N, widths[0], h', w'], of `look`.

        Returns:
            [N, outputs, cell H, cell W], in pixels.
        """
        height, width = state.shape[-2:]
        stride = self.stride // self.cell
        state = F.pad(state, (0, -width % stride, 0, -height % stride), mode="replicate")
        condition = self.embed(self.fourier(clock[:, None]))
        x = self.first(F.pixel_unshuffle(state, self.patch // self.cell)) + seen
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x, condition)
            kept.append(x)
        x = self.middle(x, condition)
        for block in reversed(self.up):
            skip = kept.pop()
            if x.shape[-2:] != skip.shape[-2:]:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], 1), condition)
        x = F.pixel_shuffle(self.last(F.silu(self.last_norm(x))), self.patch)
        return x[..., : height * self.cell, : width * self.cell]
