"""What a piece leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segmint.evaluation.files import read_json, write_json
from segmint.training.checkpoint import read_log
from segmint.types import SegmintError, is_memory, reason

JOB, DONE, FAILED, PAUSED, LOG = "piece.json", "done.json", "failed.json", "paused.json", "output.txt"

STARTED = "SEGMINT_STARTED"
"""Environment variable of a worker: when it was started, in seconds since 1970, as its imports take seconds too."""

FINISHED, BROKEN, STOPPED, WAITS = 0, 4, 3, 5
"""How a worker ends: the piece is done; it failed (failed.json says why); it was asked to stop and can go on; it waits
at the step that it was to wait at."""


def read_facts(path: Path) -> dict[str, Any] | None:
    """A JSON file of a piece's folder; None if it is not there, or not whole as a disk may leave it after a crash."""
    try:
        return read_json(path)
    except SegmintError:
        return None


def fail(folder: Path, status: str, reason: str, seconds: float = 0.0) -> None:
    """Write down why a piece cannot be done: `status` is "failed" or "out of time"."""
    write_json(folder / FAILED, {"status": status, "reason": reason, "seconds": round(seconds, 2)})


def said(error: BaseException) -> str:
    """Why something failed, in a line."""
    words = reason(error)
    if is_memory(error):
        return f"out of memory: {words}"
    return words if isinstance(error, SegmintError) else f"{type(error).__name__}: {words}"


def spent(folder: Path) -> float:
    """Seconds that a piece has taken, in all sittings that ended in order."""
    told = read_facts(folder / DONE) or read_facts(folder / FAILED) or read_facts(folder / PAUSED) or {}
    lines = read_log(folder)
    return max(float(told.get("seconds", 0.0)), float(lines[-1].get("seconds", 0.0)) if lines else 0.0)


def progress(folder: Path, job: dict[str, Any]) -> tuple[int, int]:
    """How far a piece is: steps done of all, or pairs made of all; (0, 0) where it does not say."""
    if job["kind"] == "train":
        lines = read_log(folder)
        return (int(lines[-1]["step"]) if lines else 0), int(job["training"].get("steps", 0))
    manifest = folder / "pairs" / "manifest.jsonl"
    if job["kind"] == "generate" and manifest.is_file():
        return manifest.read_bytes().count(b"\n"), int(job["count"])
    return 0, int(job.get("count", 0))


def curve(folder: Path, key: str) -> list[tuple[int, float]]:
    """A figure of the validation lines of a training's log: (step, value)."""
    lines = [line for line in read_log(folder) if line.get("split") == "val" and key in line]
    return [(int(line["step"]), float(line[key])) for line in lines]


def write_job(folder: Path, job: dict[str, Any]) -> None:
    """Tell the worker of a piece what to do."""
    folder.mkdir(parents=True, exist_ok=True)
    if read_facts(folder / JOB) != json.loads(json.dumps(job)):
        write_json(folder / JOB, job)
