"""The work of a study in pieces: commands that are done once, however many trials need them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmint.config import TrainSettings, parse
from segmint.study.plan import Part, Study, blind, chain, helps, method_of, split_steps, told_budget

FOLDER = "pieces"

_UNIMPORTANT = {"save_every", "device"}


@dataclass(frozen=True)
class Piece:
    """One command: train, generate, assay or evaluate.

    Attributes:
        name: its folder in `pieces/`; the end is a digest of all that determines it.
        key: that digest in full.
        kind: "train", "generate", "assay" or "evaluate".
        label: what it is, for people.
        method: that is trained, or whose run generates, judges or is judged.
        budget, seed: of its labels; None and the study's first seed where it is the same for all.
        steps: of a training; None where the method decides.
        needs: names of the pieces that must be done before.
        job: what the worker is told, but for the folders of the pieces in `inputs`.
        inputs: key of the job -> names of the pieces whose folders it takes.
    """

    name: str
    key: str
    kind: str
    label: str
    method: str
    budget: int | None
    seed: int
    steps: int | None
    needs: tuple[str, ...]
    job: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Trial:
    """A strategy with a budget and a seed.

    Attributes:
        strategy, budget, seed: which.
        pieces: names of all pieces that it needs, each after those that it needs itself, the evaluation last.
        counted: the trainings whose steps count; the last of them is judged.
        key: stands for everything that determines it.
    """

    strategy: str
    budget: int | None
    seed: int
    pieces: tuple[str, ...]
    counted: tuple[str, ...]
    key: str

    @property
    def of(self) -> tuple[str, int | None, int]:
        """Strategy, budget, seed."""
        return self.strategy, self.budget, self.seed

    @property
    def last(self) -> str:
        """The training that is judged."""
        return self.counted[-1]

    @property
    def evaluation(self) -> str:
        """The piece that judges it."""
        return self.pieces[-1]

    @property
    def label(self) -> str:
        """For people: "supervised, 30 labels, seed 0"."""
        return f"{self.strategy}, {told_budget(self.budget)}, seed {self.seed}"


@dataclass
class Plan:
    """All pieces of a study by name, each after those that it needs, and its trials."""

    study: Study
    pieces: dict[str, Piece] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    def users(self, name: str) -> list[Trial]:
        """The trials that need a piece."""
        return [trial for trial in self.trials if name in trial.pieces]


def make_plan(study: Study) -> Plan:
    """Seed by seed and budget by budget the pieces of all strategies; equal ones are one.

    Args:
        study: with a precision other than "auto", as it is part of what determines a training.
    """
    plan = Plan(study)
    for seed in study.seeds:
        for budget in study.every_budget:
            for name in study.strategies_at(budget):
                _Trial(plan, name, budget, seed).add()
    return plan


class _Trial:
    """Adds the pieces of one trial to a plan."""

    def __init__(self, plan: Plan, strategy: str, budget: int | None, seed: int) -> None:
        self.plan, self.study = plan, plan.study
        self.strategy, self.budget, self.seed = strategy, budget, seed
        self.parts = self.study.strategies[strategy]
        self.steps = split_steps(self.study, self.parts, f"strategies.{strategy}")
        self.made: dict[str, Piece] = {}

    def add(self) -> None:
        known = {part.called: part for part in self.parts}
        for name in self._needed():
            part = known[name]
            self.made[name] = self._keep({"train": self._train, "generate": self._generate, "assay": self._assay}, part)
        counted = tuple(self.made[part.called].name for part in chain(self.parts))
        evaluation = self._evaluate(self.made[self.parts[-1].called])
        names = tuple(dict.fromkeys([*(piece.name for piece in self.made.values()), evaluation.name]))
        self.plan.trials.append(Trial(self.strategy, self.budget, self.seed, names, counted, evaluation.key))

    def _needed(self) -> list[str]:
        """The names of the parts that the last one needs, in order."""
        wanted = {self.parts[-1].called}
        for part in reversed(self.parts):
            if part.called in wanted:
                wanted |= {name for _, name in part.inputs()}
        return [part.called for part in self.parts if part.called in wanted]

    def _keep(self, makers: Mapping[str, Any], part: Part) -> Piece:
        piece: Piece = makers[part.kind](part)
        return self.plan.pieces.setdefault(piece.name, piece)

    def _train(self, part: Part) -> Piece:
        unseen = blind(part)
        budget = 0 if unseen else self.budget
        seed = self.study.seeds[0] if part.once else self.seed
        settings, training = self._settings(part)
        steps = self.steps[part.called]
        job = {
            "method": part.train,
            "data": self.study.data,
            "size": None if self.study.size is None else list(self.study.size),
            "budget": budget,
            "seed": seed,
            "masks_confidence": part.masks_confidence if part.masks_from else None,
            "settings": settings,
            "training": {**training, **({} if steps is None else {"steps": steps})},
        }
        told = "no masks" if unseen else told_budget(budget)
        label = f"{part.train}, {told}, seed {seed}"
        return self._piece("train", label, part, job, None if unseen else budget, seed, steps)

    def _settings(self, part: Part) -> tuple[dict[str, Any], dict[str, Any]]:
        """The method's settings, and those of the training, resolved."""
        cls = method_of(part)
        counts = part.called in {other.called for other in chain(self.parts)} or helps(part)
        known = inspect.signature(cls.__init__).parameters
        settings = {key: value for key, value in self.study.settings.items() if counts and key in known}
        usual = {"precision": self.study.precision, **cls.defaults}
        given = {**usual, **(self.study.training if counts else {}), **part.training}
        resolved: TrainSettings = parse(TrainSettings, given, f"strategies.{self.strategy}: training")
        kept = resolved.model_dump(mode="json", exclude={"steps"})
        return {**settings, **part.settings}, {**kept, **({"steps": given["steps"]} if "steps" in given else {})}

    def _generate(self, part: Part) -> Piece:
        source = self.made[part.generate or ""]
        job = {"count": part.count, "mix": part.mix, "repaint": part.repaint, "settings": part.settings}
        job["seed"] = source.seed
        label = f"{part.count} pairs of {source.label}"
        return self._piece("generate", label, part, job, *self._of_inputs(part))

    def _assay(self, part: Part) -> Piece:
        job = {"keep": part.keep, "by": part.by, "copies": part.copies, "data": self.study.data}
        return self._piece("assay", f"assay of {self.made[part.assay or ''].label}", part, job, *self._of_inputs(part))

    def _of_inputs(self, part: Part) -> tuple[int | None, int, None]:
        """Budget and seed of a piece that has none of its own: the trial's, where an input depends on them."""
        inputs = [self.made[name] for _, name in part.inputs()]
        budget = next((piece.budget for piece in inputs if piece.budget is not None), None)
        return budget, next((piece.seed for piece in inputs if piece.seed == self.seed), inputs[0].seed), None

    def _piece(
        self,
        kind: str,
        label: str,
        part: Part,
        job: Mapping[str, Any],
        budget: int | None,
        seed: int,
        steps: int | None,
    ) -> Piece:
        inputs: dict[str, tuple[str, ...]] = {}
        for key, name in part.inputs():
            role = {"generate": "run", "assay": "pairs"}.get(key, key)
            inputs[role] = (*inputs.get(role, ()), self.made[name].name)
        first = self.made[part.generate or part.assay or ""] if kind != "train" else None
        method = first.method if first else part.train or ""
        return _make(self.plan, kind, label, method, job, inputs, budget, seed, steps)

    def _evaluate(self, judged: Piece) -> Piece:
        job = {"data": self.study.data, "split": self.study.split, "draws": self.study.draws}
        label, inputs = f"{self.study.split} of {judged.label}", {"run": (judged.name,)}
        piece = _make(self.plan, "evaluate", label, judged.method, job, inputs, judged.budget, judged.seed, None)
        return self.plan.pieces.setdefault(piece.name, piece)


