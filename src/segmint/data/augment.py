"""Paired augmentation of a whole batch at once, on its device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.config import typed
from segmint.ranks import rand, randn
from segmint.types import IGNORE, Batch, SegmintError


@dataclass(frozen=True)
class Augmentation:
    """What may happen to an image and its mask. Every item draws its own strengths.

    Attributes:
        flip: probability of a left-right mirror.
        flip_vertical: probability of a top-bottom mirror (for views from above and microscopes).
        zoom: smallest and largest magnification, drawn log-uniformly; beyond 1 a window is cut out, below 1 the rim
            is mirrored into the image and IGNORE in the mask.
        stretch: largest relative change of the aspect ratio.
        rotate: largest angle in degrees.
        brightness, contrast, saturation: largest relative change; 0.4 draws factors in 0.6..1.4.
        hue: largest rotation of the colours about the grey axis, in degrees.
        gamma: largest exponent; 1.5 draws from 1/1.5..1.5 log-uniformly.
        grey: probability that the colours are taken away.
        blur: probability of a Gaussian blur of 0.3 to 1 pixels.
        noise: largest standard deviation of added noise, on the image's range of -1..1.
        erase: probability that a rectangle (2 to 15% of the area) is greyed out in the image and IGNORE in the mask.
    """

    flip: float = 0.0
    flip_vertical: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 1.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0


PRESETS = {
    "none": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "weak": Augmentation(flip=0.5, zoom=(0.9, 1.4), brightness=0.1, contrast=0.1),
    "strong": Augmentation(
        flip=0.5,
        zoom=(0.7, 2.0),
        stretch=0.15,
        rotate=10.0,
        brightness=0.3,
        contrast=0.3,
        saturation=0.4,
        hue=15.0,
        gamma=1.3,
        grey=0.05,
        blur=0.1,
        noise=0.03,
    ),
}


CHANCES = ("flip", "flip_vertical", "grey", "blur", "erase")


def resolve(setting: str | Mapping[str, Any]) -> Augmentation:
    """A preset by name, or a mapping of fields; the key "preset" in it names the preset they change.

    Raises:
        SegmintError: no such preset or field, or a value that a field cannot have.
    """
    if isinstance(setting, str):
        if setting not in PRESETS:
            raise SegmintError(f"training.augment: there is no {setting!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[setting]
    if not isinstance(setting, Mapping):
        raise SegmintError(f"training.augment: must be one of {', '.join(PRESETS)} or a mapping, not {setting!r}")
    values = dict(setting)
    base = resolve(str(values.pop("preset", "none")))
    known = [field.name for field in fields(Augmentation)]
    for key in values:
        if key not in known:
            raise SegmintError(f"training.augment.{key}: no such setting; choose from {', '.join(known)}")
    values = typed(get_type_hints(Augmentation), values, "training.augment")
    for key, value in values.items():
        wrong = _wrong(key, value)
        if wrong:
            raise SegmintError(f"training.augment.{key}: must be {wrong}, not {value}")
    return Augmentation(**{**vars(base), **values})


def _wrong(key: str, value: Any) -> str:
    """What the value of a field would have to be; empty if it is."""
    if key == "zoom":
        return "" if 0 < value[0] <= value[1] else "two magnifications above 0, the smaller first"
    if key == "gamma":
        return "" if value >= 1 else "1 or more"
    if key in CHANCES:
        return "" if 0 <= value <= 1 else "a probability, 0 to 1"
    return "" if value >= 0 else "0 or more"


def augment(batch: Batch, how: Augmentation, generator: torch.Generator) -> Batch:
    """Change images and masks alike.

    Args:
        batch: image [B,C,H,W] in [-1,1], mask [B,H,W]. `previous` frames move with their images.
        how: what may happen.
        generator: a CPU generator; all strengths are drawn from it, so the same state gives the same batch. Processes
            that train together draw for the whole of their batch (`segmint.ranks`).

    Returns:
        A batch of the same shapes; image values stay in [-1, 1].
    """
    grid = _grid(batch, how, generator)
    image, mask, previous = batch.image, batch.mask, batch.previous
    if grid is not None:
        mask = _warp_mask(mask, grid)
        image = _warp_image(image, grid)
        previous = None if previous is None else _warp_image(previous, grid)
    draw = _Strengths(len(batch), image.device, generator)
    frames = [image] if previous is None else [image, previous]
    frames = _colours(frames, how, draw)
    if how.erase:
        frames[0], mask = _erase(frames[0], mask, how.erase, draw)
    return Batch(frames[0], mask, None if previous is None else frames[1])


class _Strengths:
    """Per-item random numbers from one CPU generator, shaped to broadcast over [B, C, H, W]."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        self.count, self.device, self.generator = count, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        values = rand(self.count, 1, 1, 1, generator=self.generator) * (high - low) + low
        return values.to(self.device)

    def chance(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability


def _grid(batch: Batch, how: Augmentation, generator: torch.Generator) -> Tensor | None:
    """The sampling grid [B, H, W, 2] of flips, zooms, stretches and turns, or None if nothing moves."""
    still = Augmentation()
    moving = ("flip", "flip_vertical", "zoom", "stretch", "rotate")
    if all(getattr(how, key) == getattr(still, key) for key in moving):
        return None
    count, _, height, width = batch.image.shape

    def uniform(low: float, high: float) -> Tensor:
        return rand(count, generator=generator) * (high - low) + low

    zoom = torch.exp(uniform(math.log(how.zoom[0]), math.log(how.zoom[1])))
    stretch = torch.exp(uniform(-how.stretch, how.stretch) / 2)
    mirror = torch.where(uniform(0, 1) < how.flip, -1.0, 1.0)
    upside = torch.where(uniform(0, 1) < how.flip_vertical, -1.0, 1.0)
    angle = torch.deg2rad(uniform(-how.rotate, how.rotate))
    scale_x, scale_y = stretch / zoom, 1 / (stretch * zoom)
    aspect = height / width
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = angle.cos() * scale_x * mirror
    theta[:, 0, 1] = -angle.sin() * scale_y * upside * aspect
    theta[:, 1, 0] = angle.sin() * scale_x * mirror / aspect
    theta[:, 1, 1] = angle.cos() * scale_y * upside
    theta[:, 0, 2] = uniform(-1, 1) * (1 - scale_x).abs()
    theta[:, 1, 2] = uniform(-1, 1) * (1 - scale_y).abs()
    return F.affine_grid(theta, [count, 1, height, width], align_corners=False).to(batch.image.device)


def _warp_image(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _warp_mask(mask: Tensor, grid: Tensor) -> Tensor:
    shifted = (mask - IGNORE).unsqueeze(1).float()
    moved = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.squeeze(1).round().long() + IGNORE


def _colours(frames: list[Tensor], how: Augmentation, draw: _Strengths) -> list[Tensor]:
    """Colour changes; the frames of a sequence change alike."""
    if how.gamma > 1:
        exponent = torch.exp(draw.uniform(-math.log(how.gamma), math.log(how.gamma)))
        frames = [((x + 1) / 2).clamp(0, 1).pow(exponent) * 2 - 1 for x in frames]
    if how.contrast or how.brightness:
        factor = draw.uniform(1 - how.contrast, 1 + how.contrast)
        shift = draw.uniform(-how.brightness, how.brightness)
        frames = [(x - (m := x.mean((1, 2, 3), keepdim=True))) * factor + m + shift for x in frames]
    if frames[0].shape[1] == 3 and (how.saturation or how.hue or how.grey):
        matrix = _colour_matrix(how, draw)
        frames = [torch.einsum("bij,bjhw->bihw", matrix, x) for x in frames]
    if how.blur:
        sigma = torch.where(draw.chance(how.blur), draw.uniform(0.3, 1.0), torch.full_like(draw.uniform(0, 1), 1e-3))
        frames = [_blur(x, sigma) for x in frames]
    if how.noise:
        sigma = draw.uniform(0, how.noise)
        frames = [x + sigma * randn(*x.shape, generator=draw.generator).to(x.device) for x in frames]
    return [x.clamp(-1, 1) for x in frames]


def _colour_matrix(how: Augmentation, draw: _Strengths) -> Tensor:
    """Linear maps of RGB [B, 3, 3]: a rotation about the grey axis, then a change of saturation."""
    angle = torch.deg2rad(draw.uniform(-how.hue, how.hue)).view(-1, 1, 1)
    saturation = draw.uniform(1 - how.saturation, 1 + how.saturation)
    saturation = torch.where(draw.chance(how.grey), torch.zeros_like(saturation), saturation).view(-1, 1, 1)
    eye = torch.eye(3, device=draw.device)
    grey = torch.full((3, 3), 1 / 3, device=draw.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=draw.device) / math.sqrt(3)
    turn = grey + angle.cos() * (eye - grey) + angle.sin() * cross
    return grey + saturation * (turn - grey)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation per item [B, 1, 1, 1], in pixels, cut at two pixels."""
    offsets = torch.arange(-2, 3, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.view(-1, 1) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    count, channels, height, width = x.shape
    flat = F.pad(x, (2, 2, 2, 2), mode="replicate").reshape(1, count * channels, height + 4, width + 4)
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, 5), groups=count * channels)
    flat = F.conv2d(flat, kernel.view(-1, 1, 5, 1), groups=count * channels)
    return flat.view(count, channels, height, width)


def _erase(image: Tensor, mask: Tensor, probability: float, draw: _Strengths) -> tuple[Tensor, Tensor]:
    height, width = mask.shape[-2:]
    area, ratio = draw.uniform(0.02, 0.15), torch.exp(draw.uniform(-0.7, 0.7))
    half_y = ((area * ratio).sqrt() * height / 2).clamp_max(height / 2)
    half_x = ((area / ratio).sqrt() * width / 2).clamp_max(width / 2)
    rows = torch.arange(height, device=mask.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=mask.device).view(1, 1, 1, -1)
    inside = ((rows - draw.uniform(0, height)).abs() < half_y) & ((columns - draw.uniform(0, width)).abs() < half_x)
    inside &= draw.chance(probability)
    return torch.where(inside, torch.zeros_like(image), image), mask.masked_fill(inside[:, 0], IGNORE)
