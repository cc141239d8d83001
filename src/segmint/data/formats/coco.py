"""COCO: one JSON file for each split, with polygons or run-length codes (cocodataset.org, "Data format").

Read: `annotations/instances_*.json` as in COCO itself and in CVAT's exports, `*/_annotations.coco.json` beside the
images as in Roboflow's, or any other JSON with `images` and `categories`. An image that a file with `annotations`
lists without any is background, as in COCO; images of a file without the key `annotations` are unlabelled. A crowd
(`iscrowd`) is pixels of its class like any other; the category "ignore" is pixels of unknown class. Boxes without
an outline are left out.

Written: one object for each connected part; polygons with a seam to each hole, which pycocotools draws as exactly
the mask, or compressed run-length codes. Pixels of unknown class are a crowd of the category "ignore", which
training programs leave out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segmint.data.classes import Color
from segmint.data.exporting import Export, Sample
from segmint.data.foreign import Source, entries, get, head, item_name, read_json, same_size, split_of
from segmint.data.formats.format import IGNORED, Entry, Format, Found, Label, Labels
from segmint.data.io import replacing
from segmint.data.polygons import Flags, Patch, Size, trace
from segmint.data.rle import from_counts, pack_counts, to_counts, unpack_counts
from segmint.data.shapes import Draw, Shape, bitmap, polygon
from segmint.types import IGNORE, SegmintError

PATTERNS = ("annotations/*.json", "*.json", "*/_annotations.coco.json", "_annotations.coco.json")


class Coco(Format):
    """COCO's instances."""

    title = "COCO"
    layout = "annotations/instances_train.json and images/, or train/_annotations.coco.json beside the images"

    def detect(self, source: Source) -> bool:
        """Whether a JSON file begins like COCO's."""
        return bool(_files(source))

    def read(self, source: Source) -> Found:
        """Read every file of instances; categories are matched by name across files."""
        contents = {path: read_json(source.inside(path)) for path in _files(source)}
        if not contents:
            raise SegmintError(f"{source.root}: no COCO file (images, categories) in it or its annotations/")
        known: dict[str, Label] = {}
        for path, content in contents.items():
            for label in _categories(path, content).values():
                known.setdefault(label.name, label)
        labels = Labels(known.values())
        found: list[Entry] = []
        for path, content in contents.items():
            found += _read_file(source, path, content, labels)
        return Found(found, labels.labels, objects=True)

    def write(self, export: Export, folder: Path) -> None:
        """Write images/, annotations/instances_{split}.json, and image_info_unlabelled.json where there are such."""
        writer = _Writer(export)
        for sample in export.each():
            writer.add(sample, folder)
        writer.finish(folder / "annotations")


def _files(source: Source) -> list[Path]:
    """The files of instances; captions and keypoints describe the same images once more."""
    found = []
    for path in source.files(*PATTERNS):
        start = head(path)
        keys = sum(
            f'"{key}"' in start for key in ("images", "annotations", "categories", "licenses", "info", "file_name")
        )
        if start.lstrip().startswith("{") and keys >= 2 and '"shapes"' not in start:
            found.append(path)
    instances = [path for path in found if path.name.startswith("instances")]
    known = [path for path in found if path.name.startswith("image_info")]
    others = [path for path in found if not path.name.startswith(("captions", "person_keypoints", "panoptic"))]
    return instances + known if instances else others


def _categories(path: Path, content: Any) -> dict[int, Label]:
    if isinstance(content, Mapping) and "categories" not in content and "annotations" not in content:
        return {}
    found: dict[int, Label] = {}
    for where, entry in entries(content, "categories", str(path)):
        number = get(entry, "id", int, where)
        if number in found:
            raise SegmintError(f"{where}: id: {number} is already another category's; export again")
        name = get(entry, "name", str, where)
        twin = any(label.name == name for label in found.values())
        found[number] = Label(f"{name} {number}" if twin else name, number, _color(entry))
    return found


def _color(entry: Any) -> Color | None:
    color = entry.get("color")
    if isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color):
        return color[0], color[1], color[2]
    return None


