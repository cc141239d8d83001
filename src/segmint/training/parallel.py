"""Training by several processes that torchrun has started: how they meet, go ahead together, and end."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segmint.ranks import alone, answering, average, rank, world
from segmint.types import SegmintError, reason

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, e.g. while one of them decodes the data. Dead ones are noticed at once."""


def join() -> None:
    """Meet the other processes that torchrun has started; without torchrun, or the second time, nothing happens.

    Tensors on the CPU travel by gloo, those on CUDA devices by NCCL; each process has the device of its local rank.

    Raises:
        SegmintError: the others cannot be reached.
    """
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    gpus = torch.cuda.device_count()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise SegmintError(
            f"the processes of this training cannot meet ({reason(error)}); start them with torchrun, which sets RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE"
        ) from error
    atexit.register(dist.destroy_process_group)
    if _local_rank() < gpus:
        torch.cuda.set_device(_local_rank())


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_device(device: torch.device) -> None:
    """Refuse to let two processes share a CUDA device.

    Raises:
        SegmintError: there are more processes on this machine than CUDA devices.
    """
    if device.type == "cuda" and world() > 1 and _local_rank() >= torch.cuda.device_count():
        raise SegmintError(
            f"this machine has {torch.cuda.device_count()} CUDA devices, one for each process; start no more than that "
            "(torchrun --nproc-per-node), or train with training.device=cpu"
        )


def first_to_fail() -> bool:
    """Whether no other process has asked this before: the first to fail tells the user, the others keep quiet."""
    if world() == 1:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return bool(store.compare_set("segmint/failed", "", str(rank())) == str(rank()).encode())
    except RuntimeError:  # the store has gone with its process
        return True


# What one process does for all


@contextmanager
def in_turn() -> Iterator[None]:
    """What is inside is done first by rank 0, then by the first process of every machine, then by the others.

    So that only one makes the files that the others then find.
    """
    turn = 0 if rank() == 0 else 1 if _local_rank() == 0 else 2
    for _ in range(turn):
        meet()
    yield
    for _ in range(turn, 2):
        meet()


def meet() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        with answering():
            dist.barrier()


def told(make: Callable[[], T]) -> T:
    """What rank 0 makes, on all processes."""
    if world() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    with answering():
        dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def agree(value: Any, what: str) -> None:
    """Refuse to go on where the processes differ.

    Raises:
        SegmintError: `what` differs, e.g. since a machine has other files.
    """
    if len({repr(other) for other in collect(value)}) > 1:
        raise SegmintError(
            f"{what} not the same for all processes of this training; every machine needs the same data folder and run "
            "folder at the same path (a shared disk), and the same version of Segmint and PyTorch"
        )


def collect(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with answering():
        dist.all_gather_object(values, value)
    return values


def any_of(flags: Sequence[bool]) -> list[bool]:
    """Whether each flag is up on any process."""
    if world() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    with answering():
        dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised]


def everyones(figures: Mapping[str, float]) -> dict[str, list[float]]:
    """Each figure of all processes that have it."""
    values: dict[str, list[float]] = {}
    for theirs in collect(dict(figures)):
        for key, value in theirs.items():
            values.setdefault(key, []).append(value)
    return values


# Networks


def synchronise(module: nn.Module) -> None:
    """Give all processes the weights of rank 0, and every batch normalisation the statistics of the whole batch."""
    if world() == 1:
        return
    with torch.no_grad(), answering():
        for tensor in [*module.parameters(), *module.buffers()]:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)
    for part in module.modules():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            part.__class__ = WholeBatchNorm  # it keeps its weights, its buffers and its place in the network


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes, in one message; inside `together` only.

    A parameter that has a gradient on some process only has zeros from the others; one that has it nowhere keeps none.
    """
    if alone():
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    flat = [p.grad.flatten().float() if p.grad is not None else p.new_zeros(p.numel()).float() for p in parameters]
    shares = torch.split(average(torch.cat([used, *flat])), [len(used), *(p.numel() for p in parameters)])
    somewhere = (shares[0] > 0).tolist()
    for p, share, known in zip(parameters, shares[1:], somewhere, strict=True):
        if known:
            p.grad = share.view(p.shape).to(p.dtype)


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all processes (in PyTorch's own, `SyncBatchNorm`, only on CUDA devices).

    Statistics are averaged inside `segmint.ranks.together` and in training only; else it is plain batch normalisation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do: [B, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        if alone() or not self.training:
            return super().forward(input)
        x = input.float()
        around = [1, -1, *[1] * (x.ndim - 2)]
        mean, variance, count = _moments(x)
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y = (x - mean.view(around)) * scale.view(around)
        if self.affine:
            y = y + self.bias.view(around)
        return y.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Take the statistics of a batch with `count` values a channel into the running ones."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1).clamp_min(1)).to(self.running_var), share)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over all processes, float32 [C], and the number of values that they are of.

    Local moments are exact; they are put together in float64, so that a large mean does not drown a small variance.
    """
    variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    mean, variance = mean.double(), variance.double()
    count = mean.new_full((1,), x.numel() / x.shape[1])
    summed = average(torch.cat([count, count * mean, count * (variance + mean.square())]))
    whole_mean, square = (summed[1:] / summed[0]).chunk(2)
    whole_variance = (square - whole_mean.square()).clamp_min(0)
    return whole_mean.float(), whole_variance.float(), summed[0].detach() * world()
