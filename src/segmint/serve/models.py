"""The models of a server: runs and exported models by name, and what each can do with arrays in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmint.data.cache import resize
from segmint.data.classes import Classes
from segmint.data.io import Bytes
from segmint.inference.batch import digest
from segmint.inference.draws import Draws, draw, dropouts, usual_draws
from segmint.inference.exported import opened
from segmint.inference.generate import MOST, make_block, to_bytes
from segmint.inference.masks import Originals
from segmint.inference.predict import check_draws, fitted, prediction_of
from segmint.methods.method import device_of
from segmint.nets.layers import resize as resize_maps
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import IGNORE, Prediction, SegmintError

Sources: TypeAlias = Sequence[Run | str | Path] | Mapping[str, Run | str | Path]

JOBS = ("segment", "draws", "generate", "paint", "repaint")
"""What a model may be able to do: segment; draw several masks that differ; make pairs; paint masks; paint masks over a
photograph."""

LEAST_SIDE = 8
"""Images and masks with fewer pixels than this on a side show nothing that could be segmented or painted."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DROPPING = Lock()
"""Dropout draws from PyTorch's own generator, which all threads share."""


class UnknownModelError(SegmintError):
    """There is no model of this name."""


class Pair(NamedTuple):
    """A generated image, uint8 [H, W, C], and its mask, uint8 [H, W] of class indices (`IGNORE` where unknown)."""

    image: Bytes
    mask: Bytes


