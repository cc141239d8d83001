"""The tables of the studies."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from cells import table

HERE = Path(__file__).parent / "studies"


def names() -> list[str]:
    """The studies that were collected."""
    return [path.parent.name for path in sorted(HERE.glob("*/summary.csv"))]


def answer(name: str) -> str:
    """What a study says itself."""
    told = json.loads((HERE / name / "answer.json").read_text(encoding="utf-8"))
    lines = [f"> {told['headline']} {told['details']}".rstrip(), *(f"> {line}" for line in told["cautions"])]
    return "\n>\n".join(lines)


def summary(name: str) -> str:
    """What each strategy reaches and gains at each budget."""
    with (HERE / name / "summary.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    lower = json.loads((HERE / name / "answer.json").read_text(encoding="utf-8"))["metric"] == "ged"
    lines.sort(key=lambda line: int(line["labels"] or 0))
    rows = [
        [
            line["strategy"],
            line["labels"],
            line["done"],
            _level(line, lower),
            f"{100 * float(line['gain']):+.1f}" if line["gain"] else "",
            _interval(line),
            {"": "the baseline", "neither": "not told apart"}.get(line["verdict"], line["verdict"]),
            line["baseline_needs"],
            f"{float(line['minutes'] or 0) + float(line['shared_minutes'] or 0):.0f}",
        ]
        for line in lines
        if line["mean"]
    ]
    what = "GED (less is better)" if lower else "mIoU, %"
    head = ["strategy", "labels", "seeds", what, "gain, points", "95% interval", "verdict"]
    return table([*head, "labels the baseline needs", "minutes"], rows)


def _level(line: dict[str, str], lower: bool) -> str:
    digits, scale = (3, 1) if lower else (1, 100)
    spread = f" ± {scale * float(line['seed_deviation']):.{digits}f}" if line["seed_deviation"] else ""
    return f"{scale * float(line['mean']):.{digits}f}{spread}"


def _interval(line: dict[str, str]) -> str:
    if not line["gain_low"]:
        return ""
    return f"[{100 * float(line['gain_low']):+.1f}, {100 * float(line['gain_high']):+.1f}]"
