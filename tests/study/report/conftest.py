"""A study's folder as the engine leaves it, with figures that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segmint.evaluation.tables import SETS
from segmint.study.findings import Findings, find
from segmint.study.outcomes import SETTLED, current_results
from segmint.study.pieces import make_plan
from segmint.study.plan import Study, read_study
from segmint.study.results import Result, append_result

IMAGES, CLASSES = 40, 3


@dataclass(frozen=True)
class Made:
    """A made-up study."""

    folder: Path

    def findings(self, resamples: int = 200) -> Findings:
        study = read_study(self.folder)
        return find(self.folder, study, current_results(study, self.folder), resamples)


def entry(accuracy: np.ndarray, several: bool) -> dict[str, Any]:
    """What metrics.json would say of a split of `IMAGES` images with these shares of right pixels."""
    pixels = np.random.default_rng(5).dirichlet(np.full(CLASSES, 3.0), IMAGES) * 1000
    right = np.clip(accuracy, 0, 1)[:, None] * pixels
    wrong = (pixels - right) / (CLASSES - 1)
    confusion = wrong[..., None] * (1 - np.eye(CLASSES)) + right[..., None] * np.eye(CLASSES)
    tables: dict[str, Any] = {
        "confusion": confusion.reshape(IMAGES, -1).round(2).tolist(),
        "boundary": [[1.0, 1.0] * CLASSES] * IMAGES,
        "calibration": [[1.0, 1.0, 1.0]] * IMAGES,
        "brier": [[1.0, 1.0]] * IMAGES,
        "nll": [[1.0, 1.0]] * IMAGES,
    }
    if several:
        tables["sets"] = [[1 - float(share)] + [0.5] * (len(SETS) - 1) for share in accuracy]
    return {
        "classes": ["background", "left", "right"],
        "size": [16, 16],
        "images": IMAGES,
        "per_image": {"names": [f"{n:03d}" for n in range(IMAGES)], "groups": [""] * IMAGES, **tables},
    }


def write_study(
    folder: Path,
    reached: Mapping[str, float],
    *,
    budgets: tuple[int | str, ...] = (10, 40),
    seeds: int = 3,
    noise: float = 0.003,
    step: float = 0.06,
    rising: tuple[str, ...] = (),
    left: tuple[str, ...] = (),
    failed: Mapping[tuple[str, int], str] | None = None,
    steps: Mapping[str, int] | None = None,
    **settings: Any,
) -> Made:
    """Write study.yaml, results.jsonl and what evaluations would have left.

    Args:
        reached: each strategy's share of right pixels at the first budget; the first strategy is the baseline.
        budgets: each next one adds `step`.
        noise: over seeds.
        rising: strategies that were still improving.
        left: strategies none of whose trials has ended.
        failed: (strategy, seed) -> reason, at every budget.
        steps: of strategies that took others than the study's 400.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "data": str(folder / "data"),
        "strategies": {name: [{"train": "supervised", "settings": {"tag": name}}] for name in reached},
        "baseline": next(iter(reached)),
        "budgets": list(budgets),
        "seeds": list(range(seeds)),
        "steps": 400,
        "split": "val",
        **settings,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / SETTLED).write_text(json.dumps({"precision": "float32", "threads": 1}))
    study = read_study(folder).model_copy(update={"precision": "float32", "threads": 1})
    for number, trial in enumerate(make_plan(study).trials):
        if trial.strategy in left:
            continue
        generator = np.random.default_rng([number, 3])
        share = reached[trial.strategy] + step * study.every_budget.index(trial.budget) + generator.normal(0, noise)
        told = Result(
            *trial.of,
            "done",
            steps=(steps or {}).get(trial.strategy, 400),
            seconds=60.0,
            shared_seconds=30.0,
            run=f"pieces/{trial.last}",
            images=f"pieces/{trial.last}/metrics.json",
            key=trial.key,
            scores={"miou": share, "ged": 1 - share},
            curve=curve(share, trial.strategy in rising, generator),
            train_curve=curve(share + 0.1, True, generator),
        )
        reason = (failed or {}).get((trial.strategy, trial.seed))
        if reason:
            told = replace(told, status="failed", reason=reason, images="", scores={})
        else:
            _write_run(folder / told.run, study, share, noise, generator)
        append_result(folder, told)
    return Made(folder)


def _write_run(run: Path, study: Study, share: float, noise: float, generator: np.random.Generator) -> None:
    common = np.random.default_rng(9).normal(0, 0.08, IMAGES)
    accuracy = share + common + generator.normal(0, noise * 6, IMAGES)
    run.mkdir(parents=True, exist_ok=True)
    several = study.metric in ("ged", "matched_iou")
    (run / "metrics.json").write_text(json.dumps({study.split: entry(accuracy, several)}))
    (run / "summary.json").write_text(json.dumps({"labelled": 300}))


def curve(share: float, rising: bool, generator: np.random.Generator) -> list[tuple[int, float]]:
    """Twenty validations that end at `share`, flat or still rising."""
    steps = np.arange(20, 401, 20)
    way = 0.25 * (steps / 400 - 1) if rising else -0.3 * np.exp(-steps / 60)
    scores = share + way + generator.normal(0, 0.003, len(steps))
    return [(int(step), float(score)) for step, score in zip(steps, scores, strict=True)]


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Made]:
    """`write_study` into a folder of its own."""

    def make(reached: Mapping[str, float], name: str = "study", **options: Any) -> Made:
        return write_study(tmp_path / name, reached, **options)

    return make
