"""What a person sees while a study runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from segmint.study.files import progress, spent
from segmint.study.pieces import Piece
from segmint.study.trials import Engine

SHOWN = 12


@dataclass(frozen=True)
class Running:
    """A piece at work: what, for how many seconds, and how much is done of all (0 of 0: it does not say)."""

    label: str
    seconds: float
    done: int
    of: int


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Attributes:
        trials, done, failed, given_up: numbers of trials; `trained`: of those that are not judged yet.
        running: pieces at work.
        left: pieces that are not, yet; `pieces`: all of them.
        seconds: the time that may be left, as far as it can be told; None before anything is known.
        best: a sentence on the best strategy so far, by validation images; "" before there is one.
    """

    trials: int
    done: int
    failed: int
    given_up: int
    running: tuple[Running, ...]
    left: int
    seconds: float | None
    best: str
    trained: int = 0
    pieces: int = 0


def standing(engine: Engine) -> Standing:
    """How far a study is, from what its pieces have written."""
    ended = [ended[0] for trial in engine.plan.trials if (ended := engine.state.status(trial))]
    left = engine.left()
    at_work = tuple(_running(engine, name) for name in engine.running)
    return Standing(
        trials=len(engine.plan.trials),
        done=ended.count("done"),
        failed=ended.count("failed") + ended.count("out of time"),
        given_up=ended.count("given up"),
        running=at_work,
        left=len([name for name in left if name not in engine.running]),
        seconds=_seconds_left(engine, left, at_work),
        best=best_so_far(engine),
        trained=sum(trial.last in engine.state.done and not engine.state.status(trial) for trial in engine.plan.trials),
        pieces=len(engine.plan.pieces),
    )


def _running(engine: Engine, name: str) -> Running:
    piece, place = engine.plan.pieces[name], engine.state.where(name)
    done, of = progress(place, {"kind": piece.kind, **piece.job})
    return Running(engine.state.told(name), time.monotonic() - engine.running[name], done, of)


def _seconds_left(engine: Engine, left: list[str], at_work: tuple[Running, ...]) -> float | None:
    """The seconds of work left, shared out among the processes; trainings by the speed of their method so far.

    What was timed beforehand stands in for what has not been done yet.
    """
    pace, whole_ones = _pace(engine)
    if not pace and not whole_ones and not engine.costs:
        return None
    usual = median(value for values in pace.values() for value in values) if pace else 0.1

    def cost(piece: Piece) -> float:
        if piece.kind == "train" and piece.steps is not None:
            if piece.method not in pace and piece.name in engine.costs:
                return engine.costs[piece.name]
            return piece.steps * (median(pace[piece.method]) if piece.method in pace else usual)
        known = [*whole_ones.get(piece.method, ()), *whole_ones.get(piece.kind, ())]
        return median(known) if known else engine.costs.get(piece.name, 20.0)

    costs = [cost(engine.plan.pieces[name]) for name in left]
    for one, name in zip(at_work, engine.running, strict=True):
        costs.append(-cost(engine.plan.pieces[name]) * (one.done / one.of if one.of else 0.0))
    width = max(1, len(engine.running), engine.pool.room + len(engine.running))
    return max(0.0, sum(costs)) / min(width, max(1, len(left)))


def _pace(engine: Engine) -> tuple[Mapping[str, list[float]], Mapping[str, list[float]]]:
    """Seconds a step by method, of what is done or at work; and seconds of pieces without steps, by method or kind."""
    pace: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    for name, facts in engine.state.done.items():
        piece, seconds = engine.plan.pieces[name], float(facts.get("seconds", 0.0))
        if piece.steps is not None and facts.get("steps"):
            pace.setdefault(piece.method, []).append(seconds / int(facts["steps"]))
        else:
            others.setdefault(piece.method if piece.kind == "train" else piece.kind, []).append(seconds)
    for name in engine.running:
        piece, place = engine.plan.pieces[name], engine.state.where(name)
        steps = progress(place, {"kind": piece.kind, **piece.job})[0] if piece.steps is not None else 0
        if steps:
            pace.setdefault(piece.method, []).append(spent(place) / steps)
    return pace, others


