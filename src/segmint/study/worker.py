"""The process that does one piece of a study: `python -m segmint.study.worker FOLDER`.

It goes on where another was stopped. When the process that started it ends, so does it (its standard input is then
at its end), and SIGTERM lets a training save first.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from segmint.locks import hold
from segmint.study.files import (
    BROKEN,
    DONE,
    FAILED,
    FINISHED,
    JOB,
    PAUSED,
    STARTED,
    STOPPED,
    WAITS,
    curve,
    fail,
    said,
    spent,
)

GRACE = 60.0
"""Seconds that a piece has to save, when it is asked to end."""


class Ends(BaseException):
    """The process was asked to end before its piece was done; what is there is saved."""


_asked = threading.Event()
"""That it was, as code that is interrupted while it imports may swallow the exception."""


class Clock:
    """Asks the process to end when whoever started it is gone, or its time is up; ends it, if it does not.

    Args:
        folder: of the piece.
        limit: seconds; None for no limit.
        watch: whether the end of standard input means that the starter is gone.
    """

    def __init__(self, folder: Path, limit: float | None, watch: bool) -> None:
        self.folder, self.limit, self.late = folder, limit, False
        started = float(os.environ.get(STARTED, time.time()))
        self.begun = time.monotonic() - max(0.0, time.time() - started)
        self.before, self.watch = spent(folder), watch
        self.over = threading.Event()

    def start(self) -> None:
        """Watch from now on, until `over` is set; where it never is, the process ends a while after it was asked to."""
        if self.watch:
            threading.Thread(target=self._wait_for_the_end, daemon=True).start()
        if self.limit is not None:
            threading.Thread(target=self._wait_for_the_limit, daemon=True).start()

    @property
    def seconds(self) -> float:
        """Of work on the piece, earlier sittings included."""
        return self.before + time.monotonic() - self.begun

    def out_of_time(self) -> None:
        """Write down that the piece took too long."""
        fail(self.folder, "out of time", f"not done after {self.seconds / 60:.1f} minutes", self.seconds)

    def _wait_for_the_end(self) -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        self._ask(STOPPED)

    def _wait_for_the_limit(self) -> None:
        if not self.over.wait(max(0.0, self.limit or 0.0)):
            self.late = True
            self._ask(BROKEN)

    def _ask(self, code: int) -> None:
        if self.over.is_set():
            return
        os.kill(os.getpid(), signal.SIGTERM)
        if self.over.wait(GRACE):
            return
        if self.late:
            self.out_of_time()
        os._exit(code)


class Pause:
    """Told of a training's progress: stops it at the first validation from a step on."""

    def __init__(self, step: int | None) -> None:
        self.step, self.reached = step, False

    def progress(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Validation figures come without a learning rate."""
        if self.step is not None and self.step <= step < steps and "lr" not in figures and not self.reached:
            self.reached = True
            os.kill(os.getpid(), signal.SIGTERM)


def work(folder: Path, limit: float | None = None, watch: bool = False) -> int:
    """Do the piece of a folder, or what is left of it; one process at a time.

    Args:
        folder: with piece.json, which says what to do.
        limit: seconds that this sitting may take.
        watch: end when standard input does.

    Returns:
        FINISHED, BROKEN, STOPPED or WAITS.
    """
    _asked.clear()
    signal.signal(signal.SIGTERM, _end)
    clock = Clock(folder, limit, watch)
    try:
        with hold(folder / "lock", 2 * GRACE, f"{folder}: another process is still at it; end it, or wait"):
            clock.start()
            return _work(folder, clock)
    except (Ends, KeyboardInterrupt):
        if (folder / DONE).exists():
            return FINISHED
        if not clock.late:
            return STOPPED
        clock.out_of_time()
        return BROKEN
    finally:
        clock.over.set()


def _end(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise Ends


def _work(folder: Path, clock: Clock) -> int:
    import segmint.training.run  # noqa: F401
    from segmint.evaluation.files import read_json, write_json

    if (folder / DONE).exists():
        return FINISHED
    (folder / FAILED).unlink(missing_ok=True)
    pause = Pause(None)
    try:
        job = read_json(folder / JOB)
        pause.step = job.get("until")
        if _asked.is_set():
            raise Ends
        facts = _DO[job["kind"]](folder, job, pause)
        write_json(folder / DONE, {"seconds": round(clock.seconds, 2), **facts})
    except Ends:
        if not pause.reached:
            raise
        write_json(folder / PAUSED, {"step": pause.step, "seconds": round(clock.seconds, 2)})
        return WAITS
    except Exception as error:
        traceback.print_exc()
        fail(folder, "failed", said(error).removeprefix(f"{folder}: "), clock.seconds)
        return BROKEN
    return FINISHED


def _train(folder: Path, job: Mapping[str, Any], pause: Pause) -> dict[str, Any]:
    from segmint.evaluation.files import read_json
    from segmint.training import run as runs

    if (folder / "config.yaml").exists():
        runs.resume(folder, watcher=pause)
    else:
        runs.train(
            job["data"],
            method=job["method"],
            synthetic=job.get("synthetic", []),
            budget=job["budget"],
            masks_from=job.get("masks_from"),
            masks_confidence=0.7 if job["masks_confidence"] is None else job["masks_confidence"],
            init=job.get("init"),
            seed=job["seed"],
            size=None if job["size"] is None else tuple(job["size"]),
            out=folder,
            settings=job["training"],
            watcher=pause,
            **job["settings"],
        )
    summary = read_json(folder / "summary.json")
    if summary["status"] == "interrupted":
        raise Ends
    scores = [value for _, value in curve(folder, "miou")]
    facts = {key: summary[key] for key in ("steps", "precision", "best_step")}
    return {**facts, "miou": max(scores) if scores else None}


def _generate(folder: Path, job: Mapping[str, Any], pause: Pause) -> dict[str, Any]:
    from segmint.inference.generate import generate
    from segmint.training.run import Run

    made = generate(
        Run(Path(job["run"]), changes=job["settings"]),
        count=job["count"],
        out=folder / "pairs",
        seed=job["seed"],
        mix=job["mix"],
        segmenter=job.get("segmenter"),
        mask_generator=job.get("mask_generator"),
        repaint=job["repaint"],
    )
    return {"pairs": len(made)}


def _assay(folder: Path, job: Mapping[str, Any], pause: Pause) -> dict[str, Any]:
    from segmint.evaluation.assay import assay

    copy = folder / "pairs"
    if not copy.exists():
        partly = folder / "pairs.tmp"
        shutil.rmtree(partly, ignore_errors=True)
        shutil.copytree(job["pairs"], partly)
        partly.replace(copy)
    asked = {key: job[key] for key in ("segmenter", "keep", "by", "copies", "data")}
    return {"pairs": len(assay(copy, **asked))}


def _evaluate(folder: Path, job: Mapping[str, Any], pause: Pause) -> dict[str, Any]:
    from segmint.evaluation.evaluate import evaluate
    from segmint.evaluation.files import write_json
    from segmint.training.run import Run

    run = Run(Path(job["run"]))
    draws = job["draws"] if run.method.draws_differ else None
    entry = evaluate(run, Path(job["data"]), job["split"], draws=draws)
    write_json(folder / "metrics.json", {job["split"]: entry})
    return {"images": entry["images"]}


def _pace(folder: Path, job: Mapping[str, Any], pause: Pause) -> dict[str, Any]:
    from segmint.study.cost import time_trainings

    time_trainings(folder, job)
    return {}


_DO = {"pace": _pace, "train": _train, "generate": _generate, "assay": _assay, "evaluate": _evaluate}


def main(arguments: list[str]) -> int:
    """`FOLDER [LIMIT]`; standard input stays open as long as whoever started this lives."""
    limit = float(arguments[1]) if len(arguments) > 1 else None
    return work(Path(arguments[0]), limit, watch=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
