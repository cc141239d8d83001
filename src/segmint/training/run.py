"""From a data folder and settings to a run folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segmint.config import RunSettings, TrainSettings, parse, read_run, write_atomic, write_run
from segmint.data.augment import resolve
from segmint.data.cache import Pixels
from segmint.data.classes import Classes, read_classes, write_classes
from segmint.data.folder import Data, open_folder
from segmint.methods.method import Facts, Method, build, find, load
from segmint.ranks import rank, world
from segmint.seeds import mix
from segmint.training.optimizers import PartOptimizers
from segmint.training.pace import steps_within
from segmint.training.parallel import agree, in_turn, join, meet, told
from segmint.training.pseudo import PredictedMasks, predict_masks
from segmint.training.train import Images, Outcome, Watcher, fit
from segmint.types import SegmintError


@dataclass(frozen=True)
class Run:
    """A run folder, and what is in it.

    Attributes:
        folder: where it is.
        modules: networks of the user's own that its method was built with.
        changes: settings of the method to use instead of those that it was trained with, e.g. {"steps": 50}.
    """

    folder: Path
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

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


def next_folder(method: str, parent: Path = Path("runs")) -> Path:
    """The next free numbered run folder, `runs/7-method`."""
    found = [re.match(r"(\d+)-", path.name) for path in parent.glob("*-*")] if parent.is_dir() else []
    number = max((int(match.group(1)) for match in found if match), default=0) + 1
    return parent / f"{number}-{method}"


def train(
    data: Data | str | Path,
    *,
    method: str = "supervised",
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
    **method_settings: Any,
) -> Run:
    """Train a method on a data folder; started by torchrun, several processes train it together.

    Args:
        data: a data folder, open or by its path. Generated items in it (`data + pairs`) are trained on as well.
        method: one of `segmint.methods.method.names()`.
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
        method_settings: arguments of the method's constructor.

    Raises:
        SegmintError: the data or a setting is wrong, the folder is in use, or the loss stopped being finite.
    """
    join()
    cls = find(method)
    values = {
        "method": method,
        "method_settings": {k: v for k, v in method_settings.items() if not isinstance(v, nn.Module)},
        "data": str(data.root.resolve() if isinstance(data, Data) else Path(data).resolve()),
        "synthetic": [str(Path(folder).resolve()) for folder in synthetic],
        "budget": budget,
        "masks_from": _folder_of(masks_from),
        "masks_confidence": masks_confidence,
        "init": _folder_of(init),
        "seed": seed,
        "size": size,
        "training": _training(cls, settings or {}),
    }
    asked: RunSettings = parse(RunSettings, values, "settings")
    with in_turn():
        data = data if isinstance(data, Data) else open_folder(data)
    asked.synthetic = [*_synthetic_roots(data), *asked.synthetic]
    data = _with_pairs(data, asked.synthetic)
    folder = told(lambda: Path(out) if out is not None else next_folder(method))
    if (folder / "config.yaml").exists():
        raise SegmintError(
            f"{folder}: holds a run already; choose another --out, or go on: `segmint train --resume {folder}`"
        )
    with in_turn():
        pixels, images = _prepare(data, asked)
    own = {key: value for key, value in method_settings.items() if isinstance(value, nn.Module)}
    settled = _settle(cls, asked, pixels, images, own)
    built = _build(settled, own)
    if minutes is not None:
        asked.training, pace = told(lambda: steps_within(minutes, built, images, settled.training, seed))
        settled = _settle(cls, asked, pixels, images, own)
        settled.notes.append(pace)
        built = _build(settled, own)
    if rank() == 0:
        write_classes(folder / "classes.yaml", data.classes)
        write_run(settled, folder)
    return _fit(folder, settled, pixels, images, built, own, watcher)


def resume(folder: str | Path, watcher: Watcher | None = None, **modules: nn.Module) -> Run:
    """Continue an interrupted run, to exactly the weights that it would have had.

    Args:
        folder: its run folder.
        watcher: is told how it goes.
        modules: networks of the user's own that it was started with.

    Raises:
        SegmintError: no run there, or its data has changed.
    """
    join()
    folder = Path(folder)
    settings = read_run(folder)
    with in_turn():
        data = _with_pairs(open_folder(settings.data), settings.synthetic)
        pixels, images = _prepare(data, settings)
    return _fit(folder, settings, pixels, images, _build(settings, modules), modules, watcher)


def _folder_of(run: Run | str | Path | None) -> str | None:
    folder = run.folder if isinstance(run, Run) else run
    return None if folder is None else str(Path(folder).resolve())


def _training(cls: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's defaults under what was given; fields of an augmentation change those of the usual preset."""
    values = {**cls.defaults, **given}
    if isinstance(given.get("augment"), Mapping):
        usual = cls.defaults.get("augment", TrainSettings().augment)
        values["augment"] = {**({"preset": usual} if isinstance(usual, str) else usual), **given["augment"]}
    return values


def _synthetic_roots(data: Data) -> list[str]:
    """The folders whose items were added with `+`."""
    roots = {str(item.image.resolve()).rpartition("/images/")[0] for item in data.items if item.synthetic}
    return sorted(roots)


def _with_pairs(data: Data, folders: Sequence[str]) -> Data:
    known = set(_synthetic_roots(data))
    for folder in folders:
        if folder not in known:
            data = data + open_folder(folder)
    return data


