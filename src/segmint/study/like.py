"""Train what a study recommends, on all labels of a data folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from segmint.evaluation.files import read_json
from segmint.study.files import JOB, read_facts
from segmint.study.live import LiveView
from segmint.study.local import LocalPool
from segmint.study.outcomes import State, settled
from segmint.study.pieces import Plan, job_of, make_plan
from segmint.study.plan import Study, read_study
from segmint.study.run import cores_here
from segmint.study.trials import Engine
from segmint.types import SegmintError

ANSWER = "answer.json"


def recommended(folder: Path) -> tuple[str, str]:
    """The strategy that a study recommends, and its answer if that is no finding yet, else "".

    Raises:
        SegmintError: the study has not been run, or recommends none.
    """
    answer = read_json(folder / ANSWER, f"finish the study first: `segmint study {folder}`")
    name = answer.get("recommended")
    if not name:
        raise SegmintError(f"{folder / ANSWER}: the study recommends no strategy ({answer.get('reason', '')})")
    settled_on = answer.get("decided", True) and answer.get("finished", True)
    return str(name), "" if settled_on else str(answer.get("headline", ""))


def train_like(
    study_folder: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    console: Console | None = None,
) -> bool:
    """Train a study's recommended strategy on all labels; the same call goes on where it was stopped.

    Args:
        study_folder: a finished study.
        data: a data folder, whose classes the study's settings suit.
        out: the run folder of the segmenter; what it was made from goes into `out/parts`.
        seed: of everything random.
        steps: of the segmenter; None: those of the study.
        console: where to show how it goes.

    Returns:
        Whether it came to the end; False if it was asked to stop.

    Raises:
        SegmintError: there is no recommendation, a part failed, or `out` holds another run.
    """
    folder, out, console = Path(study_folder), Path(out).resolve(), console or Console(quiet=True)
    plan = plan_like(folder, data, seed=seed, steps=steps)
    pool = LocalPool(1, cores_here())
    engine = _Single(out, plan, pool)
    job = job_of(plan.pieces[plan.trials[0].last], engine.state.where)
    if (out / "config.yaml").exists() and read_facts(out / JOB) != json.loads(json.dumps(job)):
        raise SegmintError(f"{out}: holds a run of something else; choose another --out")
    try:
        with LiveView(console, out.name) as view:
            engine.tell, engine.watch = view.tell, view.watch
            engine.retry()
            engine.run()
    finally:
        pool.close()
    broken = engine.state.broken(plan.trials[0])
    if broken is not None:
        raise SegmintError(f"{engine.state.where(broken)}: {engine.state.failed[broken]['reason']}")
    return plan.trials[0].last in engine.state.done


def plan_like(folder: Path, data: str | Path, *, seed: int = 0, steps: int | None = None) -> Plan:
    """The pieces of a study's recommended strategy, for all labels of a data folder; nothing is evaluated.

    Raises:
        SegmintError: there is no recommendation.
    """
    study, (name, _) = read_study(folder), recommended(folder)
    if name not in study.strategies:
        raise SegmintError(f"{folder / ANSWER}: recommends {name!r}, which study.yaml does not have any more")
    changes: dict[str, Any] = {"strategies": {name: study.strategies[name]}, "baseline": name}
    changes |= {"budgets": [None], "baseline_budgets": []}
    changes |= {"seeds": [seed], "data": str(Path(data).resolve()), "halving": False, "minutes": None}
    changes |= {"steps": steps or study.steps}
    whole: Study = (settled(study, folder) or study).model_copy(update=changes)
    plan = make_plan(whole)
    trial = plan.trials[0]
    plan.pieces.pop(trial.evaluation)
    plan.trials = [replace(trial, pieces=trial.pieces[:-1])]
    return plan


class _SingleState(State):
    """The last piece lies in the folder itself, as a run, and the others in `parts`."""

    def where(self, name: str) -> Path:
        """The folder of a piece."""
        return self.folder if name == self.plan.trials[0].last else self.folder / "parts" / name


class _Single(Engine):
    """Does the pieces of one trial; there is no table to write."""

    def __init__(self, folder: Path, plan: Plan, pool: LocalPool) -> None:
        super().__init__(folder, plan, pool)
        self.state = _SingleState(folder, plan)
        self.halving.state = self.state

    def _settle(self) -> None:
        """There is nothing to decide."""

    def _account(self) -> None:
        """What was done is told by the pieces' folders."""
