"""What `segmint predict` is asked to segment: files, folders, globs, videos and cameras, each with its own name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath

from segmint.data.frames import VIDEO_SUFFIXES, is_stream
from segmint.data.io import IMAGE_SUFFIXES
from segmint.data.listing import walk
from segmint.types import SegmintError

STDIN = "-"

FRAME = re.compile(r"\d{6,}")
"""What the masks of a video's frames are called, without suffix."""


@dataclass(frozen=True)
class Input:
    """One image or video.

    Attributes:
        source: a path, or the name of a stream as `segmint.data.frames.open_frames` takes it.
        name: what its results are called, "drive-3/0017": the path below the folder that was given, without suffix.
        moving: whether it has frames.
    """

    source: str
    name: str
    moving: bool = False

    @property
    def path(self) -> Path:
        """Of a file."""
        return Path(self.source)


def find_inputs(given: str | Path | Sequence[str | Path], out: Path) -> list[Input]:
    """Everything that is named, in order; a folder's files by name, sub-folders too.

    Args:
        given: one or several of: a file; a folder, whose images and videos are taken, hidden ones left out (of a
            data folder with images/ and masks/, the images); a glob such as "photos/**/*.jpg"; "camera:0" or an
            address with "://" for a stream of frames; "-" for an encoded image from standard input.
        out: the folder for the results.

    Raises:
        SegmintError: there is nothing of that name, two would get the same name, or results would lie among the inputs.
    """
    several = [given] if isinstance(given, str | Path) else list(given)
    found = [entry for one in several for entry in _expand(str(one), out)]
    known: dict[str, Input] = {}
    unique: list[Input] = []
    for entry in found:
        other = known.setdefault(entry.name.casefold(), entry)
        if other is entry:
            unique.append(entry)
        elif _same(other, entry):
            continue
        else:
            raise _alike(entry, other)
    for entry in unique:
        head, _, tail = entry.name.rpartition("/")
        video = known.get(head.casefold())
        if video is not None and video.moving and FRAME.fullmatch(tail):
            raise _alike(entry, video)
    return unique


def _alike(entry: Input, other: Input) -> SegmintError:
    return SegmintError(
        f"{entry.source}: its results would be called {entry.name}, like those of {other.source}; rename one, or "
        "predict them into different folders (--out)"
    )


def _same(one: Input, other: Input) -> bool:
    """Whether both mean the same file."""
    return one.source == other.source or (Path(one.source).exists() and Path(one.source).samefile(other.source))


def _expand(given: str, out: Path) -> Iterator[Input]:
    if given == STDIN:
        yield Input(given, "stdin")
    elif is_stream(given):
        yield Input(given, given.partition("://")[2].strip("/").replace("/", "-") or given.replace(":", "-"), True)
    else:
        yield from _files(given, out)


def _files(given: str, out: Path) -> Iterator[Input]:
    path = Path(given)
    if path.is_dir():
        inside = path / "images"
        if inside.is_dir() and ((path / "masks").is_dir() or (path / "classes.yaml").is_file()):
            path = inside
        _refuse_inside(out, path)
        files = _wanted(map(Path, walk(str(path))), path)
        if not files:
            raise SegmintError(f"{path}: holds no image or video ({', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)})")
        yield from (_named(file, path) for file in files)
    elif path.is_file():
        yield _named(path, path.parent)
    elif has_magic(given):
        root = _root(given)
        files = _wanted(root.glob(Path(given).relative_to(root).as_posix()), root)
        if not files:
            raise SegmintError(f"{given}: no image or video matches; quote it, and write ** for sub-folders")
        yield from (_named(file, root) for file in files)
    else:
        raise SegmintError(f"{given}: no such file or folder; correct the name")


def _refuse_inside(out: Path, folder: Path) -> None:
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise SegmintError(
            f"--out {out}: lies in {folder}, so that results would be taken for images; choose a folder beside it"
        )


def _wanted(paths: Iterable[Path], root: Path) -> list[Path]:
    """Images and videos among some paths, in order; nothing hidden."""
    found = []
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _named(path: Path, root: Path) -> Input:
    name = path.relative_to(root).with_suffix("").as_posix()
    return Input(str(path), name, path.suffix.lower() in VIDEO_SUFFIXES)


def _root(pattern: str) -> Path:
    """The part of a glob before its first wildcard."""
    parts: list[str] = []
    for part in PurePosixPath(Path(pattern).as_posix()).parts[:-1]:
        if has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
