"""Objects of masks: find them, cut them out with their pixels, and paste them on another image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from segmint.data.io import Bytes
from segmint.types import IGNORE

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Box = tuple[slice, slice]

EVERYWHERE = np.ones((3, 3), dtype=bool)
LARGEST = 0.4
"""An object covers no more than this share of its image."""
SMALLEST = 8
"""Nor fewer pixels than this."""
RIM = 0.08
"""Nor more than this share of the image's outermost pixels: what does is a ground, a sky, a wall."""
MARGIN = 3


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        image: uint8 [H, W, C].
        mask: uint8 [H, W] of class indices, `IGNORE` where unknown.
    """

    image: Bytes
    mask: Bytes

    def flipped(self) -> Pair:
        """Mirrored left to right."""
        return Pair(self.image[:, ::-1], self.mask[:, ::-1])


@dataclass(frozen=True)
class Region:
    """A connected set of pixels.

    Attributes:
        box: the smallest rows and columns that hold it.
        inside: bool [h, w], which pixels of the box belong to it.
        label: the class that most of them have.
        rim: (rows, columns): whether it touches the image's top or bottom, and its left or right.
    """

    box: Box
    inside: Flags
    label: int
    rim: tuple[bool, bool]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.inside.sum())

    def within(self, shape: tuple[int, ...]) -> Flags:
        """bool [H, W] over the whole image."""
        flags = np.zeros(shape[:2], dtype=bool)
        flags[self.box] = self.inside
        return flags


@dataclass(frozen=True)
class Cutout:
    """Pixels that can be pasted.

    Attributes:
        image: uint8 [h, w, C]; beyond the object, the colour of its nearest pixel, so that soft borders show no halo.
        labels: uint8 [h, w] of class indices, `IGNORE` where nothing is to be pasted.
        top, left: where its corner lies on the image to paste on; may be negative.
        light: float32 [C], the mean colour around the object where it was cut, 0..255.
    """

    image: Bytes
    labels: Bytes
    top: int
    left: int
    light: Floats

    def scaled(self, factor: float) -> Cutout:
        """Magnified; its lowest row and the middle of its columns stay where they are."""
        height, width = (max(1, round(side * factor)) for side in self.labels.shape)
        if (height, width) == self.labels.shape:
            return self
        flat = self.image[..., 0] if self.image.shape[2] == 1 else self.image
        image = np.asarray(Image.fromarray(flat).resize((width, height), Image.Resampling.BILINEAR))
        labels = np.asarray(Image.fromarray(self.labels).resize((width, height), Image.Resampling.NEAREST))
        down, across = self.labels.shape[0] - height, round((self.labels.shape[1] - width) / 2)
        return replace(
            self,
            image=image.reshape(height, width, -1),
            labels=labels,
            top=self.top + down,
            left=self.left + across,
        )

    def moved(self, down: int, right: int) -> Cutout:
        """The same at another place."""
        return replace(self, top=self.top + down, left=self.left + right)


def object_classes(masks: Iterable[Bytes], classes: int) -> frozenset[int]:
    """The classes that come as objects (cars, dresses, nuclei) and not as grounds (roads, skies, tissue).

    A class is one of objects if most of its pixels lie in connected parts that cover at most `LARGEST` of the image
    and at most `RIM` of its outermost pixels. Names mean nothing.

    Args:
        masks: uint8 [H, W] of class indices, `IGNORE` where unknown.
        classes: K.
    """
    totals = np.zeros((2, classes), np.int64)
    for mask in masks:
        for label in _present(mask):
            for part in _parts(mask == label, label):
                totals[int(_is_object(part, mask.shape)), label] += part.area
    return frozenset(label for label in range(classes) if totals[1, label] > totals[0, label])


def regions(mask: Bytes, objects: Iterable[int]) -> list[Region]:
    """The objects of a mask: connected parts of one class.

    Args:
        mask: uint8 [H, W].
        objects: the classes to look for, e.g. those of `object_classes`.
    """
    present = set(_present(mask))
    found = (part for label in sorted(objects) if label in present for part in _parts(mask == label, label))
    return [part for part in found if _is_object(part, mask.shape)]


def whole(mask: Bytes, objects: Iterable[int], region: Region) -> Region:
    """What a region is a part of: the pixels of any object class that it is connected to; else itself.

    So a dress brings the person who wears it. A whole that is too large to be an object is not one.
    """
    together = np.isin(mask, sorted(objects))
    row, column = (int(side[0]) for side in np.nonzero(region.inside))
    here = (region.box[0].start + row, region.box[1].start + column)
    for part in _parts(together, region.label):
        rows, columns = here[0] - part.box[0].start, here[1] - part.box[1].start
        height, width = part.inside.shape
        if 0 <= rows < height and 0 <= columns < width and part.inside[rows, columns]:
            return part if _is_object(part, mask.shape) else region
    return region


def _present(mask: Bytes) -> list[int]:
    return [int(label) for label in np.unique(mask) if label != IGNORE]


def _parts(flags: Flags, label: int) -> Iterator[Region]:
    numbers, _ = ndimage.label(flags, EVERYWHERE)
    height, width = flags.shape
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        rows, columns = box[0], box[1]
        rim = (rows.start == 0 or rows.stop == height, columns.start == 0 or columns.stop == width)
        yield Region((rows, columns), numbers[box] == number, label, rim)


def _is_object(region: Region, shape: tuple[int, ...]) -> bool:
    height, width = shape[:2]
    if not SMALLEST <= region.area <= LARGEST * height * width:
        return False
    flags = region.within(shape)
    outermost = flags[0].sum() + flags[-1].sum() + flags[1:-1, 0].sum() + flags[1:-1, -1].sum()
    return bool(outermost <= RIM * (2 * (height + width) - 4))


def cut(pair: Pair, chosen: Flags) -> Cutout:
    """Cut the chosen pixels out; those of unknown class are left.

    Args:
        pair: what to cut from; it stays as it is.
        chosen: bool [H, W], at least one pixel of known class.
    """
    chosen = chosen & (pair.mask != IGNORE)
    rows, columns = np.nonzero(chosen.any(1))[0], np.nonzero(chosen.any(0))[0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = np.pad(chosen[box], MARGIN)
    image = np.pad(pair.image[box], ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    labels = np.pad(pair.mask[box], MARGIN, mode="edge")
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return Cutout(
        image=image[tuple(nearest)],
        labels=np.where(inside, labels, np.uint8(IGNORE)),
        top=int(rows[0]) - MARGIN,
        left=int(columns[0]) - MARGIN,
        light=_light(pair.image, box, ~chosen),
    )


def paste(pair: Pair, cutout: Cutout, *, feather: float = 2.0, colour: float = 0.0) -> Pair:
    """Lay a cutout over a pair.

    Over a band of `feather` pixels, half of it on either side of the object's border, the image passes from one to
    the other; the mask follows that opacity where it is above one half, which is exactly the cutout's own pixels.

    Args:
        pair: what to paste on; it stays as it is.
        cutout: what to paste; parts beyond the image are cut off.
        feather: width of the soft border in pixels; 0 for a hard one.
        colour: how much of the difference in colour between the two surroundings is taken off the object, 0 to 1.

    Returns:
        A new pair of the same size.
    """
    height, width = pair.mask.shape
    top, left = max(0, cutout.top), max(0, cutout.left)
    bottom = min(height, cutout.top + cutout.labels.shape[0])
    right = min(width, cutout.left + cutout.labels.shape[1])
    if top >= bottom or left >= right:
        return pair
    box = slice(top, bottom), slice(left, right)
    window = slice(top - cutout.top, bottom - cutout.top), slice(left - cutout.left, right - cutout.left)
    inside = cutout.labels != IGNORE
    opacity = _opacity(inside, feather)[window][..., None]
    above = cutout.image[window].astype(np.float32)
    inside = inside[window]
    if colour:
        free = np.ones((height, width), dtype=bool)
        free[box] = ~inside
        above += colour * np.clip(_light(pair.image, box, free) - cutout.light, -60, 60)
    image, mask = pair.image.copy(), pair.mask.copy()
    mixed = opacity * above + (1 - opacity) * image[box]
    image[box] = np.rint(mixed).clip(0, 255).astype(np.uint8)
    mask[box] = np.where(inside, cutout.labels[window], mask[box])
    return Pair(image, mask)


def fill(pair: Pair, hole: Flags) -> Pair:
    """Give the pixels of a hole the classes of the nearest others, and their colours, smoothed.

    Args:
        pair: stays as it is.
        hole: bool [H, W]; where it is everywhere, nothing can be filled and the pair comes back.
    """
    if hole.all():
        return pair
    nearest = tuple(ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True))
    image, mask = pair.image[nearest], pair.mask[nearest]
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (2, 2, 0), mode="nearest")
    return Pair(np.where(hole[..., None], np.rint(smooth).astype(np.uint8), image), mask)


def _opacity(inside: Flags, feather: float) -> Floats:
    """0..1 [h, w], above one half exactly where `inside` is true."""
    if feather <= 0 or inside.all() or not inside.any():
        return inside.astype(np.float32)
    depth = np.where(
        inside, ndimage.distance_transform_edt(inside) - 0.5, 0.5 - ndimage.distance_transform_edt(~inside)
    )
    opacity: Floats = np.clip(0.5 + depth / feather, 0, 1).astype(np.float32)
    return opacity


def _light(image: Bytes, box: Box, free: Flags) -> Floats:
    """The mean colour [C] of the free pixels in and close around a box; of the whole image where there are none."""
    rows, columns = (slice(max(0, side.start - 4), side.stop + 4) for side in box)
    near = image[rows, columns][free[rows, columns]]
    mean: Floats = (near if len(near) else image.reshape(-1, image.shape[2])).mean(0, dtype=np.float32)
    return mean
