"""Keep what `generators.py` measured: docs/results/generators/results.json and sheets of generated pairs.

    python docs/results/generators_collect.py OUT

Every segmenter is evaluated on validation where it was not yet; no weights and no real image are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from collect import sheet

from segmint.config import read_run
from segmint.evaluation.compare import compare
from segmint.evaluation.evaluate import evaluate

HERE = Path(__file__).parent / "generators"
SHEETS = ("gmm", "vae", "gan", "steps8")
"""Pairs that hold no pixel of a real image or mask; those of painters of real masks stay where they are."""


def finished(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of every finished job."""
    return {
        path.stem.replace(".", "/", 1): json.loads(path.read_text()) for path in sorted((out / "done").glob("*.json"))
    }


def training(folder: Path) -> dict[str, Any]:
    """Steps, time and figures of a training run."""
    summary = json.loads((folder / "summary.json").read_text())
    told = {key: summary[key] for key in ("steps", "seconds", "labelled", "unlabelled", "synthetic", "parameters")}
    told |= {"best": summary["best"], "best_step": summary["best_step"]}
    if read_run(folder).method != "supervised":
        return told
    for split in ("val", "val-half1"):
        path = folder / "metrics.json"
        if not path.exists() or split not in json.loads(path.read_text()):
            evaluate(folder, read_run(folder).data, split)
    entry = json.loads((folder / "metrics.json").read_text())
    return {**told, "val": {key: entry["val"][key] for key in ("miou", "boundary_f1")}, "iou": entry["val"].get("iou")}


def comparisons(out: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each data set's segmenters against real labels alone, over seeds and images."""
    found = {}
    for data in ("clothes-30", "camvid-12"):
        for split in ("val", "val-half1"):
            runs = [name for name in jobs if name.startswith(data) and "val" in jobs[name]]
            real = [name for name in runs if name.endswith("/real")]
            others = [name for name in runs if name.partition("/")[2].startswith(("both", "half", "then", "self"))]
            if real and others:
                weighed = compare(out / real[0], [out / name for name in [*real[1:], *others]], split)
                found[f"{data} {split}"] = {key: weighed[key] for key in ("baseline", "others", "notes", "images")}
    return found


def without_paths(value: Any) -> Any:
    """The same, with the names of files and folders instead of where they lay."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main(out: Path) -> None:
    HERE.mkdir(exist_ok=True)
    jobs = finished(out)
    for name, told in jobs.items():
        folder = out / name
        if (folder / "summary.json").exists():
            told |= training(folder)
        for kind in ("measures", "assay", "sequences"):
            if (folder / f"{kind}.json").exists():
                told[kind] = json.loads((folder / f"{kind}.json").read_text())
    for case in ("clothes-30-0", "clothes-all-0", "camvid-12-0"):
        for maker in SHEETS:
            if f"{case}/{maker}-pairs" in jobs:
                sheet(out / case / f"{maker}-pairs").save(HERE / f"{case}-{maker}.jpg", quality=85)
    results = {"jobs": jobs, "comparisons": comparisons(out, jobs)}
    (HERE / "results.json").write_text(json.dumps(without_paths(results), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
