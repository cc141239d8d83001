"""Keep what a run or a generated folder measured: JSON, and sheets of generated pairs; no weights, no real image.

python docs/results/collect.py RUN [RUN ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from segmint.data.folder import open_folder
from segmint.data.io import read_image
from segmint.data.masks import read_mask
from segmint.evaluation import pictures as paint

HERE = Path(__file__).parent


def curve(run: Path) -> list[dict[str, float]]:
    """The validation lines of a run's log, and the training line before each."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept, before = [], {}
    for line in lines:
        if line["split"] == "train":
            before = {f"train_{key}": value for key, value in line.items() if "loss" in key}
        else:
            kept.append({**line, **before})
    return kept


def collect(source: Path) -> None:
    target = HERE / source.name
    target.mkdir(exist_ok=True)
    told: dict[str, object] = {}
    if (source / "config.yaml").exists():
        told["config"] = yaml.safe_load((source / "config.yaml").read_text())
        told["config"]["data"] = Path(told["config"]["data"]).name
        told["config"]["synthetic"] = [Path(path).name for path in told["config"]["synthetic"]]
        told["summary"] = json.loads((source / "summary.json").read_text())
        told["curve"] = curve(source)
    if (source / "metrics.json").exists():
        metrics = json.loads((source / "metrics.json").read_text())
        for entry in metrics.values():
            entry.pop("per_image", None)
            entry["data"] = Path(entry["data"]).name
        told["metrics"] = metrics
    if (source / "pairs.json").exists():
        told["pairs"] = json.loads((source / "pairs.json").read_text())
    (target / "result.json").write_text(json.dumps(told, indent=1) + "\n")
    if (source / "pairs.json").exists():
        sheet(source).save(target / "pairs.jpg", quality=88)


def sheet(pairs: Path, count: int = 64) -> Image.Image:
    """The first generated images with their masks beneath."""
    data = open_folder(pairs)
    blocks = []
    for item in data.items[:count]:
        image = paint.to_rgb(read_image(item.image))
        mask = paint.colorize(read_mask(item.masks[0], data.classes), data.classes.colors)
        blocks.append(Image.fromarray(np.concatenate([image, mask])))
    columns = max(8, 1280 // blocks[0].width)
    return paint.wrapped(blocks, columns, 2)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        collect(Path(name))
