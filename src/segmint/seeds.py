"""One random stream per item: what item i gets depends on seed i alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of integers and words; the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Seeds:
    """A random stream for each item of a batch.

    Numbers are drawn on the CPU and then moved, so item i is the same on every device, in every batch, on every
    worker. Each call continues the streams.

    Args:
        values: one integer seed per item.
        position: where on a walk through noise the normal numbers are drawn, 0 or more; see `at`.
    """

    def __init__(self, values: Sequence[int], position: float = 0.0) -> None:
        self.values, self.position = tuple(values), position
        self._streams = [torch.Generator().manual_seed(mix(value)) for value in self.values]
        number = int(position)
        self._behind = self._keyframe(number) if number else self._streams
        self._ahead = self._keyframe(number + 1) if position > number else []

    def _keyframe(self, number: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(mix(value, "walk", number)) for value in self.values]

    @classmethod
    def range(cls, count: int, start: int = 0) -> Seeds:
        """Seeds start, start + 1, ..., start + count - 1."""
        return cls(range(start, start + count))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice) -> Seeds:
        """Fresh streams for some of the items."""
        return Seeds(self.values[index], self.position)

    def fork(self, *name: int | str) -> Seeds:
        """Fresh streams of another name for the same items, e.g. `seeds.fork("draw", 3)`."""
        return Seeds([mix(value, *name) for value in self.values], self.position)

    def at(self, position: float) -> Seeds:
        """Fresh streams for the same items, elsewhere on their walks.

        Normal numbers turn from one independent draw at each whole position to the next, cos(a) x + sin(a) y, and so
        stay standard normal and move smoothly; all other numbers are the same at every position.
        """
        return Seeds(self.values, position)

    def randn(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        drawn = _normal(self._streams, shape)
        if self._behind is not self._streams:
            drawn = _normal(self._behind, shape)
        if self._ahead:
            angle = (self.position % 1.0) * math.pi / 2
            drawn = math.cos(angle) * drawn + math.sin(angle) * _normal(self._ahead, shape)
        return drawn.to(device)

    def rand(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape]."""
        return torch.stack([torch.rand(shape, generator=stream) for stream in self._streams]).to(device)

    def integers(self, high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Integers in 0..high-1, int64 [B, *shape]."""
        drawn = [torch.randint(high, shape, generator=stream) for stream in self._streams]
        return torch.stack(drawn).to(device)


def _normal(streams: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])
