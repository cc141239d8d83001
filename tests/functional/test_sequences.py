from __future__ import annotations

import math

import pytest
import torch

from segmint.functional.sequences import changes, class_change, flicker, steady, visible, warp, warping_error
from segmint.types import IGNORE


def shifting(count: int = 4, dx: int = 2, dy: int = 1) -> torch.Tensor:
    """A rough texture that moves right by dx and down by dy pixels a frame, [N, 3, 24, 32]."""
    texture = torch.rand(3, 60, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.stack([texture[:, 20 - k * dy : 44 - k * dy, 20 - k * dx : 52 - k * dx] for k in range(count)])


def constant_flow(count: int, dx: float, dy: float) -> torch.Tensor:
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(count, 2, 24, 32)


def test_a_still_picture_does_not_flicker():
    still = shifting(1).expand(5, -1, -1, -1)
    none = torch.zeros(4, 2, 24, 32)
    assert flicker(still) == 0
    assert warping_error(still, none, none) < 1e-6
    assert bool(visible(none, none).all())


def test_black_and_white_in_turn_flicker_most():
    frames = torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 5)
    assert torch.equal(changes(frames), torch.ones(2, 4, 5))
    assert flicker(frames) == 1
    where = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert math.isnan(flicker(frames, where))


def test_flicker_is_a_mean_over_channels_pixels_and_frames():
    frames = torch.rand(3, 2, 4, 5) * 2 - 1
    total = sum(
        abs(float(frames[t + 1, c, y, x] - frames[t, c, y, x])) / 2
        for t in range(2) for c in range(2) for y in range(4) for x in range(5)
    )  # fmt: skip
    assert flicker(frames) == pytest.approx(total / 80, rel=1e-5)


def test_a_moving_texture_flickers_but_has_no_error_along_its_motion():
    frames = shifting()
    forward, backward = constant_flow(3, 2, 1), constant_flow(3, -2, -1)
    assert flicker(frames) > 0.1
    assert warping_error(frames, forward, backward) < 1e-5
    assert warping_error(frames, -forward, -backward) > 0.1


def test_pixels_that_leave_or_whose_flows_disagree_are_not_visible():
    seen = visible(constant_flow(1, 2, 1), constant_flow(1, -2, -1))
    assert seen.shape == (1, 24, 32)
    assert bool(seen[0, :-1, :-2].all())
    assert not bool(seen[0, -1].any() or seen[0, :, -2:].any())
    assert not bool(visible(constant_flow(1, 2, 1), constant_flow(1, 2, 1)).any())
    assert math.isnan(warping_error(shifting(2), constant_flow(1, 2, 1), constant_flow(1, 2, 1)))


def test_warping_fetches_from_where_the_flow_points():
    ramp = torch.arange(32.0).expand(1, 1, 24, 32)
    assert torch.allclose(warp(ramp, constant_flow(1, 1.5, 0))[..., :-2], ramp[..., :-2] + 1.5, atol=1e-4)
    assert torch.allclose(warp(ramp, constant_flow(1, 99, 0)), torch.full_like(ramp, 31.0))


def test_classes_that_change_are_counted_where_both_are_known():
    masks = torch.tensor([[[0, 0, 1, IGNORE]], [[0, 1, 1, 1]], [[IGNORE, 1, 0, 1]]])
    assert steady(masks).tolist() == [[[True, False, True, False]], [[False, True, False, True]]]
    assert class_change(masks) == pytest.approx(2 / 6)
    assert math.isnan(class_change(torch.full((2, 3, 3), IGNORE)))
