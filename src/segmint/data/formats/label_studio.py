"""Label Studio's JSON: tasks with brushed masks or polygons, and its labelling interface as config.xml.

Read: the export "JSON" (not "JSON-MIN"), with brushes (`value.rle`) and polygons (`value.points`, in per cent of
the size); other regions are left out. Several annotations of a task are several raters; cancelled ones do not
count, nor do predictions. Images are looked for by the path or name in the task, also without the eight digits that
uploads get in front. The interface, if it lies beside as XML, tells the order of labels and their colours. The
label "ignore" is pixels of unknown class.

Written: tasks.json, one brush (or polygon) region per class (or part), an annotation per rater, and config.xml.
Images are named as local files: let Label Studio serve the folder (LOCAL_FILES_SERVING_ENABLED).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from PIL import ImageColor

from segmint.data.classes import Color
from segmint.data.exporting import Export, Sample
from segmint.data.foreign import (
    Source,
    entries,
    get,
    head,
    item_name,
    read_json,
    read_xml,
    same_size,
    split_of,
)
from segmint.data.formats.format import IGNORED, Entry, Format, Found, Label, Labels
from segmint.data.io import IMAGE_SUFFIXES, Bytes, replacing
from segmint.data.polygons import Flags, trace
from segmint.data.rle import pack_brush, unpack_brush
from segmint.data.shapes import Shape, bitmap, polygon
from segmint.types import IGNORE, SegmintError

KINDS = {"brush": "brushlabels", "polygon": "polygonlabels"}


class LabelStudio(Format):
    """Label Studio's tasks."""

    title = "Label Studio"
    layout = "a JSON list of tasks (data, annotations), the images, the interface as XML if at hand"
    keeps_raters = True

    def detect(self, source: Source) -> bool:
        """Whether a JSON file is a list that begins with a task."""
        return bool(_files(source))

    def read(self, source: Source) -> Found:
        """Read every file of tasks."""
        tasks = [task for path in _files(source) for task in _tasks(source.inside(path))]
        if not tasks:
            raise SegmintError(f"{source.root}: no list of tasks with annotations in it; export as JSON, not JSON-MIN")
        labels = Labels(_labels(source, tasks))
        left = Counter[str]()
        found = [_read_task(source, where, task, labels, left) for where, task in tasks]
        if left:
            told = ", ".join(f"{count:,} {kind}" for kind, count in left.items())
            source.notes.append(f"regions that are no labelled areas are left out ({told})")
        return Found(found, labels.labels, objects=True)

    def write(self, export: Export, folder: Path) -> None:
        """Write images/, tasks.json and config.xml."""
        writer = _Writer(export)
        tasks: list[dict[str, Any]] = []
        for sample in export.each():
            sample.link(folder / "images" / f"{sample.name}{sample.suffix}")
            tasks.append(writer.task(len(tasks) + 1, sample))
        with replacing(folder / "tasks.json") as temporary:
            temporary.write_text(json.dumps(tasks), encoding="utf-8")
        with replacing(folder / "config.xml") as temporary:
            ElementTree(writer.interface()).write(temporary, encoding="utf-8")
        if writer.unknown:
            export.notes.append('pixels of unknown class have the label "ignore"')
        export.notes.append("images are named as local files: let Label Studio serve the folder as its document root")


def _files(source: Source) -> list[Path]:
    starts = {path: head(path).lstrip() for path in source.files("*.json")}
    return [path for path, start in starts.items() if start.startswith("[") and '"annotations"' in start]


def _tasks(path: Path) -> list[tuple[str, Any]]:
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise SegmintError(f"{path}: must be a list of tasks; export as JSON")
    return [(f"{path}: [{number}]", task) for number, task in enumerate(tasks)]


def _annotations(where: str, task: Any) -> Iterator[tuple[str, Any]]:
    for place, annotation in entries(task, "annotations", where):
        get(annotation, "result", list, place)
        if not annotation.get("was_cancelled"):
            yield place, annotation


def _regions(place: str, annotation: Any) -> Iterator[tuple[str, dict[str, Any], str, list[str]]]:
    """Where, what, of which kind, and with which labels, for each region; "" for those that are no areas."""
    results = list(entries(annotation, "result", place))
    named: dict[Any, list[str]] = {}
    for _, result in results:
        if isinstance(result, dict) and result.get("type") == "labels" and isinstance(result.get("value"), dict):
            named[result.get("id")] = _texts(result["value"].get("labels"))
    for where, result in results:
        written = get(result, "type", str, where)
        if written in ("labels", "choices", "textarea", "rating"):
            continue
        kind = next((kind for kind, word in KINDS.items() if written in (kind, word)), "")
        value = get(result, "value", dict, where)
        yield where, result, kind, _texts(value.get(KINDS.get(kind, ""))) or named.get(result.get("id"), [])


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _labels(source: Source, tasks: list[tuple[str, Any]]) -> list[Label]:
    """The labels of the interface in its order, then further ones that were used, by name."""
    known = {label.name: label for path in source.root.glob("*.xml") for label in _interface(source, path)}
    used = {
        text
        for where, task in tasks
        for place, annotation in _annotations(where, task)
        for _, _, kind, texts in _regions(place, annotation)
        if kind
        for text in texts[:1]
    }
    return [*known.values(), *(Label(text) for text in sorted(used - set(known)))]


