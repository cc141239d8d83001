"""What a study is to compare: the settings of study.yaml, and how its steps are split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from segmint.config import parse, read_yaml
from segmint.evaluation.tables import MEASURES
from segmint.methods.method import Method, find
from segmint.types import SegmintError

FILE = "study.yaml"


class Part(BaseModel):
    """One command of a strategy: exactly one of `train`, `generate` and `assay`.

    Attributes:
        name: by which later parts refer to it; else the method, "pairs" or "kept".
        train: a method. `share` of the study's steps, or `steps`, that it takes; neither: see `Study`.
            `labels`: "none" to learn from images alone (one for all budgets), else those of the trial's budget.
            `once`: the same for all seeds, trained with the first. `init`, `masks_from`: earlier trainings;
            `synthetic`: earlier pairs. `settings` of the method and of its `training`.
        generate: an earlier training that generates; `count`, `mix`, `repaint`, `settings` as `segmint generate` has
            them, `segmenter` and `mask_generator` are earlier trainings.
        assay: earlier pairs; `segmenter`: the earlier training that judges them; `keep`, `by`, `copies` as
            `segmint assay` has them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", pattern=r"^[\w.-]*$")
    train: str | None = None
    generate: str | None = None
    assay: str | None = None
    share: float | None = Field(None, gt=0, le=1)
    steps: int | None = Field(None, ge=1)
    labels: Literal["budget", "none"] = "budget"
    once: bool = False
    init: str | None = None
    masks_from: str | None = None
    masks_confidence: float = Field(0.7, ge=0, le=1)
    synthetic: list[str] = []
    settings: dict[str, Any] = {}
    training: dict[str, Any] = {}
    count: int = Field(500, ge=1)
    mix: str | None = None
    repaint: bool = False
    segmenter: str | None = None
    mask_generator: str | None = None
    keep: float | int | None = 0.5
    by: str = "agreement"
    copies: bool = False

    @property
    def kind(self) -> str:
        """ "train", "generate" or "assay"."""
        return next(kind for kind in ("train", "generate", "assay") if getattr(self, kind) is not None)

    @property
    def called(self) -> str:
        """The name by which later parts refer to it."""
        usual = {"train": self.train or "", "generate": "pairs", "assay": "kept"}
        return self.name or usual[self.kind]

    def inputs(self) -> Iterator[tuple[str, str]]:
        """What it needs of earlier parts: the key, and the part's name."""
        for key in ("generate", "assay", "init", "masks_from", "segmenter", "mask_generator"):
            value = getattr(self, key)
            if value is not None:
                yield key, value
        yield from (("synthetic", name) for name in self.synthetic)


OF_KIND: Mapping[str, frozenset[str]] = {
    "train": frozenset(
        {"share", "steps", "labels", "once", "init", "masks_from", "masks_confidence", "synthetic", "training"}
        | {"settings"}
    ),
    "generate": frozenset({"count", "mix", "repaint", "segmenter", "mask_generator", "settings"}),
    "assay": frozenset({"segmenter", "keep", "by", "copies"}),
}


