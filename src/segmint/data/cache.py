"""Decoded images and masks at one size, on disk and memory-mapped: training decodes no file twice."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image

from segmint.data.folder import Data, Item
from segmint.data.io import Array, Bytes, image_size, read_image
from segmint.data.masks import read_mask
from segmint.data.store import cache_folder, digest_of, remembered, stamps_of
from segmint.types import IGNORE, Batch, SegmintError

VERSION = 2
"""Changes whenever the meaning or the layout of the cached files does."""

LARGE, LONG = 1024, 512
"""Images that are all of one size keep it up to so long a side; beyond, and where sizes differ, they get this one."""

Size = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Pixels:
    """All images and masks of a data folder at one size.

    Attributes:
        data: the folder.
        images: uint8 [N, H, W, C], memory-mapped; row i is item i.
        masks: uint8 [M, H, W] of class indices, `IGNORE` where unknown, memory-mapped.
        rows: for each item, the rows of `masks` that are its raters'; empty where unlabelled.
        size: (H, W).
        notes: sentences that should be said aloud.
    """

    data: Data
    images: Bytes
    masks: Bytes
    rows: list[tuple[int, ...]]
    size: Size
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def open(data: Data, size: Size | None = None, progress: bool = False) -> Pixels:
        """Decode a data folder, or find what was decoded before.

        Images are resized with an antialiased bilinear filter, masks by nearest neighbour. The files lie in
        $SEGMINT_CACHE, or ~/.cache/segmint; what lies there may be deleted at any time.

        Args:
            data: the folder.
            size: (height, width); None for the images' own if they agree and neither side is above 1,024, else for
                the median in multiples of 16 with a long side of 512 at most.
            progress: show a bar on stderr.

        Raises:
            SegmintError: a file cannot be decoded, a mask is not as large as its image, or the disk is full.
        """
        store = cache_folder()
        stamps = stamps_of([path for item in data.items for path in (item.image, *item.masks)])
        notes: list[str] = []
        if size is None:
            found, notes = remembered(["size", VERSION, stamps], lambda: _common_size(data))
            size = (found[0], found[1])
        if min(size) < 1:
            raise SegmintError(f"size: {size[0]} x {size[1]} has no pixels; give height and width of 1 or more")
        key = [VERSION, size, data.channels, data.depth, repr(data.classes), stamps]
        folder = store / digest_of(key)
        if not folder.is_dir():
            _build(data, size, folder, progress)
        masks, rows = 0, []
        for item in data.items:
            rows.append(tuple(range(masks, masks + len(item.masks))))
            masks += len(item.masks)
        try:
            return Pixels(
                data,
                np.memmap(folder / "images.u8", np.uint8, "r", shape=(len(data), *size, data.channels)),
                np.memmap(folder / "masks.u8", np.uint8, "r", shape=(masks, *size)) if masks else _no_masks(size),
                rows,
                size,
                notes,
            )
        except (OSError, ValueError) as error:
            raise SegmintError(f"{folder}: damaged cache ({error}); delete this folder and try again") from error

    def batch(
        self,
        indices: Sequence[int],
        *,
        raters: Sequence[int] | None = None,
        labelled: Sequence[bool] | None = None,
        previous: bool = False,
    ) -> Batch:
        """Items as tensors on the CPU: images float32 [B, C, H, W] in [-1, 1], masks int64 [B, H, W].

        Args:
            indices: which items.
            raters: whose mask; rater r of an item with n masks is r modulo n. None for the first.
            labelled: False for items whose mask is to be hidden: all `IGNORE`, as if unlabelled.
            previous: also give the frame before each in its sequence; the frame itself if there is none.
        """
        mask = np.full((len(indices), *self.size), IGNORE, np.uint8)
        for place, index in enumerate(indices):
            rows = self.rows[index]
            if rows and (labelled is None or labelled[place]):
                mask[place] = self.masks[rows[(raters[place] if raters is not None else 0) % len(rows)]]
        earlier = self._image([self._before.get(i, i) for i in indices]) if previous else None
        return Batch(self._image(indices), torch.from_numpy(mask).long(), earlier)

    def shares(self, indices: Iterable[int]) -> tuple[float, ...]:
        """The share of each class among the labelled pixels of these items and all their raters.

        Returns:
            K numbers that sum to one, or zeros where nothing is labelled.
        """
        counts = np.zeros(len(self.data.classes), np.int64)
        for index in indices:
            for row in self.rows[index]:
                counts += np.bincount(self.masks[row].ravel(), minlength=256)[: len(counts)]
        return tuple((counts / max(1, counts.sum())).tolist())

    def _image(self, indices: Sequence[int]) -> torch.Tensor:
        stacked = torch.from_numpy(np.asarray(self.images[list(indices)])).permute(0, 3, 1, 2)
        return stacked.contiguous().float().mul_(1 / 127.5).sub_(1)

    @cached_property
    def _before(self) -> dict[int, int]:
        """The item of the preceding frame, for every item that has one."""
        return {b: a for run in self.data.sequences() for a, b in pairwise(run)}


def to_pixels(image: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1], float [..., C, H, W] -> uint8 [..., H, W, C]."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, C] -> values in [-1, 1], float32 [..., C, H, W]."""
    return pixels.movedim(-1, -3).contiguous().float() / 127.5 - 1


