"""What every format of other programs' data sets has in common.

A format is one file in this package, found by its name. It defines one subclass of `Format`, which says what a
folder of that format contains (`read`) and writes one (`write`). Everything else is done once, for all formats:
`segmint.data.importing` copies images and draws masks, `segmint.data.exporting` hands out images and masks.

These readers and writers are our own, on numpy and Pillow. Datumaro, which knows most of the formats, would bring
opencv, pandas, pyarrow, lxml and older versions of what is installed; pycocotools can draw polygons but not find
them, and knows none of the other codes. It served, like Label Studio's own decoder, to check these.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from segmint.data.classes import Color
from segmint.data.io import Bytes
from segmint.data.polygons import Size
from segmint.types import IGNORE, SegmintError

if TYPE_CHECKING:
    from segmint.data.exporting import Export
    from segmint.data.foreign import Source

OURS = "segmint"
BACKGROUND = ("background", "__background__", "_background_")
"""Names of the class that means none of the others."""
IGNORED = ("ignore", "__ignore__", "_ignore_")
"""Names of labels for pixels of unknown class."""


@dataclass(frozen=True)
class Label:
    """What a format calls a class: its name, and its id and colour where it has them."""

    name: str
    id: int | None = None
    color: Color | None = None


@dataclass(frozen=True)
class Entry:
    """One image of a foreign data set.

    Attributes:
        image: its file, which `Source` has found to lie where it may.
        name: "group/name" for our folder, without suffix.
        split: train, val, test, or None.
        masks: one function per rater, from (height, width) to uint8 [H, W] of positions in `Found.labels`, `IGNORE`,
            and `UNANNOTATED`; none where the image is unlabelled.
    """

    image: Path
    name: str
    split: str | None = None
    masks: tuple[Callable[[Size], Bytes], ...] = ()


@dataclass
class Found:
    """What a foreign data set holds.

    Attributes:
        entries: its images.
        labels: its classes, in order.
        notes: sentences to say aloud.
        objects: whether objects are annotated and what lies between them is not.
    """

    entries: list[Entry]
    labels: list[Label]
    notes: list[str] = field(default_factory=list)
    objects: bool = False


class Labels:
    """The positions of label names; those in `IGNORED` are no classes but `IGNORE`.

    Args:
        known: the labels in their order, of different names.

    Attributes:
        labels: those that are classes.
        all: the position, or `IGNORE`, of each of the known ones.
    """

    def __init__(self, known: Iterable[Label]) -> None:
        known = list(known)
        self.labels = [label for label in known if label.name.lower() not in IGNORED]
        self._places = {label.name: place for place, label in enumerate(self.labels)}
        self.all = [self._places.get(label.name, IGNORE) for label in known]

    def place(self, name: str, where: str) -> int:
        """The position of a name.

        Raises:
            SegmintError: it is not among the labels.
        """
        if name.lower() in IGNORED:
            return IGNORE
        if name not in self._places:
            raise SegmintError(f"{where}: there is no label {name!r}; there are {', '.join(self._places) or 'none'}")
        return self._places[name]


def background_of(names: Iterable[str]) -> int | None:
    """The position of the class whose name means background, if there is one."""
    return next((index for index, name in enumerate(names) if name.lower() in BACKGROUND), None)


class Format(ABC):
    """One format.

    Attributes:
        title: its name in prose.
        layout: what a folder of it looks like, in a line.
        keeps_raters: whether it can hold several raters' masks of an image.
    """

    title: ClassVar[str]
    layout: ClassVar[str]
    keeps_raters: ClassVar[bool] = False

    @abstractmethod
    def detect(self, source: Source) -> bool:
        """Whether the source looks like this format, by names and the beginnings of files alone."""

    @abstractmethod
    def read(self, source: Source) -> Found:
        """What the source holds; masks are drawn later.

        Raises:
            SegmintError: a file is missing or wrong; the message names it and the key.
        """

    @abstractmethod
    def write(self, export: Export, folder: Path) -> None:
        """Write a folder of this format.

        Raises:
            SegmintError: the data cannot be put into this format.
        """


def names() -> list[str]:
    """The names of all formats: the modules beside this one."""
    import segmint.data.formats

    modules = pkgutil.iter_modules(segmint.data.formats.__path__)
    return sorted(module.name for module in modules if module.name != "format")


def find(name: str) -> Format:
    """The format of that name.

    Raises:
        SegmintError: there is none.
    """
    if name not in names():
        raise SegmintError(f"format: there is no {name!r}; choose one of {', '.join([OURS, *names()])}")
    module = importlib.import_module(f"segmint.data.formats.{name}")
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, Format) and value.__module__ == module.__name__:
            return value()
    raise SegmintError(f"{module.__file__} defines no subclass of Format; add one")


def detect(source: Source) -> str:
    """The name of the one format that the source looks like.

    Raises:
        SegmintError: it looks like none, or like several.
    """
    fitting = [name for name in names() if find(name).detect(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SegmintError(f"{source.root}: could be {' or '.join(fitting)}; say which with --from")
    known = "\n".join(f"  {name}: {find(name).layout}" for name in names())
    raise SegmintError(f"{source.root}: none of the formats known here; say which it is with --from:\n{known}")
