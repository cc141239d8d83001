"""Pascal VOC: masks as coloured PNG in SegmentationClass/, lists of names in ImageSets/Segmentation/.

Read: VOC itself (21 classes, 255 for borders), and with a labelmap.txt (`name:red,green,blue:parts:actions`) the
exports of CVAT ("Segmentation mask 1.1") and others, where a pixel's colour tells its class. Images that have no
mask are unlabelled.

Written: palette PNG with class indices, 255 where the class is unknown, and a labelmap.txt. Images become JPEG, as
VOC's readers expect.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from segmint.data.classes import LARGEST, Classes, Color
from segmint.data.exporting import Export
from segmint.data.foreign import Source, item_name, split_of
from segmint.data.formats.format import Entry, Format, Found, Label, Labels
from segmint.data.io import Bytes, read_stored_mask, replacing
from segmint.data.masks import pack_colors, read_mask, to_indices, write_mask
from segmint.data.polygons import Size
from segmint.types import IGNORE, SegmintError, reason

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID: Color = (224, 224, 192)


class Voc(Format):
    """Pascal VOC's segmentation."""

    title = "Pascal VOC"
    layout = "JPEGImages/, SegmentationClass/*.png, ImageSets/Segmentation/train.txt, labelmap.txt (not in VOC itself)"

    def detect(self, source: Source) -> bool:
        """Whether there is a SegmentationClass/."""
        return bool(_roots(source))

    def read(self, source: Source) -> Found:
        """Read the masks, and the images without masks beside them."""
        roots = _roots(source)
        if len(roots) != 1:
            raise SegmintError(f"{source.root}: {len(roots)} folders SegmentationClass in it; name the folder of one")
        root = roots[0]
        colors = root / "labelmap.txt"
        mapped = colors.is_file()
        labels = Labels(_read_labelmap(source.inside(colors)) if mapped else _standard())
        classes = _by_position(labels)
        images = {
            image.relative_to(root / "JPEGImages").with_suffix("").as_posix(): image for image in _all(source, root)
        }
        splits = _splits(source, root)
        found = []
        for path in source.images(root / "SegmentationClass"):
            name = path.relative_to(root / "SegmentationClass").with_suffix("").as_posix()
            image = images.pop(name, None) or _elsewhere(source, root, name, path)
            mask = partial(_by_color if mapped else _by_index, path, labels, classes)
            found.append(Entry(source.inside(image), item_name(f"{name}{image.suffix}"), splits.get(name), (mask,)))
        found += [
            Entry(source.inside(image), item_name(f"{name}{image.suffix}"), splits.get(name))
            for name, image in images.items()
        ]
        return Found(found, labels.labels)

    def write(self, export: Export, folder: Path) -> None:
        """Write JPEGImages/, SegmentationClass/, ImageSets/Segmentation/ and labelmap.txt."""
        names, colors = export.classes.names, export.classes.colors
        if wrong := [name for name in names if ":" in name or name.startswith("#")]:
            raise SegmintError(f"classes: {wrong[0]!r} cannot be written to labelmap.txt; rename it without : and #")
        void = VOID if VOID not in colors else None
        classes = Classes(names, colors, tuple(range(len(names))), IGNORE, void)
        encoded = 0
        for sample in export.each():
            encoded += sample.suffix != ".jpg"
            sample.link(folder / "JPEGImages" / f"{sample.name}.jpg")
            if sample.labelled:
                write_mask(folder / "SegmentationClass" / f"{sample.name}.png", sample.mask(), classes)
        for split, samples in export.splits.items():
            with replacing(folder / "ImageSets" / "Segmentation" / f"{split}.txt") as temporary:
                temporary.write_text("".join(f"{sample.name}\n" for sample in samples), encoding="utf-8")
        lines = [f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(names, colors, strict=True)]
        with replacing(folder / "labelmap.txt") as temporary:
            temporary.write_text("# label:color_rgb:parts:actions\n" + "".join(lines), encoding="utf-8")
        if encoded:
            export.notes.append(f"{encoded:,} images were encoded as JPEG of quality 95, which VOC asks for")


