"""The only training loop."""

from __future__ import annotations

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from segmint.config import TrainSettings
from segmint.data.augment import augment, resolve
from segmint.functional.labels import most_likely
from segmint.functional.metrics import confusion, mean_iou
from segmint.methods.method import Method, save
from segmint.ranks import rank, together, world
from segmint.seeds import Seeds, mix
from segmint.training.checkpoint import Log, load_state, save_state
from segmint.training.ema import MovingAverage
from segmint.training.optimizers import PartOptimizers
from segmint.training.parallel import agree, any_of, check_device, collect, everyones, synchronise, told
from segmint.training.precision import autocast, layout, place, probe
from segmint.training.sampler import Choice, Sampler
from segmint.types import Batch, SegmintError


class Source(Protocol):
    """Where batches come from (`segmint.data.cache.Pixels`)."""

    def batch(
        self,
        indices: Sequence[int],
        *,
        raters: Sequence[int] | None = None,
        labelled: Sequence[bool] | None = None,
        previous: bool = False,
    ) -> Batch:
        """The named items as one batch."""
        ...


class Watcher(Protocol):
    """Who is told how the training goes, e.g. a progress bar."""

    def progress(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Called at every report of training or validation figures."""
        ...


@dataclass(frozen=True)
class Images:
    """The items of a source that take part, by index; `validated`: how many could be in `validation`."""

    source: Source
    labelled: Sequence[int]
    unlabelled: Sequence[int] = ()
    synthetic: Sequence[int] = ()
    validation: Sequence[int] = ()
    validated: int = 0


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        status: "finished", "stopped early" or "interrupted".
        step: steps taken; `seconds`: time in them, validation and earlier sittings included.
        best_step, best: where the monitored figure was best, and its value; None where nothing is monitored.
        precision: the one used; `probe`: milliseconds per step of each, where they were measured.
        images_per_second: training images over the time of training steps alone.
    """

    status: str = "finished"
    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best: float | None = None
    precision: str = "float32"
    probe: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0


def fit(
    method: Method,
    images: Images,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Outcome:
    """Train a method, or go on where its run folder's checkpoint stopped.

    Everything random at step n is seeded from (seed, n), so a resumed training repeats the uninterrupted one bit for
    bit. The best weights on validation (else the last) are in `model.safetensors` of the folder at every moment.
    Several processes (`segmint.training.parallel.join`) train on one batch, of which each has `batch_size` images;
    rank 0 writes the files.

    Args:
        method: freshly built from the run's configuration; trained in place.
        images: what to train and validate on.
        settings: see `TrainSettings`.
        folder: the run folder; `state.pt` in it is resumed.
        seed: of everything random.
        watcher: is told the figures.

    Raises:
        SegmintError: a loss stops being finite, a file cannot be written, or another process has ended.
    """
    return _Training(method, images, settings, folder, seed, watcher).run()


def first_batch(method: Method, images: Images, settings: TrainSettings, seed: int = 0) -> Batch:
    """What the first step of `fit` would see, augmented and on its device; the method is moved there too."""
    training = _Training(method, images, settings, Path(), seed, None)
    method.to(training.device)
    return training.batch(0)


class _Training:
    REPORT = 20

    def __init__(
        self,
        method: Method,
        images: Images,
        settings: TrainSettings,
        folder: Path,
        seed: int,
        watcher: Watcher | None,
    ) -> None:
        self.method, self.images, self.settings = method, images, settings
        self.folder, self.seed = folder, seed
        self.watcher = watcher if rank() == 0 else None
        cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda" if cuda else "cpu")
        check_device(self.device)
        self.sampler = Sampler.of(images, settings, whole_epochs=method.whole_epochs, seed=seed)
        self.steps = settings.steps
        if settings.epochs is not None:
            self.steps = settings.epochs * self.sampler.steps_per_epoch
        self.every = settings.validate_every or max(50, math.ceil(self.steps / 20))
        self.augmentation = resolve(settings.augment)
        self.follows = "previous" in method.conditions
        self.outcome = Outcome()
        self.stale = 0
        self.sums: dict[str, Tensor] = {}
        self.since: dict[str, float] = defaultdict(float)

    def run(self) -> Outcome:
        state = self._state()
        self.method.to(self.device)
        self._choose_precision(state)
        place(self.method, self.outcome.precision)
        self.optimizers = PartOptimizers(self.method.parts(), self.settings)
        self.ema = MovingAverage(self.method, self.settings.ema)
        if state is not None:
            self._restore(state)
        synchronise(self.method)
        self.log = Log(self.folder, self.outcome.step) if rank() == 0 else None
        self.saved = self.sitting = time.perf_counter()
        self.before = self.outcome.seconds
        self.method.train()
        with _stop_signals() as stop:
            while self.outcome.step < self.steps and self.outcome.status != "stopped early":
                self._step()
                stops, due = any_of([stop.asked, time.perf_counter() - self.saved > self.settings.save_every])
                if stops and self.outcome.status != "stopped early":
                    self.outcome.status = "interrupted"
                    break
                if due:
                    self._checkpoint()
        self._finish()
        return self.outcome

    def _state(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one."""
        state = load_state(self.folder)
        agree(state and state["step"], f"{self.folder}: the checkpoint is")
        before = state.get("processes", 1) if state else world()
        if before != world():
            raise SegmintError(
                f"{self.folder}: was trained by {before} processes and cannot go on with {world()}, as a batch would "
                f"change its size; start it with torchrun and {before} processes in all, or without torchrun for one"
            )
        return state

    def _choose_precision(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.outcome.precision = state["precision"]
        elif self.settings.precision != "auto":
            self.outcome.precision = self.settings.precision
        elif self.method.parts() and self.steps:
            self.outcome.precision, self.outcome.probe = told(lambda: probe(self.method, self.batch(0), self.settings))

    def batch(self, step: int) -> Batch:
        """What this process has of the images of a step: one after the other of all of them in turn."""
        choice: Choice = self.sampler.at(step)
        generator = torch.Generator().manual_seed(mix(self.seed, "batch", step))
        raters = torch.randint(2**31, (len(choice.indices),), generator=generator).tolist()
        own = slice(rank(), None, world())
        batch = self.images.source.batch(
            choice.indices[own], raters=raters[own], labelled=choice.labelled[own], previous=self.follows
        )
        return augment(batch.to(self.device), self.augmentation, generator)

    def _step(self) -> None:
        begun = time.perf_counter()
        step = self.outcome.step
        factor = self.optimizers.at(step, self.steps)
        with together(mix(self.seed, "step", step)):
            batch = layout(self.batch(step), self.outcome.precision)
            with autocast(self.outcome.precision, self.device):
                terms = self.method.step(batch, self.optimizers)
        self.ema.update(step)
        for key, value in {**terms, **self.optimizers.norms}.items():
            self.sums[key] = self.sums.get(key, torch.zeros((), device=self.device)) + value.detach().float()
        self.since["steps"] += 1
        self.since["images"] += len(batch) * world()
        self.since["seconds"] += time.perf_counter() - begun
        self.outcome.step = step + 1
        figures = self.method.finish_epoch() if self.sampler.ends_epoch(step) else {}
        last = self.outcome.step == self.steps
        if figures or last or self.outcome.step % self.REPORT == 0:
            self._report(factor, figures)
        if last or self.outcome.step % self.every == 0:
            self._report(factor)
            self._validate()

    def _report(self, factor: float, figures: Mapping[str, float] | None = None) -> None:
        """Log the means since the last report; refuse to go on from a loss that is not finite."""
        count = self.since["steps"]
        if not count:
            return
        own = {key: float(value) / count for key, value in self.sums.items()}
        means = {key: sum(values) / len(values) for key, values in everyones(own).items()}
        bad = [key for key, value in {**means, **(figures or {})}.items() if not math.isfinite(value)]
        if bad:
            raise SegmintError(
                f"{self.folder}: {bad[0]} is no longer finite near step {self.outcome.step}; the last checkpoint is "
                "kept. Train again with a smaller training.lr, a smaller training.clip, or precision float32"
            )
        speed = self.since["images"] / max(self.since["seconds"], 1e-9)
        self.outcome.images_per_second = speed
        lr = factor * self.settings.lr
        self._write("train", {**means, **(figures or {}), "lr": lr, "images_per_second": speed})
        self.sums.clear()
        self.since.clear()

    def _write(self, split: str, figures: Mapping[str, float]) -> None:
        rounded = {key: float(f"{value:.7g}") for key, value in figures.items()}
        epoch = self.outcome.step / self.sampler.steps_per_epoch
        seconds = self.before + time.perf_counter() - self.sitting
        if self.log is not None:
            head = {"step": self.outcome.step, "epoch": round(epoch, 3), "seconds": round(seconds, 3), "split": split}
            self.log.write(**head, **rounded)
        if self.watcher is not None:
            self.watcher.progress(self.outcome.step, self.steps, figures)

    def _validate(self) -> None:
        with self.ema.applied():
            figures = self._figures(self.images.validation)
            if "segment" in self.method.capabilities() and figures:
                shown = self._figures(list(self.images.labelled)[:16])
                figures |= {f"{key}_train": value for key, value in shown.items()}
            if figures:
                self._write("val", {**figures, **self.optimizers.weight_norms()})
            self._judge(figures)
        self.method.train()

    def _judge(self, figures: Mapping[str, float]) -> None:
        """Keep the weights if they are the best so far; stop if they have not been for long."""
        monitor = self.method.monitor
        if monitor is None or monitor[0] not in figures:
            return
        value = figures[monitor[0]]
        best = self.outcome.best
        better = best is None or (value > best if monitor[1] == "max" else value < best)
        if better:
            self.outcome.best, self.outcome.best_step, self.stale = value, self.outcome.step, 0
            self._save()
            return
        self.stale += 1
        if self.settings.patience and self.stale >= self.settings.patience:
            self.outcome.status = "stopped early"

    @torch.inference_mode()
    def _figures(self, items: Sequence[int]) -> dict[str, float]:
        """The method's validation terms, and mIoU if it segments, over some items (of each the same rater always).

        Processes take turns at blocks of them.
        """
        self.method.eval()
        sums: dict[str, float] = defaultdict(float)
        table: Tensor | None = None
        size = max(self.settings.batch_size, 8)
        torch.manual_seed(mix(self.seed, "validate") + rank())
        for start in range(0, len(items), size)[rank() :: world()]:
            chosen = list(items[start : start + size])
            raters = [mix(self.seed, "rater", item) for item in chosen]
            batch = self.images.source.batch(chosen, raters=raters, previous=self.follows).to(self.device)
            batch = layout(batch, self.outcome.precision)
            with autocast(self.outcome.precision, self.device):
                for key, value in self.method.validate(batch).items():
                    sums[key] += float(value) * len(batch)
                if "segment" not in self.method.capabilities():
                    continue
                logits = self.method.segment(batch.image, Seeds(chosen))
            counts = confusion(most_likely(logits), batch.mask, logits.shape[1]).sum(0).cpu()
            table = counts if table is None else table + counts
        figures = {key: sum(values) / len(items) for key, values in everyones(sums).items()}
        tables = [counts for counts in collect(table) if counts is not None]
        if tables:
            figures["miou"] = float(mean_iou(torch.stack(tables).sum(0)))
        return figures

    def _checkpoint(self) -> None:
        self._report(self.optimizers.at(self.outcome.step, self.steps))
        self.outcome.seconds = self.before + time.perf_counter() - self.sitting
        self.saved = time.perf_counter()
        if rank() != 0:
            return
        save_state(
            self.folder,
            {
                "processes": world(),
                "step": self.outcome.step,
                "seconds": self.outcome.seconds,
                "best": self.outcome.best,
                "best_step": self.outcome.best_step,
                "stale": self.stale,
                "status": self.outcome.status,
                "precision": self.outcome.precision,
                "probe": self.outcome.probe,
                "images_per_second": self.outcome.images_per_second,
                "method": self.method.state_dict(),
                "optimizers": self.optimizers.state_dict(),
                "ema": self.ema.state_dict(),
            },
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.ema.load_state_dict(state["ema"])
        self.stale = state["stale"]
        status = state["status"] if state["status"] == "stopped early" else "finished"
        self.outcome = Outcome(
            status,
            state["step"],
            state["seconds"],
            state["best_step"],
            state["best"],
            state["precision"],
            state["probe"],
            state["images_per_second"],
        )

    def _finish(self) -> None:
        self._checkpoint()
        if self.outcome.best is None:
            with self.ema.applied():
                self._save()

    def _save(self) -> None:
        if rank() == 0:
            save(self.method, self.folder)


class _Stop:
    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after this step; a second Ctrl-C stops at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    with asked_to_stop(ask):
        yield stop


@contextmanager
def asked_to_stop(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM this way for a while; as before outside the main thread, where nobody can."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
