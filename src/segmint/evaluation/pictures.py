"""Pictures of data and results: masks in colour, tiles, grids with captions, the data at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segmint.data.io import replacing
from segmint.evaluation.files import write_json
from segmint.types import IGNORE, SegmintError

if TYPE_CHECKING:
    from segmint.data.cache import Pixels

Array = NDArray[Any]
Color = tuple[int, int, int]

INK: Color = (40, 44, 52)
FAINT: Color = (112, 118, 128)
PAPER: Color = (255, 255, 255)
UNKNOWN: Color = (255, 255, 255)
WRONG: Color = (214, 30, 50)


def to_rgb(image: Array) -> Array:
    """Any image as it is shown: uint8 [H, W, C] -> uint8 [H, W, 3] (C < 3: grey; more: the first 3)."""
    return np.repeat(image[..., :1], 3, -1) if image.shape[-1] < 3 else image[..., :3]


def colorize(mask: Array, colors: Sequence[Color]) -> Array:
    """A mask in its classes' colours: integers [H, W] -> uint8 [H, W, 3]; ignored pixels are white."""
    palette = np.full((256, 3), UNKNOWN, np.uint8)
    palette[: len(colors)] = np.asarray(colors, np.uint8)
    palette[IGNORE] = UNKNOWN
    return np.asarray(palette[mask])


def errors(image: Array, prediction: Array, truth: Array) -> Array:
    """The image pale and grey, wrong pixels red, ignored pixels white: uint8 [H, W, C], masks [H, W]."""
    grey = to_rgb(image).mean(-1, keepdims=True)
    shown = np.repeat(150 + grey * 0.4, 3, -1).astype(np.uint8)
    shown[(prediction != truth) & (truth != IGNORE)] = WRONG
    shown[truth == IGNORE] = UNKNOWN
    return shown


def heat(values: Array, top: float) -> Array:
    """Numbers 0..top as colours from dark (0) to bright (top): float [H, W] -> uint8 [H, W, 3]."""
    from matplotlib import colormaps

    colored = colormaps["magma"](np.clip(values / top, 0, 1))
    return np.asarray((colored[..., :3] * 255).round().astype(np.uint8))


def overlay(image: Array, mask: Array, colors: Sequence[Color], opacity: float = 0.6) -> Array:
    """The classes' colours over the image; uint8 [H, W, C] and [H, W] -> uint8 [H, W, 3]."""
    mixed = to_rgb(image) * (1 - opacity) + colorize(mask, colors) * opacity
    known = (mask != IGNORE)[..., None]
    return np.where(known, mixed.round(), to_rgb(image)).astype(np.uint8)


def tile(pixels: Array, side: int = 192, *, smooth: bool = True) -> Image.Image:
    """A picture whose longer side is about `side` screen pixels.

    Small pictures grow by a whole factor without smoothing, so that pixels stay crisp; large ones shrink,
    smoothly unless `smooth` is False (masks).
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    longest = max(picture.size)
    if longest <= side:
        factor = max(1, round(side / longest))
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(length * side / longest)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


@lru_cache
def font(size: int = 14, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface of captions (DejaVu Sans, which comes with matplotlib)."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def text(words: str, size: int = 14, *, color: Color = INK, bold: bool = False, width: int = 0) -> Image.Image:
    """Words as a picture, one line or several; cut with an ellipsis where wider than `width` (0: never)."""
    face = font(size, bold=bold)
    lines = [_shorten(line, face, width) for line in words.split("\n")]
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    right = max(math.ceil(pen.textlength(line, face)) for line in lines)
    step = round(size * 1.35)
    picture = Image.new("RGB", (max(1, right), step * len(lines)), PAPER)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((0, number * step), line, fill=color, font=face)
    return picture


def _shorten(line: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    if not width or face.getlength(line) <= width:
        return line
    while line and face.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def beside(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures in a row, their tops in line."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def beneath(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures in a column, their left sides in line."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def wrapped(pictures: Sequence[Image.Image], columns: int, gap: int = 12) -> Image.Image:
    """Pictures of one size, row by row."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return beneath([beside(row, gap) for row in rows], gap)


def framed(picture: Image.Image, margin: int = 12) -> Image.Image:
    """The picture with a white margin."""
    sheet = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    sheet.paste(picture, (margin, margin))
    return sheet


