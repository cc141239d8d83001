"""A run against a split: measures with intervals in metrics.json, and segmentations beside the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from segmint.config import read_run
from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation import pictures as paint
from segmint.evaluation.files import read_json, write_json
from segmint.functional import metrics
from segmint.inference.predict import Draws, draw
from segmint.methods.method import Method, device_of
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import SegmintError

SHOWN = 8


@dataclass(frozen=True)
class Measure:
    """A figure of a split: which per-image table it needs, and the statistic of the summed tables."""

    table: str
    of: metrics.Statistic


MEASURES: Mapping[str, Measure] = {
    "miou": Measure("confusion", metrics.mean_iou),
    "dice": Measure("confusion", metrics.mean_dice),
    "accuracy": Measure("confusion", metrics.pixel_accuracy),
    "boundary_f1": Measure("boundary", metrics.mean_boundary_f1),
    "ece": Measure("calibration", metrics.calibration_error),
    "brier": Measure("brier", metrics.ratio),
    "nll": Measure("nll", metrics.ratio),
}
CLASS_MEASURES: Mapping[str, Measure] = {
    "iou": Measure("confusion", metrics.class_iou),
    "dice": Measure("confusion", metrics.class_dice),
    "boundary_f1": Measure("boundary", metrics.class_boundary_f1),
}


def evaluate(
    run: Run | str | Path,
    data: Data | Path,
    split: str = "val",
    *,
    draws: int = 1,
    batch_size: int = 8,
    size: tuple[int, int] | None = None,
    pictures: bool = True,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Score a trained segmenter on the labelled images of a split.

    Figures are those of the whole split (one confusion matrix over all its pixels), at the size the run was
    trained at, with 95% bootstrap intervals over images or groups. Where several raters drew masks, truth
    is the class most of them chose, pixel by pixel; ties go to the class that comes first.

    Args:
        run: a run of `segmint train`, or its folder.
        data: the data folder, open or by its path.
        split: "train", "val" or "test", or a half of one, e.g. "val-half1".
        draws: draws of masks averaged per image.
        batch_size: images at a time.
        size: height and width to evaluate at; None: that of the run.
        pictures: whether to write pictures/segmentations-{split}.png.
        resamples: of the bootstrap.

    Returns:
        The entry written into the run's metrics.json under the split's name; other splits there are kept.

    Raises:
        SegmintError: the run does not segment or does not fit the data's classes or channels, or the split
            has no masks.
    """
    trained = run if isinstance(run, Run) else Run(Path(run))
    run = trained.folder
    started = time.perf_counter()
    method = trained.method
    data = data if isinstance(data, Data) else open_folder(data)
    check_fits(run, method, data)
    chosen = data.split(split)
    indices = [index for index in chosen if data.items[index].masks]
    if not indices:
        raise SegmintError(
            f"{data.root}: none of the {len(chosen)} images of split {split!r} has a mask; add masks, "
            "or name another split"
        )
    height, width = size or read_run(run).size or method.config["image_size"]
    pixels = Pixels.open(data, (height, width))
    method = method.to("cuda" if torch.cuda.is_available() else "cpu")
    tables = _score(method, pixels, indices, draws, batch_size)
    units = metrics.units([data.items[index].group for index in indices])
    entry = {
        "split": split,
        "data": str(data.root),
        "method": method.name,
        "images": len(indices),
        "unlabelled": len(chosen) - len(indices),
        "size": [height, width],
        "draws": draws,
        "raters": max(len(pixels.rows[index]) for index in indices),
        "resampled": units.kind,
        "note": units.note,
        "classes": list(data.classes.names),
        "colors": [list(color) for color in data.classes.colors],
        **summarise(tables, units, data.classes.names, resamples),
        "per_image": {
            "names": [data.items[index].name for index in indices],
            "groups": [data.items[index].group for index in indices],
            **_pack(tables),
        },
    }
    if pictures:
        path = run / "pictures" / f"segmentations-{split}.png"
        paint.save(_picture(method, pixels, indices, tables["confusion"], draws), path)
    entry["seconds"] = round(time.perf_counter() - started, 2)
    _store(run / "metrics.json", split, entry)
    return entry


def truth_of(pixels: Pixels, index: int) -> Tensor:
    """The mask an item is scored against, int64 [H, W]: that of its rater, or the majority of several."""
    masks = torch.from_numpy(np.asarray(pixels.masks[list(pixels.rows[index])])).long()
    return masks[0] if len(masks) == 1 else metrics.majority(masks, len(pixels.data.classes))


def summarise(
    tables: Mapping[str, Tensor], units: metrics.Units, names: Sequence[str], resamples: int = 2000
) -> dict[str, Any]:
    """All measures from per-image tables, each {"value", "low", "high"}, and "per_class" by name."""
    scores: dict[str, Any] = {
        key: as_interval(metrics.bootstrap(tables[measure.table], measure.of, units, resamples=resamples))
        for key, measure in MEASURES.items()
    }
    single = {
        key: metrics.bootstrap(tables[measure.table], measure.of, units, resamples=resamples)
        for key, measure in CLASS_MEASURES.items()
    }
    true = tables["confusion"].sum((0, 2)).double()
    scores["per_class"] = {
        name: {
            "share": float(true[k] / true.sum()),
            **{key: as_interval(bounds[:, k]) for key, bounds in single.items()},
        }
        for k, name in enumerate(names)
    }
    return scores


