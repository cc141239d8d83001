"""From one format to another: other programs' data sets to our data folder, and back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segmint.data.exporting import Shapes, open_export
from segmint.data.foreign import Empty, Source
from segmint.data.formats.format import OURS, detect, find, names
from segmint.data.importing import write_ours
from segmint.data.shapes import Overlap, Painter
from segmint.types import SegmintError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        folder: what was written.
        source_format, target_format: names of formats, "segmint" for our own.
        notes: what should be said aloud: what was decided, and what was lost.
    """

    folder: Path
    source_format: str
    target_format: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How to understand a foreign data set.

    Attributes:
        images: folders in which images may lie, besides the source itself.
        unannotated: what pixels are that no object covers: "background" or "ignore" (of unknown class).
        empty: what images are that have no object: "background" or "unlabelled"; None: what the format says.
        overlap: which of two objects is on top: the "later" in the file or the "smaller".
    """

    images: tuple[Path, ...] = ()
    unannotated: str = "background"
    empty: Empty | None = None
    overlap: Overlap = "later"

    def __post_init__(self) -> None:
        _one_of("unannotated", self.unannotated, ("background", "ignore"))
        _one_of("empty", self.empty, ("background", "unlabelled", None))
        _one_of("overlap", self.overlap, ("later", "smaller"))


@dataclass(frozen=True)
class Writing:
    """How to write a data folder in another format.

    Attributes:
        shapes: "polygons" or "masks", where the format knows both; None: as suits it.
        rater: which of several raters' masks; None: the majority, or all of them where the format can hold them.
        synthetic: folders of generated pairs to add to the training split.
    """

    shapes: Shapes | None = None
    rater: int | None = None
    synthetic: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _one_of("shapes", self.shapes, ("polygons", "masks", None))


def convert(
    source: str | Path,
    out: str | Path,
    *,
    source_format: str = "auto",
    target_format: str = OURS,
    reading: Reading | None = None,
    writing: Writing | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a data set.

    Args:
        source: a folder, or the one file in it that holds the annotations.
        out: the folder to write; must not exist or be empty. It appears when all is done.
        source_format, target_format: see `segmint.data.formats.format.names`; "segmint" is our data folder, and
            "auto" finds out by the names and beginnings of files.
        reading: for foreign sources.
        writing: for foreign targets.
        progress: told how many images of how many are done.

    Raises:
        SegmintError: the source is wrong or of no known format, or the target cannot be written.
    """
    source, out = Path(source), Path(out)
    reading, writing = reading or Reading(), writing or Writing()
    progress = progress or (lambda done, total: None)
    foreign = _source(source, reading)
    name = source_format
    notes = []
    if name == "auto":
        name = OURS if _is_ours(source) else detect(foreign)
        notes.append(f"{source} looks like {name}: {_title(name)}")
    if name == target_format:
        raise SegmintError(
            f"--to {target_format}: {source} is that already; choose one of {', '.join([OURS, *names()])}"
        )
    for other in {name, target_format} - {OURS}:
        find(other)
    with _folder(out, source) as folder:
        if target_format == OURS:
            notes += _read(name, foreign, folder, reading, progress)
        elif name == OURS:
            notes += _write(source, target_format, folder, writing, progress)
        else:
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=folder.parent) as between:
                notes += _read(name, foreign, Path(between), reading, progress)
                notes += _write(Path(between), target_format, folder, writing, progress)
    return Converted(out, name, target_format, tuple(dict.fromkeys(notes)))


def _read(name: str, source: Source, folder: Path, reading: Reading, progress: Progress) -> list[str]:
    found = find(name).read(source)
    unknown = reading.unannotated == "ignore"
    return write_ours(found, source, folder, ignore_unannotated=unknown, progress=progress)


def _write(source: Path, name: str, folder: Path, writing: Writing, progress: Progress) -> list[str]:
    if not source.is_dir():
        raise SegmintError(f"{source}: no such folder; name a data folder")
    chosen = find(name)
    export = open_export(source, synthetic=writing.synthetic, rater=writing.rater)
    export.shapes, export.progress = writing.shapes, progress
    if export.raters > 1:
        usual = "all of them are kept" if chosen.keeps_raters else "the majority counts"
        which = usual if writing.rater is None else f"number {writing.rater} counts"
        export.notes.append(f"up to {export.raters} raters drew masks of an image: {which} (--rater)")
    folder.mkdir(parents=True, exist_ok=True)
    chosen.write(export, folder)
    told = ", ".join(f"{split} {len(samples):,}" for split, samples in export.splits.items())
    unlabelled = sum(not sample.labelled for sample in export.samples)
    return [*export.notes, f"with masks: {told or 'none'}" + (f"; without: {unlabelled:,}" if unlabelled else "")]


def _source(path: Path, reading: Reading) -> Source:
    if not path.exists():
        raise SegmintError(f"{path}: no such file or folder; correct the name")
    for folder in reading.images:
        if not folder.is_dir():
            raise SegmintError(f"--images {folder}: no such folder; correct the name")
    painter = Painter(reading.overlap)
    if path.is_file():
        return Source(path.parent, path, reading.images, reading.empty, painter)
    return Source(path, None, reading.images, reading.empty, painter)


def _is_ours(path: Path) -> bool:
    marks = [(path / name).exists() for name in ("masks", "classes.yaml", "manifest.jsonl")]
    return (path / "images").is_dir() and any(marks)


def _title(name: str) -> str:
    return "a data folder" if name == OURS else find(name).title


@contextmanager
def _folder(out: Path, source: Path) -> Iterator[Path]:
    """A folder beside `out`, which takes its name at the end; removed on error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SegmintError(f"{out}: exists already; name a new folder or empty this one")
    if out.resolve().is_relative_to(source.resolve()) and source.is_dir():
        raise SegmintError(f"{out}: lies in {source}; name a folder outside of what is converted")
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SegmintError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    try:
        yield folder
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one_of(key: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        told = ", ".join(choice for choice in choices if choice)
        raise SegmintError(f"--{key}: must be one of {told}, not {value!r}")
