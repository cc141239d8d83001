"""List a data folder's files and pair images with masks, by names alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segmint.data.io import IMAGE_SUFFIXES, MASK_SUFFIXES
from segmint.types import SegmintError

LAYOUT = """expected is
  images/[group/]name.png|jpg|tif|webp
  masks/[group/]name.png, or masks/[group/]name/0.png 1.png ... for several raters
  classes.yaml, splits/train.txt val.txt test.txt (both optional)"""


@dataclass(frozen=True)
class Item:
    """One image, and its masks if it has any.

    Attributes:
        name: "group/name" without suffix.
        image: its file.
        masks: one file per rater; empty where unlabelled.
        group: the folder part of the name; the name itself for images that lie in no folder.
        synthetic: whether a method made it.
    """

    name: str
    image: Path
    masks: tuple[Path, ...]
    group: str
    synthetic: bool = False


@dataclass(frozen=True)
class Listing:
    """The files of a data folder, before anything is read.

    Attributes:
        items: in natural order of their names ("frame2" before "frame10").
        strays: mask files that belong to no image.
        doubles: sentences on two images, or two masks, of one name.
        others: files of kinds that are not read.
    """

    items: tuple[Item, ...]
    strays: tuple[Path, ...]
    doubles: tuple[str, ...]
    others: tuple[Path, ...]


def scan(root: Path) -> Listing:
    """List a data folder's files, decoding nothing.

    Raises:
        SegmintError: no such folder, no images/ in it, or no images in that.
    """
    if not root.is_dir():
        raise SegmintError(f"{root}: no such folder; {LAYOUT}")
    if not (root / "images").is_dir():
        raise SegmintError(f"{root}: no images/ folder in it; {LAYOUT}")
    others: list[Path] = []
    images, doubles = _collect(root / "images", IMAGE_SUFFIXES, others)
    if not images:
        raise SegmintError(f"{root / 'images'}: empty folder, no {', '.join(IMAGE_SUFFIXES)} in it; {LAYOUT}")
    masks, more = _collect(root / "masks", MASK_SUFFIXES, others)
    raters: dict[str, list[str]] = {}
    strays = []
    for name in sorted(masks, key=natural):
        owner = name if name in images else name.rpartition("/")[0]
        if owner not in images:
            strays.append(Path(masks[name]))
            continue
        if owner != name and owner in masks:
            more.append(f"masks/{owner} is both a file and a folder of raters; remove one")
        raters.setdefault(owner, []).append(masks[name])
    items = tuple(
        Item(name, Path(images[name]), tuple(map(Path, raters.get(name, ()))), name.rpartition("/")[0] or name)
        for name in sorted(images, key=natural)
    )
    return Listing(items, tuple(strays), tuple(dict.fromkeys(doubles + more)), tuple(others))


def natural(name: str) -> tuple[str, ...]:
    """A sorting key: folder first, then the name, with numbers by value ("frame2" before "frame10")."""
    return tuple(re.sub(r"\d+", lambda number: number[0].zfill(20), name).rsplit("/", 1))


def _collect(folder: Path, suffixes: tuple[str, ...], others: list[Path]) -> tuple[dict[str, str], list[str]]:
    """Files by name without suffix, relative to the folder; and sentences on names that occur twice."""
    found: dict[str, str] = {}
    doubles: list[str] = []
    cut = len(str(folder)) + 1
    for path in walk(str(folder)) if folder.is_dir() else ():
        stem, suffix = os.path.splitext(path)  # noqa: PTH122, a Path for each of 50,000 files takes seconds
        name = stem[cut:].replace(os.sep, "/")
        if suffix.lower() not in suffixes:
            others.append(Path(path))
        elif name in found:
            doubles.append(f"two files of one name: {found[name]} and {path}; rename or remove one")
        else:
            found[name] = path
    return found, doubles


def walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """All files below a folder, hidden ones left out, each folder in the order of names; links are followed.

    Args:
        folder: where to look.
        above: the folders that it lies in; one that a link leads back to is left out.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, above | {real})
            else:
                yield entry.path