def _make(
    plan: Plan,
    kind: str,
    label: str,
    method: str,
    job: Mapping[str, Any],
    inputs: Mapping[str, tuple[str, ...]],
    budget: int | None,
    seed: int,
    steps: int | None,
) -> Piece:
    important = {key: value for key, value in job.items() if key != "training"}
    training = {key: value for key, value in job.get("training", {}).items() if key not in _UNIMPORTANT}
    taken = {key: [plan.pieces[name].key for name in names] for key, names in inputs.items()}
    told = json.dumps([kind, important, training, taken], sort_keys=True, default=str)
    key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    needs = tuple(dict.fromkeys(name for names in inputs.values() for name in names))
    head = method if kind == "train" else f"{kind}-{method}"
    where = "" if budget is None or budget == 0 else f"-{budget}"
    return Piece(f"{head}{where}-{seed}-{key[:8]}", key, kind, label, method, budget, seed, steps, needs, job, inputs)


def job_of(piece: Piece, where: Callable[[str], Path]) -> dict[str, Any]:
    """What the worker is told: the job, with the folders of its inputs, of which `where` knows each by its name."""
    found: dict[str, Any] = {"kind": piece.kind, "label": piece.label, **piece.job}
    for key, names in piece.inputs.items():
        inside = "pairs" if key in ("pairs", "synthetic") else ""
        places = [str((where(name) / inside).resolve()) for name in names]
        found[key] = places if key == "synthetic" else places[0]
    return found
