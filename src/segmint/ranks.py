"""The processes that train one method together: this one's rows of their common batch, and what all must agree on.

Rank and world are torchrun's words: the number of this process, and how many there are. Inside `together` the processes
work on one batch, of which the process of rank r has the rows r, r + world, r + 2 world, ... What is computed row by
row needs no word from the others. Random numbers are drawn for the whole batch and each process keeps its rows (`rand`,
`randn`); sums over the batch that a ratio, a root or a logarithm is taken of are averaged over the processes first
(`average`); and decisions that depend on the batch are taken by all alike (`everywhere`). With that, the mean of the
processes' gradients is the gradient of one process with the whole batch.

What speaks of all processes has to be called by all of them, in the same order. With one process, and outside
`together`, everything leaves its argument as it is and draws what PyTorch draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from segmint.seeds import mix
from segmint.types import SegmintError, reason


@dataclass(frozen=True)
class _Step:
    """What is known inside `together`; outside, one process is all there is."""

    rank: int = 0
    world: int = 1
    seed: int = 0
    streams: dict[torch.device, torch.Generator] = field(default_factory=dict)


_ALONE = _Step()
_step = _ALONE


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def together(seed: int) -> Iterator[None]:
    """Inside, all processes work on one batch.

    Args:
        seed: of all random numbers from here on; the same on all processes.
    """
    global _step
    torch.manual_seed(mix(seed, rank()) if world() > 1 else seed)
    _step = _Step(rank(), world(), seed)
    try:
        yield
    finally:
        _step = _ALONE


def alone() -> bool:
    """Whether this process has the whole batch."""
    return _step.world == 1


@contextmanager
def answering() -> Iterator[None]:
    """Around a collective: says in plain words that another process is gone.

    Raises:
        SegmintError: one of the others has ended, or has not answered for very long.
    """
    try:
        yield
    except RuntimeError as error:
        raise SegmintError(
            f"another process of this training has ended or does not answer ({reason(error)}); its own message says "
            "why. Start all of them again: `torchrun ... -m segmint train --resume RUN` goes on from the checkpoint"
        ) from error


# Rows


def whole(count: int) -> int:
    """The rows of the whole batch, where this process has `count`."""
    return count * _step.world


def rows(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of what was made for the whole batch, whose rows are along `dim`."""
    if alone():
        return x
    return x[(slice(None),) * dim + (slice(_step.rank, None, _step.world),)].contiguous()


def stream(device: torch.device | str = "cpu") -> torch.Generator | None:
    """What random numbers for the whole batch are drawn from, the same on all processes; None: PyTorch's own.

    PyTorch's own generator is seeded differently on each process, so what does not care for the whole batch (dropout)
    never repeats itself on another.
    """
    if alone():
        return None
    place = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are one device, with one stream
    if place not in _step.streams:
        _step.streams[place] = torch.Generator(place).manual_seed(_step.seed)
    return _step.streams[place]


def rand(
    count: int, *shape: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """Uniform numbers in [0, 1) for this process's `count` rows, float32 [count, *shape].

    Args:
        count: rows of this process.
        shape: of a row.
        device: where they are drawn.
        generator: to draw from, in the same state on all processes; None: the step's (`stream`).
    """
    return rows(torch.rand(whole(count), *shape, device=device, generator=generator or stream(device)))


def randn(
    count: int, *shape: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal numbers for this process's `count` rows, float32 [count, *shape]; see `rand`."""
    return rows(torch.randn(whole(count), *shape, device=device, generator=generator or stream(device)))


def randn_like(x: Tensor) -> Tensor:
    """Standard normal numbers for each of this process's rows, shaped like a tensor [B, ...]."""
    if alone():
        return torch.randn_like(x)
    # PyTorch fills such a tensor in the order of its memory, so the whole batch has to lie there like these rows.
    order = sorted(range(x.ndim), key=lambda dim: -x.stride()[dim])
    sides = [whole(len(x)) if dim == 0 else x.shape[dim] for dim in order]
    everything = x.new_empty(sides).permute([order.index(dim) for dim in range(x.ndim)])
    return rows(everything.normal_(generator=stream(x.device)))


# Agreement


class _Average(torch.autograd.Function):
    """The mean over the processes. Their losses are averaged as well, so its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with answering():
            dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        mean: Tensor = _Average.apply(gradients[0])  # type: ignore[no-untyped-call]
        return mean


def average(x: Tensor) -> Tensor:
    """The mean over all processes, differentiable any number of times; integers become float32."""
    if alone():
        return x
    mean: Tensor = _Average.apply(x if x.is_floating_point() else x.float())  # type: ignore[no-untyped-call]
    return mean


def everywhere(condition: bool) -> bool:
    """Whether it is true on all processes."""
    if alone():
        return condition
    flag = torch.tensor(int(condition))
    with answering():
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, [B, ...] -> [whole B, ...], in the order of the whole batch; without gradient.

    The processes may have different numbers of rows.
    """
    if alone():
        return x
    counts = [torch.zeros((), dtype=torch.int64) for _ in range(_step.world)]
    with answering():
        dist.all_gather(counts, torch.tensor(len(x)))
    most = int(max(counts))
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    with answering():
        dist.all_gather(parts, padded)
    real = torch.arange(most).unsqueeze(1) < torch.stack(counts)
    return torch.stack(parts, 1).flatten(0, 1)[real.flatten().to(x.device)]


def before(x: Tensor) -> Tensor:
    """For each row of a tensor [B, ...] the one before it in the whole batch, for the first the last; no gradient.

    Where the processes have different numbers of rows, those of this process alone take turns.
    """
    mine = rows(gather(x).roll(1, 0))
    return mine if len(mine) == len(x) else x.roll(1, 0)