class Study(BaseModel):
    """Strategies x budgets x seeds, compared after equal steps: what study.yaml holds.

    The steps that count are those of a strategy's segmenter: of the last training and of all that it starts from or
    takes masks from (`init`, `masks_from`), pre-training included. They add up to `steps` for every strategy:
    trainings with neither `share` nor `steps` split what the others leave. Generators, and segmenters that only help
    them, are counted apart; without `share` or `steps` generators take their method's usual steps, segmenters `steps`.

    Attributes:
        data: the data folder.
        size: height and width of the training images in pixels; None: that of the data.
        strategies: of each name its parts; the last one trains the segmenter that is judged.
        baseline: the strategy that others are compared with.
        budgets: how many training images keep their masks; None (written "all"): all.
        baseline_budgets: further ones for the baseline alone, so that its curve over labels reaches far enough to say
            how many labels a strategy saves.
        seeds: of each trial.
        steps: of every strategy's segmenter.
        metric: the measure that decides, e.g. "miou" or "ged".
        split: what is judged; "test" is read once per strategy, when all its trials are trained.
        draws: masks drawn per image where a method draws them; None: 16.
        minutes: the longest that a trial may take, in all sittings; None: no limit.
        halving: give up the poorer half of the strategies, by validation score, after each of the `rungs`.
        rungs: shares of the last training after which that is decided.
        settings, training: of every segmenter (what counts and what helps generators), under what a part says itself;
            settings only where the method has them.
        precision: of all trainings alike; "auto": the fastest for the baseline, measured once.
        threads: of each process; None: the cores shared out among the processes when the study is first started.
        watts: what one process takes (the machine's over the number of processes), for the report's estimate of
            energy; None: no estimate.
        preset: where the file comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    size: tuple[int, int] | None = None
    strategies: dict[str, list[Part]] = Field(min_length=1)
    baseline: str
    budgets: list[int | None] = Field([None], min_length=1)
    baseline_budgets: list[int | None] = []
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    steps: int = Field(1500, ge=1)
    metric: str = "miou"
    split: Literal["val", "test"] = "test"
    draws: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    halving: bool = False
    rungs: list[float] = [0.25, 0.5]
    settings: dict[str, Any] = {}
    training: dict[str, Any] = {}
    precision: Literal["auto", "float32", "channels_last", "bfloat16"] = "auto"
    threads: int | None = Field(None, ge=1)
    watts: float | None = Field(None, gt=0)
    preset: str = ""

    @field_validator("budgets", "baseline_budgets", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return [None if one == "all" else one for one in value] if isinstance(value, list) else value

    @field_serializer("budgets", "baseline_budgets")
    def _told(self, value: list[int | None]) -> list[int | str]:
        return ["all" if one is None else one for one in value]

    @property
    def every_budget(self) -> list[int | None]:
        """Those of all strategies and those of the baseline alone, from the fewest labels to the most."""
        return by_size([*self.budgets, *self.baseline_budgets])

    def strategies_at(self, budget: int | None) -> list[str]:
        """The strategies that are trained with a budget."""
        return list(self.strategies) if budget in self.budgets else [self.baseline]

    @property
    def comparisons(self) -> int:
        """How many comparisons with the baseline there are when all trials have ended."""
        return (len(self.strategies) - 1) * len(self.budgets)


def by_size(budgets: Iterable[int | None]) -> list[int | None]:
    """Budgets from the fewest labels to the most."""
    return sorted(budgets, key=lambda one: math.inf if one is None else one)


def read_study(path: str | Path) -> Study:
    """A study from its file, or from the folder that holds it; checked as far as that needs no data.

    Raises:
        SegmintError: missing, damaged, or something in it cannot be done; the message names the key's path.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    study: Study = parse(Study, read_yaml(path), str(path))
    if not Path(study.data).is_absolute():
        study = study.model_copy(update={"data": str((path.parent / study.data).resolve())})
    check(study, str(path))
    return study


def check(study: Study, source: str = FILE) -> None:
    """Whether all of a study can be done.

    Raises:
        SegmintError: naming the strategy and the part that cannot, and why.
    """
    where = f"{source}: "
    if study.baseline not in study.strategies:
        raise SegmintError(f"{where}baseline: {study.baseline!r} is none of {', '.join(study.strategies)}")
    if study.metric not in MEASURES or not MEASURES[study.metric].best:
        able = ", ".join(key for key, measure in MEASURES.items() if measure.best)
        raise SegmintError(f"{where}metric: {study.metric!r} cannot be compared; choose one of {able}")
    for key, values in (("budgets", study.budgets), ("seeds", study.seeds), ("rungs", study.rungs)):
        if len(set(values)) < len(values):
            raise SegmintError(f"{where}{key}: {values} names one twice; name each once")
    twice = [told_budget(one) for one in dict.fromkeys(study.every_budget) if study.every_budget.count(one) > 1]
    if twice:
        raise SegmintError(f"{where}baseline_budgets: the baseline has {', '.join(twice)} anyway; name further ones")
    if any(budget is not None and budget < 1 for budget in study.every_budget) or min(study.seeds) < 0:
        raise SegmintError(f"{where}budgets must be 1 or more, or all; seeds 0 or more")
    if sorted(study.rungs) != study.rungs or any(not 0 < rung < 1 for rung in study.rungs):
        raise SegmintError(f"{where}rungs: must be rising shares between 0 and 1, not {study.rungs}")
    for key in ("precision", "device", "steps", "epochs"):
        if key in study.training:
            raise SegmintError(f"{where}training.{key}: is the same for all; leave it out, or set the study's own")
    if study.halving and MEASURES[study.metric].table == "sets":
        raise SegmintError(f"{where}halving: goes by mIoU, which says little of {study.metric}; leave it out")
    for name, parts in study.strategies.items():
        if name.startswith("_") or not name.strip() or not name.isprintable():
            raise SegmintError(f"{where}strategies: {name!r} cannot be a name; take printable text without _ in front")
        _check_strategy(study, parts, f"{where}strategies.{name}")
    known = set().union(*(method_of(part).settings() for part in _trainings(study)))
    for key in study.settings:
        if key not in known:
            told = ", ".join(sorted(known))
            raise SegmintError(f"{where}settings.{key}: no method of the study has it; they have {told}")


def _trainings(study: Study) -> list[Part]:
    return [part for parts in study.strategies.values() for part in parts if part.train is not None]


def _check_strategy(study: Study, parts: list[Part], where: str) -> None:
    if not parts:
        raise SegmintError(f"{where}: has no part; give at least `- train: supervised`")
    known: dict[str, Part] = {}
    for number, part in enumerate(parts):
        _check_part(part, known, f"{where}[{number}]")
        known[part.called] = part
    last = parts[-1]
    if last.kind != "train" or "segment" not in find(last.train or "").capabilities():
        raise SegmintError(f"{where}: its last part must train a segmenter, not {last.called!r}")
    split_steps(study, parts, where)


