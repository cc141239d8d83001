"""Decode and encode images and masks. Nothing here knows of folders or splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from segmint.data.classes import LARGEST, Classes
from segmint.types import IGNORE, SegmintError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff")
MAX_PIXELS = 178_956_970
"""Larger images are refused: Pillow's own limit against decompression bombs."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNKNOWN = LARGEST


@dataclass(frozen=True)
class Header:
    """What an image's header says.

    Attributes:
        size: (height, width), after EXIF rotation.
        channels: 1 or 3.
        bits: 8 or 16.
    """

    size: tuple[int, int]
    channels: int
    bits: int


def read_image(path: Path, *, channels: int | None = None, depth: int = 16) -> Bytes:
    """Read an image, turned upright if EXIF says so, without its alpha.

    Args:
        path: PNG, JPEG, TIFF (8 or 16 bit) or WebP; grey, RGB, RGBA or palette.
        channels: 1 or 3 to convert; None for 1 where the image is grey and 3 elsewhere.
        depth: significant bits of 16-bit files; values are multiplied by 255 / (2**depth - 1) and clipped.

    Returns:
        uint8 [H, W, C].

    Raises:
        SegmintError: missing, empty, truncated, too large, or not an image of these kinds.
    """
    pixels = _decode(path, colors=True)
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels * np.float32(255 / (2**depth - 1))).clip(0, 255).astype(np.uint8)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.rint(pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)).astype(np.uint8)
    if channels == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    return pixels


def largest_value(path: Path) -> int:
    """The largest stored value of an image, to learn how many of its 16 bits are used."""
    return int(_decode(path, colors=True).max())


def read_mask(path: Path, classes: Classes) -> Bytes:
    """Read a mask of class ids (grey or palette indices) or of class colours (RGB, RGBA).

    Returns:
        uint8 [H, W] of class indices 0..K-1, `IGNORE` where unknown.

    Raises:
        SegmintError: unreadable, or it holds ids or colours that `classes` does not have; the message names
            each with its first place and number of pixels.
    """
    indices, wrong = to_indices(read_stored_mask(path), classes)
    if wrong:
        raise SegmintError(f"{path}: {wrong}")
    return indices


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


def read_stored_mask(path: Path) -> Array:
    """The mask as stored: ids uint8 or uint16 [H, W], or colours uint8 [H, W, 3]."""
    pixels = _decode(path, colors=False)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


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


def read_header(path: Path) -> Header:
    """Size, channels and bits of an image, without decoding it.

    Raises:
        SegmintError: missing, empty, too large, or not an image.
    """
    with _telling(path):
        if _is_tiff(path):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = _page(tiff)
                turned = _orientation(page.tags.get(274)) >= 5
                size = (page.imagewidth, page.imagelength) if turned else (page.imagelength, page.imagewidth)
                grey = page.samplesperpixel < 3 and int(page.photometric) in (0, 1)
                return Header(size, 1 if grey else 3, 16 if page.bitspersample > 8 else 8)
        with _open(path) as picture:
            width, height = picture.size
            turned = _exif_orientation(picture) >= 5
            grey = picture.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B")
            bits = 16 if _png_header(path)[0] == 16 else 8
            return Header((width, height) if turned else (height, width), 1 if grey else 3, bits)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, upright, from its header alone. Raises as `read_header`."""
    return read_header(path).size


def write_image(path: Path, array: Array) -> None:
    """Write uint8 [H, W], [H, W, 1] or [H, W, 3] in the format of the suffix, by way of a temporary name."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    _save(path, Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)))


def write_mask(path: Path, indices: Array, classes: Classes) -> None:
    """Write class indices [H, W] (0..K-1, or `IGNORE`) as a PNG of ids, coloured by the classes' palette.

    Ids above 255 make a grey 16-bit PNG, which has no palette.
    """
    _save(path, mask_picture(indices, classes))


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