def _interface(source: Source, path: Path) -> Iterator[Label]:
    if "<View" not in head(path):
        return
    for group in read_xml(source.inside(path)).iter():
        if group.tag in ("BrushLabels", "PolygonLabels", "Labels"):
            for label in group.iter("Label"):
                yield Label(label.get("value") or "unnamed", None, _color(label.get("background")))


def _color(text: str | None) -> Color | None:
    try:
        return ImageColor.getrgb(text)[:3] if text else None
    except ValueError:
        return None


def _read_task(source: Source, where: str, task: Any, labels: Labels, left: Counter[str]) -> Entry:
    data = get(task, "data", dict, where)
    address = _address(data, where)
    image = _find(source, address, f"{where}: data")
    masks = []
    for place, annotation in _annotations(where, task):
        shapes = []
        for key, region, kind, texts in _regions(place, annotation):
            if not kind or not texts:
                left[str(region["type"])] += 1
                continue
            height, width = (get(region, f"original_{side}", int, key) for side in ("height", "width"))
            same_size(image, height, width, key)
            shapes.append(_shape(region["value"], kind, labels.place(texts[0], key), key))
        if shapes or source.empty != "unlabelled":
            masks.append(source.drawing(shapes))
    split = data.get("split")
    name = re.sub(r"^[0-9a-f]{8}-", "", address) if "/" not in address else address
    return Entry(image, item_name(name), split_of(split) if isinstance(split, str) else None, tuple(masks))


def _address(data: dict[str, Any], where: str) -> str:
    """The path of the image in a task: below the served folder for local files, the bare name for others."""
    texts = [data["image"]] if "image" in data else list(data.values())
    for text in texts:
        if not isinstance(text, str):
            continue
        parts = urlsplit(text)
        local = parse_qs(parts.query).get("d", [""])[0]
        path = PurePosixPath(local.replace("\\", "/") or unquote(parts.path))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return str(path).lstrip("/") if local else path.name
    raise SegmintError(f"{where}: data: names no image ({', '.join(IMAGE_SUFFIXES)}); export a project of images")


def _find(source: Source, address: str, where: str) -> Path:
    bare = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(address).name)
    folders = [source.root, source.root / "images"]
    if bare != PurePosixPath(address).name:
        for folder in [*folders, *source.elsewhere]:
            if not (folder / PurePosixPath(address).name).is_file() and (folder / bare).is_file():
                return source.image(bare, [folder], where)
    return source.image(address, folders, where)


def _shape(value: dict[str, Any], kind: str, label: int, where: str) -> Shape:
    if kind == "polygon":
        points = get(value, "points", list, f"{where}: value")
        return Shape(label, polygon([points], f"{where}: value.points", scale=(100, 100)))
    code = np.array(_bytes(get(value, "rle", list, f"{where}: value"), where), np.uint8)
    return Shape(label, bitmap(partial(unpack_brush, code), f"{where}: value.rle"))


def _bytes(values: list[Any], where: str) -> list[int]:
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise SegmintError(f"{where}: value.rle: must be a list of numbers 0..255; export it again")
    return values


class _Writer:
    """Makes tasks, and the interface for their labels."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.kind = "brush" if export.use_shapes("masks") == "masks" else "polygon"
        self.unknown = False

    def task(self, number: int, sample: Sample) -> dict[str, Any]:
        """A task with an annotation for each rater."""
        annotations = []
        for rater, mask in enumerate(sample.masks() if sample.labelled else ()):
            regions = [
                self._region(f"{number}-{rater}-{place}", sample, label, value)
                for place, (label, value) in enumerate(self._values(mask, sample))
            ]
            annotations.append({"result": regions, "was_cancelled": False, "ground_truth": False})
        path = quote(f"images/{sample.name}{sample.suffix}")
        data = {"image": f"/data/local-files/?d={path}", "split": sample.split}
        return {"id": number, "data": data, "annotations": annotations}

    def _values(self, mask: Bytes, sample: Sample) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.kind == "brush":
            for label in np.unique(mask).tolist():
                if label != self.export.background:
                    flags: Flags = mask == label
                    yield label, {"format": "rle", "rle": pack_brush(flags)}
            return
        height, width = sample.size
        for label, part in self.export.parts(mask):
            yield label, {"points": (trace(part) * (100 / width, 100 / height)).tolist(), "closed": True}

    def _region(self, name: str, sample: Sample, label: int, value: dict[str, Any]) -> dict[str, Any]:
        self.unknown |= label == IGNORE
        text = IGNORED[0] if label == IGNORE else self.export.classes.names[label]
        height, width = sample.size
        return {
            "id": name,
            "type": KINDS[self.kind],
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, KINDS[self.kind]: [text]},
        }

    def interface(self) -> Element:
        """The labelling interface; the background is listed too, though it is not drawn."""
        view = Element("View")
        SubElement(view, "Image", {"name": "image", "value": "$image"})
        tag = "BrushLabels" if self.kind == "brush" else "PolygonLabels"
        group = SubElement(view, tag, {"name": "label", "toName": "image"})
        classes = self.export.classes
        for name, (red, green, blue) in zip(classes.names, classes.colors, strict=True):
            SubElement(group, "Label", {"value": name, "background": f"#{red:02x}{green:02x}{blue:02x}"})
        if self.unknown:
            SubElement(group, "Label", {"value": IGNORED[0], "background": "#ffffff"})
        indent(view)
        return view
