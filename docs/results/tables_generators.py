"""The tables of generators.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cells import percent, points, table

FILE = Path(__file__).parent / "generators" / "results.json"
MADE: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"jobs": {}, "comparisons": {}}
MAKERS = ("cutpaste", "near", "plain-near", "flow", "plain", "spade", "gan", "vae", "gmm")
FIGURES = ("kernel_distance", "frechet_distance", "precision", "recall", "density", "coverage", "diversity")
STEADINESS = ("flicker", "steady_flicker", "class_change", "warping_error")
KINDS = ("clean", "velocity", "edm", "perceptual", "perceptual3")
EVALUATIONS = ("plain-steps8", "plain-steps50", "steps8", "steps50")


def few_labels() -> str:
    """Segmenters on few real labels, with pairs and without."""
    rows = []
    for case, found in MADE["comparisons"].items():
        if not case.endswith(" val"):
            continue
        base = found["baseline"]
        rows.append([case[:-4], "real labels alone", str(len(base["runs"])), percent(base["scores"]["miou"]), "", ""])
        for other in found["others"]:
            name = other["runs"][0]
            gain = points(other["difference"]["miou"])
            verdict = other["verdict"] + (", one seed" if len(other["runs"]) == 1 else "")
            figures = [percent(other["scores"]["miou"]), gain, verdict]
            rows.append([case[:-4], name, str(len(other["runs"])), *figures])
    return table(["labels", "trained on", "seeds", "val mIoU, %", "against real alone, points", "verdict"], rows)


def only() -> str:
    """Segmenters on generated pairs alone."""
    rows = []
    for maker in ("real", *MAKERS):
        row = [maker]
        for case in ("clothes-all-0", "clothes-30-0"):
            job, real = (MADE["jobs"].get(f"{case}/only-{name}", {}) for name in (maker, "real"))
            if "val" in job and "val" in real:
                share = job["val"]["miou"]["value"] / real["val"]["miou"]["value"]
                row += [percent(job["val"]["miou"]), f"{100 * share:.0f}%"]
            else:
                row += ["not run", ""]
        rows.append(row)
    return table(["trained on", "all labels: val mIoU, %", "of real", "30 labels: val mIoU, %", "of real"], rows)


def measures(names: list[str]) -> str:
    """What some pairs are like, beside as many other real images."""
    rows, yardstick = [], None
    for name in names:
        facts = MADE["jobs"].get(f"{name}-pairs", {}).get("measures", {}).get("train")
        if facts:
            row = [f"{facts['generated'][key]:.2f}" for key in FIGURES]
            fits = f"{100 * facts['agreement']['miou']['value']:.0f}" if facts["agreement"] else ""
            rows.append([name, str(facts["images"][0]), *row, fits])
            yardstick = facts["real"] or yardstick
    if yardstick:
        row = [f"{yardstick[key]:.2f}" for key in FIGURES]
        rows.append(["other real images", str(yardstick["images"]), *row, ""])
    words = [key.replace("_", " ") for key in FIGURES]
    return table(["pairs", "images", *words, "mask agreement, mIoU %"], rows)


def generators() -> str:
    return measures([f"{case}/{maker}" for case in ("clothes-all-0", "clothes-30-0") for maker in MAKERS])


def parametrizations() -> str:
    return measures([f"clothes-all-0/{kind}" for kind in KINDS])


def evaluations() -> str:
    return measures([f"clothes-all-0/{name}" for name in EVALUATIONS])


def sequences() -> str:
    """Flicker and warping error of generated sequences."""
    rows = []
    for name, job in MADE["jobs"].items():
        for kind, facts in job.get("sequences", {}).items():
            if isinstance(facts, dict) and "flicker" in facts and not kind.startswith("to_"):
                cells = [f"{100 * facts[key]:.2f}" if facts.get(key) is not None else "" for key in STEADINESS]
                rows.append([name, kind, *cells])
    return table(["sequences", "frames", *(f"{key.replace('_', ' ')}, %" for key in STEADINESS)], rows)


def commands() -> str:
    """The command of every job."""
    lines = [f"{name}: {' '.join(job['command'])}" for name, job in MADE["jobs"].items() if "command" in job]
    return "\n".join(["```", *lines, "```"])
