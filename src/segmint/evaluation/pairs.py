"""Generated pairs beside the real ones: how diverse, how close to copies, and with which classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder, rejected
from segmint.evaluation import pictures as paint
from segmint.evaluation.files import read_lines, write_json
from segmint.functional.distances import diversity, nearest, nearest_other
from segmint.nets.encoders import EfficientNetLite0
from segmint.types import SegmintError

Embed = Callable[[Tensor], Tensor]
"""From images, float32 [B, C, H, W] in [-1, 1], to features [B, F]."""

MOST = 1000
"""No more than so many images of a kind are compared: distances are needed between all pairs."""


def embedder(channels: int) -> Embed:
    """Pooled features of EfficientNet-Lite0, trained on ImageNet; computed on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = EfficientNetLite0(channels, head=True).eval().to(device)

    def embed(image: Tensor) -> Tensor:
        return network.embed(image.to(device))

    return embed


def closeness(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Whether generated images are copies of real ones or of each other, from features [N, F] and [M, F].

    Returns:
        "nearest_ratio": median distance of a generated image to its nearest real one over the median
            distance of a real image to its nearest other; far below 1 suspects copies.
        "near_duplicates": number of generated images nearer to a real one than 95 in 100 real images are
            to their nearest other; "repeats": number of them as near as that to another generated image.
        "expected": how many of each there would be (5 in 100) if the generated images were further real ones.
    """
    to_real, _ = nearest(generated, real)
    among_real = nearest_other(real)
    limit = among_real.quantile(0.05)
    return {
        "nearest_ratio": float(to_real.median() / among_real.median()),
        "near_duplicates": int((to_real <= limit).sum()),
        "repeats": int((nearest_other(generated) <= limit).sum()),
        "expected": round(0.05 * len(generated), 1),
    }


def describe_pairs(
    generated: Path,
    real: Data | Path,
    *,
    size: tuple[int, int],
    indices: Sequence[int],
    embed: Embed,
    count: int = 32,
) -> dict[str, Any]:
    """Compare a generated folder with the training images; writes pairs.json and pictures/pairs.png into it.

    Args:
        generated: a folder of `segmint generate`; what its manifest does not keep is left out.
        real: the data folder that was learned from.
        size: height and width at which images are compared.
        indices: the real training items, labelled or not.
        embed: gives the features in which images are near or far.
        count: how many pairs to show.

    Returns:
        What pairs.json holds: "method", "images", "compared", "diversity", the figures of `closeness`,
        "class_shares" {name: {"generated", "real"}}, "notes" and "seconds".

    Raises:
        SegmintError: the classes differ, or there are fewer than two images on either side.
    """
    started = time.perf_counter()
    data = real if isinstance(real, Data) else open_folder(real)
    made, kept = open_pairs(generated, data)
    if len(kept) < 2 or len(indices) < 2:
        raise SegmintError(
            f"{generated}: comparing needs two images on either side at least, "
            f"there are {len(kept)} generated and {len(indices)} real ones; generate more"
        )
    fakes, truths = Pixels.open(made, size), Pixels.open(data, size)
    some, others = evenly(kept, MOST), evenly(indices, MOST)
    features, known = features_of(fakes, some, embed), features_of(truths, others, embed)
    shares = (truths.shares(indices), fakes.shares(kept))
    facts = {
        "method": maker(generated),
        "images": len(kept),
        "left_out": len(made.items) - len(kept),
        "compared": [len(some), len(others)],
        "diversity": diversity(features, known),
        **closeness(features, known),
        "class_shares": {
            name: {"real": shares[0][k], "generated": shares[1][k]} for k, name in enumerate(data.classes.names)
        },
    }
    shown = evenly(range(len(some)), count)
    neighbours = nearest(features[shown], known)[1].tolist()
    sides = [(some[place], others[near]) for place, near in zip(shown, neighbours, strict=True)]
    paint.save(_picture(fakes, truths, sides), generated / "pictures" / "pairs.png")
    facts["shown"] = [[made.items[a].name, data.items[b].name] for a, b in sides]
    facts["seconds"] = round(time.perf_counter() - started, 2)
    write_json(generated / "pairs.json", facts)
    return facts


def open_pairs(generated: Path, real: Data) -> tuple[Data, list[int]]:
    """A generated folder, and which of its items are kept.

    Raises:
        SegmintError: its classes are not those of the real data.
    """
    made = open_folder(generated)
    if not made.classes.same_as(real.classes):
        raise SegmintError(f"{generated}: its classes are not those of {real.root}; compare it with its own data")
    dropped = rejected(generated)
    return made, [index for index, item in enumerate(made.items) if item.name not in dropped]


@torch.inference_mode()
def features_of(pixels: Pixels, indices: Sequence[int], embed: Embed, batch_size: int = 32) -> Tensor:
    """Features of some images, float32 [N, F], on the CPU."""
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return torch.cat([embed(pixels.batch(some).image).float().cpu() for some in batches])


def evenly(values: Sequence[int], most: int) -> list[int]:
    """No more than `most` of the values, evenly spread."""
    count = min(most, len(values))
    return [values[place * len(values) // count] for place in range(count)]


def maker(generated: Path) -> str:
    """The method that made the pairs, as the manifest says; "" where there is none."""
    manifest = generated / "manifest.jsonl"
    entries = read_lines(manifest, "generate again") if manifest.is_file() else []
    return str(entries[0].get("method", "")) if entries else ""


def _picture(fakes: Pixels, truths: Pixels, sides: Sequence[tuple[int, int]]) -> Image:
    """Blocks of four: generated image and mask to the left, the nearest real ones to the right."""
    blocks = [paint.beside([_stack(fakes, ours), _stack(truths, theirs)], 2) for ours, theirs in sides]
    columns = min(len(blocks), max(3, round(1150 / (blocks[0].width + 14))))
    heads = paint.beside([_head(block) for block in blocks[:columns]], 14)
    sheet = paint.beneath([heads, paint.wrapped(blocks, columns, 14)], 4)
    key = paint.legend(fakes.data.classes.names, fakes.data.classes.colors, sheet.width)
    return paint.framed(paint.beneath([sheet, key], 14))


def _stack(pixels: Pixels, index: int) -> Image:
    classes = pixels.data.classes
    rows = pixels.rows[index]
    mask = np.asarray(pixels.masks[rows[0]]) if rows else np.full(pixels.size, 255, np.uint8)
    below = paint.tile(paint.colorize(mask, classes.colors), 144, smooth=False)
    if not rows:
        below = paint.note("no mask", below.size)
    return paint.beneath([paint.tile(paint.to_rgb(np.asarray(pixels.images[index])), 144), below], 2)


def _head(block: Image) -> Image:
    half = (block.width - 2) // 2
    return paint.beside([paint.heading("generated", half), paint.heading("nearest real", half)], 2)
