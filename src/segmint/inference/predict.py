"""Draws of masks, and what they say together of an image's classes and of the doubt about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segmint.data.io import read_image
from segmint.methods.method import Method, device_of
from segmint.nets.layers import resize
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import Prediction, SegmintError


@dataclass(frozen=True)
class Draws:
    """Several draws of masks for a batch of images.

    Attributes:
        probabilities: float32 [B, K, H, W], the mean over draws of the softmax.
        uncertainty: float32 [B, H, W], the entropy of `probabilities` in nats (total uncertainty).
        epistemic: float32 [B, H, W], total less the mean entropy of the single draws (mutual information, >= 0).
        masks: uint8 [S, B, H, W], the most probable class of each draw.
    """

    probabilities: Tensor
    uncertainty: Tensor
    epistemic: Tensor
    masks: Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over dimension 1: [B, K, H, W] -> [B, H, W]."""
    return -torch.xlogy(probabilities, probabilities).sum(1)


@torch.inference_mode()
def draw(method: Method, image: Tensor, seeds: Seeds, draws: int = 1) -> Draws:
    """Segment a batch `draws` times.

    Args:
        method: a method that segments, in evaluation mode.
        image: float32 [B, C, H, W] in [-1, 1].
        seeds: one per image; draw s uses the stream `seeds.fork("draw", s)`.
        draws: S, at least 1.
    """
    total: Tensor | None = None
    doubt: Tensor | None = None
    masks = []
    for number in range(draws):
        single = method.segment(image, seeds.fork("draw", number)).float().softmax(1)
        masks.append(single.argmax(1).to(torch.uint8))
        total = single if total is None else total + single
        doubt = entropy(single) if doubt is None else doubt + entropy(single)
    if total is None or doubt is None:
        raise ValueError(f"draws must be at least 1, not {draws}")
    mean = total / draws
    uncertainty = entropy(mean)
    epistemic = (uncertainty - doubt / draws).clamp_min(0)
    return Draws(mean, uncertainty, epistemic, torch.stack(masks))


def predict(run: Run | str | Path, image: str | Path, *, draws: int = 1, seed: int = 0) -> Prediction:
    """Segment one image file.

    The image is shown to the method with its shorter side as long as that of the training images, and the result is
    brought back to the image's own size.

    Args:
        run: a run whose method segments, or its folder.
        image: PNG, JPEG, TIFF or WebP, of any size.
        draws: how many masks to draw; methods without randomness draw the same one again.
        seed: of the draws.

    Raises:
        SegmintError: the method does not segment, `draws` is not positive, or the image cannot be read.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    if "segment" not in run.method.capabilities():
        raise SegmintError(f"{run.folder}: {run.method.name} does not segment; `segmint methods` lists those that do")
    if draws < 1:
        raise SegmintError(f"draws: must be at least 1, not {draws}")
    pixels = read_image(Path(image), channels=run.method.config["in_channels"], depth=run.settings.depth)
    whole = (int(pixels.shape[0]), int(pixels.shape[1]))
    original = torch.from_numpy(np.array(pixels))
    scale = min(run.size) / min(whole)
    small = (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))
    shown = original.permute(2, 0, 1)[None].float() / 127.5 - 1
    shown = torch.nn.functional.interpolate(shown, size=small, mode="bilinear", antialias=True)
    found = draw(run.method, shown.clamp(-1, 1).to(device_of(run.method)), Seeds([seed]), draws)
    probabilities = resize(found.probabilities, whole)[0].cpu()
    masks = torch.nn.functional.interpolate(found.masks.float(), size=whole, mode="nearest")
    return Prediction(
        labels=probabilities.argmax(0).to(torch.uint8),
        probabilities=probabilities,
        uncertainty=resize(found.uncertainty[None], whole)[0, 0].cpu(),
        epistemic=resize(found.epistemic[None], whole)[0, 0].cpu(),
        draws=masks[:, 0].to(torch.uint8).cpu(),
        image=original,
        names=run.classes.names,
        colors=run.classes.colors,
    )
