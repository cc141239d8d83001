"""The scores of generated pairs: what a segmenter makes of the masks, and how the images lie among the real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segmint.data.cache import Pixels
from segmint.data.folder import Data
from segmint.evaluation.pairs import MOST, Embed, evenly, features_of
from segmint.evaluation.sorting import Pairs
from segmint.evaluation.usefulness import Usefulness
from segmint.functional import metrics
from segmint.functional.distances import copy_limit, nearest, nearest_other
from segmint.functional.labels import most_likely
from segmint.inference.draws import draw
from segmint.methods.method import device_of
from segmint.nets.layers import resize
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import IGNORE, Batch, SegmintError

CHUNK = 16
"""Pairs at a time."""


@dataclass(frozen=True)
class Real:
    """What generated pairs are compared with.

    Attributes:
        names: of the real training images; `features`: theirs, [M, F].
        limit: the feature distance below which an image is suspected to be a copy; `usual`: the median distance of
            a real image to its nearest other.
        surprise: for each class the negative logarithm of the share of real masks that have it, float32 [K].
    """

    names: list[str]
    features: Tensor
    limit: float
    usual: float
    surprise: Tensor


@dataclass(frozen=True)
class Scored:
    """All pairs with their scores.

    Attributes:
        scores: a row for each pair; see `assay`.
        features: [N, F].
        ignored: the pixels of each mask on which the segmenter confidently disagrees, as packed bits.
        neighbours: the position of the nearest real image of each, int64 [N].
        size: height and width of the masks.
    """

    scores: list[dict[str, float | None]]
    features: Tensor
    ignored: list[np.ndarray[Any, np.dtype[np.uint8]]]
    neighbours: list[int]
    size: tuple[int, int]

    def disagreement(self, place: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """The pixels of a pair to ignore, bool [H, W]; None where there are none."""
        bits = np.unpackbits(self.ignored[place], count=self.size[0] * self.size[1])
        return bits.reshape(self.size).astype(bool) if bits.any() else None

    def column(self, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One score of all pairs, float64 [N]; nan where it is unknown."""
        return np.array([np.nan if row[key] is None else row[key] for row in self.scores], dtype=float)


def look_at_real(data: Data, held: Pairs, run: Run, embed: Embed) -> Real:
    """Features of the training images, and how common each class is in the masks that the segmenter saw."""
    first = held.pixels(held.names[0])
    pixels = Pixels.open(data, (int(first.shape[0]), int(first.shape[1])))
    train = evenly([index for index in data.split("train") if not data.items[index].synthetic], MOST)
    if len(train) < 2:
        raise SegmintError(f"{data.root}: has {len(train)} training images; an assay needs two or more to compare with")
    features = features_of(pixels, train, embed)
    seen = [i for i in data.labelled(run.settings.budget or None, run.settings.seed) if not data.items[i].synthetic]
    has = torch.stack([_present(pixels.batch([index]).mask, len(data.classes))[0] for index in seen])
    surprise = -((has.float().sum(0) + 1) / (len(seen) + 2)).log()
    names = [data.items[index].name for index in train]
    return Real(names, features, copy_limit(features), float(nearest_other(features).median()), surprise)


def _present(mask: Tensor, classes: int) -> Tensor:
    """Which classes have at least one pixel in a thousand: int64 [B, H, W] -> bool [B, K]."""
    area = torch.stack([(mask == k).flatten(1).sum(1) for k in range(classes)], 1)
    return area >= max(1, math.ceil(mask[0].numel() / 1000))


class Judge:
    """A segmenter that says what it thinks of masks.

    Args:
        run: its run.
        confident: where it gives another class more than this probability,
        doubtful: and the drawn class less than this, the drawn class is wrong.
    """

    def __init__(self, run: Run, confident: float, doubtful: float) -> None:
        self.method = run.method.to("cuda" if torch.cuda.is_available() else "cpu")
        self.size, self.confident, self.doubtful = run.size, confident, doubtful

    def fit(self, batch: Batch) -> Batch:
        """The batch at the size that the segmenter was trained at."""
        if tuple(batch.mask.shape[1:]) == self.size:
            return batch
        image = interpolate(batch.image, size=self.size, mode="bilinear", antialias=True).clamp(-1, 1)
        mask = interpolate(batch.mask[:, None].float(), size=self.size, mode="nearest-exact")[:, 0].long()
        return Batch(image, mask)

    def predict(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Images of any size -> class probabilities at `size`, float32 [B, K, *size], on the CPU."""
        fitted = self.fit(Batch(image, torch.zeros(len(image), *image.shape[-2:], dtype=torch.long))).image
        said = draw(self.method, fitted.to(device_of(self.method)), Seeds.range(len(image)))
        return resize(said.probabilities, size).cpu()

    def judge(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """How far the segmenter agrees with a batch's masks.

        Returns:
            mIoU classes [B] and accuracy [B], nan where nothing is known, and where it confidently
            disagrees, bool [B, H, W].
        """
        probabilities = self.predict(batch.image, (int(batch.mask.shape[1]), int(batch.mask.shape[2])))
        table = metrics.confusion(most_likely(probabilities), batch.mask, probabilities.shape[1])
        few = batch.mask[0].numel() / 1000
        iou = metrics.class_iou(table).masked_fill((table.sum(-1) < few) & (table.sum(-2) < few), torch.nan)
        known = batch.mask != IGNORE
        own = probabilities.gather(1, batch.mask.where(known, 0)[:, None])[:, 0]
        deny = known & (own < self.doubtful) & (probabilities.amax(1) > self.confident)
        return iou.nanmean(-1), metrics.pixel_accuracy(table), deny


def score(
    held: Pairs,
    judge: Judge,
    real: Real,
    embed: Embed,
    useful: Usefulness | None,
    progress: Callable[[int, int], None] | None,
) -> Scored:
    """Score all pairs, a few at a time.

    Args:
        held: the pairs.
        judge: the segmenter.
        real: the real images.
        embed: gives the features.
        useful: the last score; None to go without.
        progress: told how many pairs of how many are done.
    """
    scores: list[dict[str, float | None]] = []
    features, ignored, neighbours = [], [], []
    for start in range(0, len(held.names), CHUNK):
        batch = held.batch(held.names[start : start + CHUNK])
        miou, accuracy, deny = judge.judge(batch)
        trusted = Batch(batch.image, batch.mask.masked_fill(deny, IGNORE))
        with torch.inference_mode():
            features.append(embed(batch.image).float().cpu().clone())
        distance, place = nearest(features[-1], real.features)
        closeness = (real.usual / distance.clamp_min(1e-12)).clamp_max(1)
        rarity = _present(trusted.mask, len(real.surprise)).float() @ real.surprise
        unknown = torch.full_like(miou, torch.nan)
        columns = {
            "miou": miou,
            "accuracy": accuracy,
            "ignored": deny.float().mean((1, 2)),
            "distance": distance,
            "closeness": closeness,
            "rarity": rarity,
            "usefulness": useful(judge.fit(trusted)) if useful is not None else unknown,
        }
        for row in zip(*(column.tolist() for column in columns.values()), strict=True):
            scores.append({key: _short(value) for key, value in zip(columns, row, strict=True)})
        ignored += [np.packbits(one.numpy()) for one in deny]
        neighbours += place.tolist()
        if progress is not None:
            progress(len(scores), len(held.names))
    height, width = deny.shape[1:]
    return Scored(scores, torch.cat(features), ignored, neighbours, (int(height), int(width)))


def _short(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
