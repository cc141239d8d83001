"""The flow's arithmetic against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from segmint.functional import flow
from segmint.types import IGNORE, SegmintError

MEAN, SPREAD = 0.3, 0.4


def posterior_mean(state: torch.Tensor, t: float) -> torch.Tensor:
    """E[x | x_t] for x ~ N(MEAN, SPREAD^2) and x_t = t x + (1 - t) eps."""
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    return MEAN + t * SPREAD**2 / variance * (state - t * MEAN)


def gaussian_field(state: flow.State, t: float) -> flow.State:
    clean = posterior_mean(state[0], t)
    return (flow.velocity(clean, state[0], torch.full((len(state[0]),), t)),)


def test_velocity_is_data_minus_noise():
    clean, noise = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    clock = torch.tensor([0.0, 0.3, 0.7, 0.95])
    state = flow.interpolate(clean, noise, clock)
    assert torch.allclose(flow.velocity(clean, state, clock), clean - noise, atol=1e-4)
    assert torch.equal(flow.interpolate(clean, noise, torch.zeros(4)), noise)
    assert torch.equal(flow.interpolate(clean, noise, torch.ones(4)), clean)


@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("euler", 200, 0.01), ("heun", 20, 0.01)])
def test_the_flow_of_a_gaussian_maps_noise_to_it(sampler: str, steps: int, tolerance: float):
    noise = torch.randn(20000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    (end,) = flow.solve(gaussian_field, (noise,), flow.time_grid(steps), sampler)
    # Under the exact flow the quantiles are carried along: x = MEAN + SPREAD eps.
    assert float((end - (MEAN + SPREAD * noise)).abs().mean()) < tolerance


def test_heun_is_of_second_order():
    noise = torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    exact = MEAN + SPREAD * noise

    def error(sampler: str, steps: int) -> float:
        (end,) = flow.solve(gaussian_field, (noise,), flow.time_grid(steps), sampler)
        return float((end - exact).abs().max())

    assert error("euler", 20) / error("euler", 40) == pytest.approx(2, rel=0.2)
    assert error("heun", 20) / error("heun", 40) > 3


def test_every_parametrization_can_say_the_same():
    clean, noise = torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)
    clock = torch.tensor([0.0, 0.1, 0.4, 0.6, 0.9, 0.99])
    t = flow.per_item(clock, clean)
    state = flow.interpolate(clean, noise, clock)
    # EDM's network target for sigma = (1 - t) / t (Karras 2022, eq. 8), with x + sigma eps = state / t.
    sigma = (1 - t) / t.clamp_min(1e-9)
    seen = state / t.clamp_min(1e-9)
    total = sigma**2 + flow.SIGMA_DATA**2
    target = (clean - flow.SIGMA_DATA**2 / total * seen) / (sigma * flow.SIGMA_DATA / total.sqrt())
    outputs = {"clean": clean, "velocity": clean - noise, "edm": target}
    for kind, output in outputs.items():
        read = flow.read_output(kind, output, state, clock)
        assert torch.allclose(read[1:], clean[1:], atol=1e-3), kind
    at_noise = flow.read_output("edm", clean / flow.SIGMA_DATA, state, clock)
    assert torch.allclose(at_noise[0], clean[0], atol=1e-5)


def test_edm_sees_unit_variance_and_weighs_its_own_error():
    clock = torch.tensor([0.05, 0.5, 0.95]).repeat_interleave(20000)
    clean, noise = flow.SIGMA_DATA * torch.randn(60000, 1, 1, 1), torch.randn(60000, 1, 1, 1)
    seen = flow.scale_input("edm", flow.interpolate(clean, noise, clock), clock)
    assert seen.view(3, -1).std(1).tolist() == pytest.approx([1, 1, 1], rel=0.03)
    state = torch.zeros(3, 1, 1, 1)
    times = torch.tensor([0.0, 0.5, 0.9])
    moved = flow.read_output("edm", torch.ones(3, 1, 1, 1), state, times).flatten()
    assert (moved**2 * flow.loss_weight("edm", times)).tolist() == pytest.approx([1, 1, 1], rel=1e-4)


def test_code_words_tell_classes_apart():
    codes = flow.binary_codes(11, 0.5)
    assert codes.shape == (11, 4)
    assert len({tuple(row) for row in codes.tolist()}) == 11
    assert set(codes.flatten().tolist()) == {-0.5, 0.5}
    mask = torch.tensor([[[0, 10], [IGNORE, 3]]])
    words = flow.encode(mask, codes)
    assert words.shape == (1, 4, 2, 2)
    assert torch.equal(words[0, :, 0, 1], codes[10])
    assert torch.equal(words[0, :, 1, 0], torch.zeros(4))


def test_the_expected_code_is_the_mean_over_classes():
    codes = flow.binary_codes(3, 1.0)
    probability = torch.tensor([0.2, 0.5, 0.3])
    logits = probability.log().view(1, 3, 1, 1)
    expected = probability @ codes
    assert torch.allclose(flow.expected_code(logits, codes).flatten(), expected, atol=1e-6)


def test_the_grid_goes_from_noise_to_data_and_bends():
    plain = flow.time_grid(4)
    assert plain == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    bent = flow.time_grid(4, shift=3)
    assert bent[0] == 0
    assert bent[-1] == 1
    assert all(b < p for b, p in zip(bent[1:-1], plain[1:-1], strict=True))


def test_the_clock_is_logit_normal():
    torch.manual_seed(0)
    drawn = flow.sample_clock(50000, -0.4, 1.0)
    logits = torch.log(drawn / (1 - drawn))
    assert float(logits.mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 5), ("heun", 4)])
def test_evaluations_are_counted(sampler: str, steps: int):
    calls = []

    def field(state: flow.State, position: float) -> flow.State:
        calls.append(position)
        return (torch.zeros_like(state[0]),)

    flow.solve(field, (torch.zeros(1, 1, 1, 1),), flow.time_grid(steps), sampler)
    assert len(calls) == flow.evaluations(steps, sampler)
    assert math.isclose(calls[0], 0)
    assert max(calls) < 1


def test_unknown_words_are_refused():
    with pytest.raises(SegmintError, match=r"flow\.parametrization: there is no 'noise'"):
        flow.check_kind("noise")
    with pytest.raises(SegmintError, match=r"flow\.sampler: there is no 'rk45'"):
        flow.solve(gaussian_field, (torch.zeros(1, 1, 1, 1),), [0.0, 1.0], "rk45")
