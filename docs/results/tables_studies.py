"""The tables of the studies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev

from cells import table

HERE = Path(__file__).parent / "studies"


def names() -> list[str]:
    """The studies that were collected."""
    return [path.parent.name for path in sorted(HERE.glob("*/summary.csv"))]


def of_draws(name: str) -> bool:
    """Whether a study is about how draws go with raters."""
    return bool(json.loads((HERE / name / "answer.json").read_text(encoding="utf-8"))["metric"] == "ged")


def answer(name: str) -> str:
    """What a study says itself."""
    told = json.loads((HERE / name / "answer.json").read_text(encoding="utf-8"))
    lines = [f"> {told['headline']} {told['details']}".rstrip(), *(f"> {line}" for line in told["cautions"])]
    return "\n>\n".join(lines)


def summary(name: str) -> str:
    """What each strategy reaches and gains at each budget."""
    with (HERE / name / "summary.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    lower = of_draws(name)
    lines.sort(key=lambda line: int(line["labels"] or 0))
    rows = [
        [
            line["strategy"],
            line["labels"],
            line["done"],
            _level(line, lower),
            f"{_signed(line['gain'], lower)}" if line["gain"] else "",
            _interval(line, lower),
            {"": "the baseline", "neither": "not told apart"}.get(line["verdict"], line["verdict"]),
            line["baseline_needs"],
            f"{float(line['minutes'] or 0) + float(line['shared_minutes'] or 0):.0f}",
        ]
        for line in lines
        if line["mean"]
    ]
    what = "GED (less is better)" if lower else "mIoU, %"
    head = ["strategy", "labels", "seeds", what, "gain" if lower else "gain, points", "95% interval", "verdict"]
    return table([*head, "labels the baseline needs", "minutes"], rows)


def _level(line: dict[str, str], lower: bool) -> str:
    digits, scale = (3, 1) if lower else (1, 100)
    spread = f" ± {scale * float(line['seed_deviation']):.{digits}f}" if line["seed_deviation"] else ""
    return f"{scale * float(line['mean']):.{digits}f}{spread}"


def _signed(figure: str, lower: bool) -> str:
    return f"{float(figure):+.3f}" if lower else f"{100 * float(figure):+.1f}"


def _interval(line: dict[str, str], lower: bool) -> str:
    if not line["gain_low"]:
        return ""
    return f"[{_signed(line['gain_low'], lower)}, {_signed(line['gain_high'], lower)}]"


def doubt(name: str) -> str:
    """What each strategy's draws are like beside the raters: means over seeds, and their standard deviation for GED."""
    with (HERE / name / "trials.csv").open(encoding="utf-8") as file:
        trials = [line for line in csv.DictReader(file) if line["status"] == "done"]
    keys = ("ged_unbiased", "matched_iou", "diversity_ratio", "miou", "image_dice", "expected_dice", "ece")
    rows = []
    for strategy in dict.fromkeys(line["strategy"] for line in trials):
        own = [line for line in trials if line["strategy"] == strategy]
        geds = [float(line["ged"]) for line in own]
        spread = f" ± {stdev(geds):.3f}" if len(geds) > 1 else ""
        means = (f"{mean(float(line[key]) for line in own):.3f}" for key in keys)
        rows.append([strategy, str(len(own)), f"{mean(geds):.3f}{spread}", *means])
    rows.sort(key=lambda row: row[2])
    head = ["strategy", "seeds", "GED", "unbiased", "matched IoU", "diversity, of the raters'", "mIoU"]
    return table([*head, "Dice per image", "expected Dice", "ECE"], rows)


def ensembles() -> str:
    """Draws of several runs together, beside those of each."""
    found = json.loads((HERE.parent / "ensembles-lidc.json").read_text())["sets"]
    rows = []
    for text, one in found.items():
        figures = [one[key] for key in ("ged", "ged_unbiased", "matched_iou")]
        ratio = one["diversity_draws"] / one["diversity_raters"]
        rows.append([text.replace("+", ", "), *(f"{value:.3f}" for value in figures), f"{ratio:.2f}"])
    return table(["runs", "GED", "unbiased", "matched IoU", "diversity, of the raters'"], rows)
