"""Open a folder of images and masks: what is there, what is labelled, and which part is for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from segmint.data.classes import LARGEST, Classes, read_classes, write_classes
from segmint.data.io import bits_used, read_header, read_stored_mask
from segmint.data.listing import Item, Listing, scan
from segmint.data.masks import pack_colors
from segmint.data.splits import (
    choose_labelled,
    complete,
    halve,
    make_splits,
    overlaps,
    read_splits,
    shared_groups,
    write_splits,
)
from segmint.data.store import remembered, stamps_of
from segmint.types import IGNORE, SegmintError

__all__ = ["Classes", "Data", "Item", "Listing", "open_folder", "read_classes", "scan", "write_classes"]

T = TypeVar("T")


@dataclass
class Data:
    """A data folder, opened. Nothing is decoded; see `segmint.data.cache.Pixels` for that.

    Attributes:
        root: the folder.
        items: all images, in natural order of their names.
        classes: what a pixel can be.
        channels: 1 if the images are grey, else 3.
        depth: significant bits of 16-bit images: 8, 10, 12, 14 or 16; 8 for others.
        notes: sentences that should be said aloud to whoever opened the folder.
        leaks: for each group that lies in more than one of train, val and test, in which.
    """

    root: Path
    items: tuple[Item, ...]
    classes: Classes
    channels: int
    depth: int
    notes: list[str] = field(default_factory=list)
    leaks: dict[str, list[str]] = field(default_factory=dict)
    _lists: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _splits: dict[str, list[int]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def split(self, name: str) -> list[int]:
        """The indices of the items in "train", "val" or "test", or in a half of one, e.g. "val-half0".

        "train" has labelled and unlabelled items, and the generated ones. Where the folder has no splits,
        they are made here by group, from seed 0, and written.

        Raises:
            SegmintError: there is no such split, or too few groups to make splits of.
        """
        splits = self._all_splits()
        whole, _, half = name.partition("-half")
        if whole in splits and half in ("0", "1"):
            return halve(splits[whole], [item.group for item in self.items])[int(half)]
        if name not in splits:
            raise SegmintError(
                f"{self.root}: there is no split {name!r}; only {', '.join(splits)}; add splits/{name}.txt"
            )
        return list(splits[name])

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that there are, of "train", "val" and "test"."""
        return tuple(self._all_splits())

    def labelled(self, budget: int | None = None, seed: int = 0) -> list[int]:
        """The training items whose masks may be used, in the order in which a growing budget takes them.

        Args:
            budget: how many real ones; None for all of them. Generated items come on top.
            seed: which nested sequence of budgets; splits/labelled-{N}-seed{S}.txt is obeyed if present.

        Raises:
            SegmintError: the budget is less than 1 or more than there is.
        """
        masked = [item for item in self.split("train") if self.items[item].masks]
        real = [item for item in masked if not self.items[item].synthetic]
        generated = [item for item in masked if self.items[item].synthetic]
        if budget is not None:
            names = [item.name for item in self.items]
            real = choose_labelled(budget, seed, real, self._lists, names)
        return real + generated

    def sequences(self) -> list[list[int]]:
        """Item indices of each group in natural order of names: frames.

        A sequence ends where the split changes, so no frame is followed by one that is held out.
        """
        homes = {i: name for name, members in self._known_splits().items() if name != "train" for i in members}
        runs: list[list[int]] = []
        before: tuple[str, str] | None = None
        for index, item in enumerate(self.items):
            here = (item.group, homes.get(index, "train"))
            if here != before:
                runs.append([])
            runs[-1].append(index)
            before = here
        return runs

    def describe(self) -> str:
        """A few lines: what was found."""
        masked = sum(bool(item.masks) for item in self.items)
        raters = sorted({len(item.masks) for item in self.items if item.masks})
        groups = len({item.group for item in self.items})
        kind = "grey" if self.channels == 1 else "colour"
        lines = [
            f"{self.root}: {len(self.items):,} {kind} images, {masked:,} with masks, in {groups:,} groups",
            f"{len(self.classes)} classes: {', '.join(self.classes.names)}",
        ]
        if raters and raters != [1]:
            lines.append(f"raters per image: {raters[0]}" + (f" to {raters[-1]}" if len(raters) > 1 else ""))
        splits = self._known_splits()
        told = ", ".join(f"{name} {len(members):,}" for name, members in splits.items())
        lines.append(f"splits: {told or 'none yet; made by group when first needed'}")
        generated = sum(item.synthetic for item in self.items)
        if generated:
            lines.append(f"generated: {generated:,}, for training only")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def __add__(self, generated: Data) -> Data:
        """This data with the items of another folder, kept ones only, in its training split and nowhere else.

        Raises:
            SegmintError: the classes differ, or the other folder's manifest cannot be read.
        """
        if not self.classes.same_as(generated.classes):
            raise SegmintError(
                f"{generated.root}: its classes ({_spell(generated.classes)}) are not those of {self.root} "
                f"({_spell(self.classes)}); generate with a method trained on this data"
            )
        dropped = rejected(generated.root)
        taken = {item.name for item in self.items}
        prefix, number = generated.root.resolve().name, 1
        while any(name.startswith(f"{prefix}/") for name in taken):
            number += 1
            prefix = f"{generated.root.resolve().name}-{number}"
        extra = tuple(
            replace(item, name=f"{prefix}/{item.name}", group=f"{prefix}/{item.group}", synthetic=True)
            for item in generated.items
            if item.name not in dropped
        )
        splits = {name: list(members) for name, members in self._all_splits().items()}
        splits["train"] += range(len(self.items), len(self.items) + len(extra))
        notes = [*self.notes, f"{len(extra):,} generated items of {generated.root} were added to train"]
        return replace(self, items=self.items + extra, notes=notes, _splits=splits)

    def _known_splits(self) -> dict[str, list[int]]:
        """The splits so far: none where they are still to be made."""
        if self._splits is None and any(name in self._lists for name in ("train", "val", "test")):
            self._splits = complete(self._lists, [item.group for item in self.items])
        return self._splits or {}

    def _all_splits(self) -> dict[str, list[int]]:
        if self._known_splits():
            return self._known_splits()
        masked = [index for index, item in enumerate(self.items) if item.masks]
        if not masked:  # nothing to hold out; nothing is written either, as masks may come
            self.notes.append("no image has a mask: all are for training, and none is held out")
            self._splits = {"train": list(range(len(self.items)))}
            return self._splits
        self._splits = make_splits([item.group for item in self.items], masked)
        try:
            write_splits(self.root / "splits", self._splits, [item.name for item in self.items])
            self.notes.append(f"splits were made by group and written to {self.root / 'splits'}")
        except SegmintError as error:
            self.notes.append(f"splits were made by group (seed 0) but not written: {error}")
        return self._splits