def _read_file(source: Source, path: Path, content: Any, labels: Labels) -> Iterator[Entry]:
    places = {number: labels.place(label.name, str(path)) for number, label in _categories(path, content).items()}
    shapes: dict[int, list[Shape]] = {}
    boxes = 0
    images = {get(image, "id", int, where): (where, image) for where, image in entries(content, "images", str(path))}
    annotated = "annotations" in content
    for where, entry in entries(content, "annotations", str(path)) if annotated else ():
        number, category = get(entry, "image_id", int, where), get(entry, "category_id", int, where)
        if number not in images:
            raise SegmintError(f"{where}: image_id: there is no image {number} in the file; remove it or export again")
        if category not in places:
            raise SegmintError(f"{where}: category_id: there is no category {category} in the file; export again")
        if not entry.get("segmentation"):
            boxes += 1
            continue
        draw = _draw(entry["segmentation"], f"{where}.segmentation")
        shapes.setdefault(number, []).append(Shape(places[category], draw))
    if boxes:
        source.notes.append(f"{path.name}: {boxes:,} annotations without an outline (boxes only) are left out")
    split = split_of(path.stem, path.parent.name if path.name.startswith("_annotations") else "")
    missing = 0
    for number, (where, image) in images.items():
        file = source.image(get(image, "file_name", str, where), _folders(source, path), where)
        same_size(file, get(image, "height", int, where), get(image, "width", int, where), where)
        known = annotated and (number in shapes or source.empty != "unlabelled")
        missing += known and number not in shapes
        masks = (source.drawing(shapes.get(number, [])),) if known else ()
        yield Entry(file, item_name(image["file_name"]), split, masks)
    if missing:
        source.notes.append(
            f"{path.name}: {missing:,} images without annotations count as background (else: --empty unlabelled)"
        )


def _folders(source: Source, path: Path) -> list[Path]:
    """Where a file's images may lie: COCO's own folders, CVAT's, FiftyOne's and Roboflow's."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    subset = path.stem.rpartition("_")[2]
    folders = [root / "images" / subset, root / subset, root / "images", root, root / "data"]
    return [*folders, source.root / "images" / subset, source.root / "images", source.root]


def _draw(segmentation: Any, where: str) -> Draw:
    """Polygons as [[x, y, ...], ...], or {"size": [height, width], "counts": [...] or "..."}."""
    if isinstance(segmentation, list):
        rings = [segmentation] if segmentation and isinstance(segmentation[0], int | float) else segmentation
        return polygon(rings, where)
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, list | str):
        raise SegmintError(f"{where}: must be polygons or have counts, a list or a text; export it again")
    return bitmap(partial(_decode, counts, get(segmentation, "size", list, where)), where)


def _decode(counts: list[int] | str, size: list[Any], real: Size) -> Flags:
    if size != list(real):
        raise ValueError(f"size: is {size}, but the image is {list(real)} (height, width)")
    return from_counts(unpack_counts(counts) if isinstance(counts, str) else counts, real, columns=True)


class _Writer:
    """Collects one content for each split."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.shapes = export.use_shapes("polygons")
        shift = any(export.classes.ids[index] == 0 for index in export.objects)
        self.ids = {index: export.classes.ids[index] + shift for index in export.objects}
        self.contents: dict[str, dict[str, Any]] = {}
        self.unknown = False
        self.images = self.objects = 0

    def add(self, sample: Sample, folder: Path) -> None:
        """Put an image there, and its objects into the content of its split."""
        file = f"{sample.name}{sample.suffix}"
        sample.link(folder / "images" / file)
        split = sample.split if sample.labelled else "unlabelled"
        content = self.contents.setdefault(split, {"images": [], "annotations": []})
        self.images += 1
        height, width = sample.size
        content["images"].append({"id": self.images, "file_name": file, "width": width, "height": height})
        for label, part in self.export.parts(sample.mask()) if sample.labelled else ():
            self.objects += 1
            content["annotations"].append(self._object(label, part, sample.size))

    def _object(self, label: int, part: Patch, size: Size) -> dict[str, Any]:
        unknown = label == IGNORE
        self.unknown |= unknown
        height, width = part.flags.shape
        if unknown or self.shapes == "masks":
            whole = np.zeros(size, bool)
            whole[part.top : part.top + height, part.left : part.left + width] = part.flags
            code: Any = {"size": list(size), "counts": pack_counts(to_counts(whole, columns=True))}
        else:
            code = [trace(part).astype(int).reshape(-1).tolist()]
        return {
            "id": self.objects,
            "image_id": self.images,
            "category_id": max(self.ids.values(), default=0) + 1 if unknown else self.ids[label],
            "segmentation": code,
            "area": int(part.flags.sum()),
            "bbox": [part.left, part.top, width, height],
            "iscrowd": int(unknown),
        }

    def finish(self, folder: Path) -> None:
        """Write the files."""
        classes = self.export.classes
        categories = [
            {"id": self.ids[index], "name": classes.names[index], "supercategory": "", "color": classes.colors[index]}
            for index in self.export.objects
        ]
        if self.unknown:
            categories.append({"id": max(self.ids.values(), default=0) + 1, "name": IGNORED[0], "supercategory": ""})
            self.export.notes.append('pixels of unknown class are a crowd of the category "ignore"')
        for split, content in self.contents.items():
            info = {"info": {"description": "written by segmint"}, "licenses": [], **content, "categories": categories}
            name = f"instances_{split}.json"
            if split == "unlabelled":
                name = f"image_info_{split}.json"
                del info["annotations"]
            with replacing(folder / name) as temporary:
                temporary.write_text(json.dumps(info), encoding="utf-8")
