"""Which items are for training, validation and test, and which of them keep their masks under a budget."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segmint.data.io import replacing
from segmint.seeds import mix
from segmint.types import SegmintError

HELD_OUT = ("val", "test")
_BUDGET = re.compile(r"labelled-(\d+)-seed(\d+)")


def read_splits(folder: Path, known: Mapping[str, int]) -> tuple[dict[str, list[int]], list[str]]:
    """Read every splits/*.txt, one item name a line; blank lines do not count, nor comments that begin with #.

    Args:
        folder: the `splits` folder; may be absent.
        known: the index of each item by its name.

    Returns:
        Item indices by the file's name without suffix, and a sentence for everything that is wrong.
    """
    lists: dict[str, list[int]] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.txt")):
        if not (path.stem in ("train", "unlabelled", *HELD_OUT) or _BUDGET.fullmatch(path.stem)):
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read ({error}); it must be a text file in UTF-8, one name a line")
            continue
        chosen: dict[int, None] = {}
        for number, line in enumerate(lines, 1):
            name = line.strip()
            if not name or (name.startswith("#") and name not in known):
                continue
            if name not in known:
                hint = "; leave the suffix out" if name.rpartition(".")[0] in known else ""
                problems.append(f"{path}, line {number}: there is no image {name!r}{hint or '; correct or remove it'}")
            elif known[name] in chosen:
                problems.append(f"{path}, line {number}: {name!r} is listed twice; remove one")
            else:
                chosen[known[name]] = None
        lists[path.stem] = list(chosen)
    return lists, problems


def overlaps(lists: Mapping[str, Sequence[int]], names: Sequence[str]) -> list[str]:
    """A sentence for every item that is in two of train, val and test (unlabelled.txt counts as train)."""
    problems = []
    where: dict[int, str] = {}
    for split in ("train", "unlabelled", *HELD_OUT):
        for item in lists.get(split, ()):
            other = where.setdefault(item, split)
            if other != split and split in HELD_OUT:
                problems.append(f"splits: {names[item]!r} is in both {other}.txt and {split}.txt; remove it from one")
    return problems


def shared_groups(lists: Mapping[str, Sequence[int]], groups: Sequence[str]) -> dict[str, list[str]]:
    """The groups with images in more than one of train, val and test, and in which."""
    seen: dict[str, set[str]] = {}
    for split in ("train", *HELD_OUT):
        for item in lists.get(split, ()):
            seen.setdefault(groups[item], set()).add(split)
    return {group: sorted(splits) for group, splits in seen.items() if len(splits) > 1}


def complete(lists: Mapping[str, Sequence[int]], groups: Sequence[str]) -> dict[str, list[int]]:
    """The splits that the files mean.

    Whatever is listed nowhere may be trained on too, unless its group has been held out.
    """
    splits = {name: list(lists[name]) for name in HELD_OUT if name in lists}
    held = {item for members in splits.values() for item in members}
    held_groups = {groups[item] for item in held}
    listed = {item for name in ("train", "unlabelled") for item in lists.get(name, ())}
    train = (i for i, group in enumerate(groups) if i in listed or (i not in held and group not in held_groups))
    return {"train": list(train), **splits}


def make_splits(groups: Sequence[str], labelled: Iterable[int], seed: int = 0) -> dict[str, list[int]]:
    """About 70/15/15 per cent of the groups that hold labelled images; groups without any go to train.

    Of nested groups, such as patient/visit, the outermost are kept together, if there are three of these.

    Raises:
        SegmintError: fewer than three groups hold labelled images.
    """
    labelled = list(labelled)
    groups = _outermost(groups, labelled)
    order = sorted({groups[item] for item in labelled}, key=lambda group: mix(seed, "split", group))
    if len(order) < 3:
        raise SegmintError(
            f"masks: only {len(order)} group{'s' * (len(order) != 1)} of images with masks; splitting into "
            "train, val and test by group needs 3 or more: label more groups, or write splits/train.txt, "
            "val.txt and test.txt yourself"
        )
    share = max(1, round(0.15 * len(order)))
    homes = dict.fromkeys(order[:share], "val") | dict.fromkeys(order[share : 2 * share], "test")
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for item, group in enumerate(groups):
        splits[homes.get(group, "train")].append(item)
    return splits


def _outermost(groups: Sequence[str], labelled: Sequence[int]) -> list[str]:
    """The groups, cut to as few folder levels as leave three of them with labelled images."""
    for level in range(1, max((group.count("/") for group in groups), default=0) + 1):
        cut = ["/".join(group.split("/")[:level]) for group in groups]
        if len({cut[item] for item in labelled}) >= 3:
            return cut
    return list(groups)


def write_splits(folder: Path, splits: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
    """Write one text file per split, all at once: nobody ever sees only some of them.

    Raises:
        SegmintError: they cannot be written.
    """
    texts = {split: "".join(f"{names[item]}\n" for item in members) for split, members in splits.items()}
    if folder.is_dir():  # with files of budgets
        for split, text in texts.items():
            with replacing(folder / f"{split}.txt") as temporary:
                temporary.write_text(text, encoding="utf-8")
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for split, text in texts.items():
            (temporary / f"{split}.txt").write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was sooner, with the same
            raise SegmintError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def halve(members: Sequence[int], groups: Sequence[str]) -> tuple[list[int], list[int]]:
    """Two halves of a split, the same on every machine and with no group in both.

    Groups are taken in an order drawn from their names, each to the half that has fewer images; a single group is
    cut in the middle, so that few frames have their neighbours in the other half.

    Args:
        members: the split's items; `groups`: of all items.
    """
    inside: dict[str, list[int]] = {}
    for item in members:
        inside.setdefault(groups[item], []).append(item)
    if len(inside) == 1:
        ordered = sorted(members)
        return ordered[: -(-len(ordered) // 2)], ordered[-(-len(ordered) // 2) :]
    halves: tuple[list[int], list[int]] = ([], [])
    for group in sorted(inside, key=lambda group: mix("half", group)):
        halves[len(halves[1]) < len(halves[0])].extend(inside[group])
    return sorted(halves[0]), sorted(halves[1])


def choose_labelled(
    budget: int, seed: int, labelled: Sequence[int], lists: Mapping[str, Sequence[int]], names: Sequence[str]
) -> list[int]:
    """The training items that keep their masks; smaller budgets of one seed are part of larger ones.

    Args:
        budget: how many.
        seed: which of the nested sequences.
        labelled: the training items that have masks.
        lists: what `read_splits` read; a file labelled-{budget}-seed{seed} is obeyed, files of other budgets
            and the same seed are kept to as far as they reach.
        names: of all items.

    Raises:
        SegmintError: the budget is less than 1 or more than there is, or a file lists items of no use.
    """
    if not 1 <= budget <= len(labelled):
        raise SegmintError(
            f"budget: {budget} labelled images asked, but train has {len(labelled)}; ask 1..{len(labelled)}"
        )
    able = set(labelled)
    files = sorted((size, name) for name in lists if (size := _size(name, seed)))
    exact = [name for size, name in files if size == budget]
    for name in exact or [name for _, name in files]:
        if wrong := [item for item in lists[name] if item not in able]:
            raise SegmintError(_unusable(name, names[wrong[0]]))
    if exact:
        if len(lists[exact[0]]) != budget:
            raise SegmintError(_wrong_count(exact[0], len(lists[exact[0]])))
        return list(lists[exact[0]])
    order = [item for _, name in files for item in lists[name]]
    order += sorted(labelled, key=lambda item: mix(seed, "labelled", names[item]))
    return list(dict.fromkeys(order))[:budget]


def budget_problems(
    lists: Mapping[str, Sequence[int]], groups: Sequence[str], masked: Sequence[bool], names: Sequence[str]
) -> list[str]:
    """A sentence for everything that `choose_labelled` would refuse in the files of budgets."""
    train = set(complete(lists, groups)["train"])
    problems = []
    for name in lists:
        found = _BUDGET.fullmatch(name)
        if not found:
            continue
        problems += [_unusable(name, names[i]) for i in lists[name] if i not in train or not masked[i]]
        if len(lists[name]) != int(found[1]):
            problems.append(_wrong_count(name, len(lists[name])))
    return problems


def _size(name: str, seed: int) -> int:
    """The budget that a file of this name and seed is for; 0 if it is none."""
    found = _BUDGET.fullmatch(name)
    return int(found[1]) if found and int(found[2]) == seed else 0


def _unusable(file: str, name: str) -> str:
    return f"splits/{file}.txt: {name!r} is no training image with a mask; remove it there"


def _wrong_count(file: str, count: int) -> str:
    return f"splits/{file}.txt: lists {count} images; rename it to that number or complete it"
