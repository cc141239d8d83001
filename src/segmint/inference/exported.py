"""Exported models in use: an ONNX file, or OpenVINO's, takes the place of a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from segmint.config import RunSettings
from segmint.data.classes import Classes
from segmint.data.io import Array
from segmint.inference.engines import SUFFIXES, Engine, Part, open_engine
from segmint.inference.noise import Noise
from segmint.inference.tracing import GENERATE, PAINT, SEGMENT
from segmint.inference.wrapping import shown_size
from segmint.methods.method import Method
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import Batch, SegmintError


def opened(run: Run | str | Path) -> Run:
    """A run, from itself, its folder, or a model file that `segmint export` wrote.

    Raises:
        SegmintError: as `open_exported`; folders are read when something of them is asked for.
    """
    if isinstance(run, Run):
        return run
    return open_exported(run) if Path(run).suffix in SUFFIXES else Run(Path(run))


def open_exported(path: str | Path, precision: str = "float32") -> ExportedRun:
    """An exported model, to be used like the run that it came from: `predict`, `generate`, an ensemble, a server.

    Args:
        path: model.onnx, or OpenVINO's model.xml beside its model.bin.
        precision: "float32", or "bfloat16" where OpenVINO is to compute in it.

    Raises:
        SegmintError: missing, damaged, not from `segmint export`, or the package that runs it is not installed.
    """
    run = ExportedRun(Path(path), computes=precision)
    _ = run.method
    return run


@dataclass(frozen=True)
class ExportedRun(Run):
    """What `Run` is to a run folder, to a model file; `folder` is that file.

    Attributes:
        computes: "float32" or "bfloat16".
    """

    computes: str = "float32"

    @cached_property
    def engine(self) -> Engine:
        """The file, read."""
        return open_engine(self.folder, self.computes)

    @cached_property
    def settings(self) -> RunSettings:
        """What is known of its training: method, size and bit depth; the data is not."""
        facts = self.engine.facts
        known = {"method": facts["method"], "method_settings": facts["config"], "data": ""}
        return RunSettings(**known, size=tuple(facts["size"]), depth=facts["depth"])

    @cached_property
    def classes(self) -> Classes:
        """The classes of its data."""
        return classes_of(self.engine.facts["classes"])

    @cached_property
    def method(self) -> Method:
        """The model as a method that segments or generates."""
        return _KINDS[self.engine.facts["kind"]](engine=self.engine)

    @cached_property
    def precision(self) -> str:
        """ "float32": its own sessions choose theirs."""
        return "float32"


class _Exported(Method):
    """A method that an engine computes. It has no parameters, and cannot be trained.

    Args:
        engine: what computes it.
    """

    def __init__(self, *, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        config: dict[str, Any] = dict(engine.facts["config"])
        self.config = {**config, "image_size": tuple(config["image_size"])}
        self.noise = tuple(Noise.of(entry) for entry in engine.facts["noise"])
        self._parts: dict[tuple[str, ...], Part] = {}

    @property
    def name(self) -> str:
        """The method that was exported."""
        return str(self.engine.facts["method"])

    def compute(self, feed: Mapping[str, Array], *outputs: str) -> list[Tensor]:
        """Tensors of these names inside the model, from arrays of others."""
        key = (*feed, "", *outputs)
        if key not in self._parts:
            self._parts[key] = self.engine.part(list(feed), outputs)
        return [torch.from_numpy(np.array(found)) for found in self._parts[key](feed)]

    def _noises(self, seeds: Seeds, size: tuple[int, int] | None = None) -> dict[str, Array]:
        return {entry.name: entry.draw(seeds, size).numpy() for entry in self.noise}


class ExportedSegmenter(_Exported):
    """An exported segmenter whose draws do not differ."""

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W] of one draw."""
        size = (int(image.shape[2]), int(image.shape[3]))
        feed = {"shown": np.ascontiguousarray(image.float().numpy()), **self._noises(seeds, size)}
        return self.compute(feed, "logits")[0]

    def errors(self, image: Tensor, logits: Tensor) -> Tensor | None:
        """As the method that was exported judges itself, [B, H, W]; None where it did not."""
        if not self.engine.facts["judges"]:
            return None
        feed = {"shown": np.ascontiguousarray(image.float().numpy()), "logits": logits.float().numpy()}
        return self.compute(feed, "suspicion")[0]

    def segment_pixels(self, image: Tensor, seeds: Seeds) -> tuple[Tensor, Tensor]:
        """The whole model, as a program without Segmint would run it.

        Args:
            image: uint8 [B, H, W, C], of any size.
            seeds: one per image.

        Returns:
            Labels, uint8 [B, H, W], and probabilities, float32 [B, K, H, W], of one draw.
        """
        side = min(self.config["image_size"])
        noise = self._noises(seeds, shown_size((int(image.shape[1]), int(image.shape[2])), side))
        labels, probabilities = self.compute({"image": image.numpy(), **noise}, "labels", "probabilities")
        return labels, probabilities


class ExportedDrawer(ExportedSegmenter):
    """An exported segmenter that draws at random."""

    draws_differ: ClassVar[bool] = True


class ExportedGenerator(_Exported):
    """An exported generator of pairs."""

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """One pair per seed; its masks are its own."""
        self.refuse(mask=mask, previous=previous, image=image)
        made, kinds = self.compute(self._noises(seeds), "made", "kinds")
        return Batch(made, kinds)


class ExportedPainter(_Exported):
    """An exported generator of images for given masks."""

    conditions: ClassVar[frozenset[str]] = frozenset({"mask"})
    needs_mask: ClassVar[bool] = True

    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """Paint the given masks.

        Raises:
            SegmintError: there is no mask.
        """
        self.refuse(previous=previous, image=image)
        if mask is None:
            raise SegmintError(f"{self.name}: was exported to paint masks; give it masks to paint")
        noise = self._noises(seeds, (int(mask.shape[1]), int(mask.shape[2])))
        return Batch(self.compute({"given": mask.numpy(), **noise}, "made")[0], mask)


_KINDS: dict[str, type[_Exported]] = {
    SEGMENT: ExportedSegmenter,
    "draw": ExportedDrawer,
    GENERATE: ExportedGenerator,
    PAINT: ExportedPainter,
}


def kind_of(job: str, method: Method) -> str:
    """The name in a model's description of what it is to be used as."""
    return "draw" if job == SEGMENT and method.draws_differ else job


def classes_facts(classes: Classes) -> dict[str, Any]:
    """Classes as JSON holds them."""
    return {
        "names": list(classes.names),
        "colors": [list(color) for color in classes.colors],
        "ids": list(classes.ids),
        "ignore": classes.ignore,
        "ignore_color": None if classes.ignore_color is None else list(classes.ignore_color),
    }


def classes_of(facts: Mapping[str, Any]) -> Classes:
    """From what `classes_facts` gave."""
    colors = tuple((red, green, blue) for red, green, blue in facts["colors"])
    void = facts["ignore_color"]
    return Classes(
        tuple(facts["names"]), colors, tuple(facts["ids"]), facts["ignore"], None if void is None else tuple(void)
    )
