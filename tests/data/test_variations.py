"""Variations change image and mask alike, and depend on nothing but their random stream."""

from __future__ import annotations

import numpy as np
import pytest

from segmint.data.objects import Pair
from segmint.data.variations import class_mix, exchange_object, move_object, paste_object, vary, warp
from segmint.types import IGNORE

SIZE = (40, 48)
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:4] = [(20, 40, 60), (220, 20, 20), (20, 220, 20), (20, 20, 220)]
COLOURS[IGNORE] = (255, 0, 255)
OBJECTS = frozenset({1, 2})


def painted(*blocks: tuple[int, int, int, int, int]) -> Pair:
    """Ground of class 0 with blocks (class, top, bottom, left, right), in the colours of their classes."""
    mask = np.zeros(SIZE, np.uint8)
    for label, top, bottom, left, right in blocks:
        mask[top:bottom, left:right] = label
    return Pair(COLOURS[mask], mask)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


ONE = painted((1, 10, 20, 8, 16), (2, 22, 32, 30, 38))
OTHER = painted((1, 6, 14, 30, 42), (3, 30, 40, 0, 48))


@pytest.mark.parametrize("seed", range(12))
def test_the_same_stream_gives_the_same_and_leaves_what_it_was_given(seed: int):
    before = ONE.image.copy(), OTHER.mask.copy()
    a, b = vary(ONE, OTHER, OBJECTS, rng(seed)), vary(ONE, OTHER, OBJECTS, rng(seed))
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.mask, b.mask)
    assert a.image.shape == ONE.image.shape
    assert a.mask.dtype == np.uint8
    assert set(np.unique(a.mask)) <= {0, 1, 2}
    assert np.array_equal(before[0], ONE.image)
    assert np.array_equal(before[1], OTHER.mask)
    assert not np.array_equal(a.mask, vary(ONE, OTHER, OBJECTS, rng(seed + 100)).mask)


@pytest.mark.parametrize("seed", range(6))
def test_image_and_mask_bend_alike(seed: int):
    bent = warp(ONE, rng(seed), strength=0.03)
    assert not np.array_equal(bent.mask, ONE.mask)
    distance = np.abs(bent.image[:, :, None].astype(int) - COLOURS[:3]).sum(-1)
    clear = distance.min(-1) < 60
    assert clear.mean() > 0.8
    assert np.array_equal(distance.argmin(-1)[clear], bent.mask[clear])


def test_bending_by_nothing_changes_nothing():
    still = warp(ONE, rng(), strength=0.0)
    assert np.array_equal(still.image, ONE.image)
    assert np.array_equal(still.mask, ONE.mask)


@pytest.mark.parametrize("seed", range(8))
def test_a_moved_object_leaves_ground_behind(seed: int):
    alone = painted((1, 14, 24, 18, 28))
    moved = move_object(alone, OBJECTS, rng(seed))
    rows, columns = np.nonzero(moved.mask == 1)
    assert len(rows)
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert len(rows) == height * width
    assert height <= 10
    assert width <= 10
    assert set(np.unique(moved.mask)) == {0, 1}


def test_without_an_object_free_of_the_rim_nothing_moves():
    rim = painted((1, 0, 10, 8, 16))
    assert move_object(rim, OBJECTS, rng()) is rim


def test_an_exchanged_object_takes_the_others_place():
    alone = painted((1, 10, 26, 8, 16))
    donor = Pair(np.where((OTHER.mask == 1)[..., None], np.uint8(250), OTHER.image), OTHER.mask)
    out = exchange_object(alone, donor, OBJECTS, rng())
    rows, columns = np.nonzero(out.mask == 1)
    assert len(rows) == 16 * 24
    assert abs((columns.min() + columns.max()) / 2 - 11.5) <= 3
    assert abs(rows.max() - 25) <= 6
    inner = out.image[(rows.min() + rows.max()) // 2, max(4, columns.min() + 6)]
    assert (inner == 250).all()


def test_without_an_object_in_common_nothing_is_exchanged():
    assert exchange_object(painted((2, 10, 20, 8, 16)), OTHER, OBJECTS, rng()).mask.sum() == 2 * 80
    pair = painted((1, 10, 20, 8, 16))
    assert exchange_object(pair, painted((1, 10, 20, 0, 8)), OBJECTS, rng()) is pair


@pytest.mark.parametrize("seed", range(20))
def test_what_is_pasted_has_its_own_colour(seed: int):
    out = paste_object(ONE, OTHER, OBJECTS, rng(seed), feather=0, colour=0)
    assert np.array_equal(out.image, COLOURS[out.mask])
    assert (out.mask == 1).sum() + (out.mask == 0).sum() + (out.mask == 2).sum() == out.mask.size


@pytest.mark.parametrize("seed", range(10))
def test_what_the_rim_cut_off_stays_at_the_rim(seed: int):
    donor = painted((2, 12, 24, 0, 6))
    out = paste_object(painted(), donor, OBJECTS, rng(seed), shift=0.1)
    assert (out.mask[:, 0] == 2).sum() == 12
    assert (out.mask == 2).sum() == 12 * 6


def test_a_donor_without_objects_gives_nothing():
    assert paste_object(ONE, painted((3, 30, 40, 0, 48)), OBJECTS, rng()) is ONE


@pytest.mark.parametrize("seed", range(10))
def test_class_mix_is_half_of_the_classes(seed: int):
    mask = OTHER.mask.copy()
    mask[0:4] = IGNORE
    mask[20:24] = 2
    donor = Pair(COLOURS[mask], mask)
    target = painted((3, 5, 15, 0, 48))
    out = class_mix(target, donor, rng(seed))
    assert np.array_equal(out.image, COLOURS[out.mask])
    taken = [label for label in range(4) if (out.mask[mask == label] == label).all()]
    chosen = np.isin(mask, taken)
    assert len(taken) >= 2
    assert np.array_equal(out.mask[~chosen], target.mask[~chosen])
    assert not (out.mask == IGNORE).any()


def test_one_class_alone_is_not_mixed():
    assert class_mix(ONE, painted(), rng()) is ONE
