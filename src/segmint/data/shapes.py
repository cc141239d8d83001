"""Annotated objects of other programs, drawn over each other into masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from segmint.data.classes import LARGEST
from segmint.data.io import Bytes
from segmint.data.polygons import Flags, Patch, Size, fill
from segmint.types import SegmintError

Overlap = Literal["later", "smaller"]
Draw = Callable[[Size], Patch]

UNANNOTATED = LARGEST
"""The value in a drawn mask of a pixel that no object covers."""
FAR = 1e6
"""Coordinates beyond this many pixels are a mistake."""


@dataclass(frozen=True)
class Shape:
    """One annotated object.

    Attributes:
        label: its position among the labels of the data set, or `IGNORE` for pixels of unknown class.
        draw: from the image's (height, width) its pixels. Drawing late keeps large data sets small in memory.
        layer: shapes of higher layers lie over those of lower ones.
    """

    label: int
    draw: Draw
    layer: int = 0


@dataclass
class Painter:
    """Draws shapes into masks, and counts where they lay over each other.

    Attributes:
        overlap: which object wins: "later" ones in the file, or "smaller" ones.
        clashes: how many masks had pixels claimed by objects of several classes.
    """

    overlap: Overlap = "later"
    clashes: int = 0

    def paint(self, shapes: Sequence[Shape], size: Size) -> Bytes:
        """uint8 [H, W]: labels, `IGNORE`, and `UNANNOTATED` where there is no object."""
        mask = np.full(size, UNANNOTATED, np.uint8)
        patches = [(shape.label, shape.draw(size)) for shape in sorted(shapes, key=lambda shape: shape.layer)]
        if self.overlap == "smaller":
            patches.sort(key=lambda patch: -int(patch[1].flags.sum()))
        clash = False
        for label, patch in patches:
            window, flags = _window(mask, patch)
            clash = clash or bool((flags & (window != UNANNOTATED) & (window != label)).any())
            window[flags] = label
        self.clashes += clash
        return mask


def _window(mask: Bytes, patch: Patch) -> tuple[Bytes, Flags]:
    """The part of a mask that a patch covers, and the part of the patch that lies on the mask."""
    (height, width), (rows, columns) = mask.shape, patch.flags.shape
    top, left = max(0, patch.top), max(0, patch.left)
    bottom, right = max(top, min(height, patch.top + rows)), max(left, min(width, patch.left + columns))
    flags = patch.flags[top - patch.top : bottom - patch.top, left - patch.left : right - patch.left]
    return mask[top:bottom, left:right], flags


def polygon(rings: Iterable[Any], where: str, scale: tuple[float, float] | None = None) -> Draw:
    """The union of polygons, each given as [[x, y], ...] or [x, y, x, y, ...] in pixels.

    Args:
        rings: the polygons.
        where: the file and key, for complaints.
        scale: multiply by the image's width over scale[0] and its height over scale[1]: (1, 1) for fractions.
    """
    return partial(_draw_polygons, list(rings), where, scale)


def _draw_polygons(rings: Sequence[Any], where: str, scale: tuple[float, float] | None, size: Size) -> Patch:
    patches = []
    for ring in rings:
        points = _points(ring, where)
        if scale is not None:
            points = points * (size[1] / scale[0], size[0] / scale[1])
        if (np.abs(points) > FAR).any():
            raise SegmintError(f"{where}: a corner is more than {FAR:,.0f} pixels away; correct the coordinates")
        patches.append(_telling(partial(fill, [points], size), where))
    return patches[0] if len(patches) == 1 else union(patches)


def _points(ring: Any, where: str) -> Any:
    try:
        points = np.asarray(ring, np.float64)
        if points.ndim == 1:
            points = points.reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise SegmintError(f"{where}: must be pairs of numbers x, y; correct or remove it") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise SegmintError(f"{where}: a polygon needs three corners x, y at least; correct or remove it")
    if not np.isfinite(points).all():
        raise SegmintError(f"{where}: a coordinate is not a finite number; correct it")
    return points


def union(patches: Sequence[Patch]) -> Patch:
    """One patch of the pixels of several."""
    if not patches:
        return Patch(0, 0, np.zeros((0, 0), bool))
    top, left = min(patch.top for patch in patches), min(patch.left for patch in patches)
    bottom = max(patch.top + patch.flags.shape[0] for patch in patches)
    right = max(patch.left + patch.flags.shape[1] for patch in patches)
    flags = np.zeros((bottom - top, right - left), bool)
    for patch in patches:
        rows, columns = patch.flags.shape
        flags[patch.top - top :, patch.left - left :][:rows, :columns] |= patch.flags
    return Patch(top, left, flags)


def bitmap(decode: Callable[[Size], Flags], where: str, top: int = 0, left: int = 0) -> Draw:
    """A mask that a function makes from the image's size; its ValueError becomes a complaint."""
    return partial(_draw_bitmap, decode, where, top, left)


def _draw_bitmap(decode: Callable[[Size], Flags], where: str, top: int, left: int, size: Size) -> Patch:
    return Patch(top, left, _telling(lambda: decode(size), where))


def _telling(work: Callable[[], Any], where: str) -> Any:
    try:
        return work()
    except ValueError as error:
        raise SegmintError(f"{where}: {error}; correct or remove it") from error
