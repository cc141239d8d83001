"""Cityscapes: leftImg8bit/{split}/{city}/*_leftImg8bit.png, and the same in gtFine/ with *_gtFine_labelIds.png.

Read: Cityscapes itself becomes its 19 classes of evaluation, with their ids (labelTrainIds where there are no
labelIds); its other labels are of unknown class. With a label_colors.txt (`red green blue name`, CVAT's and
Datumaro's exports) masks hold the positions of the lines. A city is a group. Images without masks, or of
train_extra, are unlabelled.

Written: both kinds of masks; with Cityscapes' ids where the classes are its 19, else positions and a
label_colors.txt. Groups become cities.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from segmint.data.classes import Classes, Color
from segmint.data.exporting import Export
from segmint.data.foreign import Source, item_name, split_of
from segmint.data.formats.format import Entry, Format, Found, Label, Labels
from segmint.data.io import Bytes, read_stored_mask, replacing
from segmint.data.masks import to_indices, write_mask
from segmint.data.polygons import Size
from segmint.types import IGNORE, SegmintError

STANDARD: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)), (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)), (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)), (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip
"""Id, name and colour of the classes of evaluation; the position is the train id."""
OTHER_IDS = frozenset(range(34)) - {number for number, _, _ in STANDARD}
NO_CITY = "images"
"""The city of images that lie in no group."""
IMAGE, IDS, TRAIN_IDS = "_leftImg8bit", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


class Cityscapes(Format):
    """Cityscapes' fine annotations."""

    title = "Cityscapes"
    layout = "leftImg8bit/train/CITY/*_leftImg8bit.png, gtFine/train/CITY/*_gtFine_labelIds.png"

    def detect(self, source: Source) -> bool:
        """Whether there is a leftImg8bit/."""
        return _images_of(source).is_dir()

    def read(self, source: Source) -> Found:
        """Read the images of all splits, with the masks that there are."""
        path = source.root / "label_colors.txt"
        own = path.is_file()
        labels = Labels(
            _read_colors(source.inside(path)) if own else [Label(name, id, color) for id, name, color in STANDARD]
        )
        found = list(_entries(source, labels, own))
        if not own:
            source.notes.append("Cityscapes' 19 classes of evaluation; pixels of its other labels are of unknown class")
        return Found(found, labels.labels)

    def write(self, export: Export, folder: Path) -> None:
        """Write leftImg8bit/ and gtFine/, and label_colors.txt where the classes are not Cityscapes' own."""
        names = export.classes.names
        standard = sorted(names) == sorted(name for _, name, _ in STANDARD)
        order = {name: place for place, (_, name, _) in enumerate(STANDARD)}
        positions = tuple(order[name] for name in names) if standard else tuple(range(len(names)))
        ids = tuple(STANDARD[place][0] for place in positions) if standard else positions
        kinds = {
            IDS: Classes(names, export.classes.colors, ids, 0 if standard else IGNORE),
            TRAIN_IDS: Classes(names, export.classes.colors, positions),
        }
        for sample in export.each():
            group, _, last = sample.name.rpartition("/")
            home = f"{sample.split if sample.labelled else _home_of_unlabelled(sample.split)}/{_city(group)}/{last}"
            sample.link(folder / "leftImg8bit" / f"{home}{IMAGE}.png")
            if sample.labelled:
                mask = sample.mask()
                for suffix, classes in kinds.items():
                    write_mask(folder / "gtFine" / f"{home}{suffix}", mask, classes)
        if not standard:
            lines = [
                f"{' '.join(map(str, color))} {name}\n"
                for name, color in zip(names, export.classes.colors, strict=True)
            ]
            with replacing(folder / "label_colors.txt") as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
            export.notes.append("the classes are not Cityscapes' own: ids are positions in label_colors.txt")


def _images_of(source: Source) -> Path:
    """Where the images are; CVAT puts them one folder deeper."""
    deeper = source.root / "imgsFin" / "leftImg8bit"
    return deeper if deeper.is_dir() else source.root / "leftImg8bit"


def _entries(source: Source, labels: Labels, own: bool) -> Iterator[Entry]:
    base = _images_of(source)
    for image in source.images(base):
        split, *middle = image.relative_to(base).parts[:-1] or (".",)
        stem = image.stem.removesuffix(IMAGE)
        if middle == [NO_CITY]:
            middle = []
        name = item_name("/".join([*middle, f"{stem}{image.suffix}"]))
        home = None if split == "train_extra" else split_of(split)
        folder = source.root / "gtFine" / image.relative_to(base).parent
        ids, train_ids = folder / f"{stem}{IDS}", folder / f"{stem}{TRAIN_IDS}"
        if not own and split_of(split) == "test":
            masks: tuple[partial[Bytes], ...] = ()
            if ids.is_file() and not _is_dummy(source.inside(ids)):
                masks = (partial(_read_standard, ids),)
        elif own:
            path = train_ids if train_ids.is_file() else ids
            masks = (partial(_read_own, source.inside(path), labels),) if path.is_file() else ()
        elif ids.is_file():
            masks = (partial(_read_standard, source.inside(ids)),)
        else:
            masks = (partial(_read_train, source.inside(train_ids)),) if train_ids.is_file() else ()
        yield Entry(source.inside(image), name, home, masks)


def _is_dummy(path: Path) -> bool:
    """Whether a mask has no class at all, like those of Cityscapes' test images."""
    return bool((read_stored_mask(path) < STANDARD[0][0]).all())


def _read_standard(path: Path, size: Size) -> Bytes:
    numbers = tuple(number for number, _, _ in STANDARD)
    stored = read_stored_mask(path)
    if stored.ndim == 2:
        stored = stored.copy()
        for number in OTHER_IDS:
            stored[stored == number] = IGNORE
    return _indices(path, stored, Classes.named([name for _, name, _ in STANDARD], numbers))


def _read_train(path: Path, size: Size) -> Bytes:
    return _indices(path, read_stored_mask(path), Classes.named([name for _, name, _ in STANDARD]))


def _read_own(path: Path, labels: Labels, size: Size) -> Bytes:
    ids = tuple(number for number, place in enumerate(labels.all) if place != IGNORE)
    return _indices(path, read_stored_mask(path), Classes.named([label.name for label in labels.labels], ids))


def _indices(path: Path, stored: Bytes, classes: Classes) -> Bytes:
    if stored.ndim != 2:
        raise SegmintError(f"{path}: holds colours, not ids; take the file that ends in labelIds.png")
    indices, wrong = to_indices(stored, classes)
    if wrong:
        raise SegmintError(f"{path}: {wrong.replace('classes.yaml', 'label_colors.txt')}")
    return indices


def _read_colors(path: Path) -> list[Label]:
    labels: list[Label] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.split(maxsplit=3)
        if not words:
            continue
        try:
            red, green, blue = (int(word) for word in words[:3])
            if len(words) < 4 or not all(0 <= part <= 255 for part in (red, green, blue)):
                raise ValueError
        except ValueError as error:
            raise SegmintError(f"{path}, line {number}: must be red green blue name, with 0..255 each") from error
        if any(label.name == words[3].strip() for label in labels):
            raise SegmintError(f"{path}, line {number}: the name is that of a line before; change it")
        labels.append(Label(words[3].strip(), len(labels), (red, green, blue)))
    return labels


def _city(group: str) -> str:
    return group.replace("/", "-") or NO_CITY


def _home_of_unlabelled(split: str) -> str:
    return "train_extra" if split == "train" else split