def _roots(source: Source) -> list[Path]:
    places = [source.root, *source.root.glob("VOC*"), *source.root.glob("VOCdevkit/VOC*")]
    return sorted({place for place in places if (place / "SegmentationClass").is_dir()})


def _all(source: Source, root: Path) -> list[Path]:
    return source.images(root / "JPEGImages")


def _elsewhere(source: Source, root: Path, name: str, mask: Path) -> Path:
    """The image of a mask that has none in JPEGImages/: exports without images leave them to the user."""
    for suffix in (".jpg", ".png", ".jpeg", ".tif", ".webp"):
        for place in (root / "images", root, *source.elsewhere):
            if (place / f"{name}{suffix}").is_file():
                return place / f"{name}{suffix}"
    raise SegmintError(f"{mask}: there is no image of this name in {root / 'JPEGImages'}; say where with --images")


def _splits(source: Source, root: Path) -> dict[str, str]:
    """The split of each name that is in train.txt, val.txt or test.txt."""
    homes: dict[str, str] = {}
    for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        split = split_of(path.stem)
        if split is None:
            continue
        try:
            lines = source.inside(path).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise SegmintError(f"{path}: cannot be read ({reason(error)}); it must be text, one name a line") from error
        for line in lines:
            name = line.strip().strip('"')
            if name and homes.setdefault(name, split) != split:
                raise SegmintError(f"{path}: {name!r} is in {homes[name]}.txt too; remove it from one")
    return homes


def _standard() -> list[Label]:
    """VOC's classes, with the colours that its colour map gives them: the id's bits, spread over the channels."""
    labels = []
    for number, name in enumerate(NAMES):
        channels = [sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)]
        labels.append(Label(name, number, (channels[0], channels[1], channels[2])))
    return labels


def _read_labelmap(path: Path) -> list[Label]:
    labels: list[Label] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(part) for part in rest.split(":")[0].split(","))
            if not all(0 <= part <= 255 for part in (red, green, blue)):
                raise ValueError
        except ValueError as error:
            raise SegmintError(f"{path}, line {number}: must be name:red,green,blue:: with 0..255 each") from error
        if any(label.name == name or label.color == (red, green, blue) for label in labels):
            raise SegmintError(f"{path}, line {number}: the name or colour is that of a line before; change it")
        labels.append(Label(name, len(labels), (red, green, blue)))
    return labels


def _by_position(labels: Labels) -> Classes:
    """The labels as classes whose masks hold positions, or the labels' own colours."""
    colors = [label.color or (0, 0, 0) for label in labels.labels]
    names = tuple(label.name for label in labels.labels)
    ids = tuple(number for number, place in enumerate(labels.all) if place != IGNORE)
    return Classes(names, tuple(colors), ids, IGNORE, None if VOID in colors else VOID)


def _by_index(path: Path, labels: Labels, classes: Classes, size: Size) -> Bytes:
    return read_mask(path, classes)


def _by_color(path: Path, labels: Labels, classes: Classes, size: Size) -> Bytes:
    """Class indices by a mask's colours; by its grey values where it has none."""
    stored = read_stored_mask(path)
    palette = _palette(path)
    if stored.ndim == 2 and palette is not None:
        codes = {int(pack_colors(np.array(color, np.uint8))): index for index, color in enumerate(classes.colors)}
        table = np.array([codes.get(int(code), LARGEST) for code in pack_colors(palette)], np.uint8)
        void = (table == LARGEST) & ((np.arange(256) == IGNORE) | (palette == VOID).all(1))
        table[void] = IGNORE
        if (table[stored] != LARGEST).all():
            return table[stored]
        stored = palette[stored]
    indices, wrong = to_indices(stored, classes)
    if wrong:
        raise SegmintError(f"{path}: {wrong.replace('classes.yaml', 'labelmap.txt')}")
    return indices


def _palette(path: Path) -> Bytes | None:
    """uint8 [256, 3], black where the file says nothing; None for images without a palette."""
    with Image.open(path) as picture:
        if picture.mode != "P":
            return None
        values = picture.getpalette("RGB") or []
    palette = np.zeros(768, np.uint8)
    palette[: len(values)] = values[:768]
    return palette.reshape(256, 3)
