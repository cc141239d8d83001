"""Masks: from the ids or colours that are stored to class indices, and back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from segmint.data.classes import LARGEST, Classes
from segmint.data.io import Array, Bytes, read_stored_mask, save_picture, stored_palette
from segmint.types import IGNORE, SegmintError

_UNKNOWN = LARGEST


def read_mask(path: Path, classes: Classes) -> Bytes:
    """Read a mask of class ids (grey or palette indices) or of class colours (RGB, RGBA).

    Returns:
        uint8 [H, W] of class indices 0..K-1, `IGNORE` where unknown.

    Raises:
        SegmintError: unreadable, or it holds ids or colours that `classes` does not have; the message names
            each with its first place and number of pixels. Or the palette of its ids contradicts these.
    """
    stored = read_stored_mask(path)
    indices, wrong = to_indices(stored, classes)
    if wrong := wrong or palette_conflict(path, stored, classes):
        raise SegmintError(f"{path}: {wrong}")
    return indices


def palette_conflict(path: Path, stored: Array, classes: Classes) -> str:
    """A sentence if a PNG with a palette shows each id in the colour of another class, no two alike; else "".

    Programs that write RGB masks with few colours as palette PNGs number the colours as they like.
    """
    palette = stored_palette(path) if stored.ndim == 2 else None
    if palette is None:
        return ""
    met = np.bincount(stored.ravel())
    met[classes.ignore : classes.ignore + 1] = 0
    ids = np.flatnonzero(met)
    shown = _color_table(classes)[pack_colors(palette[ids])] if len(ids) and ids[-1] < len(palette) else np.array([])
    wrong = shown != _id_table(classes)[ids[: len(shown)]]
    if (shown == _UNKNOWN).any() or not wrong.any() or len(np.unique(shown)) < len(shown):
        return ""
    other = "unknown" if shown[wrong][0] == IGNORE else f"class {classes.names[shown[wrong][0]]!r}"
    return (
        f"id {ids[wrong][0]} has the colour of {other} in this file's palette, so ids and colours disagree; "
        "save the mask as RGB if the colours are right, in grey if the ids are"
    )


def to_indices(stored: Array, classes: Classes) -> tuple[Bytes, str]:
    """Class indices of a stored mask, `IGNORE` where `classes` lacks them; a sentence on these, or ""."""
    if stored.ndim == 2:
        indices: Bytes = _id_table(classes)[stored]
    else:
        indices = _color_table(classes)[pack_colors(stored)]
    unknown = indices == _UNKNOWN
    if not unknown.any():
        return indices, ""
    indices[unknown] = IGNORE
    return indices, _strangers(stored, unknown)


def write_mask(path: Path, indices: Array, classes: Classes) -> None:
    """Write class indices [H, W] (0..K-1, or `IGNORE`) as a PNG of ids, coloured by the classes' palette.

    Ids above 255 make a grey 16-bit PNG, which has no palette.
    """
    save_picture(path, mask_picture(indices, classes))


def mask_picture(indices: Array, classes: Classes) -> Image.Image:
    """What `write_mask` writes, as a picture in memory."""
    table = np.full(256, classes.ignore, np.uint16)
    table[: len(classes)] = classes.ids
    ids = table[indices]
    if max(*classes.ids, classes.ignore) > 255:
        return Image.fromarray(ids)
    palette = np.full((256, 3), 255, np.uint8)
    palette[list(classes.ids)] = classes.colors
    if classes.ignore_color is not None:
        palette[classes.ignore] = classes.ignore_color
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    return picture


def pack_colors(pixels: Bytes) -> Array:
    """Colours uint8 [..., 3] as uint32 red * 65536 + green * 256 + blue."""
    wide: Array = pixels.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


@lru_cache(maxsize=8)
def _id_table(classes: Classes) -> Bytes:
    table = np.full(65536, _UNKNOWN, np.uint8)
    table[list(classes.ids)] = np.arange(len(classes))
    table[classes.ignore] = IGNORE
    return table


@lru_cache(maxsize=2)
def _color_table(classes: Classes) -> Bytes:
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    if len(classes):
        table[pack_colors(np.array(classes.colors, np.uint8))] = np.arange(len(classes))
    if classes.ignore_color is not None:
        table[pack_colors(np.array(classes.ignore_color, np.uint8))] = IGNORE
    return table


def _strangers(stored: Array, unknown: npt.NDArray[np.bool_], most: int = 8) -> str:
    """Which values classes.yaml lacks, where each is first met (by rows), and on how many pixels."""
    ys, xs = np.nonzero(unknown)
    codes = stored[unknown] if stored.ndim == 2 else pack_colors(stored[unknown])
    values, firsts, counts = np.unique(codes, return_index=True, return_counts=True)
    told = []
    for value, first, count in zip(values[:most], firsts, counts, strict=False):
        code = int(value)
        name = f"class id {code}" if stored.ndim == 2 else f"colour ({code >> 16}, {code >> 8 & 255}, {code & 255})"
        told.append(f"{name} (first at x={xs[first]}, y={ys[first]}; {count} pixel{'s' if count > 1 else ''})")
    more = f" and {len(values) - most} others" if len(values) > most else ""
    kind = "ids" if stored.ndim == 2 else "colours"
    return f"{', '.join(told)}{more} not among the classes; add to classes.yaml or correct the mask's {kind}"
