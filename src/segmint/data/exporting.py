"""What the writers of formats get of a data folder: images, one mask each, classes, splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from segmint.data.cache import size_text
from segmint.data.classes import Classes
from segmint.data.folder import Data, open_folder, rejected
from segmint.data.formats.format import background_of
from segmint.data.importing import link_or_copy
from segmint.data.io import Bytes, image_size, read_image, replacing, write_image
from segmint.data.listing import Item
from segmint.data.masks import read_mask
from segmint.data.polygons import Patch, Size, parts
from segmint.types import SegmintError

Shapes = Literal["polygons", "masks"]


@dataclass(frozen=True)
class Sample:
    """One image to write.

    Attributes:
        item: its name, its file and those of its masks.
        split: train, val or test.
        classes: of the data.
        channels, depth: of the data's images.
        rater: which rater's mask counts; None for the majority.
    """

    item: Item
    split: str
    classes: Classes
    channels: int
    depth: int
    rater: int | None

    @property
    def name(self) -> str:
        """ "group/name" without suffix."""
        return self.item.name

    @property
    def suffix(self) -> str:
        """The suffix of the image's file, in small letters."""
        return self.item.image.suffix.lower()

    @property
    def labelled(self) -> bool:
        """Whether it has a mask."""
        return bool(self.item.masks)

    @cached_property
    def size(self) -> Size:
        """Height and width of the image, upright."""
        return image_size(self.item.image)

    def masks(self) -> list[Bytes]:
        """Class indices uint8 [H, W] (0..K-1, or `IGNORE`) of each rater, or of the one that counts."""
        paths = self.item.masks if self.rater is None else [self._path(self.rater)]
        found = []
        for path in paths:
            mask = read_mask(path, self.classes)
            if mask.shape != self.size:
                raise SegmintError(size_text(path, mask, self.item.image, np.empty(self.size)))
            found.append(mask)
        return found

    def mask(self) -> Bytes:
        """Class indices uint8 [H, W]: of the rater that counts, or of the majority."""
        masks = self.masks()
        if len(masks) == 1:
            return masks[0]
        import torch

        from segmint.functional.metrics import majority

        stacked = torch.from_numpy(np.stack(masks)).long()
        return majority(stacked, len(self.classes)).numpy().astype(np.uint8)

    def _path(self, rater: int) -> Path:
        if rater >= len(self.item.masks):
            raise SegmintError(f"--rater {rater}: {self.name!r} has masks 0 to {len(self.item.masks) - 1} only")
        return self.item.masks[rater]

    def link(self, path: Path) -> None:
        """Put the image at `path`: the same bytes if the suffix is that of its file, else encoded anew."""
        if path.suffix.lower() == self.suffix:
            return link_or_copy(self.item.image.resolve(), path)
        self.encode(path)

    def encode(self, path: Path) -> None:
        """Write the image with 8 bits and as many channels as all of the data; JPEG in quality 95 with full chroma."""
        pixels = read_image(self.item.image, channels=self.channels, depth=self.depth)
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            return write_image(path, pixels)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        with replacing(path) as temporary:
            picture.save(temporary, format="JPEG", quality=95, subsampling=0)


@dataclass
class Export:
    """A data folder to write in another format.

    Attributes:
        samples: its images, without those that an assay dropped.
        classes: what a pixel can be.
        channels: 1 if the images are grey, else 3.
        shapes: how to write objects, where the format knows both; None: as suits the format.
        progress: told how many images of how many are done.
        notes: sentences to say aloud.
    """

    samples: list[Sample]
    classes: Classes
    channels: int
    shapes: Shapes | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def background(self) -> int | None:
        """The index of the class that is called background, if there is one."""
        return background_of(self.classes.names)

    @property
    def raters(self) -> int:
        """How many masks an image has at most."""
        return max(len(sample.item.masks) for sample in self.samples)

    @cached_property
    def objects(self) -> list[int]:
        """The indices of the classes that are written as objects: all but the background."""
        return [index for index in range(len(self.classes)) if index != self.background]

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The labelled samples of train, val and test, of those that have any."""
        found: dict[str, list[Sample]] = {}
        for split in ("train", "val", "test"):
            members = [sample for sample in self.samples if sample.labelled and sample.split == split]
            if members:
                found[split] = members
        return found

    def each(self) -> Iterator[Sample]:
        """The samples one after the other, telling the progress."""
        for done, sample in enumerate(self.samples):
            yield sample
            self.progress(done + 1, len(self.samples))

    def parts(self, mask: Bytes) -> Iterator[tuple[int, Patch]]:
        """The connected parts of each class but the background, then those of unknown class, as (index, pixels)."""
        present = np.unique(mask)
        for label in present.tolist():
            if label != self.background:
                for part in parts(mask == label):
                    yield label, part

    def use_shapes(self, usual: Shapes, only: bool = False) -> Shapes:
        """How to write objects: as chosen, else as usual.

        Raises:
            SegmintError: the format knows the usual kind only.
        """
        if only and self.shapes not in (None, usual):
            raise SegmintError(f"--shapes {self.shapes}: this format knows {usual} only; leave it out")
        return self.shapes or usual


def open_export(path: Path, *, synthetic: Sequence[Path] = (), rater: int | None = None) -> Export:
    """Open a data folder to write it in another format.

    Generated folders are all for training, and only their kept pairs are taken. Other folders without split files
    get them as in training: made by group, and written.

    Args:
        path: the folder.
        synthetic: folders of generated pairs to add to train.
        rater: which of several raters' masks counts; None for the majority.

    Raises:
        SegmintError: a folder is wrong, or `rater` is negative.
    """
    if rater is not None and rater < 0:
        raise SegmintError(f"--rater: must be 0 or more, not {rater}")
    data = open_folder(path)
    homes, notes = _homes(data)
    samples = _samples(data, homes, rater)
    for folder in synthetic:
        data = data + open_folder(folder)
    extra = data.items[len(homes) :]
    samples += [Sample(item, "train", data.classes, data.channels, data.depth, rater) for item in extra]
    if not samples:
        raise SegmintError(f"{path}: no image is left to write; keep some pairs with `segmint assay`")
    return Export(samples, data.classes, data.channels, notes=[*data.notes, *notes])


def _homes(data: Data) -> tuple[list[str], list[str]]:
    """The split of each item, and what was decided."""
    homes = ["train"] * len(data)
    if (data.root / "manifest.jsonl").is_file() and not (data.root / "splits").is_dir():
        return homes, ["a generated folder: all of it is for training"]
    try:
        held = {name: data.split(name) for name in data.split_names if name != "train"}
    except SegmintError as error:
        return homes, [f"all images are for training: {error}"]
    for name, members in held.items():
        for index in members:
            homes[index] = name
    return homes, []


def _samples(data: Data, homes: Sequence[str], rater: int | None) -> list[Sample]:
    dropped = rejected(data.root)
    pairs = zip(data.items, homes, strict=True)
    return [
        Sample(item, home, data.classes, data.channels, data.depth, rater)
        for item, home in pairs
        if item.name not in dropped
    ]
