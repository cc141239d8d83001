"""Another program's data set into a data folder of ours: images linked, masks drawn, classes and splits written."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segmint.data.classes import LARGEST, Classes, Color, fill_colors, write_classes
from segmint.data.foreign import Source
from segmint.data.formats.format import Entry, Found, Label, background_of
from segmint.data.io import Bytes, image_size, replacing
from segmint.data.masks import write_mask
from segmint.data.polygons import Size
from segmint.data.shapes import UNANNOTATED
from segmint.data.splits import HELD_OUT, write_splits
from segmint.types import IGNORE, SegmintError


def write_ours(
    found: Found, source: Source, folder: Path, *, ignore_unannotated: bool, progress: Callable[[int, int], None]
) -> list[str]:
    """Write a data folder.

    Args:
        found: what the source holds.
        source: it itself, for its painter.
        folder: to write to.
        ignore_unannotated: whether pixels that no object covers are of unknown class; else they are background.
        progress: told how many images of how many are done.

    Returns:
        Sentences to say aloud.

    Raises:
        SegmintError: an image or a mask cannot be read, or there are too many classes.
    """
    if not found.entries:
        raise SegmintError(f"{source.root}: there is no image in it; name the folder that holds the images too")
    entries, left = _without_useless(found.entries)
    entries, renamed = _distinct(entries)
    classes, fallback = _classes(found, ignore_unannotated)
    table = _table(len(found.labels), len(classes), fallback)
    met = False
    for done, entry in enumerate(entries):
        link_or_copy(entry.image, folder / "images" / f"{entry.name}{entry.image.suffix.lower()}")
        size = image_size(entry.image)
        for rater, mask in enumerate(entry.masks):
            drawn = _checked(mask(size), size, entry)
            met = met or bool((drawn == UNANNOTATED).any())
            name = entry.name if len(entry.masks) == 1 else f"{entry.name}/{rater}"
            write_mask(folder / "masks" / f"{name}.png", table[drawn], classes)
        progress(done + 1, len(entries))
    write_classes(folder / "classes.yaml", _without_unmet(classes, len(found.labels), met))
    about = _about_objects(found, source, classes, fallback, met)
    return [*found.notes, *source.notes, *left, *renamed, *about, *_write_splits(entries, folder)]


def link_or_copy(image: Path, path: Path) -> None:
    """The same file at another place: a hard link where the disk allows it, else a copy."""
    with replacing(path) as temporary:
        try:
            os.link(image, temporary)
        except OSError:
            shutil.copyfile(image, temporary)


def _distinct(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries with names of their own: a number is added to the later of two."""
    seen = Counter[str]()
    taken = {entry.name for entry in entries}
    renamed: list[Entry] = []
    for entry in entries:
        seen[entry.name] += 1
        if seen[entry.name] > 1:
            number = seen[entry.name]
            while f"{entry.name}-{number}" in taken:
                number += 1
            taken.add(f"{entry.name}-{number}")
            entry = replace(entry, name=f"{entry.name}-{number}")
        renamed.append(entry)
    twice = sum(count - 1 for count in seen.values())
    notes = [f"{twice:,} images have the name of another; a number was added to theirs"] if twice else []
    return renamed, notes


def _classes(found: Found, ignore_unannotated: bool) -> tuple[Classes, int]:
    """The classes in the order of the labels, with a background first if it may be needed; and what is unannotated."""
    labels = found.labels
    fallback = background_of(label.name for label in labels)
    if found.objects and fallback is None and not ignore_unannotated:
        labels, fallback = [Label("background", 0), *labels], 0
    if not labels:
        raise SegmintError("classes: the data set has none; label something first")
    if len(labels) >= LARGEST:
        raise SegmintError(f"classes: {len(labels)} of them, but {LARGEST - 1} at most are read; leave some out")
    names = _own_names(labels)
    ids = [label.id for label in labels]
    added = len(labels) > len(found.labels)
    if None in ids or len(set(ids)) < len(ids) or any(not 0 <= (number or 0) <= 65535 for number in ids) or 255 in ids:
        ids = list(range(len(labels)))
    colors = fill_colors(_own_colors(labels, added))
    classes = Classes(names, colors, tuple(number or 0 for number in ids))
    return classes, IGNORE if ignore_unannotated or fallback is None else fallback


def _own_names(labels: Sequence[Label]) -> tuple[str, ...]:
    names: list[str] = []
    for label in labels:
        plain = name = label.name.strip() or "unnamed"
        number = 2
        while name in names:
            name = f"{plain} {number}"
            number += 1
        names.append(name)
    return tuple(names)


def _own_colors(labels: Sequence[Label], added: bool) -> list[Color | None]:
    """Colours that no two classes share; an added background is black if that is free."""
    wanted = [label.color for label in labels]
    if added and (0, 0, 0) not in wanted:
        wanted[0] = (0, 0, 0)
    return [None if color in wanted[:place] else color for place, color in enumerate(wanted)]


def _table(labels: int, classes: int, fallback: int) -> Bytes:
    """What each drawn value is in the classes; they have one more at the front where a background was added."""
    table = np.full(256, IGNORE, np.uint8)
    table[:labels] = np.arange(classes - labels, classes)
    table[UNANNOTATED] = fallback
    return table


def _checked(mask: Bytes, size: Size, entry: Entry) -> Bytes:
    if mask.shape != size:
        raise SegmintError(
            f"{entry.image}: has {size[1]} x {size[0]} pixels, but its mask {mask.shape[1]} x {mask.shape[0]}; "
            "export the mask again for the image as it is"
        )
    return mask


def _without_unmet(classes: Classes, labels: int, met: bool) -> Classes:
    """The classes without an added background that no pixel has."""
    if len(classes) == labels or met:
        return classes
    return Classes(classes.names[1:], classes.colors[1:], classes.ids[1:])


def _about_objects(found: Found, source: Source, classes: Classes, fallback: int, met: bool) -> list[str]:
    """What drawing objects into masks has decided."""
    if not found.objects or not any(entry.masks for entry in found.entries):
        return []
    notes = ["objects of one class are no longer told apart: masks hold classes, not instances"]
    if met:
        unknown = fallback == IGNORE
        kind = "of unknown class" if unknown else f"of the class {classes.names[fallback]!r}"
        notes.append(f"pixels that no object covers are {kind} (--unannotated {'ignore' if unknown else 'background'})")
    if source.painter.clashes:
        which = "later objects in the file" if source.painter.overlap == "later" else "smaller objects"
        notes.append(
            f"objects of different classes lie over each other in {source.painter.clashes:,} masks: "
            f"{which} are on top (--overlap {source.painter.overlap})"
        )
    return notes


def _without_useless(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries without those that are held out and have no masks: they can be neither trained on nor scored."""
    useful = [entry for entry in entries if entry.masks or entry.split not in HELD_OUT]
    if not useful:
        return [replace(entry, split=None) for entry in entries], []
    left = len(entries) - len(useful)
    note = f"{left:,} images of val or test have no masks and are left out; `segmint predict` reads them as they are"
    return useful, [note] if left else []


def _write_splits(entries: Sequence[Entry], folder: Path) -> list[str]:
    """Write the splits, if more than one is known of."""
    splits: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.split is not None:
            splits.setdefault(entry.split, []).append(index)
    if not any(split in splits for split in HELD_OUT):
        return ["no images are held out there; splits will be made by group when first needed"]
    write_splits(folder / "splits", splits, [entry.name for entry in entries])
    told = ", ".join(f"{name} {len(splits[name]):,}" for name in ("train", *HELD_OUT) if name in splits)
    return [f"splits as they were: {told}"]
