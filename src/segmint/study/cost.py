"""What a study will cost: some steps of each of its trainings are timed before it begins."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from segmint.evaluation.files import write_json
from segmint.inference.draws import DRAWS
from segmint.methods.method import find
from segmint.study.files import BROKEN, DONE, FAILED, FINISHED, JOB, read_facts, said, write_job
from segmint.study.live import told_time
from segmint.study.local import LocalPool
from segmint.study.pieces import FOLDER, Piece, Plan, make_plan
from segmint.study.plan import Study
from segmint.training.pace import FORWARD, VALIDATIONS
from segmint.types import SegmintError

PLACE, PACES = "pace", "paces.json"

START = 5.0
"""Seconds that every process takes to begin."""

PAINTING = 5.0
"""The time of generating a pair over that of training on one: eight guided steps of a flow; other methods take less."""

Paces = Mapping[str, Mapping[str, Any]]
"""By kind of training: "precision", "step" and "validation" (seconds), and "batch"; or "error"."""


def time_paces(study: Study, folder: Path, threads: int, console: Console | None = None) -> tuple[Paces, str]:
    """Time some steps of every kind of training in a process of its own, unless that was done before.

    Args:
        study: as it was asked for, "auto" where nobody says in which precision.
        folder: the study's.
        threads: of a process.
        console: is told that it takes a while.

    Returns:
        What was found, and the precision for all.

    Raises:
        SegmintError: the baseline cannot begin. Others that cannot have an "error".
    """
    plan = make_plan(study.model_copy(update={"precision": "float32"}))
    place = folder / FOLDER / PLACE
    job = {"kind": "pace", "precision": study.precision, "trainings": _kinds(plan)}
    same = read_facts(place / JOB) == json.loads(json.dumps(job))
    if not (same and (place / DONE).exists()):
        if console is not None:
            console.print("timing some steps of each method ...", highlight=False)
        for name in (DONE, FAILED, PACES):
            (place / name).unlink(missing_ok=True)
        write_job(place, job)
        _wait(place, LocalPool(1, threads))
    paces: dict[str, Any] = read_facts(place / PACES) or {}
    first = paces.get(next(iter(job["trainings"]), ""), {})
    if "error" in first:
        raise SegmintError(f"the first step of the baseline failed: {first['error']}")
    return paces, str(first.get("precision", "float32"))


def _kinds(plan: Plan) -> dict[str, dict[str, Any]]:
    """One training of each kind, the baseline's first, without what is not there yet: earlier runs and pairs."""
    first = next(trial.last for trial in plan.trials if trial.strategy == plan.study.baseline)
    kept = ("method", "data", "size", "seed", "settings")
    found: dict[str, dict[str, Any]] = {}
    for name in (first, *plan.pieces):
        piece = plan.pieces[name]
        if piece.kind != "train" or find(piece.method).whole_epochs or piece.job["training"].get("epochs"):
            continue
        budget = piece.job["budget"] if find(piece.method).uses_unlabelled else piece.job["budget"] or None
        training = {key: value for key, value in piece.job["training"].items() if key != "precision"}
        job = {**{key: piece.job[key] for key in kept}, "budget": budget, "training": training}
        found.setdefault(_kind(piece), job)
    return found


def _kind(piece: Piece) -> str:
    """Trainings of the same kind take equally long for a step."""
    return json.dumps([piece.method, piece.job["training"]["batch_size"], piece.job["settings"]], sort_keys=True)


def _wait(place: Path, pool: LocalPool) -> None:
    """Have the worker do it; what it found before it was killed is kept."""
    try:
        pool.start(PLACE, place, None)
        while not (ended := pool.ended()):
            time.sleep(0.05)
        if ended[PLACE] != FINISHED and not (place / PACES).exists():
            told = (read_facts(place / FAILED) or {}).get("reason", f"ended with code {ended[PLACE]}")
            what = "failed" if ended[PLACE] == BROKEN else "was stopped"
            raise SegmintError(f"the first step of the baseline {what}: {told}")
    finally:
        pool.close()


def time_trainings(folder: Path, job: Mapping[str, Any]) -> None:
    """The worker's part: time each training, and write down all so far after each."""
    found: dict[str, Any] = {}
    precision = str(job["precision"])
    for kind, one in job["trainings"].items():
        try:
            found[kind] = _timed(one, precision)
            precision = found[kind]["precision"]
        except Exception as error:
            found[kind] = {"error": said(error)}
            if precision == "auto":
                precision = "float32"
        write_json(folder / PACES, found)


