"""Does the pieces of a study, several at a time, and writes down what each trial came to."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from segmint.evaluation.files import write_json
from segmint.study.files import BROKEN, FAILED, FINISHED, LOG, PAUSED, STOPPED, WAITS, fail, spent, write_job
from segmint.study.halving import Halving
from segmint.study.local import Pool
from segmint.study.outcomes import State
from segmint.study.pieces import Piece, Plan, Trial, job_of
from segmint.study.results import Result, append_result, read_results
from segmint.training.train import asked_to_stop

ATTEMPTS = 6
"""So often a piece is begun again whose worker was stopped, or lost with its machine."""

_HANG_UP = getattr(signal, "SIGHUP", 1)  # which Windows lacks
_ASKED = (STOPPED, -signal.SIGTERM, -signal.SIGINT, -_HANG_UP)

Told = Callable[[str], None]


class Engine:
    """Runs a plan to its end, from whatever was done before.

    Args:
        folder: the study's.
        plan: what to do.
        pool: where.
        tell: is told of every start and end, in a line.
        watch: is shown the engine, many times a second.
        costs: the seconds that each piece may take, as far as they are known beforehand.
    """

    PAUSE = 0.2

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        pool: Pool,
        tell: Told = lambda line: None,
        watch: Callable[[Engine], None] = lambda engine: None,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self.plan, self.pool, self.tell, self.watch = folder, plan, pool, tell, watch
        self.costs = costs or {}
        self.state = State(folder, plan)
        self.halving = Halving(self.state)
        self.running: dict[str, float] = {}
        self.begun: Counter[str] = Counter()
        keys = {trial.of: trial.key for trial in plan.trials}
        known = {result.trial: result for result in read_results(folder)}
        self.results: dict[tuple[str, int | None, int], Result] = {
            of: known[of] for of in keys if of in known and known[of].key == keys[of]
        }

    def retry(self) -> int:
        """Forget the failures, so that they are tried again; returns how many there were."""
        broken = [name for name in self.plan.pieces if name in self.state.failed]
        for name in broken:
            (self.state.where(name) / FAILED).unlink(missing_ok=True)
            self.state.look(name)
        return len(broken)

    def run(self) -> bool:
        """Do all that is left.

        Returns:
            Whether it came to the end; False if it was asked to stop (Ctrl-C or SIGTERM: workers save and end; a
            second time: at once). Then calling it again, in another process as well, goes on.
        """
        with _signals() as stop:
            ended: dict[str, int] = {}
            self._settle()
            while True:
                if ended:
                    self._settle()
                if stop.asked:
                    self.pool.stop(at_once=stop.asked > 1)
                else:
                    self._start()
                self.watch(self)
                if not self.running:
                    break
                time.sleep(self.PAUSE)
                ended = self.pool.ended()
                for name, code in ended.items():
                    self._ended(name, code, stop.asked > 0)
        self._account()
        return not self.left()

    def ready(self) -> list[str]:
        """The pieces that could be begun now, in the order of the plan."""
        return [name for name, piece in self.plan.pieces.items() if self._can_begin(name, piece)]

    def left(self) -> list[str]:
        """The pieces that are still to be done, running or not."""
        wanted = {name for trial in self.plan.trials if self.state.status(trial) is None for name in trial.pieces}
        return [name for name in self.plan.pieces if name in wanted and name not in self.state.done]

    def _can_begin(self, name: str, piece: Piece) -> bool:
        state = self.state
        if name in state.done or name in state.failed or name in self.running or self.halving.waits(name):
            return False
        if any(need not in state.done for need in piece.needs):
            return False
        users = [trial for trial in state.uses[name] if state.status(trial) is None]
        if piece.kind == "evaluate" and self.plan.study.split == "test":
            return any(self._is_trained(trial.strategy) for trial in users)
        return bool(users)

    def _is_trained(self, strategy: str) -> bool:
        return all(self.state.trained(trial) for trial in self.plan.trials if trial.strategy == strategy)

    def _start(self) -> None:
        room = self.pool.room
        for name in self.ready()[:room] if room > 0 else []:
            piece, place = self.plan.pieces[name], self.state.where(name)
            until = self.halving.until(name)
            (place / PAUSED).unlink(missing_ok=True)
            write_job(place, job_of(piece, self.state.where) | ({} if until is None else {"until": until}))
            limit = self._limit(name)
            if limit is not None and limit <= 0:
                fail(place, "out of time", "its trial has no time left", spent(place))
                self.state.look(name)
                self._settle()
                continue
            self.begun[name] += 1
            self.running[name] = time.monotonic()
            self.pool.start(name, place, limit)
            self.tell(f"start   {self.state.told(name)}")

    def _limit(self, name: str) -> float | None:
        """The seconds that a piece may still take: what its trials' other pieces have left it."""
        if self.plan.study.minutes is None:
            return None
        others = [
            sum(spent(self.state.where(other)) for other in trial.pieces if other in self.state.done)
            for trial in self.state.uses[name]
        ]
        return 60 * self.plan.study.minutes - min(others) - spent(self.state.where(name))

    def _ended(self, name: str, code: int, stopping: bool) -> None:
        seconds = time.monotonic() - self.running.pop(name)
        place = self.state.where(name)
        self.state.look(name)
        done, gone = name in self.state.done, code in _ASKED and self.begun[name] < ATTEMPTS
        untold = code == BROKEN or (code not in (FINISHED, WAITS) and not gone and not stopping)
        if untold and not done and name not in self.state.failed:
            fail(place, "failed", _why(place, code), spent(place))
            self.state.look(name)
        word = "done" if done else "waits" if code == WAITS else "stopped" if gone or stopping else "failed"
        reason = f": {self.state.failed[name]['reason']}" if name in self.state.failed else f" ({seconds:.0f} s)"
        self.tell(f"{word:<8}{self.state.told(name)}{reason}")

    def _settle(self) -> None:
        """Decide about a rung, and append the results of trials that have ended since."""
        self.halving.decide()
        fresh = [trial for trial in self.plan.trials if self._news(trial)]
        for trial in fresh:
            result = self.state.result(trial)
            if result is not None:
                append_result(self.folder, result)
                self.results[trial.of] = result
        if fresh:
            self._account()

    def _news(self, trial: Trial) -> bool:
        known, ended = self.results.get(trial.of), self.state.status(trial)
        return ended is not None and (known is None or (known.status, known.reason) != ended)

    def _account(self) -> None:
        """Write pieces.json: what was done, for which trials, and what it cost."""
        rows = []
        for name, piece in self.plan.pieces.items():
            done, failed = self.state.done.get(name), self.state.failed.get(name)
            row = {key: getattr(piece, key) for key in ("name", "label", "kind", "method", "budget", "seed")}
            row |= {"steps": (done or {}).get("steps", piece.steps), "seconds": spent(self.state.where(name))}
            row |= {"used_by": [list(trial.of) for trial in self.state.uses[name]], "folder": f"pieces/{name}"}
            row["status"] = "done" if done else str(failed["status"]) if failed else "left"
            rows.append({**row, "reason": str(failed["reason"]) if failed and not done else ""})
        study = self.plan.study
        facts = {"precision": study.precision, "threads": study.threads, "seconds": sum(r["seconds"] for r in rows)}
        write_json(self.folder / "pieces.json", {**facts, "pieces": rows})


def _why(place: Path, code: int) -> str:
    """Why a worker ended that did not say so itself."""
    if code == -9:
        return "killed by the system (signal 9), most likely because memory ran out"
    told = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if code in _ASKED:
        told = f"was stopped {ATTEMPTS} times"
    try:
        lines = (place / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{told}: {lines[-1][:300]}" if lines else told


class _Stop:
    asked = 0


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Count Ctrl-C and SIGTERM: the first asks the workers to save and end, a second ends them at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked += 1

    with asked_to_stop(ask):
        yield stop
