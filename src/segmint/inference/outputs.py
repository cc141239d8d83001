"""Where the results of `segmint predict` go: masks, overlays, probabilities and maps of doubt, part by part."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmint.data.classes import Classes
from segmint.data.io import Array, Bytes, replacing
from segmint.data.masks import write_mask
from segmint.data.windows import Place, Raster, Window
from segmint.inference.tiles import Cell
from segmint.types import SegmintError

KINDS = ("masks", "overlays", "probabilities", "uncertainty", "aleatoric", "epistemic", "errors")
"""What can be saved; each has a folder of its own."""

_UNKNOWN = {
    "epistemic": "one run alone cannot tell it; name another (--with), or give --mirror, or --draws if it has dropout",
    "errors": "the run has no judge of its own errors; `adversarial` learns one",
}

IN_MEMORY = 64 * 2**20
"""Results larger than so many bytes are collected in a temporary file."""

TILE = 256


class WriteError(SegmintError):
    """What keeps all further results from being written too."""


@contextmanager
def writing() -> Iterator[None]:
    """Turn what goes wrong in writing into `WriteError`."""
    try:
        yield
    except SegmintError as error:
        raise WriteError(str(error)) from error


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds, each once, in the order of `KINDS`.

    Raises:
        SegmintError: there is no such kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SegmintError(f"--save: there is no {kind!r}; choose from {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def path_of(out: Path, kind: str, name: str, suffix: str) -> Path:
    """The file for one kind of result of an image whose own name ends in `suffix`."""
    tiff = suffix.lower() in (".tif", ".tiff")
    ending = ".png"
    if kind == "probabilities":
        ending = ".npz"
    elif tiff:
        ending = ".tif"
    elif kind == "overlays" and suffix.lower() in (".jpg", ".jpeg"):
        ending = ".jpg"
    return out / kind / f"{name}{ending}"


class Canvas:
    """An array [H, W, C] that is filled window by window, in memory or, where it is large, in a temporary file.

    Args:
        shape: height, width, channels.
        kind: data type of the numbers.
        beside: the path that the temporary file is to lie beside.
    """

    def __init__(self, shape: tuple[int, int, int], kind: str, beside: Path) -> None:
        self.shape, self.kind = shape, np.dtype(kind)
        self._stack = ExitStack()
        self._array: Array | None = None
        size = math.prod(shape) * self.kind.itemsize
        if size <= IN_MEMORY:
            self._array = np.zeros(shape, self.kind)
            return
        self._path = beside.with_name(f".{beside.name}.{os.getpid()}.raw")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._stack.enter_context(self._path.open("wb", buffering=0))
        self._stack.callback(self._path.unlink, missing_ok=True)

    def put(self, window: Window, part: Array) -> None:
        """Fill a window with [h, w] or [h, w, C]."""
        top, left, height, width = window
        part = np.ascontiguousarray(part.reshape(height, width, self.shape[2]), self.kind)
        if self._array is not None:
            self._array[top : top + height, left : left + width] = part
            return
        pixel = self.shape[2] * self.kind.itemsize
        for row in range(height):
            self._file.seek(((top + row) * self.shape[1] + left) * pixel)
            _write_all(self._file, part[row].tobytes())

    def rows(self, top: int, bottom: int) -> Array:
        """Some rows, [bottom - top, W, C]."""
        if self._array is not None:
            return self._array[top:bottom]
        stored = np.memmap(self._path, self.kind, "r", shape=self.shape)
        return np.array(stored[top:bottom])

    def close(self) -> None:
        """Free the memory, or remove the temporary file."""
        self._array = None
        self._stack.close()


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


@dataclass
class Result:
    """The files of one image, while they are being filled. Use it in a `with` statement.

    Attributes:
        paths: a path for each kind that is wanted.
        size: height and width of the image.
        classes: K classes.
        place: what the image's TIFF says of its place.
        opacity: of the classes' colours in overlays.
    """

    paths: dict[str, Path]
    size: tuple[int, int]
    classes: Classes
    place: Place = field(default_factory=Place)
    opacity: float = 0.5

    def __post_init__(self) -> None:
        depth = {"overlays": 3, "probabilities": len(self.classes)}
        self._canvases: dict[str, Canvas] = {}
        for kind, path in self.paths.items():
            stored = "float16" if kind == "probabilities" else "uint8"
            self._canvases[kind] = Canvas((*self.size, depth.get(kind, 1)), stored, path)

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_: object) -> None:
        for canvas in self._canvases.values():
            canvas.close()

    def put(self, cell: Cell, raster: Raster) -> None:
        """Add a finished part of the image.

        Raises:
            WriteError: the disk is full, or the methods do not know what is wanted.
        """
        for kind in self.paths:
            if kind in _UNKNOWN and kind not in cell.maps:
                raise WriteError(f"--save: {kind} is not known: {_UNKNOWN[kind]}")
        try:
            for kind, canvas in self._canvases.items():
                canvas.put(cell.window, self._of(kind, cell, raster))
        except OSError as error:
            path = next(iter(self.paths.values()))
            raise WriteError(f"{path}: cannot be written ({error.strerror or error}); make room") from error

    def write(self) -> None:
        """Write the files, each under a temporary name first.

        Raises:
            WriteError: a place cannot be written, or the disk is full.
        """
        with writing():
            for kind, path in self.paths.items():
                self._write(kind, path, self._canvases[kind])

    def _write(self, kind: str, path: Path, canvas: Canvas) -> None:
        if kind == "probabilities":
            _write_npz(path, canvas, self.classes)
        elif path.suffix == ".tif":
            _write_tiff(path, canvas, self.place, self.classes if kind == "masks" else None)
        elif kind == "masks":
            write_mask(path, canvas.rows(0, self.size[0])[..., 0], self.classes)
        else:
            _write_picture(path, canvas.rows(0, self.size[0]))

    def _of(self, kind: str, cell: Cell, raster: Raster) -> Array:
        """What a kind of result has to say of a cell."""
        if kind == "masks":
            return cell.labels.numpy()
        if kind == "probabilities":
            return cell.probabilities.permute(1, 2, 0).numpy()
        if kind == "overlays":
            return blend(raster.read(cell.window), cell.labels.numpy(), self.classes, self.opacity)
        scale = 1.0 if kind == "errors" else math.log(max(len(self.classes), 2))
        return np.rint(cell.maps[kind].clamp(0, scale).numpy() * (255 / scale))


def blend(pixels: Bytes, labels: Array, classes: Classes, opacity: float = 0.5) -> Bytes:
    """The classes' colours over an image: uint8 [H, W, 1 or 3] and class indices [H, W] -> uint8 [H, W, 3]."""
    colors = (np.array(classes.colors, np.float32) * opacity).round().astype(np.uint8)
    dimmed = (np.arange(256, dtype=np.float32) * (1 - opacity)).astype(np.uint8)
    mixed: Bytes = dimmed[pixels] + colors[labels]
    return mixed


