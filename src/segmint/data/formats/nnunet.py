"""nnU-Net's raw data sets: dataset.json, imagesTr/CASE_0000.png, labelsTr/CASE.png, and Ts for testing.

Labels are consecutive and 0 is "background", as nnU-Net demands; unknown pixels have its label "ignore", the
highest. A class of another name cannot be label 0: where the data has no background, classes begin at 1 and label 0
stays empty. The split into training and validation goes to splits_final.json. Groups become part of the case's
name. Images without masks are not written, since nnU-Net has no use for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from segmint.data.classes import Classes
from segmint.data.exporting import Export
from segmint.data.foreign import Source, get, head, item_name, read_json
from segmint.data.formats.format import IGNORED, Entry, Format, Found, Label, Labels
from segmint.data.io import IMAGE_SUFFIXES, Bytes, replacing
from segmint.data.masks import read_mask, write_mask
from segmint.data.polygons import Size
from segmint.types import IGNORE, SegmintError

CHANNELS = {1: {"0": "grey"}, 3: {"0": "R", "1": "G", "2": "B"}}


class NnUNet(Format):
    """nnU-Net version 2, two-dimensional images."""

    title = "nnU-Net"
    layout = "dataset.json, imagesTr/CASE_0000.png, labelsTr/CASE.png"

    def detect(self, source: Source) -> bool:
        """Whether there is a dataset.json and an imagesTr/."""
        path = source.root / "dataset.json"
        return '"file_ending"' in head(path) and (source.root / "imagesTr").is_dir()

    def read(self, source: Source) -> Found:
        """Read training and test cases; one file of 1 or 3 channels per case."""
        path = source.inside(source.root / "dataset.json")
        content = read_json(path)
        ending = get(content, "file_ending", str, str(path))
        if ending.lower() not in IMAGE_SUFFIXES:
            raise SegmintError(f"{path}: file_ending: {ending} is not read; only {', '.join(IMAGE_SUFFIXES)}")
        values = get(content, "labels", dict, str(path))
        for name, value in values.items():
            get(values, name, int, f"{path}: labels")
            if not 0 <= value <= 65535 or list(values.values()).count(value) > 1:
                raise SegmintError(f"{path}: labels: {name}: {value} must be one whole number that no other has")
        known = sorted((Label(name, value) for name, value in values.items()), key=lambda label: label.id or 0)
        labels = Labels(known)
        ignore = next((value for name, value in values.items() if name.lower() in IGNORED), IGNORE)
        ids = tuple(label.id or 0 for label in labels.labels)
        classes = Classes.named([label.name for label in labels.labels], ids, ignore if ignore not in ids else 65535)
        validation = _validation(source)
        found = [entry for end in ("Tr", "Ts") for entry in _cases(source, end, ending, classes, validation)]
        return Found(found, labels.labels)

    def write(self, export: Export, folder: Path) -> None:
        """Write dataset.json, splits_final.json, and images and labels as PNG."""
        classes = export.classes
        shift = 0 if export.background is not None else 1
        order = [*range(len(classes))]
        if export.background is not None:
            order = [export.background, *export.objects]
        values = {index: place + shift for place, index in enumerate(order)}
        unknown = len(order) + shift
        ids = tuple(values[index] for index in range(len(classes)))
        stored = Classes(classes.names, classes.colors, ids, unknown)
        cases: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        met = False
        for sample in export.each():
            if not sample.labelled:
                continue
            case, end = sample.name.replace("/", "__"), "Ts" if sample.split == "test" else "Tr"
            cases[sample.split].append(case)
            sample.encode(folder / f"images{end}" / f"{case}_0000.png")
            mask = sample.mask()
            met = met or bool((mask == IGNORE).any())
            write_mask(folder / f"labels{end}" / f"{case}.png", mask, stored)
        _refuse_doubles(cases)
        labels = {
            "background": 0,
            **{classes.names[index]: values[index] for index in order if index != export.background},
        }
        if met:
            labels["ignore"] = unknown
        _write_json(folder, cases, labels, export)


def _validation(source: Source) -> set[str]:
    """The cases that the first fold of splits_final.json validates on."""
    path = source.root / "splits_final.json"
    if not path.is_file():
        return set()
    folds = read_json(source.inside(path))
    if not isinstance(folds, list) or not folds:
        raise SegmintError(f"{path}: must be a list of folds with train and val; remove it or correct it")
    return {str(case) for case in get(folds[0], "val", list, f"{path}: [0]")}


def _cases(source: Source, end: str, ending: str, classes: Classes, validation: set[str]) -> Iterator[Entry]:
    folder = source.root / f"labels{end}"
    for image in source.images(source.root / f"images{end}"):
        found = re.fullmatch(r"(.+)_(\d{4})", image.stem)
        if image.suffix != ending or found is None:
            raise SegmintError(f"{image}: must be named CASE_0000{ending}; rename it or remove it")
        if found[2] != "0000":
            raise SegmintError(f"{image}: images of several files are not read; merge the channels into one file")
        mask = folder / f"{found[1]}{ending}"
        if end == "Tr" and not mask.is_file():
            raise SegmintError(f"{image}: there is no {mask}; nnU-Net needs one for every training case")
        split = "test" if end == "Ts" else "val" if found[1] in validation else "train"
        masks = (partial(_read, source.inside(mask), classes),) if mask.is_file() else ()
        yield Entry(source.inside(image), item_name(f"{found[1]}{ending}"), split, masks)


def _read(path: Path, classes: Classes, size: Size) -> Bytes:
    return read_mask(path, classes)


def _refuse_doubles(cases: dict[str, list[str]]) -> None:
    every = [case for members in cases.values() for case in members]
    if twice := sorted({case for case in every if every.count(case) > 1} if len(set(every)) < len(every) else ()):
        raise SegmintError(f"images: two of them become the case {twice[0]!r}, as / becomes __; rename one")


def _write_json(folder: Path, cases: dict[str, list[str]], labels: dict[str, int], export: Export) -> None:
    content: dict[str, Any] = {
        "channel_names": CHANNELS[export.channels],
        "labels": labels,
        "numTraining": len(cases["train"]) + len(cases["val"]),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    with replacing(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if cases["val"]:
        with replacing(folder / "splits_final.json") as temporary:
            temporary.write_text(json.dumps([{"train": cases["train"], "val": cases["val"]}]), encoding="utf-8")
        export.notes.append("copy splits_final.json to the data set's folder of nnUNet_preprocessed, and train fold 0")
    left = sum(not sample.labelled for sample in export.samples)
    if left:
        export.notes.append(f"{left:,} images without masks are left out: nnU-Net has no use for them")
    if export.background is None:
        export.notes.append("no class is called background, which nnU-Net wants as 0: classes begin at 1")