def as_interval(bounds: Tensor) -> dict[str, float]:
    """[3] -> {"value", "low", "high"}."""
    value, low, high = bounds.tolist()
    return {"value": value, "low": low, "high": high}


def check_fits(run: Path, method: Method, data: Data) -> None:
    """Raise a SegmintError if the method does not segment, or not the classes and channels of the data."""
    if "segment" not in method.capabilities():
        raise SegmintError(
            f"{run}: {method.name} does not segment, it only generates; evaluate a segmenter, "
            "for instance one trained on its pairs"
        )
    classes, channels = method.config["classes"], method.config["in_channels"]
    if classes != len(data.classes):
        raise SegmintError(
            f"{data.root}: has {len(data.classes)} classes, but {run} was trained with {classes}; "
            "evaluate it on data with the same classes"
        )
    if channels != data.channels:
        raise SegmintError(
            f"{data.root}: images have {data.channels} channels, but {run} was trained with {channels}; "
            "convert the images, or train on such images"
        )


def _predictions(
    method: Method, pixels: Pixels, indices: Sequence[int], draws: int, batch_size: int
) -> Iterator[tuple[Draws, Tensor]]:
    """Batch by batch: what the method says, and the truth, int64 [B, H, W], both on the method's device."""
    device = device_of(method)
    for start in range(0, len(indices), batch_size):
        some = indices[start : start + batch_size]
        image = pixels.batch(some).image.to(device)
        truth = torch.stack([truth_of(pixels, index) for index in some]).to(device)
        yield draw(method, image, Seeds(some), draws), truth


def _score(method: Method, pixels: Pixels, indices: Sequence[int], draws: int, batch_size: int) -> dict[str, Tensor]:
    classes = len(pixels.data.classes)
    found: dict[str, list[Tensor]] = {}
    for said, truth in _predictions(method, pixels, indices, draws, batch_size):
        called = said.probabilities.argmax(1)
        rows = {
            "confusion": metrics.confusion(called, truth, classes),
            "boundary": metrics.boundary_table(metrics.boundary_f1(called, truth, classes)),
            "calibration": metrics.calibration_table(said.probabilities, truth),
            "brier": metrics.brier_table(said.probabilities, truth),
            "nll": metrics.nll_table(said.probabilities, truth),
        }
        for key, table in rows.items():
            found.setdefault(key, []).append(table.cpu())
    return {key: torch.cat(tables) for key, tables in found.items()}


def _pack(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tables as short lists, one per image; sums of probabilities keep four decimals."""
    return {
        key: [[round(number, 4) if number % 1 else int(number) for number in row] for row in table.tolist()]
        for key, table in ((key, table.double().flatten(1)) for key, table in tables.items())
    }


def read_tables(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The per-image tables of an entry of metrics.json, as `evaluate` had them.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the entry is incomplete.
    """
    stored, classes = entry["per_image"], len(entry["classes"])
    shapes = {
        "confusion": (classes, classes),
        "boundary": (classes, 2),
        "calibration": (-1, 3),
        "brier": (2,),
        "nll": (2,),
    }
    images = len(stored["names"])
    return {key: torch.tensor(stored[key], dtype=torch.float64).view(images, *shape) for key, shape in shapes.items()}


def spread(figures: Tensor, count: int) -> list[int]:
    """Positions of `count` of the figures, from best to worst, evenly spread; nan is left out."""
    order = [place for place in figures.argsort(descending=True).tolist() if not figures[place].isnan()]
    count = min(count, len(order))
    return [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]


def _picture(method: Method, pixels: Pixels, indices: Sequence[int], confusion: Tensor, draws: int) -> Image:
    figures = metrics.mean_iou(confusion)
    places = spread(figures, SHOWN)
    colors, top = pixels.data.classes.colors, math.log(max(2, len(pixels.data.classes)))
    rows, captions = [], []
    for place in places:
        index = indices[place]
        said, true = next(_predictions(method, pixels, [index], draws, 1))
        called, truth = said.probabilities.argmax(1)[0].cpu().numpy(), true[0].cpu().numpy()
        image = np.asarray(pixels.images[index])
        rows.append(
            [
                paint.tile(paint.to_rgb(image)),
                paint.tile(paint.colorize(truth, colors), smooth=False),
                paint.tile(paint.colorize(called, colors), smooth=False),
                paint.tile(paint.errors(image, called, truth), smooth=False),
                paint.tile(paint.heat(said.uncertainty[0].cpu().numpy(), top)),
            ]
        )
        name = pixels.data.items[index].name.rpartition("/")[2]
        captions.append(f"mIoU {100 * float(figures[place]):.1f}%\n{name}")
    heads = ["image", "truth", "prediction", "errors", "uncertainty"]
    table = paint.table_of_tiles(rows, heads, captions)
    if table.width < 600 and len(rows) > 3:
        half = (len(rows) + 1) // 2
        parts = [(rows[:half], captions[:half]), (rows[half:], captions[half:])]
        table = paint.beside([paint.table_of_tiles(some, heads, words) for some, words in parts], 30)
    return paint.framed(paint.beneath([table, paint.legend(pixels.data.classes.names, colors, table.width)], 14))


def _store(path: Path, split: str, entry: Mapping[str, Any]) -> None:
    scores = read_json(path, "remove it and evaluate again") if path.is_file() else {}
    write_json(path, {**scores, split: entry})
