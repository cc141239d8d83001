"""MMSegmentation: img_dir/{split}/ and ann_dir/{split}/ with masks of positions, 255 where the class is unknown.

Names and colours are in metainfo.json; dataset.py is the same as a configuration, from which a training's can
inherit. Without metainfo.json the classes are those met in the masks. Unlabelled images are in img_dir/unlabelled/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from segmint.data.classes import Classes, Color
from segmint.data.exporting import Export
from segmint.data.folder import find_classes
from segmint.data.foreign import Source, entries, get, item_name, read_json, split_of
from segmint.data.formats.format import Entry, Format, Found, Label
from segmint.data.io import Bytes, replacing
from segmint.data.listing import Item
from segmint.data.masks import read_mask, write_mask
from segmint.data.polygons import Size
from segmint.types import IGNORE, SegmintError


class MMSeg(Format):
    """MMSegmentation's BaseSegDataset."""

    title = "MMSegmentation"
    layout = "img_dir/train/*.jpg, ann_dir/train/*.png, metainfo.json (classes, palette)"

    def detect(self, source: Source) -> bool:
        """Whether there are img_dir/ and ann_dir/."""
        return (source.root / "img_dir").is_dir() and (source.root / "ann_dir").is_dir()

    def read(self, source: Source) -> Found:
        """Read all splits; images without a mask of their name are unlabelled."""
        pairs = list(_pairs(source))
        path = source.root / "metainfo.json"
        if path.is_file():
            classes = _read_classes(source.inside(path))
        else:
            items = [Item(str(image), image, (mask,), "") for image, mask in pairs if mask is not None]
            classes = find_classes(source.root, items, source.notes)
        base = source.root / "img_dir"
        found = []
        for image, mask in pairs:
            relative = image.relative_to(base)
            split = split_of(relative.parts[0]) if len(relative.parts) > 1 else None
            masks = (partial(_read, mask, classes),) if mask is not None else ()
            found.append(Entry(source.inside(image), item_name(relative.as_posix()), split, masks))
        facts = zip(classes.names, classes.ids, classes.colors, strict=True)
        return Found(found, [Label(name, number, color) for name, number, color in facts])

    def write(self, export: Export, folder: Path) -> None:
        """Write img_dir/, ann_dir/, metainfo.json and dataset.py."""
        names, colors = export.classes.names, export.classes.colors
        classes = Classes(names, colors, tuple(range(len(names))), IGNORE)
        suffixes = {sample.suffix for sample in export.samples}
        suffix = suffixes.pop() if len(suffixes) == 1 else ".png"
        for sample in export.each():
            home = sample.split if sample.labelled else "unlabelled"
            sample.link(folder / "img_dir" / home / f"{sample.name}{suffix}")
            if sample.labelled:
                write_mask(folder / "ann_dir" / home / f"{sample.name}.png", sample.mask(), classes)
        with replacing(folder / "metainfo.json") as temporary:
            temporary.write_text(json.dumps({"classes": names, "palette": colors}), encoding="utf-8")
        with replacing(folder / "dataset.py") as temporary:
            temporary.write_text(_configuration(names, colors, suffix, list(export.splits)), encoding="utf-8")
        if suffixes:
            export.notes.append("images of several kinds were encoded as PNG: MMSegmentation wants one kind")


def _pairs(source: Source) -> Iterator[tuple[Path, Path | None]]:
    base, masks = source.root / "img_dir", source.root / "ann_dir"
    for image in source.images(base):
        mask = (masks / image.relative_to(base)).with_suffix(".png")
        yield image, source.inside(mask) if mask.is_file() else None


def _read(path: Path, classes: Classes, size: Size) -> Bytes:
    return read_mask(path, classes)


def _read_classes(path: Path) -> Classes:
    content = read_json(path)
    names = [name for name in get(content, "classes", list, str(path)) if isinstance(name, str)]
    if len(names) < len(content["classes"]) or len(set(names)) < len(names) or not names:
        raise SegmintError(f"{path}: classes: must be different names; correct them")
    colors: list[Color] = []
    for where, color in entries(content, "palette", str(path)):
        if not (isinstance(color, list) and len(color) == 3 and all(type(v) is int and 0 <= v <= 255 for v in color)):
            raise SegmintError(f"{where}: must be three numbers 0..255; correct it")
        colors.append((color[0], color[1], color[2]))
    if len(colors) != len(names):
        raise SegmintError(f"{path}: palette: {len(colors)} colours for {len(names)} classes; give one to each")
    return Classes(tuple(names), tuple(colors), tuple(range(len(names))))


def _configuration(names: tuple[str, ...], colors: tuple[Color, ...], suffix: str, splits: list[str]) -> str:
    """A configuration for MMSegmentation 1.x; set data_root to where the folder lies and add pipelines."""
    lines = [
        "# data set for MMSegmentation 1.x: inherit it, set data_root, add the pipelines",
        'data_root = "."',
        f"metainfo = dict(classes={names!r}, palette={[list(color) for color in colors]!r})",
    ]
    for split in splits:
        settings: dict[str, Any] = {"img_suffix": suffix, "seg_map_suffix": ".png", "reduce_zero_label": False}
        prefix = {"img_path": f"img_dir/{split}", "seg_map_path": f"ann_dir/{split}"}
        lines.append(
            f'{split}_dataset = dict(type="BaseSegDataset", data_root=data_root, metainfo=metainfo, '
            f"data_prefix={prefix!r}, {', '.join(f'{key}={value!r}' for key, value in settings.items())})"
        )
    return "\n".join(lines) + "\n"
