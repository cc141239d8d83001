"""The random numbers that a method asks for, written down so that a graph can take them as inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from segmint.seeds import Seeds
from segmint.types import SegmintError

HEIGHT, WIDTH = "height", "width"

_SIDES = [f"{name}{part}" for part in ("", "/2", "/4", "/8") for name in (HEIGHT, WIDTH)]

_PROBES = ((97, 131), (101, 127))
"""Two sizes of images with no side in common: a side of noise that changes with them follows height or width."""


@dataclass(frozen=True)
class Noise:
    """One array of random numbers that a method draws for each item.

    Attributes:
        name: of the graph's input, "noise_0", "noise_1", ... in the order in which they are drawn.
        kind: "normal" (standard normal), "uniform" (0 to 1) or "integers" (0 to `high` - 1).
        shape: without the batch; "height" and "width" stand for those of the image as it is shown to the network, and
            "height/2" for half of it, rounded up.
        high: of "integers".
    """

    name: str
    kind: str
    shape: tuple[int | str, ...]
    high: int = 0

    def draw(self, seeds: Seeds, size: tuple[int, int] | None = None) -> Tensor:
        """The next numbers of these streams, [B, *shape], for images of this height and width."""
        shape = [side if isinstance(side, int) else _length(side, size or (0, 0)) for side in self.shape]
        if self.kind == "normal":
            return seeds.randn(*shape)
        return seeds.rand(*shape) if self.kind == "uniform" else seeds.integers(self.high, *shape)

    def facts(self) -> dict[str, Any]:
        """As JSON holds it; `Noise.of` reads it back."""
        return asdict(self)

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Noise:
        """From what `facts` gave."""
        return Noise(facts["name"], facts["kind"], tuple(facts["shape"]), facts["high"])


class Recorder(Seeds):
    """Seeds that write down what is asked of them: (kind, shape, high) in `asked`."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))
        self.asked: list[tuple[str, tuple[int, ...], int]] = []

    def __getattribute__(self, name: str) -> Any:
        """Refuse the seeds' own values: a graph takes numbers, not seeds."""
        if name == "values" and "asked" in object.__getattribute__(self, "__dict__"):
            raise SegmintError("it takes more from its seeds than normal or uniform numbers, which a graph cannot")
        return super().__getattribute__(name)

    def __len__(self) -> int:
        return len(self._streams)

    def fork(self, *name: int | str) -> Seeds:
        """The same object: one graph makes one draw."""
        return self

    def randn(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, noted."""
        self.asked.append(("normal", shape, 0))
        return super().randn(*shape, device=device)

    def rand(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers, noted."""
        self.asked.append(("uniform", shape, 0))
        return super().rand(*shape, device=device)

    def integers(self, high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Integers, noted."""
        self.asked.append(("integers", shape, high))
        return super().integers(high, *shape, device=device)


class Given(Seeds):
    """Seeds that hand out given tensors, one after the other, whatever is asked."""

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self.numbers, self.given = list(numbers), 0

    def __len__(self) -> int:
        return len(self.numbers[0])

    def fork(self, *name: int | str) -> Seeds:
        """The same object: one graph makes one draw."""
        return self

    def randn(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """The next tensor."""
        self.given += 1
        return self.numbers[self.given - 1]

    def rand(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """The next tensor."""
        return self.randn()

    def integers(self, high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """The next tensor."""
        return self.randn()


def noise_of(run: Callable[[Seeds, tuple[int, int]], object]) -> tuple[Noise, ...]:
    """What noise a function asks for.

    Args:
        run: uses seeds of two items on images of the given height and width; called with two sizes.

    Raises:
        SegmintError: it asks for different things each time, or for sizes that are not those of the image.
    """
    asked = []
    for size in _PROBES:
        recorder = Recorder(2)
        run(recorder, size)
        asked.append(recorder.asked)
    if [entry[0] for entry in asked[0]] != [entry[0] for entry in asked[1]]:
        raise SegmintError("it asks for other random numbers each time, which a graph cannot")
    found = []
    for number, ((kind, one, high), (_, other, _)) in enumerate(zip(*asked, strict=True)):
        shape = tuple(_side(pair) for pair in zip(one, other, strict=True))
        found.append(Noise(f"noise_{number}", kind, shape, high))
    return tuple(found)


def _length(side: str, size: tuple[int, int]) -> int:
    """Of "height" or "width/4", for images of this height and width."""
    name, _, part = side.partition("/")
    return -(-size[(HEIGHT, WIDTH).index(name)] // int(part or 1))


def _side(pair: tuple[int, int]) -> int | str:
    """What a side of noise is, from its length for either probe."""
    if pair[0] == pair[1]:
        return pair[0]
    for side in _SIDES:
        if pair == tuple(_length(side, probe) for probe in _PROBES):
            return side
    raise SegmintError(f"its noise has a side of {pair[0]} where images are {_PROBES[0]}, which no rule here explains")