def legend(names: Sequence[str], colors: Sequence[Color], width: int, size: int = 14) -> Image.Image:
    """Class names beside their colours, in as many lines as `width` demands."""
    face, swatch, space = font(size), size, 18
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, left, top = [], 0, 0
    for name in names:
        length = swatch + 6 + math.ceil(pen.textlength(name, face))
        if left and left + length > width:
            left, top = 0, top + round(size * 1.6)
        places.append((left, top))
        left += length + space
    sheet = Image.new("RGB", (width, top + round(size * 1.6)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for name, color, (x, y) in zip(names, colors, places, strict=True):
        pen.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=color, outline=FAINT)
        pen.text((x + swatch + 6, y), name, fill=INK, font=face)
    return sheet


def table_of_tiles(
    rows: Sequence[Sequence[Image.Image]], heads: Sequence[str], captions: Sequence[str], gap: int = 6
) -> Image.Image:
    """Rows of tiles of one size, a heading over each column and a caption to the left of each row."""
    width = rows[0][0].width
    side = max(text(words, 13).width for words in captions) if captions else 0
    side = min(side, 190)
    blank = Image.new("RGB", (side, 1), PAPER)
    lines = [beside([blank, *(heading(head, width) for head in heads)], gap)]
    for tiles, words in zip(rows, captions, strict=True):
        label = _fit(text(words, 13, color=FAINT, width=side), side)
        lines.append(beside([label, *tiles], gap))
    return beneath(lines, gap)


def heading(words: str, width: int) -> Image.Image:
    """Words over a column of this width."""
    return _fit(text(words, 12, bold=True, width=width), width)


def note(words: str, size: tuple[int, int]) -> Image.Image:
    """Words in the middle of an empty tile, in place of a missing picture; `size` is (width, height)."""
    sheet = Image.new("RGB", size, (238, 240, 243))
    pen = ImageDraw.Draw(sheet)
    pen.text((size[0] / 2, size[1] / 2), words, fill=FAINT, font=font(12), anchor="mm")
    return sheet


def _fit(picture: Image.Image, width: int) -> Image.Image:
    sheet = Image.new("RGB", (width, picture.height), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG to a temporary name, then rename it; makes the folder."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return path


def sample_picture(pixels: Pixels, indices: Sequence[int] | None = None, count: int = 8) -> Image.Image:
    """The data at a glance: labelled images, their masks beneath, and the classes' colours.

    Args:
        pixels: the data, decoded.
        indices: the items to choose from, evenly spread; None for the labelled training items.
        count: how many to show.

    Raises:
        SegmintError: none of the items has a mask.
    """
    chosen = pixels.data.split("train") if indices is None else indices
    labelled = [index for index in chosen if pixels.rows[index]]
    if not labelled:
        raise SegmintError(f"{pixels.data.root}: no image with a mask to show; add masks")
    count = min(count, len(labelled))
    shown = [labelled[place * len(labelled) // count] for place in range(count)]
    colors = pixels.data.classes.colors
    upright = pixels.size[0] > 1.2 * pixels.size[1]
    side, columns = (192, 8) if upright else (240, 4)
    blocks = []
    for index in shown:
        mask = np.asarray(pixels.masks[pixels.rows[index][0]])
        above = tile(to_rgb(np.asarray(pixels.images[index])), side)
        blocks.append(beneath([above, tile(colorize(mask, colors), side, smooth=False)], 3))
    sheet = wrapped(blocks, columns)
    return framed(beneath([sheet, legend(pixels.data.classes.names, colors, max(sheet.width, 300))], 14))


def write_data_summary(
    pixels: Pixels,
    folder: Path,
    *,
    description: str = "",
    budget: int | None = None,
    seed: int = 0,
    commands: Sequence[str] = (),
    timings: Sequence[tuple[str, float]] = (),
) -> Path:
    """Write data.json and pictures/data.png into a folder of runs, for the report.

    Args:
        pixels: the data, decoded.
        folder: where to write.
        description: what the data is, in plain sentences; said first.
        budget, seed: which training images keep their masks; None: all.
        commands: what was typed to make the runs; `timings`: steps of the job with their seconds.

    Returns:
        The path of data.json: "description", "table" (a row per split), "class_shares" by class and split,
        "size", "picture", "notes", "commands".
    """
    data = pixels.data
    table, shares = [], {}
    for split in data.split_names:
        indices = data.split(split)
        masked = [index for index in indices if pixels.rows[index]]
        used = data.labelled(budget, seed) if split == "train" else masked
        shares[split] = pixels.shares(used)
        groups = len({data.items[index].group for index in indices})
        table.append(
            {
                "split": split,
                "images": len(indices),
                "with masks": len(masked),
                "masks used": len(used),
                "groups": groups if groups < len(indices) else "none",
            }
        )
    save(sample_picture(pixels, data.labelled(budget, seed)), folder / "pictures" / "data.png")
    kind = "grey" if data.channels == 1 else "colour"
    facts = f"{len(data.items):,} {kind} images, worked on at {pixels.size[1]} x {pixels.size[0]} pixels"
    by_class = {name: {split: share[k] for split, share in shares.items()} for k, name in enumerate(data.classes.names)}
    return write_json(
        folder / "data.json",
        {
            "name": data.root.resolve().name,
            "description": description,
            "facts": f"{facts}, {len(data.classes)} classes.",
            "table": table,
            "class_shares": by_class,
            "size": pixels.size,
            "picture": "pictures/data.png",
            "notes": [*data.notes, *pixels.notes],
            "commands": list(commands),
            "timings": [{"step": step, "seconds": seconds} for step, seconds in timings],
        },
    )