def best_so_far(engine: Engine) -> str:
    """The strategy ahead of the baseline by most on validation images, over the trials that both have trained."""
    scores: dict[str, dict[tuple[int | None, int], float]] = {}
    for trial in engine.plan.trials:
        score = engine.state.done.get(trial.last, {}).get("miou")
        if score is not None:
            scores.setdefault(trial.strategy, {})[trial.budget, trial.seed] = float(score)
    base = scores.pop(engine.plan.study.baseline, {})
    gains = {}
    for name, found in scores.items():
        common = [100 * (found[place] - base[place]) for place in found if place in base]
        if common:
            gains[name] = (fmean(common), len(common))
    if not gains:
        told = f"mIoU {100 * fmean(base.values()):.1f}%" if base else ""
        return f"{engine.plan.study.baseline} {told} on validation images" if base else ""
    name = max(gains, key=lambda name: gains[name][0])
    gain, count = gains[name]
    where = f"on validation images ({count} trial{'s' * (count != 1)})"
    if gain > 0:
        return f"{name}, {gain:+.1f} points of mIoU over {engine.plan.study.baseline} {where}"
    return f"{engine.plan.study.baseline}, then {name}, {gain:+.1f} points of mIoU {where}"


def told_time(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def sentence(now: Standing) -> str:
    """The counts in a line."""
    words = [f"{now.done} of {now.trials} trials done"]
    words += [f"{now.trained} trained and to be judged"] * (now.trained > 0)
    words += [f"{now.failed} failed"] * (now.failed > 0) + [f"{now.given_up} given up"] * (now.given_up > 0)
    words += [f"{len(now.running)} running", f"{now.left} pieces to come"]
    if now.seconds is not None and (now.running or now.left):
        words.append(f"about {told_time(now.seconds)} left")
    return ", ".join(words)


class LiveView:
    """A table that renews itself in a terminal; lines, one for each start and end, where there is none.

    Args:
        console: where to write.
        title: of the study.
    """

    EVERY = 1.0

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.shown = 0.0
        self.now: Standing | None = None
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def tell(self, line: str) -> None:
        """A start or an end; in a terminal only failures stay on the screen."""
        if not self.console.is_terminal:
            self.console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, soft_wrap=True, markup=False)
        elif line.startswith("failed"):
            self.console.print(line, highlight=False, style="red", markup=False)

    def end(self, engine: Engine) -> None:
        """How it stands in the end, to stay on the screen."""
        now = standing(engine)
        self.console.print(f"{sentence(now)}{_best(now)}", highlight=False, soft_wrap=True, markup=False)

    def watch(self, engine: Engine) -> None:
        """Show how far it is, once a second in a terminal, else once a minute."""
        every = self.EVERY if self.console.is_terminal else 60.0
        if self.now is not None and time.monotonic() - self.shown < every:
            return
        self.shown, self.now = time.monotonic(), standing(engine)
        if self.console.is_terminal:
            self.live.update(render(self.title, self.now), refresh=True)
        else:
            self.console.print(f"{sentence(self.now)}{_best(self.now)}", highlight=False, soft_wrap=True, markup=False)


def _best(now: Standing) -> str:
    return f"; best so far: {now.best}" if now.best else ""


def render(title: str, now: Standing) -> Any:
    """The view in a terminal."""
    ended = now.pieces - now.left - len(now.running)
    head = Table.grid(padding=(0, 1))
    head.add_row(Text(title, style="bold"), ProgressBar(total=max(1, now.pieces), completed=ended, width=30))
    rows = Table.grid(padding=(0, 1))
    for one in now.running[:SHOWN]:
        share = f"{100 * one.done / one.of:.0f}%" if one.of else ""
        count = f"{one.done}/{one.of}" if one.of else ""
        bar = ProgressBar(total=one.of or None, completed=one.done, width=16, pulse=not one.of)
        rows.add_row("  ", Text(one.label), bar, Text(count, style="cyan"), Text(share), told_time(one.seconds))
    if len(now.running) > SHOWN:
        rows.add_row("  ", f"and {len(now.running) - SHOWN} more")
    lines: list[Any] = [head, Text(sentence(now)), rows]
    if now.best:
        lines.append(Text(f"best so far: {now.best}", style="green"))
    return Group(*lines)
