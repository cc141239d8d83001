"""Masks as polygons and back, exactly: `fill([trace(part)])` is the part again, holes included.

Coordinates are continuous, in pixels: the image spans 0..W and 0..H, and pixel (row, column) is the square from
(column, row) to (column + 1, row + 1). A pixel is inside a polygon if its centre is, by the even-odd rule, as in COCO's
and most other rasterisers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Flags = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]
Size = tuple[int, int]
Corner = tuple[int, int]

_EAST, _SOUTH, _WEST, _NORTH = range(4)
_MOST = 1 << 27
_NEIGHBOURS = np.ones((3, 3), bool)


class Patch(NamedTuple):
    """A piece of a mask: `flags` bool [h, w], whose corner lies at row `top` and column `left` of the image."""

    top: int
    left: int
    flags: Flags


def fill(rings: Iterable[npt.ArrayLike], size: Size) -> Patch:
    """The pixels whose centres are inside a polygon, by the even-odd rule over all its rings together.

    Args:
        rings: [N, 2] corners (x, y) each, in pixels; closed by itself, and cut off at the image's borders.
        size: height and width of the image.

    Raises:
        ValueError: it has absurdly many edges for an image of this size.
    """
    edges = [_edges(np.asarray(ring, np.float64).reshape(-1, 2)) for ring in rings]
    start, end = (np.concatenate([pair[side] for pair in edges] or [np.empty((0, 2))]) for side in (0, 1))
    both = np.concatenate([start, end])
    if not len(both):
        return Patch(0, 0, np.zeros((0, 0), bool))
    limits = np.array([size[1], size[0]])
    low = np.clip(np.floor(both.min(0)), 0, limits).astype(int)
    high = np.clip(np.ceil(both.max(0)), 0, limits).astype(int)
    left, top = low.tolist()
    width, height = (high - low).tolist()
    rows, columns = _crossings(start - low, end - low, height, width)
    toggles = np.zeros((height, width + 1), bool)
    np.logical_xor.at(toggles, (rows, columns), True)
    return Patch(top, left, np.logical_xor.accumulate(toggles, axis=1)[:, :width])


def _edges(ring: Points) -> tuple[Points, Points]:
    return ring, np.roll(ring, -1, axis=0)


def _crossings(start: Points, end: Points, height: int, width: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Where edges cross the lines through the pixels' centres: the row, and the first column to the right of it."""
    upper, lower = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(upper - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower - 0.5), 0, height).astype(np.int64)
    counts = last - first
    if counts.sum() > _MOST:
        raise ValueError(f"its edges cross {int(counts.sum()):,} rows of pixels; {_MOST:,} at most are drawn")
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    across = start[edge, 0] + (rows + 0.5 - start[edge, 1]) * slope
    return rows, np.clip(np.ceil(across - 0.5), 0, width).astype(np.int64)


def parts(flags: Flags) -> Iterator[Patch]:
    """The connected parts (diagonals connect) of a mask bool [H, W], in the order of their first pixels."""
    numbers, _ = ndimage.label(flags, _NEIGHBOURS)
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        yield Patch(box[0].start, box[1].start, numbers[box] == number)


def trace(part: Patch) -> Points:
    """The outline of a connected part as one polygon [N, 2] of integer corners (x, y), running along pixels' edges.

    A hole is joined to the outline by a seam: two edges that lie on each other, which no rasteriser with the even-odd
    rule sees. So a polygon that formats without holes can hold is still exact.
    """
    outer, *holes = sorted(_rings(part.flags), key=lambda ring: ring[0])
    outline = _Outline(outer)
    for hole in holes:
        x, y = hole[0]
        gaps = np.nonzero(~(part.flags[y - 1, :x] & part.flags[y, :x]))[0]
        outline.join(hole, int(gaps[-1]) + 1 if len(gaps) else 0)
    points: Points = np.array(outline.corners(), np.float64) + np.array([part.left, part.top])
    return points


class _Outline:
    """A polygon to which holes are joined: corners in a linked list, and the vertical edges of each column."""

    def __init__(self, ring: list[Corner]) -> None:
        self.points: list[Corner] = []
        self.following: list[int] = []
        self.columns: dict[int, list[int]] = {}
        self._add(ring)

    def corners(self) -> list[Corner]:
        """The corners in their order, without those that repeat the one before."""
        found: list[Corner] = []
        node = 0
        for _ in self.points:
            if not found or found[-1] != self.points[node]:
                found.append(self.points[node])
            node = self.following[node]
        return found[:-1] if len(found) > 1 and found[0] == found[-1] else found

    def join(self, hole: list[Corner], column: int) -> None:
        """Splice a hole in by a seam from its first corner left to the edge that is met in that column."""
        y = hole[0][1]
        node = next(node for node in self.columns[column] if self._holds(node, y))
        beyond = self.following[node]
        first, last = self._add([(column, y), *hole, hole[0], (column, y)])
        self.following[node], self.following[last] = first, beyond
        self._note(last)

    def _add(self, ring: list[Corner]) -> tuple[int, int]:
        """Append a closed ring; its first and last node."""
        first, last = len(self.points), len(self.points) + len(ring) - 1
        self.points += ring
        self.following += [*range(first + 1, last + 1), first]
        for node in range(first, last + 1):
            self._note(node)
        return first, last

    def _note(self, node: int) -> None:
        x = self.points[node][0]
        if self.points[self.following[node]][0] == x:
            self.columns.setdefault(x, []).append(node)

    def _holds(self, node: int, y: int) -> bool:
        """Whether the vertical edge after this node holds row y."""
        from_y, to_y = self.points[node][1], self.points[self.following[node]][1]
        return min(from_y, to_y) <= y <= max(from_y, to_y)


def _rings(flags: Flags) -> list[list[Corner]]:
    """Closed outlines of corners (x, y), each beginning with its leftmost, then topmost, corner.

    Every edge between a pixel inside and one outside is walked with the inside on its right. Where two pixels touch at
    a corner only, the walk passes over to the other one (left turn), so that diagonals connect.
    """
    padded = np.pad(flags, 1)
    northwest, northeast = padded[:-1, :-1], padded[:-1, 1:]
    southwest, southeast = padded[1:, :-1], padded[1:, 1:]
    leaves = (
        southeast & ~northeast,
        southwest & ~southeast,
        northwest & ~southwest,
        northeast & ~northwest,
    )
    enters = (
        southwest & ~northwest,
        northwest & ~northeast,
        northeast & ~southeast,
        southeast & ~southwest,
    )
    following: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    for way in (_EAST, _SOUTH, _WEST, _NORTH):
        left, right = (way + 3) % 4, (way + 1) % 4
        begins, ends = leaves[way] & ~enters[way], enters[way] & ~leaves[way]
        turns = np.where(leaves[left], left, right)
        for here, there in zip(_places(begins, way), _places(ends, way), strict=True):
            following[(*here, way)] = (*there, int(turns[there[1], there[0]]))
    rings = []
    while following:
        node = next(iter(following))
        ring = []
        while node in following:
            ring.append(node[:2])
            node = following.pop(node)
        start = ring.index(min(ring))
        rings.append(ring[start:] + ring[:start])
    return rings


def _places(corners: Flags, way: int) -> list[Corner]:
    """(x, y) of the corners, line by line along the way, so that beginnings and ends of runs come in pairs."""
    if way in (_EAST, _WEST):
        ys, xs = np.nonzero(corners)
    else:
        xs, ys = np.nonzero(corners.T)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