def _check_part(part: Part, known: Mapping[str, Part], where: str) -> None:
    """Raise a SegmintError unless a part is whole and all that it refers to comes before it."""
    kinds = [kind for kind in ("train", "generate", "assay") if getattr(part, kind) is not None]
    if len(kinds) != 1:
        raise SegmintError(f"{where}: must have one of train, generate and assay, not {' and '.join(kinds) or 'none'}")
    foreign = part.model_fields_set - OF_KIND[part.kind] - {"name", part.kind}
    if foreign:
        raise SegmintError(f"{where}.{min(foreign)}: is nothing that {part.kind} takes; leave it out")
    if part.called in known:
        raise SegmintError(f"{where}: there is a part called {part.called!r} before it; give it another name")
    if part.share is not None and part.steps is not None:
        raise SegmintError(f"{where}: share and steps say the same; give one")
    if part.kind == "train" and part.once and not blind(part):
        raise SegmintError(f"{where}.once: with a trial's own labels it would bring those of another; add labels: none")
    for key in ("precision", "device", "steps", "epochs"):
        if key in part.training and not (part.kind == "train" and method_of(part).whole_epochs and key == "epochs"):
            told = "give the part steps or share" if key in ("steps", "epochs") else "it is the same for all"
            raise SegmintError(f"{where}.training.{key}: leave it out; {told}")
    if part.kind == "assay" and part.segmenter is None:
        raise SegmintError(f"{where}.segmenter: is missing; name the earlier training that judges the pairs")
    for key, name in part.inputs():
        if name not in known:
            told = ", ".join(known) or "none"
            raise SegmintError(f"{where}.{key}: there is no part {name!r} before it; there are {told}")
        _check_input(key, known[name], where)


_ABLE = {"generate": "generate", "masks_from": "segment", "segmenter": "segment", "mask_generator": "generate"}


def _check_input(key: str, other: Part, where: str) -> None:
    wants_pairs = key in ("synthetic", "assay")
    if wants_pairs == (other.kind == "train"):
        what = "pairs (generate or assay)" if wants_pairs else "a training"
        raise SegmintError(f"{where}.{key}: {other.called!r} is not {what}")
    if key in _ABLE and _ABLE[key] not in method_of(other).capabilities():
        raise SegmintError(f"{where}.{key}: {other.train} does not {_ABLE[key]}; `segmint methods` lists those that do")


def method_of(part: Part) -> type[Method]:
    """The class of the method that a part trains."""
    return find(part.train or "")


def blind(part: Part) -> bool:
    """Whether a training sees no mask of the data."""
    return part.labels == "none" or method_of(part).prepares


def chain(parts: list[Part]) -> list[Part]:
    """The trainings whose steps count, in order: the last, and what it starts from or takes masks from."""
    known = {part.called: part for part in parts}
    wanted = {parts[-1].called}
    for part in reversed(parts):
        if part.called in wanted:
            wanted |= {name for name in (part.init, part.masks_from) if name is not None}
    return [known[part.called] for part in parts if part.called in wanted]


def split_steps(study: Study, parts: list[Part], where: str = "") -> dict[str, int | None]:
    """The steps of each of a strategy's trainings, by name; None: what is usual for the method.

    Raises:
        SegmintError: those that count do not add up to the study's.
    """
    counted = [part for part in chain(parts) if not method_of(part).whole_epochs]
    asked = {part.called: _asked(study, part) for part in parts if part.kind == "train"}
    open_ = [part.called for part in counted if asked[part.called] is None]
    taken = sum(asked[part.called] or 0 for part in counted)
    left = study.steps - taken
    if counted and (left < len(open_) or (left and not open_)):
        raise SegmintError(
            f"{where}: its trainings take {taken} steps, and every strategy must take {study.steps} in all, "
            "pre-training included; leave share and steps out of one of them, which then takes the rest"
        )
    for number, name in enumerate(open_):
        asked[name] = left // len(open_) + (number < left % len(open_))
    names = {part.called for part in counted}
    for part in parts:
        if part.kind == "train" and part.called not in names and asked[part.called] is None and helps(part):
            asked[part.called] = study.steps
    return asked


def helps(part: Part) -> bool:
    """Whether a training is of a segmenter, and of nothing that generates."""
    return part.kind == "train" and method_of(part).capabilities() == {"segment"}


def _asked(study: Study, part: Part) -> int | None:
    """The steps that a training asks for itself."""
    if part.share is None:
        return part.steps
    return max(1, math.floor(study.steps * part.share + 0.5))


def told_budget(budget: int | None) -> str:
    """A budget in words: "30 labels" or "all labels"."""
    return "all labels" if budget is None else f"{budget} labels" if budget != 1 else "1 label"
