"""From a data folder and settings to a run folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segmint.config import RunSettings, read_run, write_atomic, write_run
from segmint.data.cache import Pixels
from segmint.data.classes import Classes, read_classes, write_classes
from segmint.data.folder import Data, open_folder
from segmint.locks import locked
from segmint.methods.method import Method, find, load
from segmint.ranks import rank, world
from segmint.training.choice import Choice
from segmint.training.parallel import agree, in_turn, join, meet, told
from segmint.training.pseudo import PredictedMasks
from segmint.training.setup import Draft, Wish, build_method, check_settings, look, pick, synthetic_roots, with_pairs
from segmint.training.train import Images, Outcome, Watcher, fit
from segmint.types import SegmintError

PREPARED = "prepared"
"""The folder, in that of a run, of the training that it starts from."""


@dataclass(frozen=True)
class Run:
    """A run folder, and what is in it.

    Attributes:
        folder: where it is.
        modules: networks of the user's own that its method was built with.
        changes: settings of the method to use instead of those that it was trained with, e.g. {"steps": 50}.
        choice: why this method was picked, where `train` picked it and not the user.
    """

    folder: Path
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    choice: Choice | None = None

    @cached_property
    def settings(self) -> RunSettings:
        """What it was trained with."""
        return read_run(self.folder)

    @cached_property
    def classes(self) -> Classes:
        """The classes of its data."""
        return read_classes(self.folder / "classes.yaml")

    @cached_property
    def method(self) -> Method:
        """The trained method, in evaluation mode."""
        return load(self.folder, self.changes, **self.modules)

    @cached_property
    def precision(self) -> str:
        """The one it was trained in, in which it may as well be used; "float32" where that is not known."""
        path = self.folder / "summary.json"
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return str(told.get("precision", "float32"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images, in pixels."""
        height, width = self.method.config["image_size"]
        return int(height), int(width)


def new_folder(method: str, parent: Path = Path("runs")) -> Path:
    """Make the next numbered run folder, `runs/7-method`; no other process gets the same."""
    while True:
        found = [re.match(r"(\d+)-", path.name) for path in parent.glob("*-*")] if parent.is_dir() else []
        number = max((int(match.group(1)) for match in found if match), default=0) + 1
        folder = parent / f"{number}-{method}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def train(
    data: Data | str | Path,
    *,
    method: str | None = None,
    synthetic: Sequence[str | Path] = (),
    budget: int | None = None,
    masks_from: Run | str | Path | None = None,
    masks_confidence: float = 0.7,
    init: Run | str | Path | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    out: str | Path | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
    begins: Callable[[Path, Choice | None], None] | None = None,
    **method_settings: Any,
) -> Run:
    """Train a method on a data folder; started by torchrun, several processes train it together.

    Args:
        data: a data folder, open or by its path. Generated items in it (`data + pairs`) are trained on as well.
        method: one of `segmint.methods.method.names()`; None: the strategy that suits the data, which may be two
            trainings: the first then lies in the folder `prepared` of the run, and steps or minutes are of both.
        synthetic: folders of generated pairs to train on as well.
        budget: how many training images keep their masks; None: all, 0: none, so that all is learnt from generated
            pairs, or from images alone, and real masks only validate.
        masks_from: a run whose segmenter predicts masks for the images without; whatever the method, it learns from
            these images too.
        masks_confidence: its predictions count where they give a class this probability or more.
        init: a run whose weights this one starts from, wherever a tensor has the same name and shape.
        seed: chooses them, and everything random.
        size: height and width to train at, in pixels; None: that of the images.
        out: the run folder; None: the next of `runs/1-supervised`, `runs/2-...`.
        minutes: how long it may take; the steps that fit into it are measured here. None: as many as `settings` say.
        settings: training settings that differ from the method's defaults; see `segmint.config.TrainSettings`.
        watcher: is told how it goes.
        begins: is told the run folder before training begins, and the strategy where `method` is None.
        method_settings: arguments of the method's constructor.

    Returns:
        The run; its `choice` says what was picked and why, where `method` is None.

    Raises:
        SegmintError: the data or a setting is wrong, the folder is in use, or the loss stopped being finite.
    """
    join()
    values: dict[str, Any] = {
        "data": str(data.root.resolve() if isinstance(data, Data) else Path(data).resolve()),
        "synthetic": [str(Path(folder).resolve()) for folder in synthetic],
        "budget": budget,
        "masks_from": _folder_of(masks_from),
        "masks_confidence": masks_confidence,
        "init": _folder_of(init),
        "seed": seed,
        "size": size,
    }
    check_settings(values, find(method) if method is not None else Method, settings or {})
    _refuse_used(out)
    with in_turn():
        data = data if isinstance(data, Data) else open_folder(data)
    values["synthetic"] = [*synthetic_roots(data), *values["synthetic"]]
    wish = Wish(with_pairs(data, values["synthetic"]), values, settings or {}, method_settings, minutes)
    choice, drafts = pick(wish) if method is None else (None, [wish.draft(method).within(minutes)])
    name = "-".join(draft.settings.method for draft in drafts)
    with ExitStack() as held:
        folder = told(lambda: _claim(out, name, held))
        if begins is not None:
            begins(folder, choice)
        if len(drafts) == 1:
            _write(drafts[0], folder)
            run = _fit(folder, drafts[0], watcher)
        else:
            run = _train_both(folder, drafts[0], drafts[1], watcher)
    return replace(run, choice=choice)


def _claim(out: str | Path | None, name: str, held: ExitStack) -> Path:
    """Hold the folder of a new run, which nobody else writes to from here on."""
    folder = Path(out) if out is not None else new_folder(name)
    held.enter_context(locked(folder))
    _refuse_used(folder)
    return folder


