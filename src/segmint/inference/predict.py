"""Segment an image file: its classes, the doubt about them, and the masks that are plausible as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segmint.data.io import Bytes, read_image
from segmint.functional import ambiguity
from segmint.inference.draws import Draws, draw
from segmint.inference.exported import opened
from segmint.inference.mirrored import methods_of
from segmint.methods.method import device_of
from segmint.nets.layers import resize
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import Alternative, Prediction, SegmintError

Runs = Run | str | Path | Sequence[Run | str | Path]

MOST_SHOWN = 2**22
"""A method is shown images of so many pixels at most, or four times as many as it was trained on."""


def predict(
    runs: Runs, image: str | Path, *, draws: int | None = None, seed: int = 0, mirror: bool = False
) -> Prediction:
    """Segment one image file.

    The image is shown to the method with its shorter side as long as that of the training images, and the result is
    brought back to the image's own size.

    Args:
        runs: a run whose method segments, or its folder; or several, trained alike but for their seeds or settings: an
            ensemble, from whose differences the epistemic uncertainty is known.
        image: PNG, JPEG, TIFF or WebP, of any size.
        draws: how many masks to draw of each run; None: 16 where a method draws at random, else 1. A single run whose
            draws do not differ is drawn from by dropout, if it has any.
        seed: of the draws.
        mirror: show each run the mirror image as well, as if it were a further member of an ensemble: twice the work.

    Raises:
        SegmintError: a method does not segment, the runs do not fit each other, `draws` is not positive, or the image
            cannot be read.
    """
    members = open_runs(runs)
    check_draws(draws, members, mirror)
    first = members[0]
    pixels = read_image(Path(image), channels=first.method.config["in_channels"], depth=first.settings.depth)
    return predict_pixels(members, pixels, draws=draws, seed=seed, mirror=mirror)


def predict_pixels(
    members: Sequence[Run],
    pixels: Bytes,
    *,
    draws: int | None = None,
    seed: int = 0,
    mirror: bool = False,
    revise: Callable[[Tensor, Draws], Draws] | None = None,
    plausible: bool = True,
) -> Prediction:
    """Segment an image in memory.

    Args:
        members: from `open_runs`.
        pixels: uint8 [H, W, C], of the channels that the runs were trained on.
        draws, seed, mirror: as in `predict`.
        revise: may change what was drawn; it is given the image as shown, float32 [1, C, h, w], and the draws.
        plausible: as in `prediction_of`.

    Raises:
        SegmintError: it is so long and thin that its shorter side cannot be shown as long as at training.
    """
    first = members[0]
    original = torch.from_numpy(np.array(pixels))
    shown = fitted(original, first.size).to(device_of(first.method))
    found = draw(methods_of(members, mirror), shown, Seeds([seed]), draws)
    if revise is not None:
        found = revise(shown, found)
    return prediction_of(first, original, found, plausible)


def prediction_of(run: Run, image: Tensor, found: Draws, plausible: bool = True) -> Prediction:
    """What was drawn for one image, at the image's own size.

    Args:
        run: whose classes these are.
        image: uint8 [H, W, C].
        found: draws for this image alone, of any size.
        plausible: whether to give the draws and the alternatives, which take a byte for each pixel and draw; there are
            none of either otherwise.
    """
    whole = (int(image.shape[0]), int(image.shape[1]))
    draws = _enlarge_masks(found.masks if plausible else found.masks[:0], whole)
    probabilities = resize(found.probabilities, whole)[0].cpu()
    return Prediction(
        labels=probabilities.max(0).indices.to(torch.uint8),
        probabilities=probabilities,
        uncertainty=_enlarge(found.uncertainty, whole),
        aleatoric=_enlarge(found.aleatoric, whole),
        epistemic=None if found.epistemic is None else _enlarge(found.epistemic, whole),
        errors=None if found.errors is None else _enlarge(found.errors, whole),
        expected_dice=float(found.expected_dice()[0]),
        draws=draws,
        alternatives=_alternatives(found, draws) if plausible else (),
        image=image,
        names=run.classes.names,
        colors=run.classes.colors,
    )


def check_draws(draws: int | None, members: Sequence[Run] = (), mirror: bool = False) -> None:
    """Raise a SegmintError if there are to be fewer draws than one, or passes with dropout of mirror images."""
    if draws is not None and draws < 1:
        raise SegmintError(f"draws: must be at least 1, not {draws}")
    if mirror and (draws or 1) > 1 and not any(run.method.draws_differ for run in members):
        raise SegmintError("draws: passes with dropout are made of the image alone; leave out draws, or mirror")


def open_runs(runs: Runs) -> list[Run]:
    """A run or several, or exported models, as a list of runs that can be an ensemble.

    Raises:
        SegmintError: there is none, one does not segment, or they differ in classes, channels or image size.
    """
    several = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    members = [opened(run) for run in several]
    if not members:
        raise SegmintError("runs: none given; name a run folder, or several")
    for run in members:
        if "segment" not in run.method.capabilities():
            raise SegmintError(
                f"{run.folder}: {run.method.name} does not segment; `segmint methods` lists those that do"
            )
    first = members[0]
    for run in members[1:]:
        facts = (
            ("classes", run.classes.names, first.classes.names),
            ("channels", run.method.config["in_channels"], first.method.config["in_channels"]),
            ("image sizes", run.size, first.size),
            ("bit depths", run.settings.depth, first.settings.depth),
        )
        for words, ours, theirs in facts:
            if ours != theirs:
                raise SegmintError(
                    f"{run.folder}: {words} {ours} differ from {first.folder}'s {theirs}; the runs of an ensemble are "
                    "trained on the same data at the same size"
                )
    return members


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image as a method is shown it: uint8 [H, W, C] -> float32 [1, C, h, w] in [-1, 1], min(h, w) = min(size).

    Raises:
        SegmintError: it would be far larger than the training images.
    """
    scale = min(size) / min(image.shape[:2])
    small = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    if small[0] * small[1] > max(MOST_SHOWN, 4 * size[0] * size[1]):
        raise SegmintError(
            f"{image.shape[0]} x {image.shape[1]} pixels: too long and thin to be shown with its shorter side as at "
            f"training ({small[0]} x {small[1]}); cut it, or segment it in tiles: `segmint predict --tile 512`"
        )
    shown = image.permute(2, 0, 1)[None].float() / 127.5 - 1
    return interpolate(shown, size=small, mode="bilinear", antialias=True).clamp(-1, 1)


def _enlarge(values: Tensor, size: tuple[int, int]) -> Tensor:
    """float [1, h, w] -> [H, W], bilinear, on the CPU."""
    return resize(values[None], size)[0, 0].cpu()


def _enlarge_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [S, 1, h, w] -> [S, H, W], the nearest pixel's, on the CPU."""
    if not len(masks):
        return torch.empty(0, *size, dtype=torch.uint8)
    return interpolate(masks, size=size, mode="nearest")[:, 0].cpu()


def _alternatives(found: Draws, draws: Tensor) -> tuple[Alternative, ...]:
    """The distinct ones among the draws of one image, the most frequent first; views of `draws`, uint8 [S, H, W]."""
    masks = found.masks.transpose(0, 1)
    table = ambiguity.distances(masks, masks, ambiguity.foreground(found.probabilities.shape[1]))[0]
    return tuple(Alternative(draws[place], weight) for place, weight in ambiguity.clusters(table))
