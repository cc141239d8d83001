"""A run against a split: measures with intervals in metrics.json, and segmentations beside the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from segmint.config import read_run
from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation import ambiguity
from segmint.evaluation import pictures as paint
from segmint.evaluation.files import read_json, write_json
from segmint.evaluation.tables import SETS, expand, pack, summarise
from segmint.functional import metrics, selective
from segmint.inference.draws import Draws, draw, usual_draws
from segmint.inference.mirrored import methods_of
from segmint.inference.predict import check_draws
from segmint.locks import hold
from segmint.methods.method import Method, device_of
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import SegmintError

SHOWN = 8
_GENERATOR = ("generates", "trained on its pairs")


def evaluate(
    run: Run | str | Path,
    data: Data | Path,
    split: str = "val",
    *,
    draws: int | None = None,
    mirror: bool = False,
    batch_size: int = 8,
    size: tuple[int, int] | None = None,
    pictures: bool = True,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Score a trained segmenter on the labelled images of a split.

    Figures are those of the whole split (one confusion matrix over all its pixels), at the size the run was
    trained at, with 95% bootstrap intervals over images or groups. Where several raters drew masks, truth
    is the class most of them chose, pixel by pixel; ties go to the class that comes first. Where there are several
    raters or draws, the two sets of masks are compared as well (`segmint.functional.ambiguity`).

    Args:
        run: a run of `segmint train`, or its folder.
        data: the data folder, open or by its path.
        split: "train", "val" or "test", or a half of one, e.g. "val-half1".
        draws: draws of masks averaged per image; None: 16 where the method draws at random, else 1. More than one of a
            method that does not are passes with dropout.
        mirror: score what is said of the images and their mirror images together, as `segmint.predict` has it.
        batch_size: images at a time.
        size: height and width to evaluate at; None: that of the run.
        pictures: whether to write pictures/segmentations-{split}.png, and draws-{split}.png where masks differ.
        resamples: of the bootstrap.

    Returns:
        The entry written into the run's metrics.json under the split's name; other splits there are kept.

    Raises:
        SegmintError: the run does not segment or does not fit the data's classes or channels, or the split
            has no masks, or `draws` is not positive.
    """
    trained = run if isinstance(run, Run) else Run(Path(run))
    run = trained.folder
    started = time.perf_counter()
    method = trained.method
    data = data if isinstance(data, Data) else open_folder(data)
    check_fits(trained, data)
    data = replace(data, depth=trained.settings.depth)
    check_draws(draws, [trained], mirror)
    draws = usual_draws(method) if draws is None else draws
    chosen = data.split(split)
    indices = [index for index in chosen if data.items[index].masks]
    if not indices:
        raise SegmintError(
            f"{data.root}: none of the {len(chosen)} images of split {split!r} has a mask; add masks, "
            "or name another split"
        )
    height, width = size or read_run(run).size or method.config["image_size"]
    pixels = Pixels.open(data, (height, width))
    method.to("cuda" if torch.cuda.is_available() else "cpu")
    methods = methods_of([trained], mirror)
    found = _score(methods, pixels, indices, draws, batch_size)
    if not found["confusion"].any():
        raise SegmintError(f"{data.root}: no pixel of the masks of split {split!r} is known; label some")
    units = metrics.units([data.items[index].group for index in indices])
    entry = {
        "split": split,
        "data": str(data.root),
        "method": method.name,
        "images": len(indices),
        "unlabelled": len(chosen) - len(indices),
        "size": [height, width],
        "draws": draws,
        "mirror": mirror,
        "raters": max(len(pixels.rows[index]) for index in indices),
        "resampled": units.kind,
        "note": units.note,
        "classes": list(data.classes.names),
        "colors": [list(color) for color in data.classes.colors],
        **summarise(expand(found), units, data.classes.names, resamples),
        "per_image": {
            "names": [data.items[index].name for index in indices],
            "groups": [data.items[index].group for index in indices],
            **pack(found),
        },
    }
    if pictures:
        _write_pictures(run / "pictures", split, methods, pixels, indices, found, draws)
    entry["seconds"] = round(time.perf_counter() - started, 2)
    _store(run / "metrics.json", split, entry)
    return entry


def truth_of(pixels: Pixels, index: int) -> Tensor:
    """The mask an item is scored against, int64 [H, W]: that of its rater, or the majority of several."""
    masks = torch.from_numpy(np.asarray(pixels.masks[list(pixels.rows[index])])).long()
    return masks[0] if len(masks) == 1 else metrics.majority(masks, len(pixels.data.classes))


def check_fits(trained: Run, data: Data) -> None:
    """Raise a SegmintError if the run's method does not segment, or not the classes and channels of the data."""
    run, method = trained.folder, trained.method
    if "segment" not in method.capabilities():
        job, other = ("prepares others", "started from it with --init") if method.prepares else _GENERATOR
        raise SegmintError(
            f"{run}: {method.name} does not segment, it only {job}; evaluate a segmenter, for instance one {other}"
        )
    classes, channels, names = method.config["classes"], method.config["in_channels"], trained.classes.names
    if classes != len(data.classes):
        raise SegmintError(
            f"{data.root}: has {len(data.classes)} classes, but {run} was trained with {classes}; "
            "evaluate it on data with the same classes"
        )
    if names != data.classes.names:
        raise SegmintError(
            f"{data.root}: its classes are {', '.join(data.classes.names)}, but {run} was trained with "
            f"{', '.join(names)}; if they mean the same, name and order them alike in {data.root / 'classes.yaml'}"
        )
    if channels != data.channels:
        raise SegmintError(
            f"{data.root}: images have {data.channels} channels, but {run} was trained with {channels}; "
            "convert the images, or train on such images"
        )