def _train_both(folder: Path, first: Draft, then: Draft, watcher: Watcher | None) -> Run:
    """Write down both trainings, and from here on do what is done for a run that was interrupted."""
    then.settings.init = str((folder / PREPARED).resolve())
    _write(first, folder / PREPARED)
    _write(then, folder)
    meet()
    return _finish(folder, watcher, then.modules)


def _refuse_used(out: str | Path | None) -> None:
    if out is not None and (Path(out) / "config.yaml").exists():
        raise SegmintError(
            f"{out}: holds a run already; choose another --out, or go on: `segmint train --resume {out}`"
        )


def _write(draft: Draft, folder: Path) -> None:
    if rank() == 0:
        write_classes(folder / "classes.yaml", draft.pixels.data.classes)
        write_run(draft.settings, folder)


def resume(folder: str | Path, watcher: Watcher | None = None, **modules: nn.Module) -> Run:
    """Continue an interrupted run, to exactly the weights that it would have had.

    Where it starts from a training of its own, in the folder `prepared`, that is finished first.

    Args:
        folder: its run folder.
        watcher: is told how it goes.
        modules: networks of the user's own that it was started with.

    Raises:
        SegmintError: no run there, its data or classes have changed, or another process is at it.
    """
    join()
    folder = Path(folder)
    read_run(folder)
    with ExitStack() as held:
        told(lambda: held.enter_context(locked(folder)))
        return _finish(folder, watcher, modules)


def _finish(folder: Path, watcher: Watcher | None, modules: Mapping[str, nn.Module]) -> Run:
    """Do what is left of a run's one or two trainings."""
    settings = read_run(folder)
    if settings.init is None or Path(settings.init).name != PREPARED or not _is_run(folder / PREPARED):
        return _go_on(folder, settings, watcher, modules)
    first = folder / PREPARED
    early = read_run(first)
    steps = early.training.steps, settings.training.steps
    if not _is_done(first):
        _go_on(first, early, watcher and _Part(watcher, 0, sum(steps)), {})
    if not _is_done(first):
        return Run(folder, modules)
    settings.init = str(first.resolve())  # the folder may have been moved since
    return _go_on(folder, settings, watcher and _Part(watcher, steps[0], sum(steps)), modules)


@dataclass(frozen=True)
class _Part:
    """Tells of one of several trainings as of a part of them all."""

    watcher: Watcher
    before: int
    steps: int

    def progress(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Told on, the steps counted over all trainings."""
        self.watcher.progress(self.before + step, self.steps, figures)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _is_done(folder: Path) -> bool:
    """Whether a training has come to its end; the same on all processes."""
    path = folder / "summary.json"
    return told(lambda: path.is_file() and json.loads(path.read_text(encoding="utf-8"))["status"] != "interrupted")


def _go_on(folder: Path, settings: RunSettings, watcher: Watcher | None, modules: Mapping[str, nn.Module]) -> Run:
    """Train as its settings say, from its checkpoint if there is one."""
    with in_turn():
        data = with_pairs(open_folder(settings.data), settings.synthetic)
        pixels, images = look(data, settings)
    draft = Draft(pixels, images, settings, settings, build_method(settings, modules), modules)
    return _fit(folder, draft, watcher)


def _folder_of(run: Run | str | Path | None) -> str | None:
    folder = run.folder if isinstance(run, Run) else run
    return None if folder is None else str(Path(folder).resolve())


def _fit(folder: Path, draft: Draft, watcher: Watcher | None) -> Run:
    settings, images = draft.settings, draft.images
    fingerprint = _fingerprint(draft.pixels, images)
    agree(fingerprint, f"{settings.data}: images, masks and splits are")
    known = folder / "data.sha256"
    if known.exists() and known.read_text(encoding="utf-8") != fingerprint:
        raise SegmintError(
            f"{folder}: the images, masks or splits of {settings.data}"
            f"{', or the segmenter in ' + settings.masks_from + ',' if settings.masks_from else ''} "
            "have changed since this run began; restore them, or train anew with another --out"
        )
    classes = draft.pixels.data.classes
    if known.exists() and len(classes) and not read_classes(folder / "classes.yaml").same_as(classes):
        raise SegmintError(
            f"{settings.data}: its classes are not those that {folder / 'classes.yaml'} says this run began with; "
            "restore them, or train anew with another --out"
        )
    if rank() == 0:
        write_atomic(known, fingerprint)
    outcome = fit(draft.method, images, settings.training, folder, seed=settings.seed, watcher=watcher)
    if rank() == 0:
        write_atomic(folder / "summary.json", _summary(outcome, draft.method, images))
    meet()
    return Run(folder, draft.modules)


def _fingerprint(pixels: Pixels, images: Images) -> str:
    names = [item.name for item in pixels.data.items]
    parts = [images.labelled, images.unlabelled, images.synthetic, images.validation]
    told = repr([[names[index] for index in part] for part in parts])
    files = [path for item in pixels.data.items for path in (item.image, *item.masks)]
    stamps = repr([path.stat().st_size for path in files])
    predicted = images.source.digest if isinstance(images.source, PredictedMasks) else ""
    return hashlib.sha256((told + stamps + predicted).encode()).hexdigest()


def _summary(outcome: Outcome, method: Method, images: Images) -> str:
    packages = ("torch", "numpy", "pillow", "segmint")
    told = asdict(outcome)
    told["steps"] = told.pop("step")
    told |= {
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "labelled": len(images.labelled),
        "unlabelled": len(images.unlabelled),
        "synthetic": len(images.synthetic),
        "processes": world(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
    return json.dumps(told, indent=2)
