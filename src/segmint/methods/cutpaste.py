"""Objects of real images pasted on others, and ClassMix: the rival without a model that every generator must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segmint.data.cache import from_pixels, to_pixels
from segmint.data.objects import Pair, object_classes
from segmint.data.variations import class_mix, paste_object
from segmint.methods.method import Facts, Method, Optimizers
from segmint.seeds import Seeds, mix
from segmint.types import IGNORE, Batch, SegmintError

MOST = 2000


class CutPaste(Method):
    """New pairs out of the pixels of the labelled ones (cut and paste, Dwibedi 2017; copy-paste, Ghiasi 2021).

    Nothing is learnt: training keeps the labelled images in a bank, which is saved with the model. A pair is one of
    the bank, mirrored or not, with one to `objects` objects of others laid over it; or, with probability `classmix`,
    with half of the classes of another (ClassMix, Olsson 2021). What is an object and what is ground follows from the
    masks: see `segmint.data.objects.object_classes`. Where a donor has no object, ClassMix takes its place.

    Borders are soft in the image; the mask changes where the pasted pixel has more than half of the weight, which is
    exactly on the pixels of the donor's mask. Pixels of unknown class are never pasted, and where the image below has
    them, they stay unknown.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width of the pairs.
        bank: how many images it has room for; by default all labelled ones, at most 2000.
        objects: largest number of objects to paste.
        classmix: the share of ClassMix pairs, 0 to 1.
        scale: largest change of the logarithm of an object's size.
        shift: standard deviation of an object's vertical move, as a share of the image's height.
        feather: width of the soft borders in pixels.
        colour: how much of the difference in colour between an object's old and new surroundings is taken off it.

    Raises:
        SegmintError: a value is out of its range.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 1,
        "batch_size": 32,
        "augment": "none",
        "ema": 0.0,
        "precision": "float32",
    }
    whole_epochs = True
    monitor = None

    images: Tensor
    masks: Tensor
    filled: Tensor
    things: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        bank: int = 100,
        objects: int = 3,
        classmix: float = 0.5,
        scale: float = 0.25,
        shift: float = 0.05,
        feather: float = 2.0,
        colour: float = 0.5,
    ) -> None:
        super().__init__()
        for key, count in {"bank": bank, "objects": objects}.items():
            if count < 1:
                raise SegmintError(f"cutpaste.{key}: must be at least 1, not {count}")
        for key, share in {"classmix": classmix, "colour": colour}.items():
            if not 0 <= share <= 1:
                raise SegmintError(f"cutpaste.{key}: must be from 0 to 1, not {share}")
        for key, size in {"scale": scale, "shift": shift, "feather": feather}.items():
            if size < 0:
                raise SegmintError(f"cutpaste.{key}: must not be below 0, as {size} is")
        self.classmix, self.objects = classmix, objects
        self.how = {"scale": scale, "shift": shift, "feather": feather, "colour": colour}
        height, width = image_size
        self.register_buffer("images", torch.zeros(bank, height, width, in_channels, dtype=torch.uint8))
        self.register_buffer("masks", torch.full((bank, height, width), IGNORE, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("things", torch.zeros(classes, dtype=torch.bool))

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Make room for all images that have masks; unlabelled ones are shown only where theirs were predicted."""
        masked = facts.labelled + facts.unlabelled
        chosen = {"bank": max(1, min(MOST, masked)), **settings}
        if chosen["bank"] >= masked:
            return chosen, []
        return chosen, [f"cutpaste keeps {chosen['bank']:,} of the {masked:,} images with masks"]

    def parts(self) -> dict[str, nn.Module]:
        """Nothing: there is nothing to optimise."""
        return {}

    @torch.no_grad()
    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """Put labelled images into the bank until it is full."""
        batch = batch[batch.labelled]
        start = int(self.filled)
        stop = min(start + len(batch), len(self.images))
        self.images[start:stop] = to_pixels(batch.image[: stop - start])
        self.masks[start:stop] = batch.mask[: stop - start].to(torch.uint8)
        self.filled.fill_(stop)
        return {"bank": self.filled.float()}

    def finish_epoch(self) -> dict[str, float]:
        """Learn from the masks which classes come as objects.

        Raises:
            SegmintError: no training image has a mask.
        """
        if not int(self.filled):
            raise SegmintError("cutpaste: no training image has a mask; give some of them masks")
        found = object_classes(self.masks[: int(self.filled)].cpu().numpy(), len(self.things))
        self.things.zero_()
        self.things[sorted(found)] = True
        return {"object_classes": float(len(found))}

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """One pair per seed; its mask is put together like its image, `IGNORE` where the images' masks have it.

        Raises:
            SegmintError: the bank is empty, or it is given what it cannot start from.
        """
        self.refuse(mask=mask, previous=previous, image=image)
        if not int(self.filled):
            raise SegmintError("cutpaste: the bank is empty; train it first")
        things = frozenset(self.things.nonzero().flatten().tolist())
        pairs = [self._pair(np.random.default_rng(mix("cutpaste", value)), things) for value in seeds.values]
        device = self.images.device
        images = torch.from_numpy(np.stack([pair.image for pair in pairs])).to(device)
        masks = torch.from_numpy(np.stack([pair.mask for pair in pairs])).long()
        return Batch(from_pixels(images), masks.to(device))

    def _pair(self, random: np.random.Generator, things: frozenset[int]) -> Pair:
        ground, *others = random.permutation(int(self.filled))[: self.objects + 1].tolist()
        pair, mixed = self._banked(ground, random), random.random() < self.classmix
        donors = [self._banked(row, random) for row in (others or [ground])[: random.integers(1, self.objects + 1)]]
        if not mixed:
            before = pair
            for donor in donors:
                pair = paste_object(pair, donor, things, random, **self.how)
            mixed = pair is before
        return class_mix(pair, donors[0], random, self.how["feather"]) if mixed else pair

    def _banked(self, row: int, random: np.random.Generator) -> Pair:
        pair = Pair(self.images[row].cpu().numpy(), self.masks[row].cpu().numpy())
        return pair.flipped() if random.random() < 0.5 else pair