def _write_picture(path: Path, pixels: Array) -> None:
    """uint8 [H, W, 1 or 3] as PNG or JPEG."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    with replacing(path) as temporary:
        options: dict[str, Any] = {"quality": 90} if path.suffix == ".jpg" else {"compress_level": 4}
        picture.save(temporary, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)


def _write_npz(path: Path, canvas: Canvas, classes: Classes) -> None:
    """float16 [H, W, K] as "probabilities", the classes' names as "names"."""
    header = {"descr": canvas.kind.str, "fortran_order": False, "shape": canvas.shape}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
        with pack.open("probabilities.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for top in range(0, canvas.shape[0], TILE):
                file.write(canvas.rows(top, min(top + TILE, canvas.shape[0])).tobytes())
        with pack.open("names.npy", "w") as file:
            np.lib.format.write_array(file, np.array(classes.names))


def _write_tiff(path: Path, canvas: Canvas, place: Place, classes: Classes | None) -> None:
    """A tiled TIFF with deflate; with classes, of their ids with their colours as palette."""
    import tifffile

    height, width, channels = canvas.shape
    options: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack"}
    table, kind = None, canvas.kind
    if classes is not None:
        kind = np.dtype(np.uint16 if max(*classes.ids, classes.ignore) > 255 else np.uint8)
        table = np.full(256, classes.ignore, kind)
        table[: len(classes)] = classes.ids
        if kind == np.uint8:
            colormap = np.full((3, 256), 65535, np.uint16)
            colormap[:, list(classes.ids)] = np.array(classes.colors, np.uint16).T * 257
            options = {"photometric": "palette", "colormap": colormap}
    if place.resolution is not None:
        options |= {"resolution": place.resolution, "resolutionunit": place.unit}
    shape = canvas.shape if channels == 3 else (height, width)
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=_is_big(canvas)) as tiff:
        tiff.write(
            _tiles(canvas, table),
            shape=shape,
            dtype=kind,
            tile=(TILE, TILE),
            compression="zlib",
            predictor=classes is None,
            extratags=[(*tag, True) for tag in place.geo],
            metadata=None,
            **options,
        )


def _is_big(canvas: Canvas) -> bool:
    """Whether a file could outgrow the 4 GiB of the usual TIFF."""
    return math.prod(canvas.shape) * 2 > 2**32 - 2**25


def _tiles(canvas: Canvas, table: Array | None) -> Iterator[Array]:
    """The tiles of a canvas row by row, all of full size; what lies beyond its rim is 0."""
    height, width, channels = canvas.shape
    for top in range(0, height, TILE):
        rows = canvas.rows(top, min(top + TILE, height))
        rows = rows if table is None else table[rows]
        for left in range(0, width, TILE):
            part = rows[:, left : left + TILE]
            full = np.zeros((TILE, TILE, channels), part.dtype)
            full[: part.shape[0], : part.shape[1]] = part
            yield full if channels > 1 else full[..., 0]
