"""Successive halving: the poorer half of the strategies is given up early (Jamieson and Talwalkar 2016)."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from segmint.evaluation.files import write_json
from segmint.study.files import read_facts
from segmint.study.outcomes import State, shown_curve
from segmint.study.pieces import Trial

FILE = "halving.json"


class Halving:
    """Decides at each rung, when all trials have come that far, which strategies are trained no further.

    The last training of a trial waits at a rung, with its checkpoint, and then goes on as if it had not. A strategy's
    score is the best validation mIoU up to the rung, less that of the baseline with the same labels and seed, mean over
    the trials that both have. The baseline always goes on, and so does a training that others need. What was decided
    about trials that study.yaml has changed since does not count.

    Args:
        state: of the study's pieces; strategies that are given up are entered there.
    """

    def __init__(self, state: State) -> None:
        self.state, self.study = state, state.plan.study
        self.needed = {name for piece in state.plan.pieces.values() for name in piece.needs if piece.kind != "evaluate"}
        self.rungs = self.study.rungs if self.study.halving else []
        told = read_facts(state.folder / FILE) or {}
        self.decided: list[dict[str, Any]] = []
        for one, rung in zip(told.get("rungs", []), self.rungs, strict=False):
            if one["share"] != rung or not self._holds(one):
                break
            self.decided.append(one)
            self._give_up(one)

    @property
    def rung(self) -> float | None:
        """The next rung that nothing is decided about; None: train to the end."""
        return self.rungs[len(self.decided)] if len(self.decided) < len(self.rungs) else None

    def until(self, name: str) -> int | None:
        """The step at which a training waits; None: its last."""
        trial = next((trial for trial in self.state.uses[name] if trial.last == name), None)
        alone = trial is not None and trial.budget not in self.study.budgets
        return None if trial is None or alone or name in self.needed else self._step(trial)

    def waits(self, name: str) -> bool:
        """Whether a training has come to the rung that nothing is decided about."""
        until = self.until(name)
        return until is not None and self.state.paused.get(name, 0) >= until

    def _step(self, trial: Trial) -> int | None:
        steps = self.state.plan.pieces[trial.last].steps
        return None if self.rung is None or steps is None else max(1, math.ceil(self.rung * steps))

    def decide(self) -> None:
        """Decide about the next rung, if all trials have come to it."""
        while self.rung is not None and all(map(self._arrived, self._alive())):
            scores = self._scores()
            kept = set(sorted(scores, key=lambda name: -scores[name])[: math.ceil(len(scores) / 2)])
            lost = [name for name in scores if name not in kept | {self.study.baseline}]
            keys = [trial.key for trial in self._alive()]
            self.decided.append({"share": self.rung, "scores": scores, "given_up": lost, "trials": keys})
            write_json(self.state.folder / FILE, {"rungs": self.decided})
            self._give_up(self.decided[-1])

    def _alive(self) -> list[Trial]:
        """The trials of strategies that go on, without those of the baseline alone, which nothing is compared with."""
        compared = [trial for trial in self.state.plan.trials if trial.budget in self.study.budgets]
        return [trial for trial in compared if trial.strategy not in self.state.given_up]

    def _arrived(self, trial: Trial) -> bool:
        step = self._step(trial)
        if self.state.trained(trial) or step is None or self.state.paused.get(trial.last, 0) >= step:
            return True
        curve = shown_curve(self.state.where(trial.last)) if trial.last in self.needed else []
        return bool(curve) and curve[-1][0] >= step

    def _scores(self) -> dict[str, float]:
        """Of each strategy that goes on; one without a trial that the baseline has as well has none."""
        found: dict[str, dict[tuple[int | None, int], float]] = {}
        for trial in self._alive():
            step = self._step(trial)
            curve = shown_curve(self.state.where(trial.last))
            first = next((place for place, (at, _) in enumerate(curve) if step is None or at >= step), len(curve))
            if reached := [value for _, value in curve[: first + 1]]:
                found.setdefault(trial.strategy, {})[trial.budget, trial.seed] = max(reached)
        base = found.get(self.study.baseline, {})
        gains = {name: [value - base[at] for at, value in some.items() if at in base] for name, some in found.items()}
        return {name: fmean(values) for name, values in gains.items() if values}

    def _holds(self, one: dict[str, Any]) -> bool:
        """Whether a decision was about trials that are still asked for."""
        return bool(one.get("trials")) and {trial.key for trial in self.state.plan.trials}.issuperset(one["trials"])

    def _give_up(self, one: dict[str, Any]) -> None:
        why = f"in the poorer half by validation mIoU after {one['share']:g} of its last training"
        for name in one["given_up"]:
            if name != self.study.baseline:
                self.state.given_up.setdefault(name, why)
