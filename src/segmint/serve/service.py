"""What lies between a request and its answer: decode, compute in batches, encode, all within the limits."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
import torch
from starlette.requests import Request

from segmint.data.io import Bytes
from segmint.inference.draws import DRAWS, Draws
from segmint.serve import answers
from segmint.serve.batching import Batcher, BusyError, Task, generating, painting, segmenting
from segmint.serve.limits import RefusedError, read_uploaded_image, read_uploaded_mask
from segmint.serve.metrics import Metrics
from segmint.serve.models import Model, Models, pair_seeds
from segmint.serve.schemas import JSON, NPZ, PNG, ZIP, GenerateAsked, PaintAsked, SegmentAsked
from segmint.serve.settings import Settings
from segmint.serve.uploads import receive_files
from segmint.types import SegmintError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

AT_ONCE = 8
"""Images are in memory together up to so many times the pixels of the largest one that is allowed. One whose draws are
shown counts as several if there are more than `DRAWS`."""


@dataclass(frozen=True)
class Answer:
    """The bytes of an answer, their media type, and the name of the file that they would make."""

    content: bytes
    media: str
    name: str = ""


class Service:
    """The three things that can be asked of the models.

    Args:
        models: by name.
        settings: limits and batching.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.batcher = Batcher(
            most=settings.batch, wait=settings.wait, waiting=settings.waiting, watch=self.metrics.watch
        )
        self.metrics.follow(self.batcher)
        self._pixels = 0.0
        self._threads: anyio.CapacityLimiter | None = None

    async def segment(self, request: Request, asked: SegmentAsked) -> Answer:
        """Segment the image that a request brings."""
        form = asked.answer or negotiate(request, {"json": JSON, "mask": PNG, "probabilities": NPZ})
        model = self._model(asked.model, "segment")
        if asked.draws is not None and asked.draws > self.settings.draws:
            raise SegmintError(f"draws: at most {self.settings.draws} here, not {asked.draws}")
        draws = min(model.settle_draws(asked.draws), self.settings.draws)
        async with self._uploads(request, "image") as files, self._deadline():
            image = await self._image(files["image"], model)
            with self._room(image, draws if form == "json" and "alternatives" in asked.include else 1):
                task = await self._thread(segmenting, model, image, asked.seed, draws)
                (found,) = await self._compute(model, [task])
                return await self._thread(self._segmented, model, image, found, form, asked)

    async def generate(self, request: Request, asked: GenerateAsked) -> Answer:
        """Make pairs."""
        form = asked.answer or negotiate(request, {"json": JSON, "zip": ZIP})
        model = self._model(asked.model, "generate")
        if asked.count > self.settings.pairs:
            raise SegmintError(f"count: at most {self.settings.pairs} pairs a request here, not {asked.count}")
        seeds = pair_seeds(asked.count, asked.seed)
        async with self._deadline():
            pairs = await self._compute(model, generating(model, seeds))
            if form == "zip":
                return Answer(await self._thread(answers.pairs_zip, model, seeds, pairs), ZIP, f"{model.name}.zip")
            made = await self._thread(answers.generate_answer, model, asked.seed, seeds, pairs)
            return Answer(made.model_dump_json().encode(), JSON)

    async def paint(self, request: Request, asked: PaintAsked) -> Answer:
        """Paint the mask that a request brings, perhaps over the photograph that comes with it."""
        form = asked.answer or negotiate(request, {"json": JSON, "image": PNG})
        model = self._model(asked.model, "paint")
        async with self._uploads(request, "mask", "image") as files, self._deadline():
            if "image" in files:
                model.require("repaint")
            classes = model.classes
            mask = await self._thread(read_uploaded_mask, files["mask"], "mask", self.settings, classes)
            image = await self._image(files["image"], model) if "image" in files else None
            with self._room(mask if image is None else image):
                task = await self._thread(painting, model, mask, asked.seed, image)
                (painted,) = await self._compute(model, [task])
                if form == "image":
                    return Answer(await self._thread(answers.image_png, painted), PNG)
                shown = model.fit_mask(mask)
                made = await self._thread(answers.paint_answer, model, asked.seed, painted, shown)
                return Answer(made.model_dump_json(exclude_none=True).encode(), JSON)

    def state(self) -> str:
        """ "ok", "busy" where a queue is full, or "closing"."""
        if self.batcher.closing:
            return "closing"
        return "busy" if max(self.batcher.lengths().values(), default=0) >= self.settings.waiting else "ok"

    async def close(self) -> None:
        """Finish what is waiting, and end."""
        await anyio.to_thread.run_sync(self.batcher.close, self.settings.seconds)

    def _model(self, name: str | None, job: str) -> Model:
        able = self.models.able(job)
        if name is not None:
            model = self.models[name]
            model.require(job)
            return model
        if len(able) == 1:
            return self.models[able[0]]
        if not able:
            raise SegmintError(f"model: none here is for /v1/{job}; /v1/models tells what they can do")
        raise SegmintError(f"model: say which, ?model=NAME with one of {', '.join(able)}")

    @asynccontextmanager
    async def _uploads(self, request: Request, *fields: str) -> AsyncIterator[Mapping[str, Path]]:
        with tempfile.TemporaryDirectory(prefix="segmint-", ignore_cleanup_errors=True) as folder:
            yield await receive_files(request, Path(folder), fields)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.settings.seconds):
                yield
        except TimeoutError as error:
            raise RefusedError(
                503,
                f"it takes longer than {self.settings.seconds:g} seconds, which is the most here; ask for less (a "
                "smaller image, fewer draws or pairs), or again when the server has less to do",
                headers={"Retry-After": "10"},
            ) from error
        except BusyError as error:
            raise RefusedError(503, str(error), headers={"Retry-After": "2"}) from error

    @contextmanager
    def _room(self, image: Bytes, shown: int = 1) -> Iterator[None]:
        """Count the pixels that are in memory, or send away who brings too many more.

        Args:
            image: [H, W] or [H, W, C].
            shown: how many draws of it will be in memory at its own size.
        """
        most = AT_ONCE * self.settings.pixels
        pixels = min(image.shape[0] * image.shape[1] * max(1, shown / DRAWS), most)
        if self._pixels + pixels > most:
            raise BusyError("the server holds as many large images as it may; try again in some seconds")
        self._pixels += pixels
        try:
            yield
        finally:
            self._pixels -= pixels

    async def _thread(self, work: Callable[[*Ts], T], *given: *Ts) -> T:
        """Do what keeps a core busy on one of as many threads as there are cores."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))
        return await anyio.to_thread.run_sync(work, *given, abandon_on_cancel=True, limiter=self._threads)

    async def _image(self, path: Path, model: Model) -> Bytes:
        read = partial(read_uploaded_image, path, "image", self.settings, model.run.settings.depth)
        return await self._thread(read)

    async def _compute(self, model: Model, tasks: Sequence[Task]) -> list[Any]:
        futures = self.batcher.submit(model.name, tasks)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            for future in futures:
                future.cancel()

    @staticmethod
    def _segmented(model: Model, image: Bytes, drawn: Draws, form: str, asked: SegmentAsked) -> Answer:
        if form == "json":
            found = model.finish(image, drawn, plausible="alternatives" in asked.include)
            told = answers.segment_answer(model, found, len(drawn.masks), asked)
            return Answer(told.model_dump_json(exclude_unset=True).encode(), JSON)
        if form == "uncertainty":
            return Answer(answers.uncertainty_png(model.finish(image, drawn, plausible=False)), PNG)
        probabilities = model.probabilities((image.shape[0], image.shape[1]), drawn)
        if form == "probabilities":
            content = answers.probabilities_npz(probabilities, model.classes.names)
            return Answer(content, NPZ, "probabilities.npz")
        labels = probabilities.max(0).indices.to(torch.uint8).numpy()
        if form == "overlay":
            return Answer(answers.overlay_png(image, labels, model.classes, asked.opacity), PNG)
        return Answer(answers.mask_png(labels, model.classes), PNG)


def negotiate(request: Request, offered: Mapping[str, str]) -> str:
    """The form whose media type a client accepts most gladly; the first where all are as good.

    Raises:
        RefusedError: it accepts none of them.
    """
    header = request.headers.get("accept") or "*/*"
    ranges = [_range(part) for part in header.split(",") if part.strip()]
    best = max(offered, key=lambda form: _quality(offered[form], ranges))
    if _quality(offered[best], ranges) <= 0:
        raise RefusedError(
            406, f"Accept {header[:80]!r}: not offered; there are {', '.join(offered.values())}, or choose ?answer="
        )
    return best


def _range(text: str) -> tuple[str, float]:
    """A media range and its quality, 1 where it has none that means anything."""
    media, *parameters = (part.strip() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return media.lower(), min(1.0, max(0.0, float(value)))
            except ValueError:
                break
    return media.lower(), 1.0


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """How gladly a media type is accepted, by the most exact of the ranges that it lies in."""
    kind = media.partition("/")[0]
    for wanted in (media, f"{kind}/*", "*/*"):
        found = [quality for known, quality in ranges if known == wanted]
        if found:
            return max(found)
    return 0.0
