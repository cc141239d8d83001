"""From the pieces' files to the result of a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segmint.evaluation.files import read_json
from segmint.evaluation.tables import MEASURES
from segmint.study.files import DONE, FAILED, PAUSED, curve, read_facts, spent
from segmint.study.pieces import FOLDER, Plan, Trial, make_plan
from segmint.study.plan import Study
from segmint.study.results import Result, Status, read_results

SETTLED = "settled.json"


class State:
    """Which pieces of a study are done, have failed, or wait; read from their folders once, then kept up.

    Args:
        folder: the study's.
        plan: its pieces.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self.paused: dict[str, int] = {}
        self.given_up: dict[str, str] = {}
        self.uses: dict[str, list[Trial]] = {name: [] for name in plan.pieces}
        for trial in plan.trials:
            for name in trial.pieces:
                self.uses[name].append(trial)
        for name in plan.pieces:
            self.look(name)

    def where(self, name: str) -> Path:
        """The folder of a piece."""
        return self.folder / FOLDER / name

    def look(self, name: str) -> None:
        """Read again what a piece has left."""
        place = self.where(name)
        for kept, file in ((self.done, DONE), (self.failed, FAILED)):
            facts = read_facts(place / file)
            kept.pop(name, None)
            if facts is not None:
                kept[name] = facts
        paused = read_facts(place / PAUSED)
        self.paused.pop(name, None)
        if paused is not None:
            self.paused[name] = int(paused["step"])

    def told(self, name: str) -> str:
        """What a piece is, for people, and for which strategy."""
        strategies = list(dict.fromkeys(trial.strategy for trial in self.uses[name]))
        return f"{strategies[0] if len(strategies) == 1 else 'shared'}: {self.plan.pieces[name].label}"

    def broken(self, trial: Trial) -> str | None:
        """The first of its pieces that has failed."""
        return next((name for name in trial.pieces if name in self.failed and name not in self.done), None)

    def trained(self, trial: Trial) -> bool:
        """Whether nothing of it is left to train."""
        return trial.last in self.done or self.broken(trial) is not None or trial.strategy in self.given_up

    def status(self, trial: Trial) -> tuple[Status, str] | None:
        """How a trial has ended, and why; None if it has not."""
        if trial.evaluation in self.done:
            return "done", ""
        name = self.broken(trial)
        if name is not None:
            facts = self.failed[name]
            told = "" if name in (trial.last, trial.evaluation) else f"{self.plan.pieces[name].label}: "
            return ("out of time" if facts["status"] == "out of time" else "failed"), told + str(facts["reason"])
        if trial.strategy in self.given_up and trial.last not in self.done:
            return "given up", self.given_up[trial.strategy]
        return None

    def result(self, trial: Trial) -> Result | None:
        """What a trial came to; None if it has not ended."""
        ended = self.status(trial)
        if ended is None:
            return None
        status, why = ended
        trainings = [name for name in trial.pieces if self.plan.pieces[name].kind == "train"]
        steps = {name: int(self.done.get(name, {}).get("steps", 0)) for name in trainings}
        shared = [name for name in trial.pieces if len(self.uses[name]) > 1]
        last, images = self.where(trial.last), self.where(trial.evaluation) / "metrics.json"
        images = images if images.is_file() else last / "metrics.json"  # where older studies have it
        return Result(
            *trial.of,
            status=status,
            reason=why,
            steps=sum(steps[name] for name in dict.fromkeys(trial.counted)),
            seconds=self._seconds(name for name in trial.pieces if name not in shared),
            shared_seconds=self._seconds(shared),
            run=str(last.relative_to(self.folder)),
            curve=shown_curve(last),
            train_curve=shown_curve(last, "miou_train"),
            scores=scores_of(images, self.plan.study.split) if status == "done" else {},
            images=str(images.relative_to(self.folder)) if status == "done" else "",
            shared_steps=sum(count for name, count in steps.items() if name not in trial.counted),
            shared=shared,
            key=trial.key,
        )

    def _seconds(self, names: Iterable[str]) -> float:
        return round(float(sum(spent(self.where(name)) for name in names)), 2)


def shown_curve(run: Path, key: str = "miou") -> list[tuple[int, float]]:
    """A training's curve on validation images ("miou") or on some training images ("miou_train")."""
    return [(step, value) for step, value in curve(run, key) if math.isfinite(value)]


def scores_of(path: Path, split: str) -> dict[str, float]:
    """The measures of a split in a run's metrics.json; those that the images do not define are left out."""
    entry = read_json(path, f"remove {path.parent} and go on").get(split, {})
    cells = {key: entry[key] for key in MEASURES if isinstance(entry.get(key), dict)}
    return {key: float(cell["value"]) for key, cell in cells.items() if cell.get("value") is not None}


def settled(study: Study, folder: Path) -> Study | None:
    """The study with the precision and the threads that were settled when it was first started; None before that."""
    facts = read_facts(folder / SETTLED)
    if facts is None:
        return None
    threads = study.threads or int(facts["threads"])
    precision = facts["precision"] if study.precision == "auto" else study.precision
    return study.model_copy(update={"precision": precision, "threads": threads})


def current_results(study: Study, folder: Path) -> list[Result]:
    """The results of the trials that study.yaml asks for as it is now, in its order; others are left out."""
    ready = settled(study, folder)
    if ready is None:
        return []
    found = {result.trial: result for result in read_results(folder)}
    trials = make_plan(ready).trials
    return [found[trial.of] for trial in trials if trial.of in found and found[trial.of].key == trial.key]
