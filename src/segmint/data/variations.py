"""Variations of an image and its mask, both alike: mirrored, bent, with objects moved, exchanged or added."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np
from scipy import ndimage

from segmint.data.objects import Cutout, Pair, Region, cut, fill, paste, regions, whole
from segmint.types import IGNORE


def vary(pair: Pair, other: Pair, objects: Set[int], random: np.random.Generator) -> Pair:
    """A mask that might have been, and its image: mirrored or not, an object moved or exchanged or not, and bent.

    Args:
        pair: what to vary.
        other: where an object may come from.
        objects: the classes that come as objects; see `segmint.data.objects.object_classes`.
        random: determines everything.
    """
    pair = pair.flipped() if random.random() < 0.5 else pair
    other = other.flipped() if random.random() < 0.5 else other
    change = random.integers(3)
    if change == 1:
        pair = move_object(pair, objects, random)
    if change == 2:
        pair = exchange_object(pair, other, objects, random)
    return warp(pair, random)


def warp(pair: Pair, random: np.random.Generator, strength: float = 0.02, cells: int = 4) -> Pair:
    """Bend elastically: random moves at the knots of a coarse grid, with smooth (cubic) ones between.

    Image values are interpolated linearly, classes by nearest neighbour; what lies beyond the rim is mirrored in.

    Args:
        pair: what to bend.
        random: the moves are drawn from it.
        strength: standard deviation of a knot's move, as a share of the shorter side. Up to 0.03 nothing folds over.
        cells: knots along the shorter side.
    """
    height, width = pair.mask.shape
    shorter = min(height, width)
    knots = [max(2, round(cells * side / shorter)) for side in (height, width)]
    moves = random.normal(0, strength * shorter, (2, *knots)).clip(-2 * strength * shorter, 2 * strength * shorter)
    zoom = (height / knots[0], width / knots[1])
    field = np.stack([ndimage.zoom(move, zoom, order=3, mode="nearest", grid_mode=True) for move in moves])
    places = np.mgrid[:height, :width] + field
    image = [
        ndimage.map_coordinates(pair.image[..., channel].astype(np.float32), places, order=1, mode="mirror")
        for channel in range(pair.image.shape[2])
    ]
    mask = ndimage.map_coordinates(pair.mask, places, order=0, mode="mirror")
    return Pair(np.rint(np.stack(image, -1)).clip(0, 255).astype(np.uint8), mask)


def move_object(pair: Pair, objects: Set[int], random: np.random.Generator, shift: float = 0.1) -> Pair:
    """Move one object that lies free of the rim, with what it is a part of, and close the gap.

    Args:
        pair: what to change; it comes back as it is if it has no such object.
        objects: the classes that come as objects.
        random: chooses the object and the move.
        shift: standard deviation of the move sideways, as a share of the width; a third of it up and down.
    """
    free = [region for region in regions(pair.mask, objects) if not any(region.rim)]
    region = _draw(free, random)
    if region is None:
        return pair
    together = whole(pair.mask, objects, region)
    region = region if any(together.rim) else together
    hole = region.within(pair.mask.shape)
    height, width = pair.mask.shape
    down, right = round(height * random.normal(0, shift / 3)), round(width * random.normal(0, shift))
    return paste(fill(pair, hole), cut(pair, hole).moved(down, right))


def exchange_object(pair: Pair, other: Pair, objects: Set[int], random: np.random.Generator) -> Pair:
    """Put an object of another pair where one of the same class was, about as high as that one was.

    Args:
        pair: what to change; it comes back as it is if no object of the other fits in.
        other: where the object comes from.
        objects: the classes that come as objects.
        random: chooses the objects.
    """
    theirs = regions(other.mask, objects)
    place = _draw([mine for mine in regions(pair.mask, objects) if _fitting(mine, theirs)], random)
    if place is None:
        return pair
    region = _draw(_fitting(place, theirs), random)
    if region is None:
        return pair
    new = _fitted(cut(other, region.within(other.mask.shape)), region, place)
    return paste(fill(pair, place.within(pair.mask.shape)), new)


def paste_object(
    pair: Pair,
    donor: Pair,
    objects: Set[int],
    random: np.random.Generator,
    *,
    scale: float = 0.25,
    shift: float = 0.05,
    feather: float = 2.0,
    colour: float = 0.5,
) -> Pair:
    """Lay an object of a donor over a pair, at a plausible place.

    Half of the time, where the pair has an object of the same class, it goes to the place of that one and is made
    about as high. Else it brings what it is a part of (the hat its wearer), stays about as high and as low as it was,
    and moves sideways. What the rim of its image cut off stays at the rim.

    Args:
        pair: what to paste on.
        donor: where the object comes from; where it has none, the pair comes back as it is.
        objects: the classes that come as objects.
        random: determines everything.
        scale: largest change of the logarithm of its size.
        shift: standard deviation of its vertical move, as a share of the height.
        feather, colour: see `segmint.data.objects.paste`.
    """
    region = _draw(regions(donor.mask, objects), random)
    if region is None:
        return pair
    place = _draw(_fitting(region, regions(pair.mask, objects)), random) if random.random() < 0.5 else None
    if place is None:
        region = whole(donor.mask, objects, region)
    cutout = cut(donor, region.within(donor.mask.shape))
    if place is not None:
        cutout = _fitted(cutout, region, place)
    elif not any(region.rim):
        cutout = cutout.scaled(math.exp(random.uniform(-scale, scale)))
    height, width = pair.mask.shape
    down, right = random.normal(0, shift), random.normal(0, shift if place is not None else 0.25)
    down, right = (0 if stays else move for stays, move in zip(region.rim, (down, right), strict=True))
    return paste(pair, cutout.moved(round(down * height), round(right * width)), feather=feather, colour=colour)


def class_mix(pair: Pair, donor: Pair, random: np.random.Generator, feather: float = 0.0) -> Pair:
    """Half of the donor's classes, all their pixels, laid over a pair (ClassMix, Olsson et al. 2021).

    Args:
        pair: what to paste on.
        donor: where the classes come from; of an odd number one less than half. One class alone is not pasted.
        random: chooses them.
        feather: see `segmint.data.objects.paste`.
    """
    present = [label for label in np.unique(donor.mask) if label != IGNORE]
    if len(present) < 2:
        return pair
    chosen = random.permutation(present)[: len(present) // 2]
    return paste(pair, cut(donor, np.isin(donor.mask, chosen)), feather=feather)


def _draw(found: Sequence[Region], random: np.random.Generator) -> Region | None:
    """One of the regions: each class is as likely as any other, and within it each pixel."""
    if not found:
        return None
    labels = sorted({region.label for region in found})
    label = labels[random.integers(len(labels))]
    own = [region for region in found if region.label == label]
    areas = np.array([region.area for region in own], dtype=np.float64)
    return own[random.choice(len(own), p=areas / areas.sum())]


def _fitting(region: Region, others: Sequence[Region]) -> list[Region]:
    """Those of the same class that are cut off by the rim in the same direction, or as free of it."""
    return [other for other in others if (other.label, other.rim) == (region.label, region.rim)]


def _fitted(cutout: Cutout, region: Region, place: Region) -> Cutout:
    """The cutout of a region at another's place: as high (but at most doubled or halved), standing where it stood."""
    heights = [box.stop - box.start for box in (region.box[0], place.box[0])]
    middles = [(box.start + box.stop) / 2 for box in (region.box[1], place.box[1])]
    scaled = cutout.scaled(min(2.0, max(0.5, heights[1] / heights[0])))
    return scaled.moved(place.box[0].stop - region.box[0].stop, round(middles[1] - middles[0]))
