"""Score every generated pair, keep the good ones, and say why the others fell."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation import pictures as paint
from segmint.evaluation.evaluate import check_fits
from segmint.evaluation.files import write_json
from segmint.evaluation.pairs import Embed, embedder
from segmint.evaluation.scores import Judge, Real, Scored, look_at_real, score
from segmint.evaluation.sorting import Decision, Pairs
from segmint.evaluation.usefulness import Usefulness
from segmint.functional.distances import distances
from segmint.functional.labels import most_likely
from segmint.locks import locked
from segmint.training.run import Run
from segmint.types import IGNORE, SegmintError

WAYS = ("agreement", "usefulness", "none")
WEIGHTS: Mapping[str, float] = {"miou": 1.0, "closeness": 0.5, "rarity": 0.5}
"""What each score's rank counts for in a ranking by agreement."""

NEARER = 0.5
"""Pairs nearer to each other than this part of the copy limit repeat each other."""

SHOWN = 7


def assay(
    pairs: Data | str | Path,
    *,
    segmenter: Run | str | Path,
    keep: float | int | None = 0.5,
    by: str = "agreement",
    data: Data | str | Path | None = None,
    validation: str = "val-half0",
    confident: float = 0.8,
    doubtful: float = 0.1,
    copies: bool = False,
    weights: Mapping[str, float] = WEIGHTS,
    embed: Embed | None = None,
    pictures: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Score every pair of a generated folder, keep the best, and make doubtful pixels of their masks `IGNORE`.

    Every entry of manifest.jsonl gets "scores", "kept" and "why". Dropped pairs move to `dropped/`, masks as they were
    drawn to `drawn/` where pixels are ignored. Called again it starts from all pairs and masks as they were, so the
    result depends on the last call alone, also where an earlier one was stopped midway. Also written: assay.json
    (settings, counts, mean scores) and pictures/assay.png.

    The scores of a pair: "miou" and "accuracy" of the segmenter's prediction, the drawn mask taken as truth (mIoU over
    the classes with a pixel in a thousand in either); "ignored", the share of pixels where the segmenter gives the
    drawn class less than `doubtful` and another more than `confident`; "distance", the feature distance to the nearest
    real training image; "closeness", the median distance of a real image to its nearest other over that, 1 at most;
    "rarity", the sum over the mask's classes of -log of the share of real masks that have the class; "usefulness" (None
    unless asked for), see `segmint.evaluation.usefulness`.

    Args:
        pairs: a folder of `segmint generate`.
        segmenter: a run trained on real masks.
        keep: the share (a float in 0..1) or number (an int) of pairs to keep at most; None: all that pass.
        by: how pairs are ranked. "agreement": by the weighted ranks of the scores in `weights`. "usefulness": by
            that, and only what is above 0 passes. In both, suspected copies of real images and repeats of better
            pairs do not pass. "none": nothing is ranked or ignored and everything passes, in the order of the
            manifest: the control of an experiment.
        data: the real data; None: that of the segmenter.
        validation: for "usefulness": a split or half of one ("val-half0", so that "val-half1" is left to report on),
            or a file of item names.
        confident, doubtful: probabilities, see "ignored"; `confident` above 1 ignores nothing.
        copies: let suspected copies pass, for methods that are meant to copy parts of real images.
        weights: score names to weights, for "agreement".
        embed: gives the features; None: pooled EfficientNet-Lite0, trained on ImageNet.
        pictures: whether to write pictures/assay.png.
        progress: told how many pairs of how many are scored.

    Returns:
        The folder, opened: what is kept.

    Raises:
        SegmintError: a setting is out of range, the folder has no manifest, the segmenter does not fit, or nothing
            passes; the folder is then as it was.
    """
    started = time.perf_counter()
    folder = pairs.root if isinstance(pairs, Data) else Path(pairs)
    run = segmenter if isinstance(segmenter, Run) else Run(Path(segmenter))
    real_data = data if isinstance(data, Data) else open_folder(data if data is not None else run.settings.data)
    held = Pairs(folder, real_data.channels)
    with locked(folder):
        _check(held, run, real_data, by, keep)
        if not embed:
            embed = embedder(real_data.channels)
        real = look_at_real(real_data, held, run, embed)
        judge = Judge(run, confident if by != "none" else 2.0, doubtful)
        useful = None
        if by == "usefulness":
            chosen = _validation(real_data, validation)
            useful = Usefulness(judge.method, Pixels.open(real_data, run.size), chosen)
        scored = score(held, judge, real, embed, useful, progress)
        decisions, order = _decide(held, scored, real, keep=keep, by=by, copies=copies, weights=weights)
        held.settle(decisions)
        if pictures:
            paint.save(_picture(held, decisions, order, judge), folder / "pictures" / "assay.png")
        facts = {
            "by": by,
            "keep": keep,
            "segmenter": str(run.folder),
            "data": str(real_data.root),
            "validation": validation if by == "usefulness" else None,
            "confident": confident,
            "doubtful": doubtful,
            "copies": copies,
            "copy_limit": real.limit,
            "counts": _counts(decisions),
            "scores": _means(decisions),
            "seconds": round(time.perf_counter() - started, 2),
        }
        write_json(folder / "assay.json", facts)
    return open_folder(folder)


def _check(held: Pairs, run: Run, real: Data, by: str, keep: float | int | None) -> None:
    if by not in WAYS:
        raise SegmintError(f"--by: must be one of {', '.join(WAYS)}, not {by!r}")
    if keep is not None and not (0 < keep <= 1 if isinstance(keep, float) else keep >= 1):
        raise SegmintError(f"--keep: must be a share such as 0.5, or a count of 1 or more, not {keep}")
    if not held.classes.same_as(real.classes):
        raise SegmintError(f"{held.folder}: its classes are not those of {real.root}; give the data it was made from")
    check_fits(run, real)


def _validation(data: Data, source: str) -> list[int]:
    """The labelled items of a split, or of a file of names.

    Raises:
        SegmintError: there is neither such a split nor such a file, or nothing in it has a mask.
    """
    if Path(source).is_file():
        place = {item.name: index for index, item in enumerate(data.items)}
        names = [line.strip() for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
        unknown = [name for name in names if name not in place]
        if unknown:
            raise SegmintError(f"{source}: {data.root} has no image {unknown[0]!r}; leave suffixes out")
        members = [place[name] for name in names]
    else:
        members = data.split(source)
    labelled = [index for index in members if data.items[index].masks]
    if not labelled:
        raise SegmintError(f"--validation {source}: no image in it has a mask; name another split")
    return labelled


def _decide(
    held: Pairs,
    scored: Scored,
    real: Real,
    *,
    keep: float | int | None,
    by: str,
    copies: bool,
    weights: Mapping[str, float],
) -> tuple[list[Decision], list[int]]:
    """What becomes of each pair, and all of them from best to worst."""
    total = len(held.names)
    wanted = total if keep is None else min(total, max(1, round(keep * total)) if isinstance(keep, float) else keep)
    order = list(range(total)) if by == "none" else _ranked(scored, by, weights)
    kept: list[int] = []
    chosen = torch.empty(wanted, scored.features.shape[1], dtype=torch.float64)
    found: dict[int, Decision] = {}
    for rank, place in enumerate(order, 1):
        why = None if by == "none" else _objection(held, scored, real, place, kept, chosen, by, copies)
        stays = why is None and len(kept) < wanted
        if why is None:
            why = f"rank: {rank} of {total} by {by}" + ("" if stays else f", {wanted} are kept")
            why += f"; {_told(scored.scores[place], by)}"
        if stays:
            chosen[len(kept)] = scored.features[place]
            kept.append(place)
        ignored = scored.disagreement(place) if stays else None
        found[place] = Decision(stays, why, scored.scores[place], ignored)
    if not kept:
        raise SegmintError(
            f"{held.folder}: no pair passes ({found[order[0]].why}); nothing was changed: generate others"
        )
    return [found[place] for place in range(total)], order


def _ranked(scored: Scored, by: str, weights: Mapping[str, float]) -> list[int]:
    """All pairs from best to worst; unknown scores rank last, ties as in the manifest."""
    weights = {"usefulness": 1.0} if by == "usefulness" else weights
    value = np.zeros(len(scored.scores))
    for key, weight in weights.items():
        value += weight * rankdata(np.nan_to_num(scored.column(key), nan=-np.inf))
    return list(np.argsort(-value, kind="stable").tolist())


def _objection(
    held: Pairs, scored: Scored, real: Real, place: int, kept: Sequence[int], chosen: Tensor, by: str, copies: bool
) -> str | None:
    """Why a pair does not pass, whatever its rank; None if it does. `chosen` has the features of those kept so far."""
    row, limit = scored.scores[place], f"only 1 in 100 real images has another within {real.limit:.3g}"
    useful = row["usefulness"]
    if by == "usefulness" and (useful is None or useful <= 0):
        return f"useless: a step on it would not lower the validation loss ({_told(row, by)})"
    distance = row["distance"]
    if not copies and distance is not None and distance <= real.limit:
        return f"copy: feature distance {distance:.3g} to the real {real.names[scored.neighbours[place]]}; {limit}"
    if kept:
        apart = distances(scored.features[place : place + 1], chosen[: len(kept)])[0]
        if apart.min() <= NEARER * real.limit:
            other = held.names[kept[int(apart.argmin())]]
            return f"repeat: feature distance {float(apart.min()):.3g} to {other}, which is kept; {limit}"
    return None


def _told(row: Mapping[str, float | None], by: str) -> str:
    if by == "usefulness":
        return f"cosine {_figure(row['usefulness'])} with the validation gradient"
    return (
        f"mIoU {_figure(row['miou'])} with the segmenter, closeness {_figure(row['closeness'])}, "
        f"rarity {_figure(row['rarity'])}"
    )


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _counts(decisions: Sequence[Decision]) -> dict[str, int]:
    """How many pairs there are, are kept, and fell for which reason."""
    fallen = Counter(decision.why.partition(":")[0] for decision in decisions if not decision.kept)
    return {"pairs": len(decisions), "kept": sum(decision.kept for decision in decisions), **fallen}


def _means(decisions: Sequence[Decision]) -> dict[str, dict[str, float | None]]:
    """The mean of every score among the kept and among the dropped."""
    found: dict[str, dict[str, float | None]] = {}
    for word, kept in (("kept", True), ("dropped", False)):
        rows = [decision.scores for decision in decisions if decision.kept == kept]
        for key in decisions[0].scores:
            column = [value for row in rows if (value := row[key]) is not None]
            found.setdefault(word, {})[key] = float(np.mean(column)) if column else None
    return found


def sentence(facts: Mapping[str, Any]) -> str:
    """What assay.json says, in a line."""
    counts = dict(facts["counts"])
    pairs, kept = counts.pop("pairs"), counts.pop("kept")
    words = {"copy": "suspected copies", "repeat": "repeats of others", "useless": "useless", "rank": "ranked too low"}
    fell = ", ".join(f"{count} {words[kind]}" for kind, count in counts.items())
    means = facts["scores"]["kept"]
    told = f"{100 * means['ignored']:.1f}% of the kept pixels ignored, mIoU {_figure(means['miou'])} with the segmenter"
    return f"kept {kept} of {pairs} pairs" + (f" ({fell})" if fell else "") + f"; {told}"


def _picture(held: Pairs, decisions: Sequence[Decision], order: Sequence[int], judge: Judge) -> Image.Image:
    """The best of the kept and the worst of the dropped, with the reason."""
    best = [place for place in order if decisions[place].kept][:SHOWN]
    fallen = [place for place in reversed(order) if not decisions[place].kept]
    first: dict[str, int] = {}
    for place in fallen:
        first.setdefault(decisions[place].why.partition(":")[0], place)
    worst = [*first.values(), *(place for place in fallen if place not in first.values())][:SHOWN]
    halves = [_rows(held, decisions, places, judge) for places in (best, worst) if places]
    sheet = paint.beside(halves, 30)
    key = paint.legend([*held.classes.names, "ignored"], [*held.classes.colors, paint.UNKNOWN], sheet.width)
    return paint.framed(paint.beneath([sheet, key], 14))


def _rows(held: Pairs, decisions: Sequence[Decision], places: Sequence[int], judge: Judge) -> Image.Image:
    rows, captions = [], []
    for place in places:
        decision, name = decisions[place], held.names[place]
        batch = held.batch([name])
        drawn = batch.mask[0].numpy().astype(np.uint8)
        called = most_likely(judge.predict(batch.image, (drawn.shape[0], drawn.shape[1])))[0].numpy()
        ours = drawn if decision.ignored is None else np.where(decision.ignored, np.uint8(IGNORE), drawn)
        masks = [paint.tile(paint.colorize(mask, held.classes.colors), 144, smooth=False) for mask in (drawn, called)]
        last = paint.tile(paint.colorize(ours, held.classes.colors), 144, smooth=False)
        if not decision.kept:
            last = paint.note("dropped", last.size)
        rows.append([paint.tile(paint.to_rgb(held.pixels(name)), 144), *masks, last])
        words = f"{'kept' if decision.kept else 'dropped'} {name}\n" + textwrap.fill(decision.why, 26)
        captions.append(words)
    return paint.table_of_tiles(rows, ["image", "mask drawn", "segmenter", "mask kept"], captions)