@dataclass(frozen=True)
class Model:
    """One run or exported model in memory. Its methods may be called by several threads; they compute in turn.

    Attributes:
        name: letters, digits, `.`, `_` and `-`.
        run: where it comes from.
    """

    name: str
    run: Run
    _turn: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def classes(self) -> Classes:
        """Its K classes."""
        return self.run.classes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on, and of those that it makes."""
        return self.run.size

    @cached_property
    def channels(self) -> int:
        """1: its images are grey; 3: in colour."""
        return int(self.run.method.config["in_channels"])

    @cached_property
    def jobs(self) -> tuple[str, ...]:
        """What it can do, of `JOBS`."""
        method, able = self.run.method, self.run.method.capabilities()
        segments, generates = "segment" in able, "generate" in able
        can = {
            "segment": segments,
            "draws": segments and (method.draws_differ or bool(dropouts(method))),
            "generate": generates and not method.needs_mask,
            "paint": generates and "mask" in method.conditions,
            "repaint": generates and {"mask", "image"} <= method.conditions,
        }
        return tuple(job for job in JOBS if can[job])

    @cached_property
    def usual_draws(self) -> int:
        """How many masks it draws where nobody says."""
        return usual_draws(self.run.method)

    @cached_property
    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of its files."""
        return digest(self.run)[:16]

    def require(self, job: str) -> None:
        """Raise a SegmintError unless it can do this."""
        if job not in self.jobs:
            able = " and ".join(_CAN[job] for job in self.jobs)
            raise SegmintError(f"model {self.name!r}: cannot {_CAN[job]}; it can {able}")

    def settle_draws(self, draws: int | None) -> int:
        """How many masks to draw.

        Raises:
            SegmintError: less than one; or several, where they would all be the same.
        """
        self.require("segment")
        check_draws(draws)
        if draws is not None and draws > 1 and "draws" not in self.jobs:
            raise SegmintError(
                f"draws: model {self.name!r} gives one mask for an image, so {draws} draws would all be the same; "
                "leave draws out, or ask a model that can draw"
            )
        return self.usual_draws if draws is None else draws

    def shown(self, image: Bytes) -> Tensor:
        """An image as the model is shown it, float32 [1, C, h, w] in [-1, 1], on the CPU.

        Args:
            image: uint8 [H, W], [H, W, 1] or [H, W, 3], of any size.

        Raises:
            SegmintError: no such array, too small, or too long and thin.
        """
        pixels = as_channels(image, self.channels)
        _check_sides("image", pixels)
        return fitted(torch.from_numpy(pixels), self.size)

    def draw(self, shown: Sequence[Tensor], seeds: Sequence[int], draws: int) -> list[Draws]:
        """Draw masks for several images of one shown size in one go.

        Args:
            shown: of `shown`, all of one size; `seeds`: one each.
            draws: how many masks of each, see `settle_draws`.

        Returns:
            What was drawn for each, up to rounding what it would be alone.
        """
        method = self.run.method
        seen = torch.cat(list(shown)).to(device_of(method))
        drops = draws > 1 and not method.draws_differ
        with self._turn, _DROPPING if drops else nullcontext():
            found = draw(method, seen, Seeds(seeds), draws)
        return [_item(found, place) for place in range(len(shown))]

    def finish(self, image: Bytes, found: Draws, plausible: bool = True) -> Prediction:
        """What was drawn for an image, at the image's own size; draws and alternatives only where `plausible`."""
        return prediction_of(self.run, torch.from_numpy(as_channels(image, self.channels)), found, plausible)

    def probabilities(self, size: tuple[int, int], found: Draws) -> Tensor:
        """What was drawn for an image of this height and width, as probabilities alone: float32 [K, H, W].

        The most probable classes are the labels of `finish`, which takes longer.
        """
        return resize_maps(found.probabilities, size)[0].cpu()

    def make(self, seeds: Sequence[int]) -> list[Pair]:
        """One pair for each seed, of the model's size.

        Raises:
            SegmintError: it cannot generate, or made values that are not finite.
        """
        self.require("generate")
        with self._turn:
            batch = make_block(self.run, seeds)
        return [Pair(*to_bytes(batch, place)) for place in range(len(seeds))]

    def fit_mask(self, mask: Bytes) -> Bytes:
        """A mask to be painted, at the model's size (the nearest pixel's class).

        Args:
            mask: [H, W] of class indices 0..K-1, or `IGNORE` where the model may choose.

        Raises:
            SegmintError: no such array, too small, or a class that the model does not have.
        """
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype.kind not in "iu":
            raise SegmintError(f"mask: must be whole numbers [H, W], not {mask.dtype} {list(mask.shape)}")
        _check_sides("mask", mask)
        known = len(self.classes)
        wrong = np.unique(mask[(mask != IGNORE) & ((mask < 0) | (mask >= known))])
        if len(wrong):
            raise SegmintError(
                f"mask: holds {int(wrong[0])}, but the classes of model {self.name!r} are 0 to {known - 1}, and "
                f"{IGNORE} for pixels that it may choose"
            )
        return resize(np.ascontiguousarray(mask, np.uint8), self.size, Image.Resampling.NEAREST)

    def fit_image(self, image: Bytes) -> Bytes:
        """A photograph to be painted over, uint8 [h, w, C] at the model's size."""
        self.require("repaint")
        pixels = as_channels(image, self.channels)
        _check_sides("image", pixels)
        return resize(pixels, self.size, Image.Resampling.BILINEAR)

    def paint(self, masks: Sequence[Bytes], seeds: Sequence[int], images: Sequence[Bytes] | None = None) -> list[Bytes]:
        """An image for each mask, uint8 [h, w, C] of the model's size.

        Args:
            masks: of `fit_mask`; `seeds`: one each.
            images: of `fit_image`, photographs to paint over; None for new images.

        Raises:
            SegmintError: it cannot paint, or made values that are not finite.
        """
        self.require("paint" if images is None else "repaint")
        below = [np.zeros((*mask.shape, self.channels), np.uint8) for mask in masks] if images is None else images
        originals = Originals(np.stack(masks), np.stack(below), ("",) * len(masks))
        with self._turn:
            batch = make_block(self.run, seeds, originals, repaint=images is not None)
        return [to_bytes(batch, place)[0] for place in range(len(seeds))]