def open_folder(path: str | Path) -> Data:
    """Open a data folder; quick even for 50,000 files, since only a few headers are read.

    Raises:
        SegmintError: no such folder, no images, two images of one name, a wrong classes.yaml or split file,
            or an item in two splits. A group in two splits does not raise: it
            is noted, and in `Data.leaks`.
    """
    root = Path(path)
    listing = scan(root)
    if listing.doubles:
        raise SegmintError(f"{root}: {_some(listing.doubles)}")
    notes: list[str] = []
    if listing.strays:
        notes.append(f"{len(listing.strays):,} masks belong to no image and are left out; see `segmint check {root}`")
    if listing.others:
        kinds = ", ".join(sorted({file.suffix or file.name for file in listing.others}))
        notes.append(f"{len(listing.others):,} files of other kinds are left out ({kinds})")
    groups = [item.group for item in listing.items]
    names = [item.name for item in listing.items]
    lists, problems = read_splits(root / "splits", {name: index for index, name in enumerate(names)})
    problems += overlaps(lists, names)
    if problems:
        raise SegmintError(_some(problems))
    leaks = shared_groups(lists, groups)
    if leaks:
        notes.append(leak_text(leaks))
    classes = find_classes(root, listing.items, notes)
    channels, depth = _probe(listing.items, notes)
    return Data(root, listing.items, classes, channels, depth, notes, leaks, lists)


def leak_text(leaks: dict[str, list[str]]) -> str:
    """A sentence on groups that lie in several splits."""
    told = _some([f"{group!r} is in {' and '.join(splits)}" for group, splits in leaks.items()], "; ", 5)
    return (
        f"splits: one group in two splits: {told}. Images of one group resemble each other, so the figures "
        "on held-out images are too good; move whole groups"
    )


