"""Decode and encode images and masks. Nothing here knows of folders or splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from segmint.types import SegmintError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff")
MAX_PIXELS = 178_956_970
"""Larger images are refused: Pillow's own limit against decompression bombs."""
BEYOND = 0.05
"""An image with a larger share of its values beyond the depth that it is read with is refused."""
DEAD = 1e-4
"""The share of an image's values that do not count where its depth is learnt: those of dead pixels."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
        depth: significant bits of 16-bit files, see `to_bytes`.

    Returns:
        uint8 [H, W, C].

    Raises:
        SegmintError: missing, empty, truncated, too large, not an image of these kinds, or far beyond the depth.
    """
    pixels = to_bytes(_decode(path, colors=True), depth, path)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.rint(pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)).astype(np.uint8)
    if channels == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    return pixels


def read_stored_image(path: Path) -> Array:
    """An image as `read_image` has it, but with its values as stored: uint8 or uint16 [H, W, 1 or 3]."""
    return _decode(path, colors=True)


def to_bytes(pixels: Array, depth: int, path: Path) -> Bytes:
    """Stored values as uint8: those of 16 bits are multiplied by 255 / (2**depth - 1) and clipped.

    Raises:
        SegmintError: more than one value in 20 lies beyond the depth, so that clipping would leave little.
    """
    if pixels.dtype != np.uint16:
        return np.ascontiguousarray(pixels, np.uint8)
    if pixels.size and (beyond := float((pixels >> depth > 0).mean())) > BEYOND:
        raise SegmintError(
            f"{path}: {beyond:.0%} of its values do not fit into the {depth} bits of the images that it goes with "
            f"(the largest is {pixels.max()}); scale its values as theirs are"
        )
    return np.rint(pixels * np.float32(255 / (2**depth - 1))).clip(0, 255).astype(np.uint8)


def bits_used(path: Path) -> int:
    """How many bits hold an image's values: 8, 10, 12, 14 or 16; one value in 10,000 may need more (dead pixels)."""
    pixels = _decode(path, colors=True)
    if pixels.dtype != np.uint16:
        return 8
    return next((bits for bits in (8, 10, 12, 14) if (pixels >> bits > 0).mean() <= DEAD), 16)


def read_stored_mask(path: Path) -> Array:
    """The mask as stored: ids uint8 or uint16 [H, W], or colours uint8 [H, W, 3]."""
    pixels = _decode(path, colors=False)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def stored_palette(path: Path) -> Bytes | None:
    """The colours uint8 [N, 3] that a PNG's indices stand for; None of a file without indices."""
    if _png_header(path)[1] != 3:
        return None
    with _telling(path), _open(path) as picture:
        return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)


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
                return Header(size, tiff_channels(page) or 3, 16 if page.bitspersample > 8 else 8)
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
    save_picture(path, Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format of the suffix, by way of a temporary name."""
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
    if tiff_channels(page) is None:
        raise SegmintError(
            f"{tiff.filehandle.path}: holds {page.samplesperpixel} bands of kind {page.photometric.name}; save one of "
            "them (grey) or three (RGB), with or without transparency"
        )
    return page


def tiff_channels(page: Any) -> int | None:
    """1 (grey) or 3 (RGB, also of a palette) of a TIFF page, not counting transparency; None for all other kinds.

    Three bands that are not said to be colours are taken for RGB, as GDAL writes 16-bit RGB without saying so.
    """
    kind, bands = int(page.photometric), page.samplesperpixel
    if page.extrasamples and int(page.extrasamples[-1]) in (1, 2):
        bands -= 1
    if kind == 3:
        return 3 if bands == 1 else None
    allowed = {0: (1, 3), 1: (1, 3), 2: (3,), 6: (3,)}.get(kind, ())
    return bands if bands in allowed else None


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