def _save(path: Path, picture: Image.Image) -> None:
    options: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise SegmintError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(_FORMATS)}")
    with replacing(path) as temporary:
        picture.save(temporary, format=kind, **options)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` at the end, removed on error.

    Raises:
        SegmintError: the place cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise SegmintError(f"{path}: cannot be written ({error.strerror or error}); free or choose a place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _decode(path: Path, *, colors: bool) -> Array:
    """uint8 or uint16 [H, W, 1 or 3]. With `colors` palettes become RGB, images upright; else raw values."""
    with _telling(path):
        if _is_tiff(path):
            return _decode_tiff(path, colors)
        bits, kind = _png_header(path)
        with _open(path) as picture:
            turn = _exif_orientation(picture) if colors else 1
            if bits == 16:
                import imagecodecs

                pixels = imagecodecs.png_decode(path.read_bytes())
                return _upright(_without_alpha(pixels), turn)
            pixels = _without_alpha(np.asarray(_convert(picture, colors)))
            if not colors and kind == 0 and bits in (2, 4):  # Pillow stretches these to 0..255; ids must not be
                pixels = pixels // (255 // (2**bits - 1))
            return _upright(pixels, turn)


def _convert(picture: Image.Image, colors: bool) -> Image.Image:
    if picture.mode in ("L", "LA", "RGB", "RGBA") or (picture.mode in ("P", "1") and not colors):
        return picture
    return picture.convert("L" if picture.mode in ("1", "La") else "RGB")


def _decode_tiff(path: Path, colors: bool) -> Array:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = _page(tiff)
        pixels = page.asarray()
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if page.colormap is not None and colors:
            pixels = (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
        elif int(page.photometric) == 0 and colors:
            pixels = ~pixels
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * (255 if colors else 1)
        if pixels.dtype not in (np.uint8, np.uint16):
            raise SegmintError(f"{path}: holds {pixels.dtype} values; save it as 8 or 16 bit without sign")
        return _upright(_without_alpha(pixels), _orientation(page.tags.get(274)) if colors else 1)


def _page(tiff: Any) -> Any:
    page = tiff.pages[0]
    if page.imagewidth * page.imagelength > MAX_PIXELS:
        raise SegmintError(_too_large(tiff.filehandle.path, page.imagewidth, page.imagelength))
    if len(tiff.pages) > 1 and tiff.pages[1].shape == page.shape:
        raise SegmintError(f"{tiff.filehandle.path}: holds {len(tiff.pages)} pages; save one image per file")
    return page


def _too_large(path: Path | str, width: int, height: int) -> str:
    return f"{path}: {width} x {height} pixels, but {MAX_PIXELS:,} at most are read; cut or shrink it"


def _without_alpha(pixels: Array) -> Array:
    """[H, W] or [H, W, 1..4] -> uint8 or uint16 [H, W, 1 or 3]."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., :1] if pixels.shape[2] < 3 else pixels[..., :3]


def _upright(pixels: Array, orientation: int) -> Array:
    """Undo EXIF orientation 1..8 of [H, W, C]."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(tag: Any) -> int:
    value = getattr(tag, "value", 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_orientation(picture: Image.Image) -> int:
    value = picture.getexif().get(274, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=("PNG", "JPEG", "WEBP"))


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def _png_header(path: Path) -> tuple[int, int]:
    """(bits per sample, colour type) of a PNG; (0, 0) of anything else."""
    with path.open("rb") as file:
        start = file.read(26)
    return (start[24], start[25]) if start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) == 26 else (0, 0)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one message that names the file and the remedy."""
    try:
        if path.stat().st_size == 0:
            raise SegmintError(f"{path}: empty file (0 bytes); copy it again or remove it")
        yield
    except (SegmintError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SegmintError(f"{path}: no such file; correct the name or remove the entry") from error
    except (IsADirectoryError, PermissionError) as error:
        raise SegmintError(f"{path}: cannot be opened ({error.strerror}); correct the name or its rights") from error
    except Image.DecompressionBombError as error:
        raise SegmintError(f"{path}: {error}; cut it into tiles or shrink it") from error
    except UnidentifiedImageError as error:
        raise SegmintError(f"{path}: not an image (PNG, JPEG, TIFF or WebP); convert it or remove it") from error
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on damaged files
        raise SegmintError(f"{path}: truncated or damaged ({error}); copy it again or remove it") from error
