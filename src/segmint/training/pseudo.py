"""Masks of unlabelled images, predicted by a segmenter that was trained before (pseudo-labels, Lee 2013)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from segmint.config import read_run
from segmint.data.cache import Pixels
from segmint.data.classes import read_classes
from segmint.data.io import Bytes, replacing
from segmint.data.store import cache_folder, digest_of
from segmint.methods.method import Method, device_of, load
from segmint.nets.layers import resize
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

VERSION = 1
"""Changes whenever the same segmenter would predict other masks."""

BLOCK = 16


@dataclass(frozen=True)
class PredictedMasks:
    """A source of batches in which some items have predicted masks.

    Attributes:
        source: where the images and all other masks come from.
        masks: uint8 [N, H, W] of class indices, `IGNORE` where the segmenter was not sure, memory-mapped.
        rows: for each item with a predicted mask its row of `masks`.
        digest: stands for the segmenter, the items and how they were predicted.
        notes: sentences that should be said aloud.
    """

    source: Pixels
    masks: Bytes
    rows: Mapping[int, int]
    digest: str
    notes: tuple[str, ...] = ()

    def batch(
        self,
        indices: Sequence[int],
        *,
        raters: Sequence[int] | None = None,
        labelled: Sequence[bool] | None = None,
        previous: bool = False,
    ) -> Batch:
        """Items as `Pixels.batch` gives them, but with their predicted masks, where they have one."""
        batch = self.source.batch(indices, raters=raters, labelled=labelled, previous=previous)
        for place, index in enumerate(indices):
            if index in self.rows:
                batch.mask[place] = torch.from_numpy(self.masks[self.rows[index]].astype(np.int64))
        return batch


def predict_masks(
    pixels: Pixels, items: Sequence[int], run: Path, *, confidence: float = 0.7, device: str = "auto"
) -> PredictedMasks:
    """Predict masks for some items, or find what was predicted before.

    The class probabilities are averaged over the image and its mirror image, at the size that the segmenter was
    trained at. The masks lie in the cache folder (see `Pixels.open`).

    Args:
        pixels: the images.
        items: which of them are to have predicted masks.
        run: the folder of a finished run whose method segments.
        confidence: pixels whose largest class probability is below this become `IGNORE`, 0..1.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        SegmintError: there is no such run, it does not segment, or it was trained on other classes or channels.
    """
    method = _segmenter(pixels, run)
    files = [pixels.data.items[item].image for item in items]
    digest = _digest(run, confidence, pixels.size, [path.stat().st_size for path in files])
    stamps = [(str(path.resolve()), path.stat().st_mtime_ns) for path in files]
    path, shape = cache_folder() / f"{digest_of([digest, stamps])}.predicted.u8", (len(items), *pixels.size)
    if not path.is_file() or path.stat().st_size != int(np.prod(shape)):
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        with replacing(path) as temporary, temporary.open("wb") as file:
            _fill(method.to("cuda" if cuda else "cpu"), pixels, items, confidence, file)
    masks = np.memmap(path, np.uint8, "r", shape=shape) if items else np.zeros(shape, np.uint8)
    known = float((masks != IGNORE).mean()) if items else 0.0
    note = (
        f"{len(items):,} images without masks have those that {run} predicts: {100 * known:.0f}% of their pixels, "
        f"where it gives a class a probability of {confidence:g} or more"
    )
    return PredictedMasks(pixels, masks, {item: row for row, item in enumerate(items)}, digest, (note,))


def _segmenter(pixels: Pixels, run: Path) -> Method:
    """The run's method, if it can segment these images."""
    method = load(run)
    if "segment" not in method.capabilities():
        raise SegmintError(f"masks_from: {run} is a run of {method.name}, which does not segment; name one that does")
    if not pixels.data.classes.same_as(read_classes(run / "classes.yaml")):
        raise SegmintError(f"masks_from: {run} was trained on other classes than those of {pixels.data.root}")
    if method.config["in_channels"] != pixels.data.channels:
        raise SegmintError(
            f"masks_from: {run} takes images of {method.config['in_channels']} channels, "
            f"those of {pixels.data.root} have {pixels.data.channels}"
        )
    depth = read_run(run).depth
    if depth != pixels.data.depth:
        raise SegmintError(
            f"masks_from: {run} was trained on images of {depth} bits, those of {pixels.data.root} have "
            f"{pixels.data.depth}; train it anew on these"
        )
    return method


def _digest(run: Path, confidence: float, size: tuple[int, int], bytes_of: Sequence[int]) -> str:
    """Stays the same when the images are copied to another place."""
    weights = hashlib.sha256((run / "model.safetensors").read_bytes())
    weights.update((run / "method.json").read_bytes())
    return digest_of([VERSION, weights.hexdigest(), confidence, size, bytes_of])


@torch.inference_mode()
def _fill(method: Method, pixels: Pixels, items: Sequence[int], confidence: float, file: BinaryIO) -> None:
    """Write the masks of the items, one after another."""
    from rich.console import Console
    from rich.progress import track

    height, width = method.config["image_size"]
    scale = min(height, width) / min(pixels.size)
    size = (max(1, round(pixels.size[0] * scale)), max(1, round(pixels.size[1] * scale)))
    console = Console(file=sys.stderr)
    starts = range(0, len(items), BLOCK)
    for start in track(starts, "predicting masks", console=console, transient=True, disable=not console.is_terminal):
        chosen = list(items[start : start + BLOCK])
        image = resize(pixels.batch(chosen).image.to(device_of(method)), size)
        probability, labels = resize(_probabilities(method, image, chosen), pixels.size).max(1)
        mask = labels.masked_fill(probability < confidence, IGNORE)
        file.write(mask.to(torch.uint8).cpu().numpy().tobytes())


def _probabilities(method: Method, image: Tensor, items: Sequence[int]) -> Tensor:
    """Class probabilities [B, K, H, W], the mean over the images and their mirror images."""
    seeds = Seeds(items)
    straight = method.segment(image, seeds).float().softmax(1)
    mirrored = method.segment(image.flip(-1), seeds.fork("mirrored")).float().softmax(1)
    return (straight + mirrored.flip(-1)) / 2
