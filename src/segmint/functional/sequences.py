"""Measures of image sequences: flicker, change of classes, and the error that remains along the motion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.types import IGNORE


def changes(frames: Tensor) -> Tensor:
    """How much each pixel changes from one frame to the next.

    Args:
        frames: [N, C, H, W] with values in [-1, 1].

    Returns:
        Mean absolute difference over channels, in 0..1 of the value range: [N - 1, H, W].
    """
    return (frames[1:] - frames[:-1]).abs().mean(1) / 2


def flicker(frames: Tensor, where: Tensor | None = None) -> float:
    """Mean absolute difference of consecutive frames, in 0..1 of the value range.

    Args:
        frames: [N, C, H, W] with values in [-1, 1].
        where: bool [N - 1, H, W], the pixels that count; None for all.

    Returns:
        0 for a still picture; nan where no pixel counts.
    """
    return _mean(changes(frames), where)


def steady(masks: Tensor) -> Tensor:
    """Which pixels keep their class from one frame to the next: int [N, H, W] -> bool [N - 1, H, W]."""
    return _known(masks) & (masks[1:] == masks[:-1])


def class_change(masks: Tensor) -> float:
    """Share of pixels whose class changes from one frame to the next, of those known in both.

    Args:
        masks: int [N, H, W], `IGNORE` where unknown.

    Returns:
        0..1; nan where nothing is known.
    """
    return _mean((masks[1:] != masks[:-1]).float(), _known(masks))


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Fetch every pixel from where the flow points: output(p) = input(p + flow(p)), bilinearly.

    Args:
        images: [N, C, H, W].
        flow: [N, 2, H, W], displacements (x, y) in pixels.

    Returns:
        [N, C, H, W]; beyond the rim the nearest pixel is repeated.
    """
    target = _target(flow)
    size = target.new_tensor([max(flow.shape[3] - 1, 1), max(flow.shape[2] - 1, 1)])
    grid = 2 * target.permute(0, 2, 3, 1) / size - 1
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="border", align_corners=True)


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Which pixels of a frame are still to be seen in the next: the flows there and back cancel out.

    The check is that of Sundaram, Brox & Keutzer (ECCV 2010), with w the flow forward and v the flow back at p + w(p):
    |w + v|^2 < 0.01 (|w|^2 + |v|^2) + 0.5. Pixels that leave the picture are not visible either.

    Args:
        forward: [N, 2, H, W], from each frame to the next, in pixels (x, y); `backward`: from the next to this one.

    Returns:
        bool [N, H, W].
    """
    back = warp(backward, forward)
    gap = (forward + back).square().sum(1)
    allowed = 0.01 * (forward.square().sum(1) + back.square().sum(1)) + 0.5
    x, y = _target(forward).unbind(1)
    inside = (x >= 0) & (x <= forward.shape[3] - 1) & (y >= 0) & (y <= forward.shape[2] - 1)
    return inside & (gap < allowed)


def warping_error(frames: Tensor, forward: Tensor, backward: Tensor) -> float:
    """What differs between consecutive frames once the motion is undone (Lai et al., ECCV 2018; here absolute).

    Args:
        frames: [N, C, H, W] with values in [-1, 1].
        forward: [N - 1, 2, H, W], optical flow from each frame to the next, in pixels (x, y).
        backward: [N - 1, 2, H, W], from each next frame back.

    Returns:
        Mean absolute difference over the `visible` pixels, in 0..1 of the value range; nan where none is visible.
    """
    difference = (warp(frames[1:], forward) - frames[:-1]).abs().mean(1) / 2
    return _mean(difference, visible(forward, backward))


def _known(masks: Tensor) -> Tensor:
    return (masks[1:] != IGNORE) & (masks[:-1] != IGNORE)


def _target(flow: Tensor) -> Tensor:
    """p + flow(p): [N, 2, H, W]."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return flow + torch.stack([x, y]).to(flow)


def _mean(values: Tensor, where: Tensor | None) -> float:
    chosen = values if where is None else values[where]
    return float(chosen.double().mean()) if chosen.numel() else float("nan")
