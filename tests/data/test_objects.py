"""Objects: what counts as one, and that what is pasted is labelled as what it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.data.objects import Pair, cut, fill, object_classes, paste, regions, whole
from segmint.types import IGNORE

SIZE = (30, 40)
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:5] = [(20, 40, 60), (200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20)]
COLOURS[IGNORE] = (255, 0, 255)


def painted(mask: np.ndarray) -> Pair:
    """A pair whose colours are those of its classes."""
    return Pair(COLOURS[mask], mask)


def scene() -> np.ndarray:
    """Ground 0; a 6 x 6 block of 1 in the middle, 2 lying on it, a block of 3 at the left rim, and a ground 4."""
    mask = np.zeros(SIZE, np.uint8)
    mask[20:] = 4
    mask[10:16, 15:21] = 1
    mask[6:10, 15:21] = 2
    mask[8:14, :5] = 3
    return mask


def test_objects_are_told_from_grounds_by_their_masks():
    assert object_classes([scene()], 6) == {1, 2, 3}
    assert object_classes([], 6) == frozenset()
    assert object_classes([np.full(SIZE, IGNORE, np.uint8)], 6) == frozenset()


def test_a_class_is_what_most_of_its_pixels_are():
    mask = np.zeros(SIZE, np.uint8)
    mask[12:18, 12:18] = 4
    assert object_classes([mask], 5) == {4}
    assert object_classes([mask, scene()], 5) == {1, 2, 3}


def test_regions_are_connected_parts_of_one_class():
    mask = scene()
    mask[2:5, 30:34] = 1
    mask[0, 0] = 1
    found = regions(mask, {1, 3, 5})
    assert sorted((region.label, region.area, region.rim) for region in found) == [
        (1, 12, (False, False)), (1, 36, (False, False)), (3, 30, (False, True)),
    ]  # fmt: skip
    for region in found:
        assert (mask[region.within(SIZE)] == region.label).all()


def test_a_part_brings_what_it_belongs_to():
    mask = scene()
    block = next(region for region in regions(mask, {1, 2, 3}) if region.label == 1)
    together = whole(mask, {1, 2, 3}, block)
    assert np.array_equal(together.within(SIZE), (mask == 1) | (mask == 2))
    assert whole(mask, {1}, block).area == 36
    large = np.where(scene() == 0, 2, scene()).astype(np.uint8)
    block = next(region for region in regions(large, {1}) if region.label == 1)
    assert whole(large, {1, 2}, block) is block


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 2.0, 4.0]), st.integers(-20, 20), st.integers(-30, 30))
def test_no_pixel_is_labelled_as_what_it_is_not(seed: int, feather: float, down: int, right: int):
    random = np.random.default_rng(seed)
    donor = np.where(random.random(SIZE) < 0.1, IGNORE, random.integers(0, 3, SIZE)).astype(np.uint8)
    donor = donor.repeat(2, 0)[: SIZE[0]]
    below = painted(np.full(SIZE, 4, np.uint8))
    chosen = donor == 1
    white = Pair(np.where(chosen[..., None], np.uint8(255), np.uint8(60)).repeat(3, 2), donor)
    dark = Pair(np.zeros((*SIZE, 3), np.uint8), below.mask)
    out = paste(dark, cut(white, chosen | (donor == IGNORE)).moved(down, right), feather=feather)
    expected = np.full(SIZE, 4, np.uint8)
    for y, x in zip(*np.nonzero(chosen), strict=True):
        if 0 <= y + down < SIZE[0] and 0 <= x + right < SIZE[1]:
            expected[y + down, x + right] = 1
    assert np.array_equal(out.mask, expected)
    assert np.array_equal(out.image[..., 0] > 127, expected == 1)
    if feather == 0:
        assert set(np.unique(out.image)) <= {0, 255}
    assert int(dark.image.max()) == 0


def test_soft_borders_show_neither_the_donors_ground_nor_its_unknown_pixels():
    mask = scene()
    mask[9:17, 21:23] = IGNORE
    cutout = cut(painted(mask), mask == 1)
    assert (cutout.image == COLOURS[1]).all()
    out = paste(painted(np.full(SIZE, 3, np.uint8)), cutout, feather=4)
    share = (out.image[..., 0] - 20.0) / 180
    assert np.allclose(out.image[..., 2], 200 - 180 * share, atol=1)
    assert ((share > 0.5) == (out.mask == 1)).all()
    assert ((share > 0) & (share < 0.5)).any()


def test_pasted_where_it_was_nothing_changes():
    pair = painted(scene())
    for chosen in (pair.mask == 1, pair.mask == 3, pair.mask == 4):
        out = paste(pair, cut(pair, chosen), feather=0)
        assert np.array_equal(out.image, pair.image)
        assert np.array_equal(out.mask, pair.mask)


def test_magnified_it_stands_where_it_stood():
    cutout = cut(painted(scene()), scene() == 1)
    larger = cutout.scaled(2.0)
    out = paste(painted(np.zeros(SIZE, np.uint8)), larger, feather=0)
    rows, columns = np.nonzero(out.mask == 1)
    assert len(rows) == 4 * 36
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (12, 12)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(17.5, abs=0.5)
    assert abs(rows.max() - 15) <= 3
    assert cutout.scaled(1.0) is cutout


def test_grey_images_stay_grey():
    mask = scene()
    grey = Pair(COLOURS[mask][..., :1], mask)
    assert cut(grey, mask == 1).scaled(1.5).image.shape[2] == 1
    assert paste(grey, cut(grey, mask == 1).moved(0, 8)).image.shape == (*SIZE, 1)


def test_beyond_the_image_nothing_happens():
    pair = painted(scene())
    assert paste(pair, cut(pair, pair.mask == 1).moved(100, 0)) is pair


def test_light_is_passed_on():
    mask = scene()
    dark, light = painted(mask), Pair(np.full((*SIZE, 3), 50, np.uint8), np.zeros(SIZE, np.uint8))
    cutout = cut(Pair((COLOURS[mask] // 4).astype(np.uint8), mask), mask == 1)
    plain = paste(light, cutout, feather=0).image[12, 17].astype(int)
    tinted = paste(light, cutout, feather=0, colour=1.0).image[12, 17].astype(int)
    expected = (50 - cutout.light).clip(-60, 60)
    assert np.abs(tinted - plain - expected).max() <= 1
    assert (dark.mask == mask).all()


def test_a_hole_is_filled_from_around_it():
    pair = painted(scene())
    filled = fill(pair, np.isin(pair.mask, (1, 2)))
    assert set(np.unique(filled.mask)) == {0, 3, 4}
    assert (filled.mask[pair.mask == 3] == 3).all()
    outside = ~np.isin(pair.mask, (1, 2))
    assert np.array_equal(filled.image[outside], pair.image[outside])
    assert np.abs(filled.image[8, 17].astype(int) - COLOURS[0]).max() < 30
    assert fill(pair, np.ones(SIZE, bool)) is pair
