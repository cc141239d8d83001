"""LabelMe: a JSON file beside each image, with its shapes.

Read: polygons, rectangles, circles and masks (PNG in base64); lines and points are no areas and are left out. An
image without a JSON file is unlabelled; one with a file but no shapes is background. labels.txt, if there, tells
the order of labels. `__ignore__` is pixels of unknown class and `_background_` the background, as in LabelMe's own
converters.

Written: a folder for each split, polygons with a seam to each hole, or masks; and labels.txt.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmint.data.exporting import Export, Sample
from segmint.data.foreign import Source, entries, get, head, item_name, read_json, same_size, split_of
from segmint.data.formats.format import Entry, Format, Found, Label, Labels
from segmint.data.io import replacing
from segmint.data.polygons import Flags, Patch, Size, trace
from segmint.data.shapes import Draw, Shape, bitmap, polygon
from segmint.types import IGNORE, SegmintError

AREAS = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
UNKNOWN = "__ignore__"
CORNERS = 64
"""A circle is drawn as a polygon of so many corners."""


class LabelMe(Format):
    """LabelMe's JSON files."""

    title = "LabelMe"
    layout = "NAME.json (shapes, imagePath) beside each image, labels.txt if at hand"

    def detect(self, source: Source) -> bool:
        """Whether a JSON file begins like LabelMe's."""
        return bool(_files(source, most=1))

    def read(self, source: Source) -> Found:
        """Read all JSON files, and the images beside them that have none."""
        contents = {path: _read_file(source.inside(path)) for path in _files(source)}
        if not contents:
            raise SegmintError(f"{source.root}: no JSON file of LabelMe (shapes, imagePath) in it")
        labels = Labels(_labels(source, contents))
        left = Counter[str]()
        found: list[Entry] = []
        for path, content in contents.items():
            found.append(_entry(source, path, content, labels, left))
        if left:
            told = ", ".join(f"{count:,} {kind}" for kind, count in left.items())
            source.notes.append(f"shapes that are no areas are left out ({told})")
        if source.only is None:
            found += [Entry(path, *_home(source, path)) for path in _others(source, {entry.image for entry in found})]
        return Found(found, labels.labels, objects=True)

    def write(self, export: Export, folder: Path) -> None:
        """Write images and JSON files side by side in a folder for each split, and labels.txt."""
        for sample in export.each():
            home = folder / (sample.split if sample.labelled else "unlabelled")
            image = home / f"{sample.name}{sample.suffix}"
            sample.link(image)
            if sample.labelled:
                with replacing(home / f"{sample.name}.json") as temporary:
                    temporary.write_text(json.dumps(_content(sample, export, image.name)), encoding="utf-8")
        with replacing(folder / "labels.txt") as temporary:
            temporary.write_text("\n".join([UNKNOWN, *export.classes.names]) + "\n", encoding="utf-8")


def _files(source: Source, most: int | None = None) -> list[Path]:
    found = []
    for path in source.files("**/*.json"):
        start = head(path)
        if '"shapes"' in start and start.lstrip().startswith("{"):
            found.append(path)
        if most is not None and len(found) >= most:
            break
    return found


def _read_file(path: Path) -> dict[str, Any]:
    content = read_json(path)
    get(content, "shapes", list, str(path))
    return {key: value for key, value in content.items() if key != "imageData"}


