"""CVAT's own XML, "CVAT for images 1.1": polygons and masks of each image, in annotations.xml.

Read: `polygon` (points "x,y;x,y;...") and `mask` (run-length code, row by row, in a box); other shapes are left
out. Higher `z_order` lies on top. An image with neither shapes nor tags is unlabelled: CVAT lists images that
nobody has looked at too. The label "ignore" is pixels of unknown class.

Written: masks, or polygons with a seam to each hole; the image's split as its subset. A mask without any object
gets the tag of the background, so that it is known from an unlabelled image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from segmint.data.classes import Color
from segmint.data.exporting import Export, Sample
from segmint.data.foreign import Source, attribute, head, item_name, read_xml, same_size, split_of
from segmint.data.formats.format import IGNORED, Entry, Format, Found, Label, Labels
from segmint.data.io import replacing
from segmint.data.polygons import Flags, Patch, Size, trace
from segmint.data.rle import from_counts, to_counts
from segmint.data.shapes import Shape, bitmap, polygon
from segmint.types import IGNORE, SegmintError


class Cvat(Format):
    """CVAT for images 1.1."""

    title = "CVAT for images"
    layout = "annotations.xml (image, polygon, mask) and images/"

    def detect(self, source: Source) -> bool:
        """Whether there is an XML file of annotations."""
        return bool(_files(source))

    def read(self, source: Source) -> Found:
        """Read every annotations.xml; labels are matched by name."""
        files = {path: read_xml(source.inside(path)) for path in _files(source)}
        if not files:
            raise SegmintError(f"{source.root}: no annotations.xml of CVAT in it")
        known = {label.name: label for path, root in files.items() for label in _labels(path, root)}
        labels = Labels(known.values())
        found = [entry for path, root in files.items() for entry in _read_file(source, path, root, labels)]
        return Found(found, labels.labels, objects=True)

    def write(self, export: Export, folder: Path) -> None:
        """Write images/ and annotations.xml."""
        root = Element("annotations")
        SubElement(root, "version").text = "1.1"
        task = SubElement(SubElement(root, "meta"), "task")
        unknown = False
        for number, sample in enumerate(export.each()):
            name = f"{sample.name}{sample.suffix}"
            sample.link(folder / "images" / name)
            height, width = sample.size
            facts = {
                "id": str(number),
                "name": name,
                "subset": sample.split,
                "width": str(width),
                "height": str(height),
            }
            unknown |= _write_image(SubElement(root, "image", facts), sample, export)
        for key, text in (("name", "segmint"), ("size", str(len(export.samples))), ("mode", "annotation")):
            SubElement(task, key).text = text
        _write_labels(SubElement(task, "labels"), export, unknown)
        if unknown:
            export.notes.append('pixels of unknown class have the label "ignore"')
        indent(root)
        with replacing(folder / "annotations.xml") as temporary:
            ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _files(source: Source) -> list[Path]:
    return [path for path in source.files("*.xml", "*/annotations.xml") if "<annotations>" in head(path)]


def _labels(path: Path, root: Element) -> Iterator[Label]:
    for label in root.iter("label"):
        name, parent = label.findtext("name"), label.find("parent")
        if name is None:
            raise SegmintError(f"{path}: meta: a label without a name; export it again")
        if parent is None:
            yield Label(name, None, _color(label.findtext("color") or ""))


def _color(text: str) -> Color | None:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def _read_file(source: Source, path: Path, root: Element, labels: Labels) -> Iterator[Entry]:
    if root.find("track") is not None:
        raise SegmintError(f'{path}: holds tracks of a video; export it as "CVAT for images 1.1"')
    left = Counter[str]()
    untouched = 0
    for image in root.iter("image"):
        where = f"{path}: image {image.get('name')!r}"
        name, subset = attribute(image, "name", str, where), image.get("subset", "")
        base = path.parent
        folders = [base / "images" / subset, base / "images", base / subset, base]
        file = source.image(name, folders, where)
        same_size(file, attribute(image, "height", int, where), attribute(image, "width", int, where), where)
        shapes = []
        for number, element in enumerate(image):
            if element.tag in ("polygon", "mask"):
                shapes.append(_shape(element, labels, f"{where}: {element.tag} {number}"))
            elif element.tag != "tag":
                left[element.tag] += 1
        known = len(image) > 0 if source.empty is None else bool(shapes) or source.empty == "background"
        untouched += not known
        yield Entry(file, item_name(name), split_of(subset), (source.drawing(shapes),) if known else ())
    if left:
        told = ", ".join(f"{count:,} {kind}" for kind, count in left.items())
        source.notes.append(f"{path.name}: shapes that are no areas are left out ({told})")
    if untouched:
        source.notes.append(
            f"{path.name}: {untouched:,} images without any shape are unlabelled (else: --empty background)"
        )


def _shape(element: Element, labels: Labels, where: str) -> Shape:
    label = labels.place(attribute(element, "label", str, where), where)
    layer = attribute(element, "z_order", int, where) if "z_order" in element.attrib else 0
    if element.tag == "polygon":
        points = attribute(element, "points", _points, where)
        return Shape(label, polygon([points], f"{where}: points"), layer)
    top, left, width, height = (attribute(element, key, int, where) for key in ("top", "left", "width", "height"))
    counts = attribute(element, "rle", _counts, where)
    return Shape(label, bitmap(partial(_decode, counts, (height, width)), f"{where}: rle", top, left), layer)


def _points(text: str) -> list[list[float]]:
    return [[float(value) for value in point.split(",")] for point in text.split(";")]


def _counts(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def _decode(counts: list[int], box: Size, size: Size) -> Flags:
    if not (0 < box[0] <= size[0] and 0 < box[1] <= size[1]):
        raise ValueError(f"a box of {box[1]} x {box[0]} pixels in an image of {size[1]} x {size[0]}")
    return from_counts(counts, box, columns=False)


def _write_image(element: Element, sample: Sample, export: Export) -> bool:
    """Write the objects of an image; whether pixels of unknown class are among them."""
    unknown = False
    for label, part in export.parts(sample.mask()) if sample.labelled else ():
        unknown |= label == IGNORE
        name = IGNORED[0] if label == IGNORE else export.classes.names[label]
        facts = {"label": name, "source": "manual", "occluded": "0"}
        if export.use_shapes("masks") == "masks":
            SubElement(element, "mask", {**facts, **_mask(part), "z_order": "0"})
        else:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in trace(part).tolist())
            SubElement(element, "polygon", {**facts, "points": points, "z_order": "0"})
    if sample.labelled and not len(element) and export.background is not None:
        SubElement(element, "tag", {"label": export.classes.names[export.background], "source": "manual"})
    return unknown


def _mask(part: Patch) -> dict[str, str]:
    height, width = part.flags.shape
    return {
        "rle": ", ".join(map(str, to_counts(part.flags, columns=False))),
        "left": str(part.left),
        "top": str(part.top),
        "width": str(width),
        "height": str(height),
    }


def _write_labels(element: Element, export: Export, unknown: bool) -> None:
    pairs = list(zip(export.classes.names, export.classes.colors, strict=True))
    for name, (red, green, blue) in [*pairs, *([(IGNORED[0], (255, 255, 255))] if unknown else [])]:
        label = SubElement(element, "label")
        SubElement(label, "name").text = name
        SubElement(label, "color").text = f"#{red:02x}{green:02x}{blue:02x}"
        SubElement(label, "type").text = "any"
        SubElement(label, "attributes")
