"""A generated folder whose pairs are kept or dropped: where their files lie, and how they are moved.

Kept pairs lie in `images` and `masks`, dropped ones in `dropped/images` and `dropped/masks`. Where an assay made pixels
of a kept mask `IGNORE`, the mask as it was drawn lies in `drawn`. So nothing is ever lost, and at any moment of a move
the first of drawn, dropped and kept that has a mask has it as it was drawn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmint.config import write_atomic
from segmint.data.cache import from_pixels
from segmint.data.classes import read_classes
from segmint.data.io import Bytes, read_image, replacing
from segmint.data.masks import read_mask, write_mask
from segmint.evaluation.files import read_lines
from segmint.types import IGNORE, Batch, SegmintError


@dataclass(frozen=True)
class Decision:
    """What becomes of a pair.

    Attributes:
        kept: whether it stays.
        why: a sentence.
        scores: figures for the manifest.
        ignored: bool [H, W], the pixels to make `IGNORE`; None for none.
    """

    kept: bool
    why: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    ignored: np.ndarray[Any, np.dtype[np.bool_]] | None = None


class Pairs:
    """All pairs of a generated folder, whatever became of them.

    Args:
        folder: with a manifest.jsonl.
        channels: of the images.

    Raises:
        SegmintError: there is no manifest, or it names no pairs.
    """

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder, self.channels = folder, channels
        remedy = "an assay needs a folder of `segmint generate`"
        self.entries = read_lines(folder / "manifest.jsonl", remedy)
        if not self.entries:
            raise SegmintError(f"{folder / 'manifest.jsonl'}: names no pairs; {remedy}")
        self.names = [str(entry["name"]) for entry in self.entries]
        self.classes = read_classes(folder / "classes.yaml")

    def image(self, name: str) -> Path:
        """Where the image is now."""
        return self._first(name, "images", [self.folder / "dropped" / "images"])

    def drawn(self, name: str) -> Path:
        """Where the mask is that the generator drew."""
        return self._first(name, "masks", [self.folder / "drawn", self.folder / "dropped" / "masks"])

    def mask(self, name: str) -> Bytes:
        """The mask that the generator drew, uint8 [H, W] of class indices."""
        return read_mask(self.drawn(name), self.classes)

    def pixels(self, name: str) -> Bytes:
        """The image, uint8 [H, W, C]."""
        return read_image(self.image(name), channels=self.channels)

    def batch(self, names: Sequence[str]) -> Batch:
        """Some pairs, their masks as they were drawn.

        Raises:
            SegmintError: they are of several sizes.
        """
        images, masks = [self.pixels(name) for name in names], [self.mask(name) for name in names]
        for name, array in zip([*names, *names], [*images, *masks], strict=True):
            if array.shape[:2] != images[0].shape[:2]:
                raise SegmintError(f"{self.folder}: {name} has another size than {names[0]}; generate the folder anew")
        image = from_pixels(torch.from_numpy(np.stack(images)))
        return Batch(image, torch.from_numpy(np.stack(masks)).long())

    def settle(self, decisions: Sequence[Decision]) -> None:
        """Write the manifest, then move files until the folder is as it says.

        The manifest is written first: from then on, whoever reads the folder leaves the dropped pairs out, moved or
        not. Killed midway and done again, with the same decisions or others, nothing is lost.
        """
        lines = []
        for entry, decision in zip(self.entries, decisions, strict=True):
            told = {**entry, "kept": decision.kept, "why": decision.why, "scores": dict(decision.scores)}
            told.pop("before", None)
            lines.append(json.dumps(told) + "\n")
        write_atomic(self.folder / "manifest.jsonl", "".join(lines))
        for name, decision in zip(self.names, decisions, strict=True):
            self._settle(name, decision)

    def decide(self, name: str, kept: bool) -> None:
        """Keep or drop one pair by hand, whatever an assay said, which the manifest goes on telling under "before".

        Its scores stay, and so do the pixels that an assay made `IGNORE`. The manifest is written first, as always.

        Raises:
            SegmintError: there is no such pair, or the folder cannot be written.
        """
        if name not in self.names:
            raise SegmintError(f"{self.folder / 'manifest.jsonl'}: names no pair {name[:80]!r}; choose another")
        place = self.names.index(name)
        entry = self.entries[place]
        said = entry.get("before", {"kept": entry.get("kept", True), "why": entry.get("why")})
        self.entries[place] = {**entry, "kept": kept, "why": f"hand: {'kept' if kept else 'dropped'}", "before": said}
        home, away = (self.folder, self.folder / "dropped") if kept else (self.folder / "dropped", self.folder)
        try:
            write_atomic(self.folder / "manifest.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.entries))
            for part in ("images", "masks"):
                if (away / part / f"{name}.png").is_file():
                    self._move(away / part / f"{name}.png", home / part / f"{name}.png")
        except OSError as error:
            raise SegmintError(
                f"{self.folder}: cannot be written ({error.strerror or error}); free or mend it"
            ) from error

    def ignoring(self, name: str) -> Path | None:
        """Where the mask is in which an assay ignored pixels; None if it ignored none."""
        if not (self.folder / "drawn" / f"{name}.png").is_file():
            return None
        return self._first(name, "masks", [self.folder / "dropped" / "masks"])

    def _settle(self, name: str, decision: Decision) -> None:
        dropped = self.folder / "dropped"
        home, away = (self.folder, dropped) if decision.kept else (dropped, self.folder)
        image, mask, drawn = home / "images" / f"{name}.png", home / "masks" / f"{name}.png", self.drawn(name)
        self._move(self.image(name), image)
        if decision.ignored is None or not decision.kept:
            self._move(drawn, mask)
        else:
            pixels = np.where(decision.ignored, np.uint8(IGNORE), self.mask(name))
            beside = self.folder / "drawn" / f"{name}.png"
            if drawn != beside:
                with replacing(beside) as temporary:
                    shutil.copyfile(drawn, temporary)
            write_mask(mask, pixels, self.classes)
        (away / "masks" / f"{name}.png").unlink(missing_ok=True)

    def _first(self, name: str, part: str, others: Sequence[Path]) -> Path:
        for place in others:
            if (place / f"{name}.png").is_file():
                return place / f"{name}.png"
        return self.folder / part / f"{name}.png"

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        if source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