def _labels(source: Source, contents: dict[Path, dict[str, Any]]) -> list[Label]:
    """The labels of labels.txt in its order, then others that were used, by name."""
    path = source.root / "labels.txt"
    known: list[str] = []
    if path.is_file():
        lines = source.inside(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        known = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    used = {
        get(shape, "label", str, where)
        for file, content in contents.items()
        for where, shape in entries(content, "shapes", str(file))
        if shape.get("shape_type", "polygon") in AREAS
    }
    return [Label(name) for name in [*known, *sorted(used - set(known))]]


def _entry(source: Source, path: Path, content: dict[str, Any], labels: Labels, left: Counter[str]) -> Entry:
    where = str(path)
    image = source.image(get(content, "imagePath", str, where), [path.parent], f"{where}: imagePath")
    if content.get("imageHeight") is not None:
        same_size(image, get(content, "imageHeight", int, where), get(content, "imageWidth", int, where), where)
    shapes = []
    for key, shape in entries(content, "shapes", where):
        kind = shape.get("shape_type") or "polygon"
        if kind not in AREAS:
            left[str(kind)] += 1
            continue
        label = labels.place(get(shape, "label", str, key), key)
        shapes.append(Shape(label, _draw(shape, kind, key)))
    known = bool(shapes) or source.empty != "unlabelled"
    return Entry(image, *_home(source, image), (source.drawing(shapes),) if known else ())


def _others(source: Source, used: set[Path]) -> list[Path]:
    """The images without a JSON file that lie beside those with one, or in unlabelled/."""
    folders = {path.parent for path in used}
    beside = [path for path in source.images(source.root) if path.resolve().parent in folders]
    both = (path.resolve() for path in [*beside, *source.images(source.root / "unlabelled")])
    return [path for path in dict.fromkeys(both) if path not in used]


def _home(source: Source, path: Path) -> tuple[str, str | None]:
    """The name and the split of an image by its place in the source, or by its name alone if it is elsewhere."""
    real, root = path.resolve(), source.root.resolve()
    relative = real.relative_to(root) if real.is_relative_to(root) else Path(path.name)
    return item_name(relative.as_posix()), split_of(relative.parts[0]) if len(relative.parts) > 1 else None


def _draw(shape: dict[str, Any], kind: str, where: str) -> Draw:
    points = get(shape, "points", list, where)
    if kind in ("polygon", "oriented_rectangle"):
        return polygon([points], f"{where}.points")
    if len(points) != 2 or not all(_is_point(point) for point in points):
        raise SegmintError(f"{where}: points: a {kind} has two points x, y; correct or remove it")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return polygon([[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]], f"{where}.points")
    if kind == "circle":
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], 1) * np.hypot(x1 - x0, y1 - y0)
        return polygon([around + np.array([x0, y0])], f"{where}.points")
    code = get(shape, "mask", str, where)
    box = (int(y1) - int(y0) + 1, int(x1) - int(x0) + 1)
    return bitmap(partial(_decode, code, box), f"{where}.mask", int(y0), int(x0))


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(value, int | float) and abs(value) < 1e6 for value in point)
    )


def _decode(code: str, box: Size, size: Size) -> Flags:
    """A mask in base64: a PNG as large as the box, whose corners are its first and last pixels."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(code)), formats=("PNG",)) as picture:
            if (picture.height, picture.width) != box:
                raise ValueError(f"has {picture.width} x {picture.height} pixels, its points {box[1]} x {box[0]}")
            if box[0] > size[0] or box[1] > size[1]:
                raise ValueError("is larger than the image")
            flags: Flags = np.asarray(picture.convert("L")) > 0
            return flags
    except (OSError, SyntaxError) as error:
        raise ValueError("is no PNG in base64") from error


def _content(sample: Sample, export: Export, image: str) -> dict[str, Any]:
    height, width = sample.size
    shapes = [
        {
            "label": UNKNOWN if label == IGNORE else export.classes.names[label],
            **_outline(part, export.use_shapes("polygons") == "masks"),
            "group_id": None,
            "description": "",
            "flags": {},
        }
        for label, part in export.parts(sample.mask())
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _outline(part: Patch, as_mask: bool) -> dict[str, Any]:
    if not as_mask:
        return {"points": trace(part).tolist(), "shape_type": "polygon", "mask": None}
    buffer = io.BytesIO()
    Image.fromarray(part.flags.astype(np.uint8)).save(buffer, format="PNG")
    bottom, right = part.top + part.flags.shape[0] - 1, part.left + part.flags.shape[1] - 1
    return {
        "points": [[float(part.left), float(part.top)], [float(right), float(bottom)]],
        "shape_type": "mask",
        "mask": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }
