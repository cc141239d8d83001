"""Measures of generated pairs against real images: how real, how diverse, how copied, and whether the masks fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segmint.config import read_run
from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation.evaluate import check_fits
from segmint.evaluation.files import read_json, read_lines, write_json
from segmint.evaluation.pairs import MOST, Embed, embedder, evenly, features_of, maker, open_pairs
from segmint.evaluation.tables import as_interval
from segmint.functional import distances, metrics
from segmint.functional.labels import most_likely
from segmint.inference.draws import draw
from segmint.methods.method import device_of
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import IGNORE, SegmintError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

FEWEST = 6
"""Density and coverage look at five neighbours of each image."""

_ROWS = {
    "frechet_distance": "Frechet distance (EfficientNet-Lite0)",
    "kernel_distance": "kernel distance (EfficientNet-Lite0)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity": "diversity, of the real images'",
}
_COPYING = {
    "nearest_ratio": ("nearest training image, of the real images'", ""),
    "copies": ("share nearer to it than 99 in 100 real ones", "0.01"),
    "nearer_than_fresh": ("chance to be nearer than a fresh real one", "0.5"),
}


def measure(
    pairs: Data | str | Path,
    data: Data | str | Path,
    *,
    segmenter: Run | str | Path | None = None,
    split: str = "train",
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    """Compare generated pairs with the real images of a split; written into the folder's measures.json.

    At most 1000 images of a kind are compared. What the folder's manifest does not keep is left out.

    Args:
        pairs: a folder of `segmint generate`.
        data: the real data.
        segmenter: a run trained on real masks, with whose predictions the generated masks are compared; or None.
        split: which real images to compare with: "train", "val" or "test".
        indices: compare with these items of `data` instead; `split` is then only the name of the entry.
        size: height and width at which images are compared; None: those of the generated images.
        embed: gives the features; None: pooled EfficientNet-Lite0, trained on ImageNet.

    Returns:
        The entry written under the split's name (other splits there are kept):
        "generated" and "real": the figures of `compare_features` for the generated images and, as a yardstick, for
        as many real images that are not in the split ("real" is None where there are too few);
        "memorisation": see `segmint.functional.distances.memorisation`, against all training images;
        "class_shares" {name: {"generated", "real"}}; "ignored": share of generated pixels without a class;
        "agreement": None, or "miou" and "accuracy" with intervals and "iou" by class, of the generated masks taken
        as truth; "images", "compared", "size", "method", "features", "seconds".

    Raises:
        SegmintError: fewer than 6 images on either side, other classes, or a segmenter that does not fit.
    """
    started = time.perf_counter()
    data = data if isinstance(data, Data) else open_folder(data)
    folder = pairs.root if isinstance(pairs, Data) else Path(pairs)
    made, kept = open_pairs(folder, data)
    chosen = _real(data, data.split(split) if indices is None else indices)
    if min(len(kept), len(chosen)) < FEWEST:
        raise SegmintError(
            f"{folder}: measuring needs {FEWEST} images on either side at least, there are {len(kept)} generated and "
            f"{len(chosen)} real ones; generate more, or name another --split"
        )
    fakes = Pixels.open(made, size)
    truths = Pixels.open(data, fakes.size)
    embed = embed or embedder(data.channels)
    some = evenly(kept, MOST)
    features = features_of(fakes, some, embed)
    held = data.split("val") if "val" in data.split_names else []
    known, outside = set(chosen), set(data.split("train")) | set(held)
    groups = {
        "real": chosen,
        "train": _real(data, data.split("train")),
        "fresh": _real(data, held),
        "others": evenly([index for index in _real(data, sorted(outside)) if index not in known], len(some)),
    }
    found = _features(truths, {name: evenly(members, MOST) for name, members in groups.items()}, embed)
    real, others = found["real"], found["others"]
    shares = (truths.shares(chosen), fakes.shares(kept))
    entry = {
        "split": split,
        "data": str(data.root),
        "method": maker(folder),
        "features": "EfficientNet-Lite0",
        "size": list(fakes.size),
        "images": [len(kept), len(chosen)],
        "compared": [len(features), len(real)],
        "generated": compare_features(features, real),
        "real": {"images": len(others), **compare_features(others, real)} if len(others) >= FEWEST else None,
        "memorisation": distances.memorisation(features, found["train"], found["fresh"]),
        "class_shares": {
            name: {"real": shares[0][k], "generated": shares[1][k]} for k, name in enumerate(data.classes.names)
        },
        "ignored": _ignored(fakes, kept),
        "agreement": None if segmenter is None else agreement(segmenter, made, kept),
    }
    entry["seconds"] = round(time.perf_counter() - started, 2)
    path = folder / "measures.json"
    before = read_json(path, "remove it and measure again") if path.is_file() else {}
    write_json(path, {**before, split: entry})
    return entry


def compare_features(features: Tensor, real: Tensor) -> dict[str, float]:
    """All figures of images with features [N, D] against real ones [M, D]; N, M >= 6.

    Returns:
        "frechet_distance", "kernel_distance" with its "kernel_distance_error", "precision", "recall", "density",
        "coverage" and "diversity"; see `segmint.functional.distances`.
    """
    kernel, error = distances.kernel_distance(features, real)
    precision, recall = distances.precision_recall(features, real)
    density, coverage = distances.density_coverage(features, real)
    return {
        "frechet_distance": distances.frechet_distance(features, real),
        "kernel_distance": kernel,
        "kernel_distance_error": error,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "diversity": distances.diversity(features, real),
    }


def agreement(segmenter: Run | str | Path, made: Data, kept: Sequence[int], batch_size: int = 16) -> dict[str, Any]:
    """What a segmenter makes of generated images, against their masks.

    Args:
        segmenter: a run of `segmint train`, or its folder.
        made: the generated data; `kept`: its items to look at.
        batch_size: images at a time.

    Returns:
        "segmenter", "miou" and "accuracy" (each with a 95% interval over images), and "iou" by class.

    Raises:
        SegmintError: the run does not segment, or not these classes and channels.
    """
    run = segmenter if isinstance(segmenter, Run) else Run(Path(segmenter))
    check_fits(run, made)
    method = run.method.to("cuda" if torch.cuda.is_available() else "cpu")
    pixels = Pixels.open(made, run.size)
    tables = []
    for start in range(0, len(kept), batch_size):
        some = kept[start : start + batch_size]
        batch = pixels.batch(some).to(device_of(method))
        called = most_likely(draw(method, batch.image, Seeds(some)).probabilities)
        tables.append(metrics.confusion(called, batch.mask, len(made.classes)).cpu())
    table = torch.cat(tables)
    units = metrics.units([made.items[index].group for index in kept])
    return {
        "segmenter": str(run.folder),
        "miou": as_interval(metrics.bootstrap(table, metrics.mean_iou, units)),
        "accuracy": as_interval(metrics.bootstrap(table, metrics.pixel_accuracy, units)),
        "iou": dict(zip(made.classes.names, metrics.class_iou(table.sum(0)).tolist(), strict=True)),
    }


def real_of(pairs: Path) -> Path:
    """The data folder that the run that made the pairs learnt from, as their manifest says.

    Raises:
        SegmintError: the manifest does not tell.
    """
    manifest = pairs / "manifest.jsonl"
    runs = [entry.get("run") for entry in read_lines(manifest, "name DATA")] if manifest.is_file() else []
    if not runs or runs[0] is None:
        raise SegmintError(f"{manifest}: does not say from which run the pairs are; name DATA")
    return Path(read_run(Path(runs[0])).data)


def as_tables(entry: Mapping[str, Any], title: str) -> Group:
    """What `measure` found, for the terminal: the figures, and below them the classes."""
    from rich.console import Group

    heads = ("measure", "generated", "other real images")
    rows = [(words, _told(entry["generated"], key), _told(entry["real"], key)) for key, words in _ROWS.items()]
    for key, (words, expected) in _COPYING.items():
        rows.append((words, _told(entry["memorisation"], key), expected))
    fits = entry["agreement"]
    for key, words in {"miou": "mask agreement, mIoU", "accuracy": "mask agreement, pixel accuracy"}.items():
        if fits is not None:
            rows.append((words, "{value:.4f} ({low:.4f} .. {high:.4f})".format(**fits[key]), ""))
    by_class = []
    for name, row in entry["class_shares"].items():
        iou = "" if fits is None else _told(fits["iou"], name)
        by_class.append((name, f"{row['generated']:.4f}", f"{row['real']:.4f}", iou))
    return Group(
        _table(title, heads, rows), _table("", ("class", "share", "real share", "mask agreement, IoU"), by_class)
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _told(figures: Mapping[str, Any] | None, key: str) -> str:
    if figures is None or figures[key] is None:
        return ""
    value, error = figures[key], figures.get(f"{key}_error")
    return f"{value:.4g}" + (f" ± {error:.1g}" if error is not None else "")


def _features(pixels: Pixels, groups: Mapping[str, Sequence[int]], embed: Embed) -> dict[str, Tensor]:
    """The features of several groups of images; those that are in more than one are computed once."""
    everything = sorted({index for members in groups.values() for index in members})
    place = {index: position for position, index in enumerate(everything)}
    table = features_of(pixels, everything, embed)
    return {name: table[[place[index] for index in members]] for name, members in groups.items()}


def _real(data: Data, indices: Sequence[int]) -> list[int]:
    return [index for index in indices if not data.items[index].synthetic]


def _ignored(pixels: Pixels, kept: Sequence[int]) -> float:
    """The share of pixels that are `IGNORE` among the masks of these items."""
    rows = [row for index in kept for row in pixels.rows[index]]
    unknown = sum(int((pixels.masks[row] == IGNORE).sum()) for row in rows)
    return unknown / max(1, len(rows) * pixels.size[0] * pixels.size[1])