class Models:
    """Models by name, loaded at once. May be used by several threads.

    Args:
        sources: runs, their folders, or model files that `segmint export` wrote; with names of one's own as a mapping.
            Else a run is called like its folder, and a file like its folder and itself: `runs/a/model.onnx` is
            "a-model".
        device: "cpu" or "cuda", for runs; exported models compute on the CPU.

    Raises:
        SegmintError: there is none, a name is unfit or used twice, or a model cannot be read.
    """

    def __init__(self, sources: Sources, device: str = "cpu") -> None:
        named = list(sources.items()) if isinstance(sources, Mapping) else [(name_of(run), run) for run in sources]
        if not named:
            raise SegmintError("models: none given; name a run folder or an exported model")
        self._models: dict[str, Model] = {}
        for name, source in named:
            if not _NAME.fullmatch(name):
                raise SegmintError(f"model name {name!r}: use letters, digits, '.', '_' and '-', 100 at most")
            if name in self._models:
                raise SegmintError(f"model name {name!r}: is used twice; give them other names, NAME=RUN")
            run = opened(source)
            if device != "cpu":
                _move(run, device)
            model = Model(name, run)
            _ = (run.method, model.classes, model.digest)
            if not model.jobs:
                raise SegmintError(f"{run.folder}: {run.method.name} neither segments nor generates; leave it out")
            self._models[name] = model

    def __getitem__(self, name: str) -> Model:
        """The model of this name.

        Raises:
            UnknownModelError: there is none.
        """
        if name not in self._models:
            raise UnknownModelError(f"model: there is no {_short(name)}; there are {', '.join(self._models)}")
        return self._models[name]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were given."""
        return tuple(self._models)

    def able(self, job: str) -> tuple[str, ...]:
        """The names of the models that can do a job of `JOBS`."""
        return tuple(model.name for model in self if job in model.jobs)

    def segment(self, name: str, image: Bytes, *, draws: int | None = None, seed: int = 0) -> Prediction:
        """Segment an image, as `segmint.predict` does.

        Args:
            name: of the model.
            image: uint8 [H, W], [H, W, 1] or [H, W, 3].
            draws: how many masks to draw; None: 16 where the model draws at random, else 1.
            seed: of the draws.

        Raises:
            UnknownModelError: there is no such model.
            SegmintError: it does not segment or draw, or the image is not fit for it.
        """
        model = self[name]
        count = model.settle_draws(draws)
        return model.finish(image, model.draw([model.shown(image)], [seed], count)[0])

    def generate(self, name: str, count: int = 1, seed: int = 0) -> list[Pair]:
        """Make pairs: those of `segmint generate --seed`, up to rounding.

        Raises:
            UnknownModelError: there is no such model.
            SegmintError: it does not generate on its own, or `count` is not positive.
        """
        return self[name].make(pair_seeds(count, seed))

    def paint(self, name: str, mask: Bytes, *, seed: int = 0, image: Bytes | None = None) -> Bytes:
        """Paint a mask.

        Args:
            name: of the model.
            mask: [H, W] of class indices 0..K-1, or `IGNORE` where the model may choose; of any size, see `fit_mask`.
            seed: another gives another picture.
            image: uint8 [H, W, C], a photograph to paint over, for models that can "repaint".

        Returns:
            uint8 [h, w, C], of the model's size.

        Raises:
            UnknownModelError: there is no such model.
            SegmintError: it does not paint (over photographs), or the mask is not fit for it.
        """
        model = self[name]
        model.require("paint" if image is None else "repaint")
        return model.paint([model.fit_mask(mask)], [seed], None if image is None else [model.fit_image(image)])[0]


def pair_seeds(count: int, seed: int) -> list[int]:
    """The seeds of the pairs 0..count-1 of a set.

    Raises:
        SegmintError: there are none of these.
    """
    if not 1 <= count <= MOST:
        raise SegmintError(f"count: must be at least 1 and at most {MOST:,}, not {count}")
    return [seed * MOST + number for number in range(count)]


def name_of(source: Run | str | Path) -> str:
    """What a model is called unless somebody names it."""
    path = (source.folder if isinstance(source, Run) else Path(source)).resolve()
    name = path.name if path.is_dir() or not path.suffix else f"{path.parent.name}-{path.stem}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100]


def as_channels(image: Bytes, channels: int) -> Bytes:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] -> [H, W, channels], contiguous; colour becomes its luma, grey is repeated.

    Raises:
        SegmintError: another array.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise SegmintError(f"image: must be uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} {image.shape}")
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.shape[2] > channels:
        pixels = np.rint(pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)).astype(np.uint8)
    elif pixels.shape[2] < channels:
        pixels = pixels.repeat(channels, 2)
    return np.array(pixels, order="C")


_CAN = {
    "segment": "segment",
    "draws": "draw several masks",
    "generate": "make pairs",
    "paint": "paint masks",
    "repaint": "paint over photographs",
}


def _check_sides(what: str, pixels: Bytes) -> None:
    height, width = pixels.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise SegmintError(
            f"{what}: is {width} x {height} pixels; give one with {LEAST_SIDE} pixels or more on each side"
        )


def _item(found: Draws, place: int) -> Draws:
    """What was drawn for one image of a batch."""
    one = slice(place, place + 1)
    return replace(
        found,
        probabilities=found.probabilities[one],
        uncertainty=found.uncertainty[one],
        aleatoric=found.aleatoric[one],
        epistemic=None if found.epistemic is None else found.epistemic[one],
        masks=found.masks[:, one],
        errors=None if found.errors is None else found.errors[one],
    )


def _move(run: Run, device: str) -> None:
    try:
        run.method.to(device)
    except (RuntimeError, AssertionError) as error:
        raise SegmintError(f"--device {device}: cannot be used ({error}); use --device cpu") from error


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "...")