def rejected(root: Path) -> set[str]:
    """The names in a generated folder's manifest.jsonl with "kept": false.

    Raises:
        SegmintError: a line is not JSON with a "name".
    """
    path = root / "manifest.jsonl"
    names: set[str] = set()
    if not path.is_file():
        return names
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            if entry.get("kept") is False:
                names.add(entry["name"])
        except (ValueError, KeyError, AttributeError) as error:
            raise SegmintError(f"{path}, line {number}: not an entry ({error}); generate again") from error
    return names


def find_classes(root: Path, items: Sequence[Item], notes: list[str], sample: int = 200) -> Classes:
    """The classes of classes.yaml; where absent, those met in a sample of the masks, which is noted.

    Raises:
        SegmintError: classes.yaml is wrong, or the masks do not tell what the classes are.
    """
    path = root / "classes.yaml"
    if path.is_file():
        return read_classes(path)
    files = _spread([mask for item in items for mask in item.masks], sample)
    if not files:
        notes.append("there are neither masks nor a classes.yaml, so there are no classes")
        return Classes.named(())
    with ThreadPoolExecutor() as pool:
        found = [values for values in pool.map(_values, files) if values is not None]
    if len({kind for kind, _ in found}) != 1:
        raise SegmintError(f"{path}: missing, and the masks are unreadable or of two kinds; run `segmint check {root}`")
    values = sorted(set[int]().union(*(members for _, members in found)))
    if found[0][0] == "colours":
        classes = _colored(path, values)
    else:
        ids = [value for value in values if value != IGNORE]
        if ids and IGNORE in values and (len(ids) < 2 or ids != list(range(len(ids)))):
            raise SegmintError(
                f"{path}: missing, and the masks hold {', '.join(map(str, ids[:8]))}{', ...' * (len(ids) > 8)} and "
                "255: is 255 a class, or unknown? Write it, e.g. `ignore: 254` and "
                "`classes: [{id: 0, name: background}, {id: 255, name: object}]`"
            )
        if not 1 <= len(ids) <= LARGEST:
            raise SegmintError(f"{path}: missing, and the masks hold {len(ids)} ids; write it, or correct the masks")
        classes = Classes.named([f"class {value}" for value in ids], ids)
    unknown = f"; {IGNORE} is taken for unknown" if IGNORE in values else ""
    notes.append(
        f"no classes.yaml: {len(classes)} classes were inferred from {len(files)} masks ({_spell(classes)}){unknown}"
    )
    return classes


def _colored(path: Path, values: list[int]) -> Classes:
    if len(values) > 64:
        raise SegmintError(f"{path}: missing, and the masks hold {len(values)} colours; write which ones are classes")
    colors = tuple((value >> 16, value >> 8 & 255, value & 255) for value in values)
    names = tuple(f"class {number}" for number in range(len(values)))
    return Classes(names, colors, tuple(range(len(values))))


def _values(path: Path) -> tuple[str, set[int]] | None:
    """Which ids or colours a mask holds; None where it cannot be read, of which `check` complains."""
    try:
        stored = read_stored_mask(path)
    except SegmintError:
        return None
    if stored.ndim == 2:
        return "ids", set(np.unique(stored).tolist())
    return "colours", set(np.unique(pack_colors(stored)).tolist())


def _probe(items: Sequence[Item], notes: list[str], sample: int = 16) -> tuple[int, int]:
    """(channels, depth) from the headers of a few images; if these have 16 bits, depth from the values of all."""
    channels, bits = 1, 8
    for item in _spread(items, sample):
        try:
            header = read_header(item.image)
            channels, bits = max(channels, header.channels), max(bits, header.bits)
        except SegmintError as error:
            notes.append(str(error))
    if bits == 8:
        return channels, 8
    files = [item.image for item in items]
    with ThreadPoolExecutor() as pool:
        return channels, remembered(["depth", stamps_of(files)], lambda: max(pool.map(_bits, files)))


def _bits(path: Path) -> int:
    """The bits that an image uses; 8 where it cannot be read, of which `check` complains."""
    try:
        return bits_used(path)
    except SegmintError:
        return 8


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most that many, evenly spread."""
    step = max(1, len(values) / most)
    return [values[int(place * step)] for place in range(min(most, len(values)))]


def _spell(classes: Classes) -> str:
    return ", ".join(f"{number}: {name}" for number, name in zip(classes.ids, classes.names, strict=True))


def _some(sentences: Sequence[str], between: str = "\n", most: int = 20) -> str:
    more = [f"and {len(sentences) - most} more"] if len(sentences) > most else []
    return between.join([*sentences[:most], *more])