def _timed(one: Mapping[str, Any], precision: str) -> dict[str, Any]:
    from segmint.data.folder import open_folder
    from segmint.training.setup import Wish

    values = {"data": one["data"], "synthetic": [], "budget": one["budget"], "masks_from": None, "init": None}
    values |= {"masks_confidence": 0.7, "seed": one["seed"], "size": one["size"] and tuple(one["size"])}
    training = {**one["training"], "precision": precision}
    pace = Wish(open_folder(one["data"]), values, training, one["settings"]).draft(one["method"]).pace
    batch = one["training"]["batch_size"]
    return {"precision": pace.precision, "step": pace.step, "validation": pace.validation, "batch": batch}


@dataclass(frozen=True)
class Forecast:
    """What a study will take.

    Attributes:
        plan: all its pieces.
        costs: seconds of each.
        problems: in sentences, what cannot begin, and why.
    """

    plan: Plan
    costs: Mapping[str, float]
    problems: Sequence[str] = ()

    def lines(self, left: Sequence[str], processes: int) -> list[str]:
        """In a few lines what is to be done, what it takes, and how it can take less.

        Args:
            left: the pieces that are to be done.
            processes: how many at a time.
        """
        study, width = self.plan.study, max(1, min(processes, len(left)))
        trainings = sum(self.plan.pieces[name].kind == "train" for name in left)
        whole = told_time(sum(self.costs[name] for name in left) / width)
        each = {name: self._trial(name) for name in study.strategies}
        found = [
            f"{len(self.plan.trials)} trials ({_counted(study)}), {trainings} trainings to do: about {whole} on this "
            f"machine, {processes} at a time",
            "a trial with all it needs: " + ", ".join(f"{name} {told_time(value)}" for name, value in each.items()),
            "for less: fewer strategies, budgets, seeds or steps, or a smaller size, in study.yaml",
        ]
        late = [name for name, value in each.items() if study.minutes is not None and value > 60 * study.minutes]
        if late:
            found.append(f"mind: a trial of {', '.join(late)} may take longer than its {study.minutes:g} minutes")
        return [*found, *(f"mind: {words}" for words in self.problems)]

    def _trial(self, strategy: str) -> float:
        """The longest trial's seconds, what it shares counted in full."""
        trials = [trial for trial in self.plan.trials if trial.strategy == strategy]
        return max(sum(self.costs[name] for name in trial.pieces) for trial in trials)


def foresee(plan: Plan, paces: Paces, images: int) -> Forecast:
    """What all pieces may take.

    Args:
        plan: all pieces.
        paces: see `time_paces`; what was not timed is taken for quick.
        images: how many are judged.
    """
    trainings = {name: piece for name, piece in plan.pieces.items() if piece.kind == "train"}
    known = {name: paces.get(_kind(piece), {}) for name, piece in trainings.items()}
    costs = {}
    for name, piece in plan.pieces.items():
        if piece.kind == "train":
            costs[name] = START + _training(piece, known[name])
        else:
            source = known.get(piece.needs[0], {})
            costs[name] = START + _looks(piece, images) * float(source.get("step", 0.0)) / source.get("batch", 1)
    return Forecast(plan, costs, _problems(plan, known))


def _problems(plan: Plan, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What cannot begin, each strategy once."""
    found = {}
    for trial in plan.trials:
        broken = next((name for name in trial.pieces if "error" in known.get(name, {})), None)
        if broken is not None:
            found[trial.strategy] = f"{plan.pieces[broken].method} cannot begin: {known[broken]['error']}"
    return [f"{strategy}: {why}" for strategy, why in found.items()]


def _looks(piece: Piece, images: int) -> float:
    """How often a piece does what training does once to an image."""
    if piece.kind == "generate":
        return PAINTING * int(piece.job["count"])
    if piece.kind == "evaluate":
        return FORWARD * images * (piece.job["draws"] or (DRAWS if find(piece.method).draws_differ else 1))
    return 0.0


def _training(piece: Piece, pace: Mapping[str, Any]) -> float:
    training = piece.job["training"]
    steps = int(training.get("steps") or 0)
    every = training.get("validate_every") or max(50, math.ceil(steps / VALIDATIONS))
    return steps * float(pace.get("step", 0.0)) + steps // every * float(pace.get("validation", 0.0))


def _counted(study: Study) -> str:
    counts = (("strategy", "strategies", study.strategies), ("budget", "budgets", study.budgets))
    every = (*counts, ("seed", "seeds", study.seeds))
    told = " x ".join(f"{len(some)} {one if len(some) == 1 else many}" for one, many, some in every)
    further = len(study.baseline_budgets)
    return told + f", and {study.baseline} at {further} more" * (further > 0)
