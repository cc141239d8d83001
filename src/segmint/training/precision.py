"""Which number format and memory layout trains fastest here: measured, not guessed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from segmint.config import TrainSettings
from segmint.methods.method import Method
from segmint.training.optimizers import PartOptimizers
from segmint.types import Batch

CHOICES = ("float32", "channels_last", "bfloat16")
"""float32 in PyTorch's own layout; float32 with channels last; bfloat16 autocast with channels last."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def place(method: Method, precision: str) -> None:
    """Lay out the method's kernels as the precision asks."""
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    method.to(memory_format=layout)  # type: ignore[call-overload]


def layout(batch: Batch, precision: str) -> Batch:
    """Lay out a batch's images as the precision asks."""
    if precision == "float32":
        return batch
    image = batch.image.contiguous(memory_format=torch.channels_last)
    return Batch(image, batch.mask, batch.previous)


def probe(
    method: Method,
    batch: Batch,
    settings: TrainSettings,
    choices: Sequence[str] = CHOICES,
    seconds: float = 2.0,
) -> tuple[str, dict[str, float]]:
    """Time training steps of a copy of the method in each precision.

    Args:
        method: left as it is.
        batch: a training batch on the method's device.
        settings: of the training.
        choices: the precisions.
        seconds: about how long to measure in all; every choice takes at least two timed steps.

    Returns:
        The fastest choice, and the median milliseconds per step of each. A choice that fails is left out.
    """
    state = torch.random.get_rng_state()
    runners = {}
    for choice in choices:
        twin = copy.deepcopy(method).train()
        place(twin, choice)
        runners[choice] = (twin, PartOptimizers(twin.parts(), settings), layout(batch, choice))
    times: dict[str, list[float]] = {choice: [] for choice in choices}
    started = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - started < seconds:
        for choice, (twin, optimizers, laid) in runners.items():
            begun = time.perf_counter()
            with autocast(choice, batch.image.device):
                twin.step(laid, optimizers)
            if batch.image.is_cuda:
                torch.cuda.synchronize()
            if rounds:
                times[choice].append(time.perf_counter() - begun)
        rounds += 1
    torch.random.set_rng_state(state)
    medians = {choice: 1000 * statistics.median(values) for choice, values in times.items()}
    return min(medians, key=lambda choice: medians[choice]), medians
