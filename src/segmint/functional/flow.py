"""Flow matching: interpolation between noise and data, what a network's output means, and solving the flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from segmint.ranks import randn
from segmint.types import IGNORE, SegmintError

SIGMA_DATA = 0.5
"""The standard deviation of images in [-1, 1] that EDM's preconditioning assumes."""

NEAREST = 0.05
"""No loss or velocity divides by less than this distance from clean data (as Li & He 2025 clip 1 - t)."""


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to be multiplied with `like`."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def interpolate(clean: Tensor, noise: Tensor, clock: Tensor) -> Tensor:
    """The straight path x_t = t x + (1 - t) eps (Lipman 2023, eq. 20 with sigma_min = 0; t = 1 is data).

    Args:
        clean, noise: [B, C, H, W].
        clock: t of each item, [B] in 0..1.
    """
    t = per_item(clock, clean)
    return t * clean + (1 - t) * noise


def velocity(clean: Tensor, state: Tensor, clock: Tensor) -> Tensor:
    """dx/dt of the straight path that leads from `state` at time t to `clean` at time 1: (x - x_t) / (1 - t)."""
    return (clean - state) / (1 - per_item(clock, state)).clamp_min(1e-6)


def sample_clock(count: int, mean: float, spread: float, device: torch.device | str = "cpu") -> Tensor:
    """Training times [B] in (0, 1), logit-normal (Esser 2024, eq. 19)."""
    return torch.sigmoid(mean + spread * randn(count, device=device))


KINDS = ("clean", "velocity", "edm")


def check_kind(kind: str) -> None:
    """Raise a SegmintError unless `kind` names a parametrization."""
    if kind not in KINDS:
        raise SegmintError(f"flow.parametrization: there is no {kind!r}; choose one of {', '.join(KINDS)}")


def scale_input(kind: str, state: Tensor, clock: Tensor) -> Tensor:
    """What the network sees of x_t: for "edm" its c_in (x + sigma eps), which has unit variance at every t."""
    if kind != "edm":
        return state
    t = per_item(clock, state)
    return state / ((1 - t) ** 2 + (t * SIGMA_DATA) ** 2).sqrt()


def read_output(kind: str, output: Tensor, state: Tensor, clock: Tensor) -> Tensor:
    """The clean image that the network's output stands for.

    "clean": the output itself (Li & He 2025). "velocity": x_t + (1 - t) F. "edm": c_skip (x + sigma eps) + c_out F
    with sigma = (1 - t) / t (Karras 2022, table 1), multiplied out so that t = 0 is no exception.
    """
    if kind == "clean":
        return output
    t = per_item(clock, state)
    if kind == "velocity":
        return state + (1 - t) * output
    variance = (1 - t) ** 2 + (t * SIGMA_DATA) ** 2
    return state * t * SIGMA_DATA**2 / variance + output * (1 - t) * SIGMA_DATA / variance.sqrt()


def loss_weight(kind: str, clock: Tensor) -> Tensor:
    """The weight [B] of the squared error of the clean image.

    For "clean" and "velocity" that of the velocity's error, 1 / (1 - t)^2; for "edm" 1 / c_out^2, which makes the
    network's own error count alike at all times (Karras 2022, eq. 8).
    """
    if kind == "edm":
        variance = (1 - clock) ** 2 + (clock * SIGMA_DATA) ** 2
        return variance / ((1 - clock).clamp_min(NEAREST) * SIGMA_DATA) ** 2
    return 1 / (1 - clock).clamp_min(NEAREST) ** 2


def binary_codes(classes: int, scale: float) -> Tensor:
    """One code word of +-scale for each class, [K, bits], bits = ceil(log2 K) (Analog Bits, Chen 2023)."""
    bits = max(1, math.ceil(math.log2(classes)))
    places = torch.arange(classes).unsqueeze(1) >> torch.arange(bits)
    return scale * (2.0 * (places & 1) - 1)


def encode(mask: Tensor, codes: Tensor) -> Tensor:
    """A mask [B, H, W] as code words [B, bits, H, W]; zeros where it is `IGNORE`."""
    known = mask != IGNORE
    words = codes[mask.where(known, 0)] * known.unsqueeze(-1)
    return words.permute(0, 3, 1, 2)


def expected_code(logits: Tensor, codes: Tensor) -> Tensor:
    """The mean code word under softmax(logits) [B, K, H, W] -> [B, bits, H, W]: the clean mask, as the flow sees it."""
    with torch.autocast(logits.device.type, enabled=False):  # differences of expected codes are small
        return torch.einsum("bkhw,kc->bchw", logits.softmax(1), codes.to(logits.dtype))


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times from 0 to 1; a shift above 1 takes more of the steps near the noise (Esser 2024, eq. 23)."""
    return [i / steps / (i / steps + shift * (1 - i / steps)) for i in range(steps + 1)]


State = tuple[Tensor, ...]


def solve(
    field: Callable[[State, float], State], state: State, times: Sequence[float], sampler: str = "euler"
) -> State:
    """Follow a flow through the given times.

    Args:
        field: (tensors, position in 0..1) -> their time derivatives.
        state: the tensors at times[0].
        times: ascending positions.
        sampler: "euler", or "heun": second order, two evaluations a step but for the last, which is Euler's because
            the field is not defined at the end (Karras 2022, algorithm 1).

    Raises:
        SegmintError: unknown sampler.
    """
    if sampler not in ("euler", "heun"):
        raise SegmintError(f"flow.sampler: there is no {sampler!r}; choose euler or heun")
    for here, there in pairwise(times):
        slope = field(state, here)
        ahead = _move(state, slope, there - here)
        if sampler == "heun" and there < times[-1]:
            mean = tuple((a + b) / 2 for a, b in zip(slope, field(ahead, there), strict=True))
            ahead = _move(state, mean, there - here)
        state = ahead
    return state


def _move(state: State, slope: State, step: float) -> State:
    return tuple(x + step * v for x, v in zip(state, slope, strict=True))


def evaluations(steps: int, sampler: str) -> int:
    """How often `solve` evaluates the field in `steps` steps."""
    return steps if sampler == "euler" else 2 * steps - 1
