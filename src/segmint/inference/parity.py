"""Whether an exported model says the same as the run that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmint.data.cache import resize
from segmint.data.folder import Data
from segmint.data.io import Bytes, read_image
from segmint.data.masks import read_mask
from segmint.functional.labels import most_likely
from segmint.functional.metrics import confusion, mean_iou
from segmint.inference.exported import ExportedSegmenter
from segmint.inference.predict import fitted
from segmint.methods.method import Method
from segmint.nets.layers import resize as enlarge
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import IGNORE

PROBABILITY = 1e-3
"""The most that a probability, or a colour in [-1, 1], of a float32 model may be off."""

AGREEMENT = {"float32": 0.999, "int8": 0.97}
"""The least share of pixels whose class must be the same."""

POINTS = 0.5
"""The most that 8 bits may cost of the mean IoU, in points of 100, where there are masks to know it from."""


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from its run.

    Attributes:
        images: how many were compared.
        difference: the largest absolute difference of a probability, or of a colour in [-1, 1].
        agreement: the share of pixels of the same class, 0..1; 1 for a painter, which is given them.
        before, after: mean IoU in points on validation images, of run and model; None where it was not measured.
    """

    images: int
    difference: float
    agreement: float
    before: float | None = None
    after: float | None = None

    def broken(self, precision: str, points: float = POINTS) -> str | None:
        """What is beyond tolerance, in words, or None.

        Args:
            precision: "float32" or "int8".
            points: of mean IoU that int8 may cost.
        """
        if precision == "float32" and not self.difference <= PROBABILITY:
            return f"differs by up to {self.difference:.2g}, more than {PROBABILITY:g}"
        if not self.agreement >= AGREEMENT[precision]:
            return f"agrees on {self.agreement:.2%} of the pixels, less than {AGREEMENT[precision]:.1%}"
        if self.before is not None and self.after is not None and not self.before - self.after <= points:
            return f"has a mean IoU of {self.after:.2f} instead of {self.before:.2f}, more than {points:g} points less"
        return None

    def __str__(self) -> str:
        told = f"{self.images} images compared: largest difference {self.difference:.2g}, "
        told += f"same class on {self.agreement:.3%} of the pixels"
        if self.before is None or self.after is None:
            return told
        return f"{told}; mean IoU {self.after:.2f}, before {self.before:.2f}"


def compare(run: Run, twin: Run, data: Data | None = None) -> Parity:
    """Show both the same and compare what they say.

    Args:
        run: the run; `twin`: its exported model.
        data: whose images are shown to a segmenter, at several sizes; None: noise.
    """
    if isinstance(twin.method, ExportedSegmenter):
        return _compare_segmenters(run, twin.method, _samples(run, data))
    return _compare_generators(run, twin.method)


def with_scores(parity: Parity, run: Run, twin: Run, data: Data, most: int = 100) -> Parity:
    """The same with the mean IoU of both on (at most so many) validation images that have masks, if there are any."""
    items = [data.items[index] for index in data.split("val") if data.items[index].masks] if _has_val(data) else []
    if not items or not isinstance(twin.method, ExportedSegmenter):
        return parity
    method, exported = run.method, twin.method
    chosen = [items[place] for place in spread(len(items), most)]

    def score(labels_of: Callable[[Tensor], Tensor]) -> float:
        table = torch.zeros(len(run.classes), len(run.classes), dtype=torch.int64)
        for item in chosen:
            image = torch.from_numpy(np.array(read_pixels(run, item.image)))[None]
            truth = torch.from_numpy(read_mask(item.masks[0], data.classes)).long()[None]
            table += confusion(labels_of(image).long(), truth, len(run.classes)).sum(0)
        return 100 * float(mean_iou(table[None])[0])

    seeds = Seeds([0])
    with torch.inference_mode():
        before = score(lambda image: segment_pixels(method, image, run.size, seeds[:])[0])
        after = score(lambda image: exported.segment_pixels(image, seeds[:])[0])
    return replace(parity, before=before, after=after)


def segment_pixels(method: Method, image: Tensor, size: tuple[int, int], seeds: Seeds) -> tuple[Tensor, Tensor]:
    """What an exported model computes, by the method itself: labels and probabilities of one draw.

    Args:
        image: uint8 [B, H, W, C].
        size: height and width of the training images.
        seeds: one per image.

    Returns:
        uint8 [B, H, W] and float32 [B, K, H, W].
    """
    shown = torch.cat([fitted(single, size) for single in image])
    likely = method.segment(shown, seeds).softmax(1)
    probabilities = enlarge(likely, (int(image.shape[1]), int(image.shape[2])))
    return most_likely(probabilities).to(torch.uint8), probabilities


def read_pixels(run: Run, path: Path) -> Bytes:
    """An image as the run's method takes it: uint8 [H, W, C]."""
    return read_image(path, channels=run.method.config["in_channels"], depth=run.settings.depth)


def spread(count: int, most: int) -> list[int]:
    """At most so many places of `count`, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


def _has_val(data: Data) -> bool:
    return "val" in data.split_names


def _compare_segmenters(run: Run, exported: ExportedSegmenter, samples: Iterable[Tensor]) -> Parity:
    images, pixels, same, most = 0, 0, 0, 0.0
    with torch.inference_mode():
        for number, batch in enumerate(samples):
            seeds = Seeds.range(len(batch), 10 * number)
            truth, likely = segment_pixels(run.method, batch, run.size, seeds[:])
            labels, probabilities = exported.segment_pixels(batch, seeds[:])
            most = max(most, float((probabilities - likely).abs().nan_to_num(torch.inf).max()))
            same += int((labels == truth).sum())
            images, pixels = images + len(batch), pixels + truth.numel()
    return Parity(images, most, same / pixels)


def _compare_generators(run: Run, exported: Method) -> Parity:
    count = 4
    mask = None
    if exported.needs_mask:
        height, width = run.size
        rows = torch.arange(height)[:, None] * 3 // height + torch.arange(width) * 2 // width
        mask = torch.stack([(rows + shift) % len(run.classes) for shift in range(count)])
        mask[0, :2] = IGNORE
    with torch.inference_mode():
        truth = run.method.generate(Seeds.range(count), mask=mask)
        made = exported.generate(Seeds.range(count), mask=mask)
    difference = float((made.image - truth.image).abs().nan_to_num(torch.inf).max())
    return Parity(count, difference, float((made.mask == truth.mask).float().mean()))


def _samples(run: Run, data: Data | None) -> list[Tensor]:
    """Batches of images of several sizes: uint8 [B, H, W, C]."""
    height, width = run.size
    sizes = [(height, width), (height * 5 // 3 + 1, width * 3 // 2), (height // 2 + 1, width * 2 // 3 + 1)]
    found = _real(run, data) or _noise(run)
    batches = [np.stack([resize(image, size, Image.Resampling.BILINEAR) for image in found]) for size in sizes]
    return [torch.from_numpy(batch) for batch in batches] + [torch.from_numpy(found[0].copy())[None]]


def _real(run: Run, data: Data | None) -> Sequence[Bytes]:
    if data is None:
        return []
    indices = (data.split("val") if _has_val(data) else []) or list(range(len(data)))
    return [read_pixels(run, data.items[indices[place]].image) for place in spread(len(indices), 3)]


def _noise(run: Run) -> Sequence[Bytes]:
    """Three images of coloured clouds."""
    numbers = np.random.default_rng(0)
    coarse = numbers.integers(0, 256, (3, 7, 5, int(run.method.config["in_channels"])), dtype=np.uint8)
    return [resize(image, run.size, Image.Resampling.BICUBIC) for image in coarse]
