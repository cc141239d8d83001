"""What a training needs before it begins: everything that depends on the data is settled here, nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from segmint.config import SMALLEST, RunSettings, TrainSettings, parse, read_run, typed
from segmint.data.augment import resolve
from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.methods.method import Facts, Method, build, find
from segmint.ranks import world
from segmint.seeds import mix
from segmint.training.choice import Choice, choose, disagreement, hardware
from segmint.training.optimizers import PartOptimizers
from segmint.training.pace import Pace, measure
from segmint.training.parallel import in_turn, told
from segmint.training.pseudo import PredictedMasks, predict_masks
from segmint.training.sampler import Sampler
from segmint.training.train import Images
from segmint.training.weights import fitting, start_from
from segmint.types import IGNORE, SegmintError

STRIDE = 32
"""Pixels in the coarsest maps' steps."""

WATCHED = 200
"""At most so many validation images are looked at while a method trains: all of some hundreds would take as long as the
training, and choose hardly better weights."""

DERIVED = {"classes": "", "in_channels": "", "image_size": ", and give --size (in Python: size)"}
"""Arguments of every method that nobody gives, and what may be given instead."""


@dataclass(frozen=True)
class Wish:
    """A training as somebody asks for it, by whichever method.

    Attributes:
        data: the folder, with all generated pairs.
        values: settings of a run, but for those of its method and of the training.
        training: training settings as given; `method_settings`: arguments of the constructor as given.
        minutes: how long it may take.
    """

    data: Data
    values: Mapping[str, Any]
    training: Mapping[str, Any]
    method_settings: Mapping[str, Any]
    minutes: float | None = None

    def asked(self, method: str) -> RunSettings:
        """The settings of a run by that method, as far as they do not depend on the data.

        Raises:
            SegmintError: a setting is wrong.
        """
        for key, instead in DERIVED.items():
            if key in self.method_settings:
                raise SegmintError(f"{key}: follows from the data; leave it out{instead}")
        plain = {key: value for key, value in self.method_settings.items() if not isinstance(value, nn.Module)}
        values = {**self.values, "method": method, "method_settings": plain}
        return check_settings(values, find(method), self.training)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Networks of the user's own."""
        return {key: value for key, value in self.method_settings.items() if isinstance(value, nn.Module)}

    @cached_property
    def facts(self) -> Facts:
        """What is known before there is a method: all that could be used. With `minutes`, steps have no end yet."""
        settings = check_settings(self.values, Method, self.training)
        with in_turn():
            pixels = Pixels.open(self.data, settings.size, progress=True)
        labelled, synthetic, unlabelled = roles(self.data, settings)
        images = Images(pixels, labelled, () if settings.masks_from else unlabelled, synthetic)
        if not labelled and not synthetic:
            raise SegmintError(no_masks(self.data, settings))
        facts = told(lambda: facts_of(settings, pixels, images))
        if self.minutes is not None:
            return replace(facts, steps=sys.maxsize)
        epochs, size = settings.training.epochs, settings.training.batch_size
        return facts if epochs is None else replace(facts, steps=-(-facts.labelled // size) * epochs)

    def draft(self, method: str) -> Draft:
        """The training by one method; where `minutes` are given, still without the steps that fit."""
        return draft(self.data, self.asked(method), self.modules)

    def draft_first(self, method: str) -> Draft:
        """The same for what prepares another method, with those of the settings that it has."""
        has = find(method).settings()
        given = {k: v for k, v in self.method_settings.items() if k in has and not isinstance(v, nn.Module)}
        return replace(self, method_settings=given).draft(method)

    @property
    def alone(self) -> str:
        """Why nothing can be trained before; empty if it can."""
        if self.values["init"] is not None:
            return "init names a run to start from"
        if self.training.get("epochs") is not None:
            return "training.epochs counts passes, which two trainings cannot share"
        return "masks_from gives every image a mask" if self.values["masks_from"] is not None else ""


@dataclass(frozen=True)
class Draft:
    """A training that could begin.

    Attributes:
        pixels: the data; `images`: what is for what.
        asked: settings as they were given; `settings`: all of them, resolved.
        method: with its first weights; `modules`: networks of the user's own in it.
    """

    pixels: Pixels
    images: Images
    asked: RunSettings
    settings: RunSettings
    method: Method
    modules: Mapping[str, nn.Module]

    @cached_property
    def pace(self) -> Pace:
        """How fast it trains here, by rank 0.

        Raises:
            SegmintError: the method is fitted in whole epochs.
        """
        return told(lambda: measure(self.method, self.images, self.settings.training, self.settings.seed))

    def within(self, minutes: float | None) -> Draft:
        """The same with as many steps as fit; itself where there is no limit.

        Raises:
            SegmintError: too few do, or the method is fitted in whole epochs.
        """
        if minutes is None:
            return self
        training, note = self.pace.within(minutes, self.settings.training)
        limited = replace(self, asked=self.asked.model_copy(update={"minutes": minutes}))
        return limited._again(training, note)

    def with_steps(self, steps: int) -> Draft:
        """The same with so many steps."""
        return self._again(self.asked.training.model_copy(update={"steps": steps}))

    def noted(self, notes: list[str]) -> Draft:
        """The same with these notes before its own."""
        return replace(self, settings=self.settings.model_copy(update={"notes": [*notes, *self.settings.notes]}))

    def _again(self, training: TrainSettings, *notes: str) -> Draft:
        asked = self.asked.model_copy(update={"training": training})
        settings = settle(asked, self.pixels, self.images, self.modules)
        settings.notes.extend(notes)
        method = build_method(settings, self.modules)
        return replace(self, asked=asked, settings=settings, method=method)


def draft(data: Data, asked: RunSettings, modules: Mapping[str, nn.Module]) -> Draft:
    """Look at the data and build the method; what would fail at the first step fails here, where nothing is written.

    Raises:
        SegmintError: the data or a setting is wrong.
    """
    with in_turn():
        pixels, images = look(data, asked)
    Sampler.of(images, asked.training, whole_epochs=find(asked.method).whole_epochs, seed=asked.seed)
    settings = settle(asked, pixels, images, modules)
    return Draft(pixels, images, asked, settings, build_method(settings, modules), modules)


def pick(wish: Wish) -> tuple[Choice, list[Draft]]:
    """Choose a strategy; its trainings in their order, all but the last of which prepare the next.

    Raises:
        SegmintError: the data or a setting is wrong, or the time is too short.
    """
    drafts: dict[str, Draft] = {}
    minutes = wish.minutes

    def drafted(name: str) -> Draft:
        if name not in drafts:
            drafts[name] = wish.draft_first(name) if find(name).prepares else wish.draft(name)
        return drafts[name]

    def steps_of(name: str) -> int:
        return drafted(name).pace.steps(minutes or 0)

    def starts(first: str, then: str) -> bool:
        return bool(fitting(drafted(then).method, drafted(first).method))

    given = frozenset(wish.method_settings)
    choice = choose(wish.facts, given=given, minutes=minutes, steps_of=steps_of, starts=starts, alone=wish.alone)
    last = drafted(choice.method)
    if choice.prepare is None:
        return choice, [last.within(minutes).noted(choice.notes)]
    first, share, steps = drafted(choice.prepare), choice.share, round(choice.facts.steps * choice.share)
    if minutes is None:
        first, last = first.with_steps(steps), last.with_steps(choice.facts.steps - steps)
    else:
        first, last = first.within(minutes * share), last.within(minutes * (1 - share))
    return choice, [first.noted([f"the first part of {choice.title}"]), last.noted(choice.notes)]


def check_settings(values: Mapping[str, Any], cls: type[Method], training: Mapping[str, Any]) -> RunSettings:
    """Settings of a run by a method, as far as they do not depend on the data; `Method` itself for any.

    Args:
        values: settings of the run, those of the training left out.
        training: these as given.

    Raises:
        SegmintError: a setting is wrong.
    """
    everything = {"method": "", **values, "training": training_of(cls, training)}
    settings: RunSettings = parse(RunSettings, everything, "settings")
    return settings


def training_of(cls: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's defaults under what was given; fields of an augmentation change those of the usual preset."""
    values = {**cls.defaults, **given}
    if isinstance(given.get("augment"), Mapping):
        usual = cls.defaults.get("augment", TrainSettings().augment)
        values["augment"] = {**({"preset": usual} if isinstance(usual, str) else usual), **given["augment"]}
    return values


def synthetic_roots(data: Data) -> list[str]:
    """The folders whose items were added with `+`."""
    roots = {str(item.image.resolve()).rpartition("/images/")[0] for item in data.items if item.synthetic}
    return sorted(roots)


def with_pairs(data: Data, folders: list[str]) -> Data:
    """The data with the items of these folders of generated pairs, each once."""
    known = set(synthetic_roots(data))
    for folder in folders:
        if folder not in known:
            data = data + open_folder(folder)
    return data


def roles(data: Data, settings: RunSettings) -> tuple[list[int], list[int], list[int]]:
    """Which training items have masks that may be seen, which are generated, and which are without."""
    chosen = data.labelled(settings.budget or None, settings.seed)
    labelled = [index for index in chosen if not data.items[index].synthetic and settings.budget != 0]
    synthetic = [index for index in chosen if data.items[index].synthetic]
    seen = {*labelled, *synthetic}
    return labelled, synthetic, [index for index in data.split("train") if index not in seen]


def look(data: Data, settings: RunSettings) -> tuple[Pixels, Images]:
    """Decode the data, and say what is for what.

    Raises:
        SegmintError: there is nothing for the method to learn from, or images are tiny.
    """
    pixels = Pixels.open(data, settings.size, progress=True)
    if min(pixels.size) < SMALLEST:
        (height, width), times = pixels.size, -(-SMALLEST // min(pixels.size))
        raise SegmintError(
            f"{data.root}: its images are {height} x {width} pixels (height x width), and {SMALLEST} is the least; "
            f"show them larger: --size {times * height}x{times * width}"
        )
    if settings.training.batch_size == 1 and max(pixels.size) <= STRIDE:
        raise SegmintError(
            f"training.batch_size: 1 is too few at {pixels.size[0]} x {pixels.size[1]} pixels, where the coarsest map "
            "may be a single value and has no variance to normalise by; take 2 or more"
        )
    labelled, synthetic, unlabelled = roles(data, settings)
    cls = find(settings.method)
    alone = cls.uses_unlabelled and (settings.budget == 0 or cls.prepares)
    if not labelled and not synthetic and not (alone and unlabelled):
        raise SegmintError(no_masks(data, settings))
    if not len(data.classes) and not cls.prepares:
        raise SegmintError(
            f"{data.root / 'classes.yaml'}: missing, and there are no masks to tell the classes; write it, e.g. "
            "`classes: [{id: 0, name: background}, {id: 1, name: object}]`"
        )
    whole = validation_of(pixels, settings.method)
    validation = whole[:: -(-len(whole) // WATCHED)] if whole else []
    if settings.masks_from is None:
        used = unlabelled if cls.uses_unlabelled else []
        return pixels, Images(pixels, labelled, used, synthetic, validation, len(whole))
    predicted = predict_masks(
        pixels,
        unlabelled,
        Path(settings.masks_from),
        confidence=settings.masks_confidence,
        device=settings.training.device,
    )
    return pixels, Images(predicted, labelled, unlabelled, synthetic, validation, len(whole))


def validation_of(pixels: Pixels, method: str) -> list[int]:
    """The items of the split "val" that say something of a method."""
    data = pixels.data
    items = data.split("val") if "val" in data.split_names else []
    if find(method).prepares:
        return items
    return [index for index in items if any((pixels.masks[row] != IGNORE).any() for row in pixels.rows[index])]


def no_masks(data: Data, settings: RunSettings) -> str:
    """A sentence for who wants to train without any mask."""
    if settings.budget == 0:
        return (
            f"budget: 0 leaves {settings.method or 'any segmenter'} no mask to learn from; name a folder of generated "
            "pairs with synthetic as well, or choose a method that learns from unlabelled images"
        )
    return f"{data.root}: no training image has a mask; put masks/NAME.png beside images/NAME"


def facts_of(settings: RunSettings, pixels: Pixels, images: Images) -> Facts:
    """What a method may know of its training before it is built."""
    masked = [*images.labelled, *images.synthetic]
    training, count = settings.training, len(masked) + len(images.unlabelled)
    passes = -(-count // (training.batch_size * world()))
    return Facts(
        classes=len(pixels.data.classes),
        channels=pixels.data.channels,
        size=pixels.size,
        shares=pixels.shares(masked),
        labelled=len(masked),
        unlabelled=len(images.unlabelled),
        steps=training.steps if training.epochs is None else training.epochs * passes,
        batch_size=settings.training.batch_size,
        raters=max((len(pixels.rows[index]) for index in masked), default=1),
        disagreement=disagreement(pixels, masked),
        hardware=hardware(settings.training.device),
    )


def settle(asked: RunSettings, pixels: Pixels, images: Images, own: Mapping[str, nn.Module]) -> RunSettings:
    """Resolve everything that depends on the data, and write down why."""
    data = pixels.data
    facts = facts_of(asked, pixels, images)
    notes = [*data.notes, *pixels.notes]
    if isinstance(images.source, PredictedMasks):
        notes += [*images.source.notes, *_other_labels(asked)]
    if len(images.validation) < images.validated:
        notes.append(
            f"while it trains, {len(images.validation)} of the {images.validated:,} validation images, evenly spread, "
            "say which weights are best; `segmint evaluate` takes all"
        )
    missing = [data.classes.names[k] for k, share in enumerate(facts.shares) if share == 0]
    if missing and any(facts.shares):
        notes.append(f"no labelled training pixel is {', '.join(missing)}; the method cannot learn it")
    basics = {"classes": facts.classes, "in_channels": facts.channels, "image_size": list(facts.size)}
    cls = find(asked.method)
    given = typed(get_type_hints(cls.__init__), {**asked.method_settings, **own}, asked.method)
    chosen, reasons = cls.adapt(given, facts)
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


def build_method(settings: RunSettings, own: Mapping[str, nn.Module]) -> Method:
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