def _predictions(
    methods: Sequence[Method], pixels: Pixels, indices: Sequence[int], draws: int, batch_size: int
) -> Iterator[tuple[Draws, Tensor]]:
    """Batch by batch: what the method says, and the truth, int64 [B, H, W], both on the method's device."""
    device = device_of(methods[0])
    for start in range(0, len(indices), batch_size):
        some = indices[start : start + batch_size]
        image = pixels.batch(some).image.to(device)
        truth = torch.stack([truth_of(pixels, index) for index in some]).to(device)
        yield draw(methods, image, Seeds(some), draws), truth


def _score(
    methods: Sequence[Method], pixels: Pixels, indices: Sequence[int], draws: int, batch_size: int
) -> dict[str, Tensor]:
    """Per-image tables, as `tables.expand` takes them."""
    classes = len(pixels.data.classes)
    several = draws > 1 or any(len(pixels.rows[index]) > 1 for index in indices)
    found: dict[str, list[Tensor]] = {}
    for number, (said, truth) in enumerate(_predictions(methods, pixels, indices, draws, batch_size)):
        called = said.labels
        rows = {
            "confusion": metrics.confusion(called, truth, classes),
            "boundary": metrics.boundary_table(metrics.boundary_f1(called, truth, classes)),
            "calibration": metrics.calibration_table(said.probabilities, truth),
            "brier": metrics.brier_table(said.probabilities, truth),
            "nll": metrics.nll_table(said.probabilities, truth),
            "detection": selective.detection_table(said.uncertainty / math.log(max(2, classes)), called, truth),
        }
        if said.errors is not None:
            rows["judge"] = selective.detection_table(said.errors, called, truth)
        raters = [ambiguity.raters_of(pixels, index) for index in indices[number * batch_size :][:batch_size]]
        dice = [ambiguity.mean_dice(mask, some, classes) for mask, some in zip(called.cpu(), raters, strict=True)]
        rows["doubt"] = torch.stack([said.expected_dice().cpu(), torch.tensor(dice, dtype=torch.float64)], -1)
        if several:
            sets = zip(said.masks.cpu().unbind(1), raters, strict=True)
            rows["sets"] = torch.stack([ambiguity.set_figures(masks, some, classes) for masks, some in sets])
        for key, table in rows.items():
            found.setdefault(key, []).append(table.cpu())
    return {key: torch.cat(tables) for key, tables in found.items()}


def _write_pictures(
    folder: Path,
    split: str,
    methods: Sequence[Method],
    pixels: Pixels,
    indices: Sequence[int],
    found: Mapping[str, Tensor],
    draws: int,
) -> None:
    paint.save(_picture(methods, pixels, indices, found["confusion"], draws), folder / f"segmentations-{split}.png")
    if "sets" not in found:
        return
    ged = found["sets"][:, SETS.index("ged")]
    differ = ged > 1e-9
    places = spread(-(ged.masked_fill(~differ, math.nan) if bool(differ.any()) else ged), ambiguity.ROWS)
    captions = [
        f"GED {float(ged[place]):.3f}\n{pixels.data.items[indices[place]].name.rpartition('/')[2]}" for place in places
    ]

    def predict(index: int) -> Draws:
        return next(_predictions(methods, pixels, [index], draws, 1))[0]

    sheet = ambiguity.picture(pixels, [indices[place] for place in places], captions, predict)
    paint.save(sheet, folder / f"draws-{split}.png")


def spread(figures: Tensor, count: int) -> list[int]:
    """Positions of `count` of the figures, from best to worst, evenly spread; nan is left out."""
    order = [place for place in figures.argsort(descending=True).tolist() if not figures[place].isnan()]
    count = min(count, len(order))
    return [order[round(place * (len(order) - 1) / max(1, count - 1))] for place in range(count)]


def _picture(methods: Sequence[Method], pixels: Pixels, indices: Sequence[int], confusion: Tensor, draws: int) -> Image:
    figures = metrics.mean_iou(confusion)
    places = spread(figures, SHOWN)
    colors, top = pixels.data.classes.colors, math.log(max(2, len(pixels.data.classes)))
    rows, captions = [], []
    for place in places:
        index = indices[place]
        said, true = next(_predictions(methods, pixels, [index], draws, 1))
        called, truth = said.labels[0].cpu().numpy(), true[0].cpu().numpy()
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
    with hold(path.with_name(".metrics.lock"), 60, f"{path}: another process is writing it; wait until it has ended"):
        scores = read_json(path, "remove it and evaluate again") if path.is_file() else {}
        write_json(path, {**scores, split: entry})
