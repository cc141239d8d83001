"""Write the tables of these pages from the JSON files beside it, so that no figure is typed by hand.

python docs/results/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tables_generators as made
import tables_studies as studies
from cells import percent, table

HERE = Path(__file__).parent
RESULTS = {path.parent.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*/result.json"))}


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


def inference_speed() -> str:
    """Latency and throughput of segmenting, and what they cost in mean IoU."""
    contenders = json.loads((HERE / "inference-speed.json").read_text())["contenders"]
    base = contenders["PyTorch float32"]
    rows = []
    for name, facts in contenders.items():
        ratio = f"{facts['images_per_second'] / base['images_per_second']:.1f}"
        miou = f"{facts['miou']:.2f}" if "miou" in facts else ""
        rows.append([name, f"{facts['latency_ms']:.0f}", f"{facts['images_per_second']:.1f}", ratio, miou])
    return table(["what", "latency, ms", "images/s, batches of 8", "times PyTorch float32", "val mIoU, %"], rows)


def server() -> str:
    """Requests a second with batching and without, and what memory does meanwhile."""
    found = json.loads((HERE / "serve-load.json").read_text())
    rows = []
    for name, words in (("batches", "batching"), ("alone", "one at a time")):
        facts = found[name]
        memory = f"{facts['MiB in the second quarter']:.0f}, {facts['MiB in the last']:.0f}"
        figures = [f"{facts[key]:.0f}" for key in ("requests a second", "median ms", "95% ms")]
        counts = [f"{facts['requests']:,}", str(facts["errors"]), str(facts["answers unlike a lone request's"])]
        rows.append([words, *counts, *figures, f"{facts['images a batch']:.1f}", memory])
    head = ["server", "requests", "errors", "other masks than alone", "requests/s", "median, ms", "95%, ms"]
    return table([*head, "images a batch", "MiB in the second and the last quarter"], rows)


def draw_speed() -> str:
    """What drawn masks cost, beside a forward pass of `supervised`."""
    found = json.loads((HERE / "draw-speed.json").read_text())
    times = found["times one forward pass of supervised"]
    rows = [[name, f"{1000 * value:.0f}", f"{times[name]:.1f}"] for name, value in found["seconds"].items()]
    return table(["method, masks drawn", "ms", "times one forward pass of supervised"], rows)


def tried() -> str:
    """What was tried with few labels and is not in a study: one seed each."""
    found = json.loads((HERE / "tried.json").read_text())["trials"]
    rows = [
        [
            one["what"],
            str(one["steps"]),
            f"{100 * one['best_val_miou']:.1f}",
            one["change_to_the_code"],
            f"`{one['command']}`",
        ]
        for one in found
    ]
    return table(["what", "steps", "best val mIoU, %", "change to the code, not kept", "command"], rows)


def two_classes() -> str:
    """Losses where there are two classes, of which one is rare: one seed each."""
    found = json.loads((HERE / "two-classes.json").read_text())["trials"]
    rows = [[one["data"], one["loss"], f"{100 * one['best_val_miou']:.1f}", f"`{one['command']}`"] for one in found]
    return table(["data", "loss", "best val mIoU, %", "command"], rows)


def _row(one: Mapping[str, Any], words: Sequence[str], figures: Sequence[str]) -> list[str]:
    return [*(str(one[key]) for key in words), *(f"{one[key]:.3f}" for key in figures)]


def tried_lidc() -> str:
    """Losses and augmentations where raters disagree: one seed each."""
    found = json.loads((HERE / "tried-lidc.json").read_text())["trials"]
    keys = ("miou", "image_dice", "expected_dice", "ece", "ged", "matched_iou")
    words = ("loss", "augmentation", "steps", "draws", "change_to_the_code")
    rows = [_row(one, words, keys) for one in found]
    head = [
        "loss",
        "augmentation",
        "steps",
        "draws",
        "change to the code, not kept",
        "mIoU",
        "Dice per image",
        "expected Dice",
        "ECE",
    ]
    return table([*head, "GED", "matched IoU"], rows)


def tried_draws() -> str:
    """What was tried so that draws come nearer to the raters: one seed each."""
    found = json.loads((HERE / "tried-lidc.json").read_text())["draws"]
    keys = ("miou", "ged", "matched_iou", "diversity_ratio", "image_dice", "expected_dice")
    words = ("method", "what", "augmentation", "steps", "change_to_the_code")
    rows = [[*_row(one, words, keys), f"`{one['command']}`"] for one in found]
    head = ["method", "what", "augmentation", "steps", "code, where it is not today's", "mIoU", "GED", "matched IoU"]
    return table([*head, "diversity, of the raters'", "Dice per image", "expected Dice", "command"], rows)


def main() -> None:
    makers: dict[str, Callable[[], str]] = {
        "segmenters": segmenters,
        "trials": trials,
        "curves": curves,
        "speed": speed,
        "pairs": pairs,
        "generation speed": generation_speed,
        "inference speed": inference_speed,
        "server": server,
        "few labels": made.few_labels,
        "only": made.only,
        "generators": made.generators,
        "parametrizations": made.parametrizations,
        "evaluations": made.evaluations,
        "sequences": made.sequences,
        "commands": made.commands,
        "draw speed": draw_speed,
        "tried": tried,
        "tried lidc": tried_lidc,
        "tried draws": tried_draws,
        "ensembles": studies.ensembles,
        "two classes": two_classes,
    }
    for name in studies.names():
        makers[f"answer {name}"] = partial(studies.answer, name)
        makers[f"study {name}"] = partial(studies.summary, name)
        if studies.of_draws(name):
            makers[f"doubt {name}"] = partial(studies.doubt, name)
    pages = {page: page.read_text(encoding="utf-8") for page in HERE.glob("*.md")}
    for name, make in makers.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        found = [page for page, text in pages.items() if begin in text]
        if len(found) != 1:
            raise SystemExit(f"{HERE}: {begin} must be in one page, but is in {len(found)}")
        new = f"{begin}\n{make()}\n{end}"
        pages[found[0]] = re.sub(f"{begin}.*?{end}", lambda _, new=new: new, pages[found[0]], flags=re.S)
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
