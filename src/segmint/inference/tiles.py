"""Large images, segmented tile by tile without seams, in memory that grows with their width alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.data.windows import Raster, Window
from segmint.inference.draws import draw, entropy
from segmint.inference.fields import FieldSeeds
from segmint.methods.method import Method, device_of
from segmint.nets.layers import resize
from segmint.types import SegmintError

STRIDE = 32
"""Tiles begin at multiples of this, so that the grids of all levels of the networks lie alike in all of them."""

Span = tuple[int, int]
"""Where a tile begins and ends (exclusive), along one side."""


@dataclass(frozen=True)
class Tiling:
    """How an image is cut. Lengths are in pixels as the method is shown them.

    Attributes:
        tile: side of the tiles, a multiple of 32.
        overlap: of neighbours, a multiple of 32, at most half the side. Over its middle half one fades into the other.
        scale: how many times as large as it is the image is shown.

    Raises:
        SegmintError: one is out of its range.
    """

    tile: int = 512
    overlap: int = 128
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.tile < STRIDE or self.tile % STRIDE:
            raise SegmintError(f"--tile: must be a multiple of {STRIDE}, e.g. 512, not {self.tile}")
        if not 0 <= self.overlap <= self.tile // 2 or self.overlap % STRIDE:
            raise SegmintError(
                f"--overlap: must be a multiple of {STRIDE} from 0 to half of --tile ({self.tile // 2}), "
                f"not {self.overlap}"
            )
        if not (math.isfinite(self.scale) and 1 / 16 <= self.scale <= 16):
            raise SegmintError(f"--scale: must be between 1/16 and 16, not {self.scale}")

    def starts(self, length: int) -> range:
        """Where tiles begin along a side of so many pixels of the image as shown."""
        step = self.tile - self.overlap
        return range(0, max(1, length - self.overlap), step)

    def spans(self, length: int) -> list[Span]:
        """Where tiles begin and end along a side of the image as it is."""
        shown = self.shown(length)
        ends = [(start, min(start + self.tile, shown)) for start in self.starts(shown)]
        return [
            (self._back(start, length), length if stop == shown else self._back(stop, length)) for start, stop in ends
        ]

    def shown(self, length: int) -> int:
        """So many pixels, as shown."""
        return max(1, round(length * self.scale))

    def _back(self, place: int, length: int) -> int:
        return min(round(place / self.scale), length)


@dataclass(frozen=True)
class Cell:
    """A finished part of an image.

    Attributes:
        window: where it lies.
        probabilities: float32 [K, h, w], summing to one over K.
        maps: float32 [h, w] each: "uncertainty" and "aleatoric" in nats, with several members "epistemic" too, and
            "errors" in 0..1 where a method judges itself; see `segmint.types.Prediction`.
        labels: uint8 [h, w], the most probable class.
        expected_dice: 0..1, the Dice that a whole image's labels may expect; None for a part of one.
    """

    window: Window
    probabilities: Tensor
    maps: dict[str, Tensor]
    labels: Tensor
    expected_dice: float | None = None


def segment_tiles(
    methods: Sequence[Method],
    raster: Raster,
    tiling: Tiling,
    *,
    draws: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Cell]:
    """Segment an image at its own resolution, tile by tile.

    Every tile is segmented by itself with what noise one field over the whole image has there. Where tiles overlap,
    their probabilities are averaged with weights that sum to one and fade smoothly. What a method knows only of a
    whole image, such as the distribution of a latent code, it knows of each tile.

    Args:
        methods: methods that segment, in evaluation mode, on one device: an ensemble, or one.
        raster: the image.
        tiling: how it is cut.
        draws: of each method that draws at random; see `draw`.
        seed: of the draws.
        progress: told how many tiles of how many are done.

    Yields:
        Cells that cover the image once, row by row of tiles, from left to right.
    """
    rows, columns = tiling.spans(raster.size[0]), tiling.spans(raster.size[1])
    above = torch.zeros(0)
    for y, (top, bottom) in enumerate(rows):
        until = rows[y + 1][0] if y + 1 < len(rows) else bottom
        below = torch.zeros(0)
        beside = torch.zeros(0)
        for x, (left, right) in enumerate(columns):
            window = Window(top, left, bottom - top, right - left)
            found, parts = _look(methods, raster, window, tiling, draws, seed)
            found *= _weights(rows, y)[:, None] * _weights(columns, x)
            if x:
                found[:, :, : beside.shape[2]] += beside
            width = (columns[x + 1][0] if x + 1 < len(columns) else right) - left
            beside, done = found[:, :, width:].clone(), found[:, :, :width]
            if y:
                done[:, : above.shape[1]] += above[:, :, left : left + width]
            if not len(below):
                below = torch.zeros(len(found), bottom - until, raster.size[1])
            below[:, :, left : left + width] = done[:, until - top :]
            yield _cell(Window(top, left, until - top, width), done[:, : until - top], parts)
            if progress:
                progress(y * len(columns) + x + 1, len(rows) * len(columns))
        above = below


def _look(
    methods: Sequence[Method], raster: Raster, window: Window, tiling: Tiling, draws: int | None, seed: int
) -> tuple[Tensor, tuple[str, ...]]:
    """What the methods say of one tile: [K + parts, h, w], with the names of what follows the K probabilities."""
    size = tiling.shown(window.height), tiling.shown(window.width)
    pixels = torch.from_numpy(np.array(raster.read(window))).permute(2, 0, 1)[None].float() / 127.5 - 1
    if size != pixels.shape[-2:]:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True).clamp(-1, 1)
    padded = F.pad(pixels, (0, -size[1] % STRIDE, 0, -size[0] % STRIDE), mode="replicate")
    place = Window(round(window.top * tiling.scale), round(window.left * tiling.scale), *padded.shape[-2:])
    found = draw(methods, padded.to(device_of(methods[0])), FieldSeeds([seed], place), draws)
    maps = {"aleatoric": found.aleatoric, "epistemic": found.epistemic, "errors": found.errors}
    known = {name: values for name, values in maps.items() if values is not None}
    together = torch.cat([found.probabilities, *(values[:, None] for values in known.values())], 1)
    inner = together[:, :, : size[0], : size[1]].float().cpu()
    return resize(inner, (window.height, window.width))[0].clone(), tuple(known)


def _cell(window: Window, found: Tensor, parts: tuple[str, ...]) -> Cell:
    """A cell from the sums of all tiles that have a part in it."""
    probabilities = found[: len(found) - len(parts)]
    maps = dict(zip(parts, found[len(found) - len(parts) :], strict=True))
    uncertainty = entropy(probabilities[None])[0]
    maps["aleatoric"] = maps["aleatoric"].minimum(uncertainty)
    if "epistemic" in maps:
        maps["epistemic"] = uncertainty - maps["aleatoric"]
    return Cell(
        window, probabilities, {"uncertainty": uncertainty, **maps}, probabilities.max(0).indices.to(torch.uint8)
    )


def _weights(spans: Sequence[Span], place: int) -> Tensor:
    """The weight of each row (or column) of a tile, [length]; those of all tiles sum to one everywhere."""
    start, stop = spans[place]
    weights = torch.ones(stop - start)
    for (_, end), (begin, _) in pairwise(spans[max(place - 1, 0) : place + 2]):
        if end <= begin:
            continue
        at = (torch.arange(end - begin) + 0.5) / (end - begin)
        rising = (math.pi / 2 * (2 * at - 0.5).clamp(0, 1)).sin().square()
        if begin == start:
            weights[: len(at)] = rising
        else:
            weights[len(weights) - len(at) :] = 1 - rising
    return weights
