"""Two trials of a study at a time against one after another, with one thread each: how much sooner, and the same?

    python benchmarks/study_parallel.py [--steps 150] [--out FILE.json]

The data is made here. Each way has a folder of its own; the seconds are those of the whole command, start to end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = 96


def write_data(root: Path, count: int = 48) -> Path:
    """Grounds with a bright square or a coloured disc."""
    numbers = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        y, x = numbers.integers(20, SIZE - 20, 2)
        square = (abs(rows - y) < 14) & (abs(columns - x) < 14)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 220
        mask = (square if index % 2 else 2 * disc).astype(np.uint8)
        colors = np.array([(40, 40, 70), (220, 210, 200), (190, 60, 70)])[mask]
        image = (colors + numbers.normal(0, 20, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index:02d}.png")
    return root


def write_study(folder: Path, data: Path, steps: int) -> Path:
    study = {
        "data": str(data),
        "baseline": "supervised",
        "strategies": {"supervised": [{"train": "supervised"}]},
        "budgets": ["all"],
        "seeds": [0, 1],
        "steps": steps,
        "precision": "channels_last",
        "threads": 1,
    }
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


def seconds(folder: Path, processes: int) -> float:
    """The time of the command."""
    begun = time.perf_counter()
    argv = [sys.executable, "-m", "segmint", "study", str(folder), "--processes", str(processes)]
    subprocess.run(argv, check=True, stdout=sys.stderr)
    return time.perf_counter() - begun


def table(folder: Path) -> list[object]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return sorted([row["seed"], row["steps"], row["curve"], sorted(row["scores"].items())] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["SEGMINT_CACHE"] = f"{place}/cache"
        data = write_data(Path(place) / "data")
        ways = {count: write_study(Path(place) / f"by-{count}", data, asked.steps) for count in (1, 2)}
        took = {count: seconds(folder, count) for count, folder in ways.items()}
        same = table(ways[1]) == table(ways[2])
    found = {
        "steps": asked.steps,
        "one after another, s": round(took[1], 1),
        "two at a time, s": round(took[2], 1),
        "ratio": round(took[1] / took[2], 2),
        "same results": same,
        "load before": [round(value, 2) for value in os.getloadavg()],
    }
    print(json.dumps(found, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
