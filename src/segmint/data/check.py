"""Read every file of a data folder once and say all that is wrong with it, and what is odd."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from segmint.data.cache import each, size_text
from segmint.data.folder import Classes, Item, find_classes, rejected
from segmint.data.io import Array, read_stored_image, read_stored_mask
from segmint.data.listing import Listing, scan
from segmint.data.masks import palette_conflict, to_indices
from segmint.data.splits import HELD_OUT, budget_problems, complete, overlaps, read_splits, shared_groups
from segmint.types import SegmintError

RARE = 0.001
"""A class with a smaller share of the labelled pixels is called nearly empty."""


@dataclass
class Findings:
    """What `check` found.

    Attributes:
        root: the folder.
        problems: everything that is wrong, a sentence each, to be mended before the folder is used.
        oddities: what is worth knowing but not wrong.
        classes: what a pixel can be; None where that could not be learnt.
        shares: K shares of the labelled pixels; `split_shares`: the same within each split.
        sizes: how many images there are of each (height, width).
        counts: for each split, and "all": images, labelled, unlabelled and groups.
        raters: how many images have so many masks.
        channels: how many images are grey (1) and coloured (3).
    """

    root: Path
    problems: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    classes: Classes | None = None
    shares: tuple[float, ...] = ()
    split_shares: dict[str, tuple[float, ...]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    raters: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)

    @property
    def table(self) -> RenderableType:
        """Counts, sizes, class shares, problems and oddities, to be printed by `rich`."""
        from segmint.data.table import render

        return render(self)


@dataclass(frozen=True)
class _Seen:
    """What one item's files turned out to hold."""

    problems: tuple[str, ...]
    size: tuple[int, int] | None = None
    channels: int = 0
    digest: bytes = b""
    counts: Array | None = None


def check(root: str | Path, progress: bool = False) -> Findings:
    """Check a data folder; reads every file once and changes nothing.

    Args:
        root: the folder.
        progress: show a bar on stderr.
    """
    found = Findings(Path(root))
    try:
        listing = scan(found.root)
    except SegmintError as error:
        found.problems.append(str(error))
        return found
    found.problems += listing.doubles
    found.problems += [f"{path}: mask without image; add the image or remove the mask" for path in listing.strays]
    _odd_files(found, listing)
    try:
        found.classes = find_classes(found.root, listing.items, found.oddities)
    except SegmintError as error:
        found.problems.append(str(error))
    lists = _check_splits(found, listing.items)
    seen = list(each(lambda item: _look(item, found.classes), listing.items, "checking", progress))
    found.problems += [problem for one in seen for problem in one.problems]
    splits = complete(lists, [item.group for item in listing.items]) if set(lists) & {"train", *HELD_OUT} else {}
    _count(found, listing.items, splits, seen)
    _check_classes(found, listing.items, seen, splits)
    _odd_images(found, listing.items, seen, splits)
    return found


def _look(item: Item, classes: Classes | None) -> _Seen:
    """Decode an item's image and masks."""
    problems: list[str] = []
    image: Array | None = None
    digest = b""
    try:
        image = read_stored_image(item.image)
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    except SegmintError as error:
        problems.append(str(error))
    counts = np.zeros(256, np.int64)
    for path in item.masks:
        try:
            stored = read_stored_mask(path)
        except SegmintError as error:
            problems.append(str(error))
            continue
        if image is not None and stored.shape[:2] != image.shape[:2]:
            problems.append(size_text(path, stored, item.image, image))
        if classes is not None:
            indices, wrong = to_indices(stored, classes)
            counts += np.bincount(indices.ravel(), minlength=256)
            if wrong := wrong or palette_conflict(path, stored, classes):
                problems.append(f"{path}: {wrong}")
    size = None if image is None else (image.shape[0], image.shape[1])
    channels = 0 if image is None else image.shape[2]
    return _Seen(
        tuple(problems),
        size,
        channels,
        digest,
        None if classes is None else counts[: len(classes)].copy(),
    )


def _check_splits(found: Findings, items: Sequence[Item]) -> dict[str, list[int]]:
    names = [item.name for item in items]
    lists, problems = read_splits(found.root / "splits", {name: index for index, name in enumerate(names)})
    problems += overlaps(lists, names)
    groups = [item.group for item in items]
    for group, splits in shared_groups(lists, groups).items():
        problems.append(
            f"splits: group {group!r} is in {' and '.join(splits)}: one group in two splits makes the "
            "figures on held-out images too good; move the whole group into one"
        )
    for split in HELD_OUT:
        bare = [names[index] for index in lists.get(split, ()) if not items[index].masks]
        if bare:
            found.oddities.append(
                f"splits/{split}.txt: {len(bare):,} image{'s' * (len(bare) > 1)} without a mask, held out but not "
                f"scored, e.g. {bare[0]!r}"
            )
    problems += budget_problems(lists, groups, [bool(item.masks) for item in items], names)
    found.problems += problems
    try:
        rejected(found.root)
    except SegmintError as error:
        found.problems.append(str(error))
    return lists


