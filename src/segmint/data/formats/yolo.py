"""YOLO-seg, as ultralytics reads it: data.yaml, and for each image a text file of polygons.

A line is `class x1 y1 x2 y2 ...`, in fractions of the image's size.

Read: ultralytics' own layout, Roboflow's (train/images, train/labels) and CVAT's (lists of images in train.txt). An
image without a text file is unlabelled; an empty file means background. Lines of four numbers are boxes and are
left out.

Written: one line for each connected part, with a seam to each hole, drawn along pixels' edges. There is no way to
say that a pixel is of unknown class: such pixels are not annotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from segmint.data.exporting import Export, Sample
from segmint.data.foreign import Source, head, item_name
from segmint.data.formats.format import Entry, Format, Found, Label, Labels
from segmint.data.io import IMAGE_SUFFIXES, replacing
from segmint.data.polygons import trace
from segmint.data.shapes import Shape, polygon
from segmint.types import IGNORE, SegmintError, reason

SPLITS = ("train", "val", "test", "unlabelled")


class Yolo(Format):
    """Ultralytics' instance segmentation."""

    title = "YOLO-seg"
    layout = "data.yaml (names, train, val), images/train/ and labels/train/*.txt"

    def detect(self, source: Source) -> bool:
        """Whether there is a YAML file with names and a training split."""
        return bool(_files(source))

    def read(self, source: Source) -> Found:
        """Read the splits that data.yaml names."""
        files = _files(source)
        if len(files) != 1:
            raise SegmintError(f"{source.root}: {len(files)} YAML files with names and train; name the one to read")
        path = source.inside(files[0])
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SegmintError(f"{path}: cannot be read as YAML ({reason(error)}); correct it") from error
        labels = Labels([Label(name, number) for number, name in enumerate(_names(path, content))])
        found = [entry for split in SPLITS for entry in _read_split(source, path, content, split, labels)]
        return Found(found, labels.labels, objects=True)

    def write(self, export: Export, folder: Path) -> None:
        """Write images/, labels/ and data.yaml, which ultralytics takes as it is."""
        export.use_shapes("polygons", only=True)
        places = {index: place for place, index in enumerate(export.objects)}
        unknown = 0
        for sample in export.each():
            unknown += _write_sample(sample, export, folder, places)
        if unknown:
            export.notes.append(
                f"{unknown:,} pixels of unknown class are not annotated: YOLO takes them for background"
            )
        written = ["unlabelled"] if any(not sample.labelled for sample in export.samples) else []
        content: dict[str, Any] = {split: f"images/{split}" for split in [*export.splits, *written]}
        if "val" not in content:
            export.notes.append("there is no val, without which ultralytics does not train; name one in data.yaml")
        content["names"] = {place: export.classes.names[index] for index, place in places.items()}
        with replacing(folder / "data.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _files(source: Source) -> list[Path]:
    found = source.files("*.yaml", "*.yml")
    return [path for path in found if "names:" in (start := head(path)) and ("train:" in start or "val:" in start)]


def _names(path: Path, content: Any) -> list[str]:
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise SegmintError(f"{path}: names: must be a list, or like {{0: person, 1: car}} without gaps; correct it")
    if len({str(name) for name in names}) < len(names):
        raise SegmintError(f"{path}: names: one name stands for two classes; rename one")
    return [str(name) for name in names]


def _read_split(source: Source, path: Path, content: dict[str, Any], split: str, labels: Labels) -> Iterator[Entry]:
    given = content.get(split) or []
    boxes = 0
    for place in given if isinstance(given, list) else [given]:
        for image, name in _images(source, path, content, str(place), split):
            text = _label_file(image)
            shapes: list[Shape] | None = None
            if text.is_file():
                shapes, left = _read_lines(source.inside(text), labels)
                boxes += left
            if source.empty is not None and not shapes:
                shapes = [] if source.empty == "background" else None
            masks = () if shapes is None or split == "unlabelled" else (source.drawing(shapes),)
            yield Entry(source.inside(image), name, None if split == "unlabelled" else split, masks)
    if boxes:
        source.notes.append(f"{split}: {boxes:,} boxes are left out; only outlines are read")


def _images(source: Source, path: Path, content: dict[str, Any], place: str, split: str) -> Iterator[tuple[Path, str]]:
    """The images of a folder or of a list in a text file, with their names."""
    target = _resolve(path, content, place, split)
    if target.is_dir():
        for image in source.images(target):
            yield image, item_name(image.relative_to(target).as_posix())
        return
    try:
        lines = source.inside(target).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SegmintError(f"{path}: {split}: cannot read {target} ({reason(error)}); correct the name") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _listed(source, path, target, line.strip(), number), item_name(line.strip())


def _resolve(path: Path, content: dict[str, Any], place: str, split: str) -> Path:
    """The folder or list of a split, read as ultralytics does: Roboflow writes one "../" too many."""
    bases = [path.parent / str(content.get("path") or "."), path.parent]
    bare = place.removeprefix("./")
    while bare.startswith("../"):
        bare = bare[3:]
    for base in bases:
        for name in (place, bare):
            if (base / name).exists():
                return base / name
    raise SegmintError(f"{path}: {split}: there is no {place!r} beside the file; correct it or remove the key")


def _listed(source: Source, path: Path, target: Path, line: str, number: int) -> Path:
    """An image of a list: relative to the list or to data.yaml, where older exports put "data/" in front."""
    for name in (line, line.removeprefix("data/")):
        for base in (target.parent, path.parent):
            if (base / name).is_file() and (base / name).suffix.lower() in IMAGE_SUFFIXES:
                source.inside(base / name)
                return base / name
    raise SegmintError(f"{target}, line {number}: there is no image {line!r}; correct or remove the line")


def _label_file(image: Path) -> Path:
    """The text file of an image: its path with the last "images" turned into "labels"."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_lines(path: Path, labels: Labels) -> tuple[list[Shape], int]:
    """The shapes of a text file, and the number of boxes in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SegmintError(f"{path}: cannot be read ({reason(error)}); export it again") from error
    shapes: list[Shape] = []
    boxes = 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        where = f"{path}, line {number}"
        if not words:
            continue
        try:
            label, values = int(float(words[0])), [float(word) for word in words[1:]]
        except (ValueError, OverflowError) as error:
            raise SegmintError(f"{where}: {words[0]!r} and what follows must be numbers; export it again") from error
        if not 0 <= label < len(labels.all):
            raise SegmintError(f"{where}: class {label} is not among the {len(labels.all)} names of data.yaml; add it")
        if len(values) == 4:
            boxes += 1
            continue
        shapes.append(Shape(labels.all[label], polygon([values], where, scale=(1, 1))))
    return shapes, boxes


def _write_sample(sample: Sample, export: Export, folder: Path, places: dict[int, int]) -> int:
    """Write an image and its lines; how many pixels are of unknown class."""
    home = sample.split if sample.labelled else "unlabelled"
    sample.link(folder / "images" / home / f"{sample.name}{sample.suffix}")
    if not sample.labelled:
        return 0
    height, width = sample.size
    lines, unknown = [], 0
    for label, part in export.parts(sample.mask()):
        if label == IGNORE:
            unknown += int(part.flags.sum())
            continue
        corners = (trace(part) / (width, height)).reshape(-1).tolist()
        lines.append(f"{places[label]} " + " ".join(f"{value:.8g}" for value in corners))
    with replacing(folder / "labels" / home / f"{sample.name}.txt") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return unknown
