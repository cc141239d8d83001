"""Which images a step sees: a pure function of the seed and the step, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from segmint.ranks import world
from segmint.seeds import mix
from segmint.types import SegmintError

if TYPE_CHECKING:
    from segmint.config import TrainSettings
    from segmint.training.train import Images


@dataclass(frozen=True)
class Choice:
    """The images of one step: item indices, and for each whether its mask may be seen."""

    indices: list[int]
    labelled: list[bool]


class Pool:
    """An endless walk through some items, in a new random order each time round."""

    def __init__(self, items: Sequence[int], seed: int) -> None:
        self.items, self.seed = list(items), seed
        self._round, self._order = -1, torch.empty(0, dtype=torch.long)

    def at(self, position: int) -> int:
        """The item at a position of the walk, 0, 1, 2, ..."""
        turn, place = divmod(position, len(self.items))
        if turn != self._round:
            generator = torch.Generator().manual_seed(mix(self.seed, turn))
            self._round, self._order = turn, torch.randperm(len(self.items), generator=generator)
        return self.items[int(self._order[place])]

    def slice(self, start: int, count: int) -> list[int]:
        """`count` items from a position on."""
        return [self.at(position) for position in range(start, start + count)]


class Sampler:
    """Batches from labelled, unlabelled and generated images.

    Args:
        labelled: items whose masks are seen; `unlabelled`: items shown without; `synthetic`: generated pairs.
        batch_size: images a step, of each process.
        labelled_fraction: share of a batch with masks; 0: every image as often as every other.
        synthetic_fraction: share of the images with masks that is generated, where there are generated pairs.
        whole_epochs: every image exactly once an epoch; the last batch of an epoch may be smaller.
        seed: determines everything.
        processes: how many have such a batch each; they take the images of a step in turn, one at a time.

    Raises:
        SegmintError: a batch has no place for images that it is to have a share of.
    """

    def __init__(
        self,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        synthetic: Sequence[int],
        *,
        batch_size: int,
        labelled_fraction: float,
        synthetic_fraction: float,
        whole_epochs: bool,
        seed: int,
        processes: int = 1,
    ) -> None:
        seen = set(labelled) | set(synthetic)
        self.seen, self.batch_size, self.whole_epochs = seen, batch_size * processes, whole_epochs
        everything = [*labelled, *synthetic, *unlabelled]
        self.count = len(everything)
        if whole_epochs or (unlabelled and not labelled_fraction):
            parts: list[tuple[Sequence[int], int]] = [(everything, batch_size)]
        else:
            masks = batch_size if labelled or synthetic else 0
            if masks and unlabelled:
                masks = _share(batch_size, labelled_fraction, "labelled_fraction", "images without masks")
            made = masks if synthetic and not labelled else 0
            if synthetic and labelled:
                made = masks - _share(masks, 1 - synthetic_fraction, "synthetic_fraction", "generated pairs")
            parts = [(labelled, masks - made), (synthetic, made), (unlabelled, batch_size - masks)]
        self.pools = [
            (Pool(items, mix(seed, number)), n * processes) for number, (items, n) in enumerate(parts) if items and n
        ]
        self.steps_per_epoch = -(-self.count // self.batch_size)

    @classmethod
    def of(cls, images: Images, settings: TrainSettings, *, whole_epochs: bool, seed: int) -> Sampler:
        """That of a training, for all its processes."""
        return cls(
            images.labelled,
            images.unlabelled,
            images.synthetic,
            batch_size=settings.batch_size,
            labelled_fraction=settings.labelled_fraction,
            synthetic_fraction=settings.synthetic_fraction,
            whole_epochs=whole_epochs,
            seed=mix(seed, "sampler"),
            processes=world(),
        )

    def at(self, step: int) -> Choice:
        """The images of a step, 0, 1, 2, ..., of all processes."""
        if self.whole_epochs:
            epoch, number = divmod(step, self.steps_per_epoch)
            start = number * self.batch_size
            indices = self.pools[0][0].slice(epoch * self.count + start, min(self.batch_size, self.count - start))
        else:
            indices = [item for pool, count in self.pools for item in pool.slice(step * count, count)]
        return Choice(indices, [index in self.seen for index in indices])

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over as many images as there are ends with this step."""
        return (step + 1) % self.steps_per_epoch == 0


def _share(images: int, fraction: float, key: str, others: str) -> int:
    """How many of some images a fraction is, at least one; all of them only where that is what is asked for."""
    count = max(1, round(images * fraction))
    if count == images and fraction < 1:
        raise SegmintError(
            f"training.batch_size: leaves no place for {others}, of which training.{key} asks for a share; take a "
            f"larger batch, or another training.{key}"
        )
    return min(images, count)