def _odd_files(found: Findings, listing: Listing) -> None:
    if listing.others:
        few = ", ".join(str(path.relative_to(found.root)) for path in listing.others[:5])
        more = ", ..." if len(listing.others) > 5 else ""
        found.oddities.append(f"{len(listing.others):,} files of other kinds are not read: {few}{more}")


def _count(found: Findings, items: Sequence[Item], splits: dict[str, list[int]], seen: Sequence[_Seen]) -> None:
    found.sizes.update(one.size for one in seen if one.size is not None)
    found.channels.update(one.channels for one in seen if one.channels)
    found.raters.update(len(item.masks) for item in items if item.masks)
    for name, members in {**splits, "all": list(range(len(items)))}.items():
        labelled = sum(bool(items[index].masks) for index in members)
        found.counts[name] = {
            "images": len(members),
            "labelled": labelled,
            "unlabelled": len(members) - labelled,
            "groups": len({items[index].group for index in members}),
        }


def _check_classes(found: Findings, items: Sequence[Item], seen: Sequence[_Seen], splits: dict[str, list[int]]) -> None:
    """Shares of the classes, and which of them were never or hardly seen, at all or in training."""
    if not found.raters:
        found.oddities.append("no image has a mask, so nothing can be learnt from labels")
    if found.classes is None or not found.raters or not len(found.classes):
        return

    counts = np.array([one.counts for one in seen])

    def total(members: Sequence[int]) -> tuple[float, ...]:
        chosen = counts[members].sum(0)
        return tuple((chosen / max(1, chosen.sum())).tolist())

    found.shares = total(list(range(len(items))))
    found.split_shares = {name: total(members) for name, members in splits.items()}
    generated = (found.root / "manifest.jsonl").is_file()
    for number, (name, share) in enumerate(zip(found.classes.names, found.shares, strict=True)):
        told = f"class {name!r} (id {found.classes.ids[number]})"
        if share == 0 and generated:
            found.oddities.append(f"{told} is in none of the generated masks")
        elif share == 0:
            found.problems.append(f"{told} is never seen in any mask; correct classes.yaml or label some")
        elif "train" in splits and found.split_shares["train"][number] == 0:
            found.oddities.append(f"{told} is never seen in the training labels, only in the others")
        elif share < RARE:
            found.oddities.append(f"{told} is nearly empty: {share:.3%} of the labelled pixels")


def _odd_images(found: Findings, items: Sequence[Item], seen: Sequence[_Seen], splits: dict[str, list[int]]) -> None:
    if len(found.sizes) > 1:
        low, high = (tuple(edge(side) for side in zip(*found.sizes, strict=True)) for edge in (min, max))
        found.oddities.append(
            f"images are of {len(found.sizes):,} sizes, {low[1]} to {high[1]} wide and {low[0]} to {high[0]} "
            "high; they are resized to one"
        )
    if len(found.channels) > 1:
        few = min(found.channels, key=lambda channels: found.channels[channels])
        found.oddities.append(
            f"{found.channels[few]:,} images are {'grey' if few == 1 else 'coloured'}, the others not"
        )
    if len(found.raters) > 1:
        spread = ", ".join(f"{count:,} images have {number}" for number, count in sorted(found.raters.items()))
        found.oddities.append(f"the number of masks per image varies: {spread}")
    blank = sum(
        bool(item.masks) and one.counts is not None and not one.counts.sum()
        for item, one in zip(items, seen, strict=True)
    )
    if blank:
        found.oddities.append(f"{blank:,} images have masks in which every pixel is unknown")
    found.oddities += _duplicates(items, seen, splits)
    groups = len({item.group for item in items if item.masks})
    if found.raters and not splits and groups < 3 and not (found.root / "manifest.jsonl").is_file():
        found.oddities.append(f"only {groups} groups have masks and there are no splits; making splits needs 3 groups")


def _duplicates(items: Sequence[Item], seen: Sequence[_Seen], splits: dict[str, list[int]]) -> Iterator[str]:
    """A sentence on every image that is in two splits, pixel by pixel; one on the number of other copies."""
    home = {index: name for name, members in splits.items() for index in members}
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, one in enumerate(seen):
        if one.digest:
            same[one.digest + repr(one.size).encode()].append(index)
    copies = 0
    for members in same.values():
        if len({home.get(index, "") for index in members}) > 1:
            told = " and ".join(f"{items[index].name!r} ({home.get(index, 'no split')})" for index in members[:6])
            yield f"one image in two splits: {told} are the same pixel by pixel"
        else:
            copies += len(members) - 1
    if copies:
        yield (f"{copies:,} images are exact copies of others" if copies > 1 else "1 image is a copy of another")