def each(work: Callable[[Item], T], items: Sequence[Item], what: str, show: bool, block: int = 256) -> Iterator[T]:
    """The work's results in the items' order, by several threads; with a bar if `show` and stderr is a terminal.

    Decoders let other threads run; for tiny files, which are all Python, one thread is twice as fast as two.
    """
    from rich.console import Console
    from rich.progress import track

    sample = items[:: max(1, len(items) // 32)]
    tiny = sum(item.image.stat().st_size for item in sample if item.image.is_file()) < 16_384 * len(sample)
    with ThreadPoolExecutor(1 if tiny else min(8, os.cpu_count() or 1)) as pool:
        blocks = (items[start : start + block] for start in range(0, len(items), block))
        results = (result for part in blocks for result in (map if tiny else pool.map)(work, part))
        console = Console(file=sys.stderr)
        hidden = not (show and console.is_terminal)
        yield from track(results, what, len(items), console=console, transient=True, disable=hidden)


def _no_masks(size: Size) -> Bytes:
    return np.zeros((0, *size), np.uint8)


def _common_size(data: Data) -> tuple[Size, list[str]]:
    """The size for these images, with a note where it is not their own."""
    with ThreadPoolExecutor() as pool:
        sizes = np.array(list(pool.map(lambda item: image_size(item.image), data.items)))
    low, high = sizes.min(0).tolist(), sizes.max(0).tolist()
    if low == high and max(high) <= LARGE:
        return (high[0], high[1]), []
    middle = np.median(sizes, axis=0)
    scale = min(1.0, LONG / middle.max())
    height, width = (max(16, round(side * scale / 16) * 16) for side in middle.tolist())
    spread = [str(least) if least == most else f"{least} to {most}" for least, most in zip(low, high, strict=True)]
    note = (
        f"images are {spread[0]} high and {spread[1]} wide; all are resized to "
        f"{height} x {width} (height x width), which you can choose with the size setting"
    )
    return (height, width), [note]


def _build(data: Data, size: Size, folder: Path, progress: bool) -> None:
    """Decode everything into a folder of another name, then rename it; who comes second discards his own."""
    need = size[0] * size[1] * (len(data) * data.channels + sum(len(item.masks) for item in data.items))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        if shutil.disk_usage(folder.parent).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary = Path(tempfile.mkdtemp(suffix=".tmp", dir=folder.parent))
        try:
            with (temporary / "images.u8").open("wb") as images, (temporary / "masks.u8").open("wb") as masks:
                _fill(data, size, images, masks, progress)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SegmintError(
            f"{folder.parent}: the cache cannot be written ({error.strerror or error}); it needs "
            f"{need / 1e6:,.0f} MB: free some space, choose a smaller size, or point SEGMINT_CACHE elsewhere"
        ) from error


def _fill(data: Data, size: Size, images: BinaryIO, masks: BinaryIO, progress: bool) -> None:
    def work(item: Item) -> tuple[Bytes, list[Bytes]]:
        return _decode(item, data, size)

    for image, raters in each(work, data.items, "decoding", progress):
        images.write(image.tobytes())
        for mask in raters:
            masks.write(mask.tobytes())


def _decode(item: Item, data: Data, size: Size) -> tuple[Bytes, list[Bytes]]:
    image = read_image(item.image, channels=data.channels, depth=data.depth)
    raters = []
    for path in item.masks:
        mask = read_mask(path, data.classes)
        if mask.shape != image.shape[:2]:
            raise SegmintError(size_text(path, mask, item.image, image))
        raters.append(resize(mask, size, Image.Resampling.NEAREST))
    return resize(image, size, Image.Resampling.BILINEAR), raters


def size_text(mask_path: Path, mask: Array, image_path: Path, image: Array) -> str:
    """A sentence on a mask that is not as large as its image."""
    return (
        f"{mask_path}: {mask.shape[1]} x {mask.shape[0]} pixels, but its image {image_path.name} has "
        f"{image.shape[1]} x {image.shape[0]}; make the mask for the image as it is"
    )


def resize(pixels: Bytes, size: Size, filter: Image.Resampling) -> Bytes:
    """uint8 [H, W] or [H, W, C] resized to `size` (height, width); the array itself where it fits already."""
    if pixels.shape[:2] == size:
        return pixels
    flat = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    changed = np.asarray(Image.fromarray(flat).resize((size[1], size[0]), filter))
    return changed.reshape(*size, *pixels.shape[2:])


def _sweep(store: Path) -> None:
    """Remove what builds that were killed more than a day ago have left."""
    for left in store.glob("*.tmp"):
        try:
            old = time.time() - left.stat().st_mtime > 86400
        except OSError:
            continue
        if old and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
