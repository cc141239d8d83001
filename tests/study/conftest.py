"""Fixtures of the study's tests: a tiny study, and workers that are no processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from segmint.study import worker
from segmint.study.outcomes import settled
from segmint.study.pieces import Plan, make_plan
from segmint.study.plan import read_study
from segmint.study.run import settle
from segmint.study.trials import Engine

SELF_TAUGHT = [
    {"name": "first", "train": "supervised", "share": 0.5},
    {"train": "supervised", "init": "first", "masks_from": "first"},
]
PASTED = [
    {"name": "teacher", "train": "supervised"},
    {"name": "maker", "train": "cutpaste"},
    {"generate": "maker", "count": 4},
    {"assay": "pairs", "segmenter": "teacher", "by": "none"},
    {"train": "supervised", "synthetic": ["kept"]},
]


class Here:
    """A pool whose workers are calls: a piece is done when it is started."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.started: list[str] = []

    room = 1

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        self.started.append(name)
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.codes[name] = worker.work(folder, limit)
        finally:
            signal.signal(signal.SIGTERM, before)

    def ended(self) -> dict[str, int]:
        codes, self.codes = self.codes, {}
        return codes

    def stop(self, at_once: bool = False) -> None: ...

    def close(self) -> None: ...


def write(folder: Path, data: Path, strategies: Mapping[str, Any], /, **changes: Any) -> Path:
    """A study of tiny trainings."""
    values = {
        "data": str(data),
        "baseline": next(iter(strategies)),
        "budgets": [3],
        "seeds": [0, 1],
        "steps": 4,
        "precision": "float32",
        "threads": 1,
        "settings": {"encoder_name": "plain", "decoder_channels": [4, 4, 4, 4]},
        "training": {"validate_every": 2, "batch_size": 2},
        "strategies": strategies,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(values | changes, sort_keys=False), encoding="utf-8")
    return folder


def plan_of(folder: Path) -> Plan:
    study = read_study(folder)
    return make_plan(settled(study, folder) or settle(study, folder, 1))


def run(folder: Path, pool: Any = None, retry: bool = False) -> Engine:
    """Run a study in this process, to its end."""
    engine = Engine(folder, plan_of(folder), pool or Here())
    engine.PAUSE = 0.0
    if retry:
        engine.retry()
    engine.run()
    return engine


def table(folder: Path) -> list[Any]:
    """What must be the same however often a study was interrupted: all results but the times."""
    from segmint.study.results import read_results

    found = sorted(read_results(folder), key=lambda one: (one.strategy, one.budget or 0, one.seed))
    return [(*one.trial, one.status, one.reason, one.steps, one.curve, one.scores, one.shared) for one in found]


class Study:
    """A study of tiny trainings, run in this process."""

    SUPERVISED, SELF_TAUGHT, PASTED = [{"train": "supervised"}], SELF_TAUGHT, PASTED
    Here = Here
    write, run, table, plan_of = (staticmethod(each) for each in (write, run, table, plan_of))


@pytest.fixture(scope="session")
def tiny() -> type[Study]:
    """The helpers of this file; tests cannot import it."""
    return Study


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> tuple[Path, Engine]:
    """A study that has run to its end: its folder and its engine."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    strategies = {"supervised": [{"train": "supervised"}], "self": SELF_TAUGHT, "pasted": PASTED}
    strategies["denoised"] = [
        {"train": "denoise", "share": 0.5, "once": True},
        {"train": "supervised", "init": "denoise"},
    ]
    return folder, run(write(folder, shapes, strategies))