def _prepare(data: Data, settings: RunSettings) -> tuple[Pixels, Images]:
    pixels = Pixels.open(data, settings.size, progress=True)
    chosen = data.labelled(settings.budget or None, settings.seed)
    labelled = [index for index in chosen if not data.items[index].synthetic and settings.budget != 0]
    synthetic = [index for index in chosen if data.items[index].synthetic]
    seen = {*labelled, *synthetic}
    unlabelled = [index for index in data.split("train") if index not in seen]
    cls = find(settings.method)
    alone = cls.uses_unlabelled and (settings.budget == 0 or cls.prepares)
    if not seen and not (alone and unlabelled):
        raise SegmintError(_no_masks(data, settings))
    validation: list[int] = []
    if "val" in data.split_names:
        validation = [index for index in data.split("val") if pixels.rows[index] or cls.prepares]
    if settings.masks_from is None:
        used = unlabelled if cls.uses_unlabelled else []
        return pixels, Images(pixels, labelled, used, synthetic, validation)
    predicted = predict_masks(
        pixels,
        unlabelled,
        Path(settings.masks_from),
        confidence=settings.masks_confidence,
        device=settings.training.device,
    )
    return pixels, Images(predicted, labelled, unlabelled, synthetic, validation)


def _no_masks(data: Data, settings: RunSettings) -> str:
    if settings.budget == 0:
        return (
            f"budget: 0 leaves {settings.method} no mask to learn from; name a folder of generated pairs with "
            "synthetic as well, or choose a method that learns from unlabelled images"
        )
    return f"{data.root}: no training image has a mask; put masks/NAME.png beside images/NAME"


def _settle(
    cls: type[Method], asked: RunSettings, pixels: Pixels, images: Images, own: Mapping[str, nn.Module]
) -> RunSettings:
    """Resolve everything that depends on the data, and write down why."""
    data = pixels.data
    shares = pixels.shares([*images.labelled, *images.synthetic])
    notes = [*data.notes, *pixels.notes]
    if isinstance(images.source, PredictedMasks):
        notes += [*images.source.notes, *_other_labels(asked)]
    missing = [data.classes.names[k] for k, share in enumerate(shares) if share == 0]
    if missing and any(shares):
        notes.append(f"no labelled training pixel is {', '.join(missing)}; the method cannot learn it")
    facts = Facts(
        classes=len(data.classes),
        channels=data.channels,
        size=pixels.size,
        shares=shares,
        labelled=len(images.labelled) + len(images.synthetic),
        unlabelled=len(images.unlabelled),
        steps=asked.training.steps,
    )
    basics = {"classes": facts.classes, "in_channels": facts.channels, "image_size": list(facts.size)}
    chosen, reasons = cls.adapt({**asked.method_settings, **own}, facts)
    plain = {key: value for key, value in chosen.items() if not isinstance(value, nn.Module)}
    return asked.model_copy(
        update={
            "method_settings": {**basics, **plain},
            "given": asked.method_settings,
            "size": pixels.size,
            "depth": data.depth,
            "notes": [*notes, *reasons],
        }
    )


def _other_labels(asked: RunSettings) -> list[str]:
    """A sentence if the masks come from a segmenter that has seen other labels than this run may see."""
    teacher = read_run(Path(asked.masks_from or ""))
    if asked.budget == 0 or (teacher.data, teacher.budget, teacher.seed) == (asked.data, asked.budget, asked.seed):
        return []
    return [
        f"masks_from: its segmenter learnt from {_told(teacher)}, this run from {_told(asked)}; a comparison at equal "
        "labels needs them to agree"
    ]


def _told(settings: RunSettings) -> str:
    return f"{settings.data} with budget {settings.budget or 'all'} and seed {settings.seed}"


def _build(settings: RunSettings, own: Mapping[str, nn.Module]) -> Method:
    """The method with its first weights; refuses settings that would fail later, before anything is written."""
    resolve(settings.training.augment)
    torch.manual_seed(mix(settings.seed, "build"))
    arguments = {**settings.method_settings, "image_size": tuple(settings.method_settings["image_size"])}
    method = build(settings.method, **arguments, **own)
    if world() > 1 and (method.whole_epochs or not method.parts()):
        raise SegmintError(f"{method.name}: is fitted by one process, not by {world()}; start it without torchrun")
    PartOptimizers(method.parts(), settings.training)
    if settings.init is not None:
        start_from(method, Path(settings.init))
    return method


def start_from(method: Method, folder: Path) -> int:
    """Take over a run's weights, wherever a tensor has the same name and shape.

    Returns:
        How many tensors were taken.

    Raises:
        SegmintError: none fits, or there is no run.
    """
    taken = load(folder).state_dict()
    own = method.state_dict()
    fitting = {key: value for key, value in taken.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise SegmintError(f"init: {folder} and {method.name} have no tensor of the same name and shape in common")
    method.load_state_dict({**own, **fitting})
    return len(fitting)


def _fit(
    folder: Path,
    settings: RunSettings,
    pixels: Pixels,
    images: Images,
    method: Method,
    own: Mapping[str, nn.Module],
    watcher: Watcher | None,
) -> Run:
    fingerprint = _fingerprint(pixels, images)
    agree(fingerprint, f"{settings.data}: images, masks and splits are")
    known = folder / "data.sha256"
    if known.exists() and known.read_text(encoding="utf-8") != fingerprint:
        raise SegmintError(
            f"{folder}: the images, masks or splits of {settings.data}"
            f"{', or the segmenter in ' + settings.masks_from + ',' if settings.masks_from else ''} "
            "have changed since this run began; restore them, or train anew with another --out"
        )
    if rank() == 0:
        write_atomic(known, fingerprint)
    outcome = fit(method, images, settings.training, folder, seed=settings.seed, watcher=watcher)
    if rank() == 0:
        write_atomic(folder / "summary.json", _summary(outcome, method, images))
    meet()
    return Run(folder, own)


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
