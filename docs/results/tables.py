"""Write the tables of README.md from the JSON files beside it, so that no figure is typed by hand.

python docs/results/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/result.json"))}


def percent(cell: dict[str, float]) -> str:
    return f"{100 * cell['value']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def segmenters() -> str:
    """Every trained segmenter that was scored on validation."""
    rows = []
    for name, result in RESULTS.items():
        entry = result.get("metrics", {}).get("val")
        if not entry:
            continue
        config, summary = result["config"], result["summary"]
        rows.append(
            [
                name,
                config["data"],
                str(summary["labelled"]),
                str(summary["steps"]),
                config["method_settings"].get("loss", ""),
                f"{config['training']['lr']:g}",
                percent(entry["miou"]),
                percent(entry["boundary_f1"]),
                f"{summary['seconds'] / 60:.0f}",
            ]
        )
    head = ["run", "data", "labels", "steps", "loss", "lr", "val mIoU, %", "boundary F1, %", "minutes"]
    return table(head, rows)


def curves() -> str:
    """Validation mIoU over the steps of the long runs."""
    rows = []
    for name, result in RESULTS.items():
        points = [point for point in result.get("curve", []) if "miou" in point]
        if len(points) >= 12:
            shown = ", ".join(f"{point['step']}: {100 * point['miou']:.1f}" for point in points)
            rows.append([name, shown])
    return table(["run", "step: val mIoU, %"], rows)


def trials() -> str:
    """The trials of losses and learning rates, best first."""
    found = json.loads((HERE / "trials.json").read_text())["trials"]
    found.sort(key=lambda trial: -trial["best_val_miou"])
    rows = [
        [
            trial["loss"],
            f"{trial['lr']:g}",
            trial["augment"],
            f"{100 * trial['best_val_miou']:.1f}",
            str(trial["best_step"]),
        ]
        for trial in found
    ]
    return table(["loss", "lr", "augmentation", "best val mIoU, %", "at step"], rows)


def speed() -> str:
    """Ratios of images per second, by the clock on the wall and by processor time."""
    found = json.loads((HERE / "training-speed.json").read_text())
    rows = [
        [line["of"], line["to"], f"{line['ratio']:.2f}", f"{line['ratio_by_processor_time']:.2f}"]
        for line in found["ratios"]
    ]
    return table(["of", "to", "ratio of medians", "by processor time"], rows)


def pairs() -> str:
    """Every described folder of generated pairs."""
    rows = []
    for name, result in RESULTS.items():
        facts: dict[str, Any] | None = result.get("pairs")
        if facts:
            near = f"{facts['near_duplicates']} ({facts['expected']} expected)"
            figures = [f"{facts['diversity']:.2f}", f"{facts['nearest_ratio']:.2f}", near, str(facts["repeats"])]
            rows.append([name, facts["method"], str(facts["images"]), *figures])
    head = ["folder", "method", "pairs", "diversity", "nearest real / real-to-real", "near duplicates", "repeats"]
    return table(head, rows)


GENERATORS = HERE / "generators" / "results.json"
MADE: dict[str, Any] = json.loads(GENERATORS.read_text()) if GENERATORS.exists() else {"jobs": {}, "comparisons": {}}
MAKERS = ("cutpaste", "near", "flow", "spade", "gan", "vae", "gmm")


def points(cell: dict[str, float]) -> str:
    return f"{100 * cell['value']:+.1f} [{100 * cell['low']:+.1f}, {100 * cell['high']:+.1f}]"


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
            figures = [percent(other["scores"]["miou"]), gain, other["verdict"]]
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


FIGURES = ("kernel_distance", "frechet_distance", "precision", "recall", "density", "coverage", "diversity")


def generators() -> str:
    """What the pairs of each generator are like, beside as many other real images."""
    rows, yardstick = [], None
    for name, job in MADE["jobs"].items():
        facts = job.get("measures", {}).get("train")
        if facts:
            row = [f"{facts['generated'][key]:.2f}" for key in FIGURES]
            fits = f"{100 * facts['agreement']['miou']['value']:.0f}" if facts["agreement"] else ""
            rows.append([name.removesuffix("-pairs"), str(facts["images"][0]), *row, fits])
            yardstick = facts["real"] or yardstick
    if yardstick:
        row = [f"{yardstick[key]:.2f}" for key in FIGURES]
        rows.append(["other real images", str(yardstick["images"]), *row, ""])
    words = [key.replace("_", " ") for key in FIGURES]
    return table(["pairs", "images", *words, "mask agreement, mIoU %"], rows)


def sequences() -> str:
    """Flicker and warping error of generated sequences."""
    rows = []
    for name, job in MADE["jobs"].items():
        for kind, facts in job.get("sequences", {}).items():
            if isinstance(facts, dict) and "flicker" in facts:
                cells = [f"{100 * facts[key]:.2f}" if facts.get(key) is not None else "" for key in STEADINESS]
                rows.append([name, kind, *cells])
    return table(["sequences", "frames", *(f"{key.replace('_', ' ')}, %" for key in STEADINESS)], rows)


STEADINESS = ("flicker", "steady_flicker", "class_change", "warping_error")


def generation_speed() -> str:
    """Pairs per second, beside diffusers' DDPM pipeline."""
    rows = []
    for name in ("generation-speed", "generation-speed-others"):
        for side, facts in json.loads((HERE / f"{name}.json").read_text())["sides"].items():
            times = facts.get("times_ddpm_1000")
            ratio = f"{times:.3g}" if times else ""
            seconds = f"{facts['processor_seconds_per_pair']:.3g}"
            calls = str(facts["evaluations"] or "")
            rows.append([side, calls, facts["precision"], f"{facts['pairs_per_second']:.3g}", seconds, ratio])
    head = ["what", "evaluations", "precision", "pairs/s", "processor seconds a pair", "times DDPM at 1000 steps"]
    return table(head, rows)


def commands() -> str:
    """The command of every job."""
    lines = [f"{name}: {' '.join(job['command'])}" for name, job in MADE["jobs"].items() if "command" in job]
    return "\n".join(["```", *lines, "```"])


def main() -> None:
    page = HERE / "README.md"
    text = page.read_text(encoding="utf-8")
    makers: dict[str, Callable[[], str]] = {
        "segmenters": segmenters,
        "trials": trials,
        "curves": curves,
        "speed": speed,
        "pairs": pairs,
        "few labels": few_labels,
        "only": only,
        "generators": generators,
        "sequences": sequences,
        "generation speed": generation_speed,
        "commands": commands,
    }
    for name, make in makers.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if begin not in text:
            raise SystemExit(f"{page}: there is no {begin}")
        text = re.sub(f"{begin}.*?{end}", lambda _, m=make, b=begin, e=end: f"{b}\n{m()}\n{e}", text, flags=re.S)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
