"""Read what other programs wrote, and trust none of it: paths, JSON, XML and their keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from segmint.data.io import IMAGE_SUFFIXES, Bytes, image_size
from segmint.data.polygons import Size
from segmint.data.shapes import Painter, Shape
from segmint.types import SegmintError, reason

T = TypeVar("T")
Empty = Literal["background", "unlabelled"]

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_FOLDER = r"images?|img|jpegimages|data"
_SPLIT_FOLDER = r"(train|training|val|valid|validation|test|unlabelled)\d*"
_HEAD = 1 << 16


@dataclass
class Source:
    """A foreign data set, and how to understand it.

    Attributes:
        root: its folder.
        only: the one file in it to read, where a file was named; None: all of them.
        elsewhere: further folders in which images may lie.
        empty: what an image is for which no object is annotated; None: what the format itself says.
        painter: draws the objects.
        notes: sentences to say aloud.
    """

    root: Path
    only: Path | None = None
    elsewhere: tuple[Path, ...] = ()
    empty: Empty | None = None
    painter: Painter = field(default_factory=Painter)
    notes: list[str] = field(default_factory=list)

    def files(self, *patterns: str) -> list[Path]:
        """The files of the source that match one of the glob patterns, sorted; the one that was named, if one was."""
        if self.only is not None:
            return [self.only] if any(self.only.match(pattern.rpartition("/")[2]) for pattern in patterns) else []
        found = {path for pattern in patterns for path in self.root.glob(pattern) if path.is_file()}
        return sorted(path for path in found if not path.name.startswith("."))

    def inside(self, path: Path) -> Path:
        """The path itself, if what it leads to lies in the source.

        Raises:
            SegmintError: it leads elsewhere, by "..", as an absolute path, or by a link.
        """
        real = path.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in (self.root, *self.elsewhere)):
            raise SegmintError(
                f"{path}: leads to {real}, outside of {self.root}; if it is meant, name its folder with --images"
            )
        return real

    def image(self, name: str, folders: Iterable[Path], where: str) -> Path:
        """The image file that an annotation names.

        Args:
            name: as it stands there; may have folders, and backslashes between them.
            folders: where to look, in this order, before the folders named with --images.
            where: the file and key, for complaints.

        Raises:
            SegmintError: it is nowhere, lies where it may not, or is of a kind that is not read.
        """
        plain = PurePosixPath(name.replace("\\", "/"))
        places = [*folders, *self.elsewhere]
        tries = [place / plain for place in places] + [place / plain.name for place in places]
        if not plain.name or "\0" in name:
            raise SegmintError(f"{where}: {name!r} is no name of a file; correct it")
        for path in tries:
            if path.is_file():
                return _known_kind(self.inside(path))
        looked = ", ".join(str(place) for place in dict.fromkeys(places))
        raise SegmintError(f"{where}: there is no image {name!r} in {looked}; put it there, or say where with --images")

    def images(self, folder: Path) -> list[Path]:
        """The images in a folder and its subfolders, sorted; empty where there is no such folder."""
        if not folder.is_dir():
            return []
        self.inside(folder)
        found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
        return [self.inside(path) and path for path in found if path.is_file() and not path.name.startswith(".")]

    def drawing(self, shapes: list[Shape]) -> Callable[[Size], Bytes]:
        """A function that draws these objects."""
        return partial(self.painter.paint, shapes)


def _known_kind(path: Path) -> Path:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise SegmintError(f"{path}: only {', '.join(IMAGE_SUFFIXES)} are read; convert it and its annotation's name")
    return path


def head(path: Path) -> str:
    """The beginning of a text file, for guesses; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def split_of(*words: str) -> str | None:
    """The split that one of these words means, e.g. "valid" or "instances_val2017"."""
    for word in words:
        for piece in re.split(r"[^a-z]+", word.lower()):
            if piece in _SPLITS:
                return _SPLITS[piece]
    return None


def item_name(path: str | PurePosixPath) -> str:
    """The name in our folder of an image file: without suffix, and without leading folders for images and splits.

    Of absolute paths, which tell of another machine, the last part alone counts.

    Raises:
        SegmintError: it is no name that a data folder can have.
    """
    plain = PurePosixPath(str(path).replace("\\", "/"))
    absolute = plain.is_absolute() or re.match("[A-Za-z]:", str(plain))
    parts = [part for part in plain.parts if part not in ("/", "..")][-1 if absolute else 0 :]
    for pattern in (_FOLDER, _FOLDER, _SPLIT_FOLDER, _FOLDER):
        if len(parts) > 1 and re.fullmatch(pattern, parts[0], re.IGNORECASE):
            parts.pop(0)
    name = str(PurePosixPath(*parts).with_suffix("")) if parts else ""
    if not name or name.startswith("#") or not name.isprintable() or any(part[0] in ". " for part in parts):
        raise SegmintError(f"{path}: an image of this name cannot be taken; rename it, and correct its annotation")
    return name


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        SegmintError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise SegmintError(f"{path}, line {error.lineno}: not JSON ({error.msg}); export it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SegmintError(f"{path}: cannot be read as JSON ({reason(error)}); export it again") from error


def get(content: Any, key: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """A key of a JSON object, of that type (numbers are `float`, which whole ones satisfy).

    Raises:
        SegmintError: there is no such key or it is of another type.
    """
    if not isinstance(content, Mapping):
        raise SegmintError(f"{where}: must be an object with the key {key!r}; export it again")
    value = content.get(key)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_KINDS.get(one, one.__name__) for one in kinds)
        raise SegmintError(f"{where}: {key}: must be {wanted}, not {_short(value)}; correct it or export again")
    return value  # type: ignore[return-value]


_KINDS: dict[type, str] = {
    str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object", bool: "true or false",
}  # fmt: skip


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def entries(content: Any, key: str, where: str) -> Iterator[tuple[str, Any]]:
    """Each element of a list under a key, with "file: key[3]" for complaints."""
    for index, value in enumerate(get(content, key, list, where)):
        yield f"{where}: {key}[{index}]", value


def same_size(path: Path, height: int, width: int, where: str) -> None:
    """Complain if an image, upright, has not the size that its annotation says."""
    real = image_size(path)
    if real != (height, width):
        raise SegmintError(
            f"{where}: says {width} x {height} pixels, but {path} has {real[1]} x {real[0]}"
            + (" (turned as its EXIF says)" if real == (width, height) else "")
            + "; export again for the image as it is"
        )


def read_xml(path: Path) -> Element:
    """An XML file's root element. Files with a DOCTYPE, which could define entities, are refused.

    Raises:
        SegmintError: it cannot be read, is not XML, or has a DOCTYPE.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise SegmintError(f"{path}: has a DOCTYPE, which no annotation tool writes; remove it")

    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
        return builder.close()
    except expat.ExpatError as error:
        raise SegmintError(f"{path}: not XML ({error}); export it again") from error
    except OSError as error:
        raise SegmintError(f"{path}: cannot be read ({error.strerror}); export it again") from error


def attribute(element: Element, key: str, kind: Callable[[str], T], where: str) -> T:
    """An attribute of an XML element, converted.

    Raises:
        SegmintError: it is missing or cannot be converted.
    """
    value = element.get(key)
    try:
        if value is None:
            raise ValueError
        return kind(value)
    except (ValueError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a number", str: "a text"}.get(kind, "numbers")  # type: ignore[call-overload]
        raise SegmintError(f"{where}: {key}: must be {wanted}, not {_short(value)}; export it again") from error
