from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.extra import numpy as arrays
from matplotlib.path import Path as Outline

from segmint.data.polygons import Flags, Patch, fill, parts, trace

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))
RING = np.ones((5, 5), bool)
RING[2, 2] = False
NESTED = np.pad(np.pad(np.pad(np.ones((1, 1), bool), 1), 1, constant_values=True), 1)
CHECKERS = np.indices((6, 7)).sum(0) % 2 == 0
TOUCHING_HOLE = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]], bool)


def whole(patch: Patch, shape: tuple[int, ...]) -> Flags:
    flags = np.zeros(shape, bool)
    rows, columns = patch.flags.shape
    flags[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.flags
    return flags


@settings(max_examples=120, deadline=None)
@given(MASKS)
@example(RING)
@example(NESTED)
@example(CHECKERS)
@example(TOUCHING_HOLE)
@example(np.eye(5, dtype=bool))
@example(np.ones((1, 1), bool))
def test_tracing_and_filling_gives_every_part_again(mask: Flags):
    together = np.zeros_like(mask)
    for part in parts(mask):
        outline = trace(part)
        assert (outline == outline.round()).all()
        assert not (outline == np.roll(outline, 1, 0)).all(1).any(), "a corner twice in a row"
        assert (whole(fill([outline], mask.shape), mask.shape) == whole(part, mask.shape)).all()
        together |= whole(part, mask.shape)
    assert (together == mask).all()


@settings(max_examples=50, deadline=None)
@given(MASKS)
def test_the_area_inside_an_outline_is_the_number_of_pixels(mask: Flags):
    for part in parts(mask):
        x, y = trace(part).T
        assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == part.flags.sum()


def test_a_large_ragged_mask_with_many_holes():
    mask = np.random.default_rng(0).random((120, 150)) < 0.6
    for part in parts(mask):
        assert (whole(fill([trace(part)], mask.shape), mask.shape) == whole(part, mask.shape)).all()


def test_diagonal_neighbours_are_one_part():
    assert len(list(parts(np.eye(4, dtype=bool)))) == 1
    assert [(part.top, part.left) for part in parts(np.array([[1, 0, 1], [1, 0, 1]], bool))] == [(0, 0), (0, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_filling_agrees_with_matplotlib(seed: int):
    random = np.random.default_rng(seed)
    corners = random.uniform(-3, 24, (random.integers(3, 9), 2))
    rows, columns = np.indices((18, 21)) + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], 1)
    expected = Outline(np.concatenate([corners, corners[:1]]), closed=True).contains_points(centres)
    assert (whole(fill([corners], (18, 21)), (18, 21)).ravel() == expected).all()


def test_a_second_ring_is_a_hole():
    outer, inner = [[0, 0], [6, 0], [6, 6], [0, 6]], [[2, 2], [4, 2], [4, 4], [2, 4]]
    assert fill([outer, inner], (6, 6)).flags.sum() == 32


def test_what_lies_outside_is_cut_off():
    assert fill([[[-5, -5], [50, -5], [50, 50], [-5, 50]]], (3, 4)).flags.all()
    assert fill([[[10, 10], [20, 10], [15, 20]]], (3, 4)).flags.size == 0
    assert fill([], (3, 4)).flags.size == 0


def test_absurd_polygons_are_refused():
    zigzag = np.array([[0, 0], [1, 20000]] * 7000, float)
    with pytest.raises(ValueError, match="at most are drawn"):
        fill([zigzag], (20000, 10))
