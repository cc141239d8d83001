"""Small pieces that several networks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU: [B, inputs, H, W] -> [B, outputs, H', W']."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling to [B, C, *size]; the same tensor if it has that size."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def groups(channels: int) -> int:
    """A number of groups for group normalisation: the largest of 8, 4, 2, 1 that divides `channels`."""
    return next(count for count in (8, 4, 2, 1) if channels % count == 0)
