"""Masks to paint: real, predicted, varied, or drawn by a generator of masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from segmint.data.cache import Pixels, from_pixels, resize, to_pixels
from segmint.data.folder import Data, open_folder, rejected
from segmint.data.io import Bytes
from segmint.data.objects import Pair, object_classes
from segmint.data.variations import vary
from segmint.methods.method import device_of
from segmint.seeds import Seeds, mix
from segmint.training.pseudo import PredictedMasks, predict_masks
from segmint.training.run import Run
from segmint.types import Batch, SegmintError

LOOKED_AT = 500
"""No more masks than this are looked at to learn which classes come as objects."""


@dataclass(frozen=True)
class MaskMix:
    """How often each kind of mask is to be painted, as weights that need not sum to one.

    Attributes:
        real: the masks that the run was trained with.
        predicted: those that a segmenter predicts for the unlabelled images.
        varied: real ones (or predicted ones, in their proportion) mirrored, bent, with objects moved or exchanged.
        drawn: the masks of the pairs that another run generates.
    """

    real: float = 0.0
    predicted: float = 0.0
    varied: float = 0.0
    drawn: float = 0.0

    def __post_init__(self) -> None:
        weights = list(asdict(self).values())
        if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise SegmintError(f"--mix {self}: weights must be 0 or more, and one of them above 0")

    def __str__(self) -> str:
        return ",".join(f"{name}={weight:g}" for name, weight in asdict(self).items() if weight)

    @classmethod
    def parse(cls, text: str) -> MaskMix:
        """The mixture that is written "real=1,varied=2"; what is not named has the weight 0.

        Raises:
            SegmintError: a name or a weight means nothing.
        """
        weights: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            name = name.strip()
            if name not in cls.__dataclass_fields__ or name in weights:
                known = ", ".join(cls.__dataclass_fields__)
                raise SegmintError(f"--mix {text!r}: {part!r} is not one of {known}, once each, e.g. real=1,varied=1")
            try:
                weights[name] = float(number)
            except ValueError as error:
                raise SegmintError(f"--mix {text!r}: {name} needs a number, e.g. {name}=1") from error
        return cls(**weights)

    def draw(self, random: np.random.Generator) -> str:
        """The name of one of the kinds."""
        weights = np.array(list(asdict(self).values()))
        return list(asdict(self))[random.choice(len(weights), p=weights / weights.sum())]


@dataclass(frozen=True)
class Originals:
    """Masks to paint, with the images that they belong to.

    Attributes:
        masks: uint8 [B, H, W] of class indices, `IGNORE` where unknown.
        images: uint8 [B, H, W, C].
        names: where each comes from, e.g. "varied:train/000123".
    """

    masks: Bytes
    images: Bytes
    names: tuple[str, ...]

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """The same as tensors."""
        return Batch(
            from_pixels(torch.from_numpy(self.images).to(device)), torch.from_numpy(self.masks).long().to(device)
        )


class MaskSource(Protocol):
    """Where masks to paint come from."""

    def take(self, numbers: Sequence[int], seeds: Sequence[int]) -> Originals:
        """One for each item: a function of its number and its seed alone, in blocks that are always the same."""
        ...

    def facts(self) -> Mapping[str, str | float]:
        """What determines the masks, to be compared when a folder is completed later."""
        ...


class FolderMasks:
    """The masks of a data folder, one after the other and again from the first; resized to the run's size.

    Args:
        run: whose method is to paint them.
        folder: a data folder of the same classes. Of several raters, the first is taken.

    Raises:
        SegmintError: it has other classes, no masks, or images that the method cannot be shown.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        data = open_folder(folder)
        if not data.classes.same_as(run.classes):
            raise SegmintError(f"--masks {folder}: its classes are not those of {run.folder}; choose another folder")
        dropped = rejected(folder)
        self.items = [i for i, item in enumerate(data.items) if item.masks and item.name not in dropped]
        if not self.items:
            raise SegmintError(f"--masks {folder}: none of its images has a mask; choose another folder")
        self.channels = int(run.method.config["in_channels"])
        self.pixels = Pixels.open(replace(data, depth=run.settings.depth), run.size)

    def take(self, numbers: Sequence[int], seeds: Sequence[int]) -> Originals:
        """Item i gets the mask i, counted round."""
        chosen = [self.items[number % len(self.items)] for number in numbers]
        images = np.stack([self.pixels.images[item] for item in chosen])
        if images.shape[-1] != self.channels:
            images = images.mean(-1, keepdims=True).repeat(self.channels, -1).astype(np.uint8)
        masks = np.stack([self.pixels.masks[self.pixels.rows[item][0]] for item in chosen])
        return Originals(masks, images, tuple(self.pixels.data.items[item].name for item in chosen))

    def facts(self) -> Mapping[str, str | float]:
        """The folder and its files."""
        return {"masks": str(self.pixels.data.root.resolve()), "files": _digest(self.pixels.data, self.items)}


