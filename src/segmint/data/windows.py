"""Images read window by window, so that they need not fit into memory; and what a TIFF says beside its pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from segmint.data.io import MAX_PIXELS, Array, Bytes, read_image, tiff_channels, to_bytes
from segmint.types import SegmintError, reason

CACHE = 256 * 2**20
"""Bytes of decoded strips or tiles that are kept, so that neighbouring windows need not decode them again."""

PIECE = 512 * 2**20
"""A strip or tile that is larger than so many bytes, decoded, is refused."""

GEO = (33550, 33922, 34264, 34735, 34736, 34737)
"""Tags of GeoTIFF: pixel scale, tie points, transformation, keys, and the numbers and words that these refer to."""

_DIRECT = (1, 2, 6)
"""Photometric interpretations of which a part is decoded as the whole is: grey, RGB, YCbCr (to RGB)."""
_JPEG = (6, 7, 34892, 33007)


class Window(NamedTuple):
    """A rectangle of pixels: rows top..top + height - 1, columns left..left + width - 1."""

    top: int
    left: int
    height: int
    width: int


class Raster(Protocol):
    """An image that can be read in parts.

    Attributes:
        size: (height, width).
        channels: 1 or 3.
    """

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def channels(self) -> int: ...  # noqa: D102

    def read(self, window: Window) -> Bytes:
        """The pixels of a window within the image, uint8 [height, width, channels]."""
        ...


@dataclass(frozen=True)
class Decoded:
    """An image in memory: uint8 [H, W, C]."""

    pixels: Bytes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.pixels.shape[2])

    def read(self, window: Window) -> Bytes:
        """The pixels of a window, uint8 [height, width, channels]."""
        top, left, height, width = window
        return self.pixels[top : top + height, left : left + width]


@contextmanager
def open_raster(path: Path, depth: int = 16) -> Iterator[Raster]:
    """An image to be read in parts: a TIFF from its file, all else from memory, as `read_image` gives it.

    Args:
        path: of any kind that `read_image` reads. TIFFs may have any size, if they are grey or RGB (with or without
            alpha) of 8 or 16 bits, striped or tiled, compressed or not.
        depth: significant bits of 16-bit files, see `read_image`.

    Raises:
        SegmintError: missing, damaged, no image, or too large for its kind.
    """
    if not is_tiff(path):
        yield Decoded(read_image(path, depth=depth))
        return
    with TiffRaster(path, depth) as raster:
        obstacle = raster.obstacle
        if obstacle is None:
            yield raster
            return
        if raster.size[0] * raster.size[1] > MAX_PIXELS:
            raise SegmintError(f"{path}: {obstacle}; so large a TIFF must be grey or RGB, of tiles of e.g. 512 pixels")
    yield Decoded(read_image(path, depth=depth))


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; not where there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return False


class TiffRaster:
    """The first page of a TIFF, read window by window. Use it in a `with` statement.

    Args:
        path: of the file.
        depth: significant bits of 16-bit files, see `read_image`.

    Raises:
        SegmintError: damaged.
    """

    def __init__(self, path: Path, depth: int = 16) -> None:
        import tifffile

        self.path, self.depth = path, depth
        self._kept: OrderedDict[int, Array | None] = OrderedDict()
        self._bytes = 0
        with self._telling():
            self._file = tifffile.TiffFile(path)
            self._page = self._file.pages[0]
            self.size = (int(self._page.imagelength), int(self._page.imagewidth))

    def __enter__(self) -> TiffRaster:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    @property
    def channels(self) -> int:
        """1 or 3."""
        return tiff_channels(self._page) or 3

    @cached_property
    def obstacle(self) -> str | None:
        """Why this file cannot be read in parts; None where it can."""
        page, pages = self._page, self._file.pages
        orientation = getattr(page.tags.get(274), "value", 1)
        piece = int(np.prod(self._segment)) * (page.dtype.itemsize if page.dtype else 1)
        facts = (
            (page.dtype not in (np.uint8, np.uint16), f"holds {page.dtype} values"),
            (int(page.photometric) not in _DIRECT, f"is of kind {page.photometric}"),
            (tiff_channels(page) is None, f"holds {page.samplesperpixel} bands"),
            (orientation != 1, f"is to be turned (orientation {orientation})"),
            (page.imagedepth != 1, "is a volume"),
            (len(pages) > 1 and pages[1].shape == page.shape, f"holds {len(pages)} pages"),
            (not page.is_final and piece > PIECE, f"must be decoded in pieces of {piece / 2**20:,.0f} MiB"),
        )
        return next((words for wrong, words in facts if wrong), None)

    def read(self, window: Window) -> Bytes:
        """The pixels of a window, uint8 [height, width, channels].

        Raises:
            SegmintError: the file is truncated or damaged.
        """
        with self._telling():
            pixels = self._mapped(window) if self._page.is_final else self._decoded(window)
        return to_bytes(pixels[..., : self.channels], self.depth, self.path)

    @property
    def _segment(self) -> tuple[int, int, int]:
        """Height, width and samples of a tile or strip."""
        page = self._page
        samples = page.samplesperpixel if page.planarconfig == 1 else 1
        if page.is_tiled:
            return page.tilelength, page.tilewidth, samples
        return min(page.rowsperstrip, self.size[0]), self.size[1], samples

    def _mapped(self, window: Window) -> Array:
        """From a file without compression. It is mapped anew each time, so that its pages do not pile up in memory."""
        page, (top, left, height, width) = self._page, window
        planes, _, rows, columns, samples = page.shaped
        kind = np.dtype(self._file.byteorder + page.dtype.char)
        mapped = np.memmap(self.path, kind, "r", page.dataoffsets[0], (planes, rows, columns, samples))
        part = np.array(mapped[:, top : top + height, left : left + width])
        return part[0] if planes == 1 else part[..., 0].transpose(1, 2, 0)

    def _decoded(self, window: Window) -> Array:
        """From the strips or tiles that the window touches."""
        top, left, height, width = window
        rows, columns, samples = self._segment
        across, down = -(-self.size[1] // columns), -(-self.size[0] // rows)
        planes = self._page.samplesperpixel if self._page.planarconfig == 2 else 1
        found = np.zeros((height, width, planes * samples), self._page.dtype)
        for plane in range(planes):
            for row in range(top // rows, -(-(top + height) // rows)):
                for column in range(left // columns, -(-(left + width) // columns)):
                    piece = self._piece((plane * down + row) * across + column)
                    if piece is not None:
                        target = found[..., plane : plane + 1] if planes > 1 else found
                        _paste(piece, row * rows - top, column * columns - left, target)
        return found

    def _piece(self, index: int) -> Array | None:
        """A strip or tile, [h, w, S]; None where the file has none, which stands for zeros."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        page, handle = self._page, self._file.filehandle
        data = None
        if page.databytecounts[index]:
            handle.seek(page.dataoffsets[index])
            data = handle.read(page.databytecounts[index])
            if len(data) < page.databytecounts[index]:
                raise ValueError("the file ends too soon")
        more = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
        decoded = page.decode(data, index, _fullsize=False, **more)[0]
        piece = None if decoded is None else decoded[0]
        self._kept[index] = piece
        self._bytes += 0 if piece is None else piece.nbytes
        while self._bytes > CACHE and len(self._kept) > 1:
            oldest = self._kept.popitem(last=False)[1]
            self._bytes -= 0 if oldest is None else oldest.nbytes
        return piece

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (SegmintError, MemoryError):
            raise
        except Exception as error:  # decoders raise anything on damaged files
            raise SegmintError(
                f"{self.path}: truncated or damaged ({reason(error)}); copy it again or remove it"
            ) from error


