"""Sensible studies of a data folder: what `segmint study DATA` writes before it runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from segmint.data.folder import Data
from segmint.data.io import read_header
from segmint.study.plan import Part, Study
from segmint.training.choice import hardware
from segmint.types import SegmintError

Strategies = dict[str, list[dict[str, Any]]]

SIDE = 160
"""The longer side of the images of a study, in pixels, unless somebody asks for more: there are many trainings."""

FIRST = 0.33
"""The share of the steps of the first training, where a strategy has two."""

QUARTER = {"train": "supervised", "synthetic": ["pairs"], "training": {"synthetic_fraction": 0.25}}
"""The last training of a strategy with generated pairs."""


def alone(**part: Any) -> list[dict[str, Any]]:
    """A strategy of one training."""
    return [{"train": "supervised", **part}]


def default() -> Strategies:
    """What people do with few labels: from masks alone to generated pairs."""
    return {**light(), **painted()}


def light() -> Strategies:
    """Of these what a processor without a GPU can afford: a trial takes at most half as long again as masks alone."""
    first = {"name": "first", "train": "supervised", "share": FIRST}
    return {
        "supervised": alone(),
        "adversarial": alone(train="adversarial"),
        "consistency": alone(train="consistency"),
        "denoise": [{"train": "denoise", "share": FIRST, "once": True}, {"train": "supervised", "init": "denoise"}],
        "self-taught": [first, {"train": "supervised", "init": "first", "masks_from": "first"}],
        "cutpaste": [{"name": "maker", "train": "cutpaste"}, {"generate": "maker"}, QUARTER],
    }


def painted() -> Strategies:
    """Of these what trains a painter for each budget and seed, and so takes a GPU, or patience."""
    teacher = {"name": "teacher", "train": "supervised"}
    few = {"init": "base", "masks_from": "teacher", "training": {"batch_size": 8, "validate_every": 600}}
    base = {"name": "base", "train": "flow", "labels": "none", "once": True, "steps": 2000}
    base["training"] = {"batch_size": 8, "validate_every": 500}
    over = {"generate": "painter", "repaint": True, "segmenter": "teacher", "mix": "predicted=1,varied=1"}
    near = {**over, "settings": {"strength": 0.35, "guidance": 1.0}}
    flow = {"name": "painter", "train": "flow", "steps": 1200, **few}
    spade = {"name": "painter", "train": "spade", "steps": 800, "masks_from": "teacher"}
    return {
        "flow": [teacher, base, flow, near, QUARTER],
        "spade": [teacher, spade, {key: value for key, value in over.items() if key != "repaint"}, QUARTER],
    }


def overfitting() -> Strategies:
    """The remedies against overfitting, each alone and together, over a baseline that has none of them."""
    bare = {"augment": "none", "weight_decay": 0.0, "ema": 0.0}
    none = {"dropout": 0.0}
    l1, l2, early = {"l1": 1e-5}, {"l2": 1e-4}, {"patience": 5}
    pairs = [{"name": "maker", "train": "cutpaste"}, {"generate": "maker"}]
    made = {"synthetic": ["pairs"]}
    augmented = {**bare, "augment": "strong"}
    every = {**augmented, **l1, **l2, **early}
    return {
        "no-remedy": alone(settings=none, training=bare),
        "augmented": alone(settings=none, training=augmented),
        "generated": [*pairs, *alone(settings=none, training={**bare, "synthetic_fraction": 0.25}, **made)],
        "L1": alone(settings=none, training={**bare, **l1}),
        "L2": alone(settings=none, training={**bare, **l2}),
        "dropout": alone(settings={"dropout": 0.5}, training=bare),
        "early-stopping": alone(settings=none, training={**bare, **early}),
        "L1-L2-dropout-early": alone(settings={"dropout": 0.5}, training={**bare, **l1, **l2, **early}),
        "all": [*pairs, *alone(settings={"dropout": 0.5}, training={**every, "synthetic_fraction": 0.25}, **made)],
    }


LOSSES = (
    *("cross_entropy", "mse", "focal", "dice", "lovasz", "balanced_cross_entropy"),
    *("cross_entropy+dice", "cross_entropy+lovasz", "focal+dice", "balanced_cross_entropy+lovasz"),
)


def losses() -> Strategies:
    """The same segmenter with one loss and with sums of two."""
    return {spec: alone(settings={"loss": spec}) for spec in LOSSES}


def ambiguity() -> Strategies:
    """Methods that draw one of the masks that an image allows, for data with several raters."""
    return {name: alone(train=name) for name in ("supervised", "stochastic", "variational", "maskflow")}


PRESETS: Mapping[str, Any] = {"default": default, "overfitting": overfitting, "losses": losses, "ambiguity": ambiguity}
_BASELINES = {"overfitting": "no-remedy", "losses": "cross_entropy"}
_METRICS = {"ambiguity": "ged"}


def preset(name: str, data: Data, *, gpu: bool | None = None, **changes: Any) -> Study:
    """A study of a data folder, and for the machine at hand: without a GPU, what trains a painter is left out.

    Args:
        name: "default", "overfitting", "losses", "ambiguity", or "auto": "ambiguity" where images have several
            raters, else "default".
        data: the folder, open.
        gpu: whether there is one; None: look.
        changes: fields of `Study` that are to differ.

    Raises:
        SegmintError: there is no such preset, or the data has no masks.
    """
    name = name if name != "auto" else "ambiguity" if raters(data) > 1 else "default"
    if name not in PRESETS:
        raise SegmintError(f"--preset: there is no {name!r}; choose one of {', '.join(PRESETS)}")
    labelled = len(data.labelled())
    if not labelled:
        raise SegmintError(f"{data.root}: no training image has a mask; put masks/NAME.png beside images/NAME")
    budgets = usual_budgets(labelled, len(data.split("train")), name)
    slow = name == "default" and not (bool(hardware().gpu) if gpu is None else gpu)
    values = {
        "data": str(data.root.resolve()),
        "size": size_of(data),
        "strategies": light() if slow else PRESETS[name](),
        "baseline": _BASELINES.get(name, "supervised"),
        "budgets": budgets,
        "baseline_budgets": [] if None in budgets or "budgets" in changes else [None],
        "split": "test" if "test" in data.split_names else "val",
        "metric": _METRICS.get(name, "miou"),
        "minutes": 180.0,
        "preset": name,
    }
    return Study.model_validate(values | changes)


def left_out(study: Study) -> dict[str, list[Part]]:
    """What a study of the default preset could have as well; {} of any other."""
    spare = painted() if study.preset == "default" else {}
    return {
        name: [Part.model_validate(part) for part in parts]
        for name, parts in spare.items()
        if name not in study.strategies
    }


def raters(data: Data) -> int:
    """The largest number of masks that an image has."""
    return max((len(item.masks) for item in data.items), default=0)


def usual_budgets(labelled: int, images: int, name: str) -> list[int | None]:
    """Few, more and all labels; all alone for losses and ambiguity.

    All labels are left out of the default where every image has one, as its strategies need some without.
    """
    if name in ("losses", "ambiguity"):
        return [None]
    smaller = [count for count in (10, 30, 100, 300) if 2 * count <= labelled]
    if name == "default" and smaller and images == labelled:
        return [*smaller[:3]]
    return [*(smaller if len(smaller) < 3 else smaller[:3:2]), None]


def size_of(data: Data) -> tuple[int, int]:
    """The size of the first image, shrunk to `SIDE` and rounded to multiples of 8."""
    height, width = read_header(data.items[0].image).size
    scale = min(1.0, SIDE / max(height, width))
    rounded = [max(8, 8 * round(scale * side / 8)) for side in (height, width)]
    return rounded[0], rounded[1]


_WORDS = {
    "data": "the data folder",
    "size": "height and width that all train at; the smaller, the quicker",
    "strategies": "each is a list of commands; the last trains the segmenter that is judged",
    "baseline": "what the others are compared with",
    "budgets": "how many training images keep their masks; all: every one",
    "baseline_budgets": "further ones for the baseline alone: how many labels would do as much as a strategy?",
    "seeds": "three at least, or nothing can be said about chance",
    "steps": "of every strategy's segmenter, pre-training included; long enough for the baseline to stop improving",
    "metric": "what decides",
    "split": "what is judged; test is read once per strategy, at its end",
    "draws": "masks drawn per image by methods that draw; null: 16",
    "minutes": "the longest that a trial may take",
    "halving": "true: the poorer half of the strategies is given up after each of the rungs",
    "settings": "of every segmenter, e.g. {encoder_name: plain}",
    "training": "of every segmenter, e.g. {batch_size: 4}",
    "precision": "auto: the fastest here, measured once",
    "threads": "of each process; null: the cores shared out",
    "watts": "of one process, for an estimate of the energy",
    "preset": "where this file comes from",
}


_COSTS = {
    "flow": "Pairs that a flow paints: a trial takes 3 times as long as one of supervised, and so does what all share.",
    "spade": "Pairs that a GAN paints: a trial takes twice as long as one of supervised.",
}
"""Measured on a processor, with images of 112 x 96 pixels."""


def as_yaml(study: Study, spare: Mapping[str, list[Part]] | None = None) -> str:
    """The file of a study, with a word on each key.

    Args:
        study: what to write.
        spare: strategies that it could have as well, written as comments.
    """
    values = study.model_dump(mode="json")
    blocks = ["# A study: strategies x budgets x seeds. Change what you like; `segmint study` on this file runs it.\n"]
    for key, value in values.items():
        if key in _WORDS:
            blocks.append(f"\n# {_WORDS[key]}\n")
        if key == "strategies":
            blocks += ["strategies:\n", *_parts(study.strategies, "  "), *_comments(spare or {})]
        else:
            blocks.append(_line({key: value})[1:].removesuffix("}\n") + "\n")
    return "".join(blocks)


def _parts(strategies: Mapping[str, list[Part]], head: str) -> list[str]:
    """Each part on a line of its own."""
    lines = []
    for name, parts in strategies.items():
        told = [_line(part.model_dump(mode="json", exclude_unset=True)) for part in parts]
        key = yaml.safe_dump(name, allow_unicode=True, width=10_000).splitlines()[0]
        lines += [f"{head}{key}:\n", *(f"{head}- {part}" for part in told)]
    return lines


def _comments(spare: Mapping[str, list[Part]]) -> list[str]:
    lines = ["\n  ## Left out, as this machine has no GPU; without the # they run all the same.\n"] if spare else []
    for name, parts in spare.items():
        lines += [f"  ## {_COSTS[name]}\n", *_parts({name: parts}, "  # ")]
    return lines


def _line(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10_000)
