"""What each trial of a study came to: one line of `results.jsonl`, appended whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from segmint.types import SegmintError

FILE = "results.jsonl"

Status = Literal["done", "failed", "out of time", "given up"]
STATUSES: tuple[str, ...] = ("done", "failed", "out of time", "given up")


@dataclass(frozen=True)
class Result:
    """One trial: a strategy with a budget of labels and a seed.

    Attributes:
        strategy: its name in study.yaml.
        budget: how many training images kept their masks; None: all.
        seed: chose them, and everything random.
        status: "done", "failed", "out of time", or "given up" where successive halving stopped it.
        reason: why it is not done; "" where it is.
        steps: optimiser steps in all, pre-training and pseudo-labelling teachers counted, shared or not.
        seconds: of the commands that this trial alone needed; `shared_seconds`: of those that others needed as well,
            each counted in full.
        run: the last run folder, relative to the study's folder.
        curve: (step, mIoU on validation images) of the last training; `train_curve`: on training images.
        scores: measures on the split that is judged, as `segmint evaluate` has them.
        images: the file with the per-image tables (metrics.json), relative to the study's folder.
        shared_steps: steps of the generators whose pairs it was trained on, and of what these needed.
        shared: names of the pieces that it shares with other trials.
        key: stands for everything that determines the trial.
    """

    strategy: str
    budget: int | None
    seed: int
    status: Status
    reason: str = ""
    steps: int = 0
    seconds: float = 0.0
    shared_seconds: float = 0.0
    run: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    images: str = ""
    shared_steps: int = 0
    shared: list[str] = field(default_factory=list)
    key: str = ""

    @property
    def trial(self) -> tuple[str, int | None, int]:
        """What it is a result of: strategy, budget, seed."""
        return self.strategy, self.budget, self.seed


def append_result(folder: Path, result: Result) -> None:
    """Append a line to `results.jsonl`: one write, flushed to the disk; a torn last line is cut off first.

    Raises:
        SegmintError: it could not be written (disk full, no permission).
    """
    path = folder / FILE
    line = (json.dumps(asdict(result), allow_nan=False) + "\n").encode()
    try:
        mend(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError("the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SegmintError(
            f"{path}: cannot be written ({error.strerror or error}); make room, then go on with the same command"
        ) from error


def mend(path: Path) -> None:
    """Cut off a last line without its end, as a kill in the middle of writing leaves it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def read_results(folder: Path) -> list[Result]:
    """The last result of every trial, in the order in which they were first written.

    Args:
        folder: the study's; no file in it means no result. A torn last line is left out.

    Raises:
        SegmintError: another line is damaged; the message names it.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found: dict[tuple[str, int | None, int], Result] = {}
    for number, line in enumerate(lines[:-1], 1):
        if line.strip():
            result = _parse(line, f"{path}: line {number}")
            found[result.trial] = result
    return list(found.values())


_KNOWN = {one.name for one in fields(Result)}


def _parse(line: bytes, where: str) -> Result:
    try:
        values: dict[str, Any] = json.loads(line)
        curves = {name: [(int(x), float(y)) for x, y in values.get(name, [])] for name in ("curve", "train_curve")}
        result = Result(**{key: value for key, value in values.items() if key in _KNOWN} | curves)
    except (ValueError, TypeError, AttributeError) as error:
        raise SegmintError(f"{where} is no result ({error}); remove the line, then run the study again") from error
    if result.status not in STATUSES:
        raise SegmintError(f"{where}: status {result.status!r} is not one of {', '.join(STATUSES)}; remove the line")
    return result