def _paste(piece: Array, y: int, x: int, target: Array) -> None:
    """Lay a piece over a target, at a place that may be beyond its rim."""
    height, width = target.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + piece.shape[0], height), min(x + piece.shape[1], width)
    target[top:bottom, left:right] = piece[top - y : bottom - y, left - x : right - x]


@dataclass(frozen=True)
class Place:
    """What a TIFF says of where its pixels lie.

    Attributes:
        geo: its GeoTIFF tags, as (code, data type, count, value).
        resolution: pixels per unit, across and down, as fractions; None where it says nothing.
        unit: 1 none, 2 inch, 3 centimetre.
    """

    geo: tuple[tuple[int, int, int, Any], ...] = ()
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    unit: int = 2


def read_place(path: Path) -> Place:
    """Of a TIFF; masks are upright, so nothing is known where the image has to be turned.

    Raises:
        SegmintError: it is damaged, or both on a map and to be turned.
    """
    with TiffRaster(path) as raster:
        tags = raster._page.tags
        geo = tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in map(tags.get, GEO) if tag is not None)
        across, down, unit = (getattr(tags.get(code), "value", None) for code in (282, 283, 296))
        if getattr(tags.get(274), "value", 1) != 1:
            if geo:
                raise SegmintError(f"{path}: has both a place on the map and an orientation; turn its pixels upright")
            return Place()
    if across is None or down is None or not (across[0] and across[1] and down[0] and down[1]):
        return Place(geo)
    return Place(geo, (tuple(across), tuple(down)), int(unit or 2))