class MixedMasks:
    """Masks of several kinds, chosen by each item's seed.

    Args:
        run: whose method is to paint them; the training images that its budget gives masks are the labelled ones.
        mix: how often each kind.
        segmenter: the run that predicts masks for the unlabelled ones.
        mask_generator: the run that draws masks.

    Raises:
        SegmintError: the mixture names what is not there, or something is there that it does not name.
    """

    def __init__(
        self, run: Run, mix: MaskMix, *, segmenter: Path | None = None, mask_generator: Path | None = None
    ) -> None:
        self.run, self.mix, self.segmenter, self.mask_generator = run, mix, segmenter, mask_generator
        options = {"predicted": ("--segmenter", segmenter), "drawn": ("--mask-generator", mask_generator)}
        for kind, (option, given) in options.items():
            if getattr(mix, kind) and given is None:
                raise SegmintError(f"--mix {mix}: {kind} masks need a run that makes them; name it with {option} RUN")
            if given is not None and not getattr(mix, kind):
                raise SegmintError(f"{option}: nothing in --mix {mix} asks for it; add {kind}=1 or leave it out")
        if mix.real or mix.varied or mix.predicted:
            self._check_pools()
        if mix.drawn:
            _check_drawer(run, self._drawer)

    def _check_pools(self) -> None:
        where = self.run.settings.data
        if (self.mix.real or not self.mix.predicted) and not self._labelled:
            raise SegmintError(f"--mix {self.mix}: {self.run.folder} was trained without real masks; use others")
        if self.mix.predicted and not len(self._predicted.rows):
            raise SegmintError(f"--mix {self.mix}: {where} has no unlabelled training images to predict masks for")

    def take(self, numbers: Sequence[int], seeds: Sequence[int]) -> Originals:
        """Item by item, each with a random stream of its own; drawn ones together."""
        streams = [np.random.default_rng(mix("masks", seed)) for seed in seeds]
        kinds = [self.mix.draw(random) for random in streams]
        drawn = iter(self._drawn([seed for seed, kind in zip(seeds, kinds, strict=True) if kind == "drawn"]))
        pairs, names = [], []
        for kind, random in zip(kinds, streams, strict=True):
            pair, name = next(drawn) if kind == "drawn" else self._known(kind, random)
            pairs.append(pair)
            names.append(name)
        return Originals(np.stack([p.mask for p in pairs]), np.stack([p.image for p in pairs]), tuple(names))

    def facts(self) -> Mapping[str, str | float]:
        """The mixture, and stamps of the data and the runs that it uses."""
        told: dict[str, str | float] = {"mix": str(self.mix)}
        if self.mix.real or self.mix.varied or self.mix.predicted:
            told["files"] = _digest(self._pixels.data, self._labelled)
        if self.segmenter is not None:
            told |= {"segmenter": str(self.segmenter.resolve()), "predicted": self._predicted.digest}
        if self.mask_generator is not None:
            told |= {"mask_generator": str(self.mask_generator.resolve()), "drawn_by": weights(self.mask_generator)}
        return told

    def _known(self, kind: str, random: np.random.Generator) -> tuple[Pair, str]:
        """A real, predicted or varied pair, and its name."""
        if kind != "varied":
            pair, name = self._pick(kind, random)
            return pair, f"{kind}:{name}"
        sides = np.array([self.mix.real, self.mix.predicted])
        share = sides[1] / sides.sum() if sides.sum() else 0.0
        pair, name = self._pick("predicted" if random.random() < share else "real", random)
        other, _ = self._pick("predicted" if random.random() < share else "real", random)
        return vary(pair, other, self._objects, random), f"varied:{name}"

    def _pick(self, kind: str, random: np.random.Generator) -> tuple[Pair, str]:
        if kind == "real":
            item = self._labelled[random.integers(len(self._labelled))]
            rows = self._pixels.rows[item]
            mask = self._pixels.masks[rows[random.integers(len(rows))]]
        else:
            items = list(self._predicted.rows)
            item = items[random.integers(len(items))]
            mask = self._predicted.masks[self._predicted.rows[item]]
        return Pair(np.array(self._pixels.images[item]), np.array(mask)), self._pixels.data.items[item].name

    @torch.inference_mode()
    def _drawn(self, seeds: Sequence[int]) -> list[tuple[Pair, str]]:
        if not seeds:
            return []
        made = self._drawer.method.generate(Seeds(seeds).fork("drawn")).to("cpu")
        images = to_pixels(made.image)
        size = self.run.size
        return [
            (
                Pair(
                    resize(image.numpy(), size, Image.Resampling.BILINEAR),
                    resize(mask.to(torch.uint8).numpy(), size, Image.Resampling.NEAREST),
                ),
                "drawn",
            )
            for image, mask in zip(images.contiguous(), made.mask, strict=True)
        ]

    @cached_property
    def _drawer(self) -> Run:
        return Run(Path(self.mask_generator or ""))

    @cached_property
    def _pixels(self) -> Pixels:
        where = Path(self.run.settings.data)
        if not where.is_dir():
            raise SegmintError(
                f"{self.run.folder}: its data folder {where} is gone, and with it the masks to paint; put it back, or "
                "name another data folder with --masks"
            )
        return Pixels.open(open_folder(where), self.run.size)

    @cached_property
    def _labelled(self) -> list[int]:
        settings = self.run.settings
        return self._pixels.data.labelled(settings.budget, settings.seed) if settings.budget != 0 else []

    @cached_property
    def _predicted(self) -> PredictedMasks:
        seen = set(self._labelled)
        unlabelled = [item for item in self._pixels.data.split("train") if item not in seen]
        device = str(device_of(self.run.method).type)
        return predict_masks(self._pixels, unlabelled, Path(self.segmenter or ""), confidence=0.0, device=device)

    @cached_property
    def _objects(self) -> frozenset[int]:
        pixels, known = self._pixels, self._labelled[:: max(1, len(self._labelled) // LOOKED_AT)]
        masks: list[Bytes] = [np.asarray(pixels.masks[pixels.rows[item][0]]) for item in known]
        if not masks:
            masks = [np.asarray(mask) for mask in self._predicted.masks[:LOOKED_AT]]
        return object_classes(masks, len(self.run.classes))


def _check_drawer(run: Run, drawer: Run) -> None:
    method = drawer.method
    if "generate" not in method.capabilities() or method.needs_mask:
        raise SegmintError(f"--mask-generator {drawer.folder}: {method.name} makes no masks of its own; name another")
    if not drawer.classes.same_as(run.classes):
        raise SegmintError(f"--mask-generator {drawer.folder}: its classes are not those of {run.folder}")
    if method.config["in_channels"] != run.method.config["in_channels"]:
        raise SegmintError(f"--mask-generator {drawer.folder}: its images have other channels than {run.folder}'s")


def weights(run: Path) -> str:
    """A digest of a run's method and its weights.

    Raises:
        SegmintError: they are not there.
    """
    digest = hashlib.sha256()
    for name in ("method.json", "model.safetensors"):
        try:
            with (run / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise SegmintError(f"{run / name}: cannot be read ({error.strerror}); name a finished run") from error
    return digest.hexdigest()[:16]


def _digest(data: Data, items: Sequence[int]) -> str:
    """A digest of the names of some items and of the sizes of their files."""
    chosen = [data.items[item] for item in items]
    told = [(item.name, [path.stat().st_size for path in (item.image, *item.masks)]) for item in chosen]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
