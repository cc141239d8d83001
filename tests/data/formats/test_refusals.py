"""Exports that are wrong or hostile: one message that names the file and the key, and nothing is left behind."""

from __future__ import annotations

import base64
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmint.data.convert import Reading, Writing, convert
from segmint.data.foreign import Source, item_name, read_xml, split_of
from segmint.data.formats.format import find, names
from segmint.types import SegmintError

Export = Any
SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3]]


def coco(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 5}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 3, 1, 3, 3]]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = content
        for key in keys:
            place = place[int(key)] if key.isdigit() else place[key]  # type: ignore[call-overload]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return content


WRONG_COCO = {
    "no_file": (coco(images__0__file_name="2.png"), r"images\[0\]: there is no image '2\.png'"),
    "climbs": (coco(images__0__file_name="../../secret.png"), r"leads to .*secret\.png, outside of"),
    "no_name": (coco(images__0__file_name="/"), "no name of a file"),
    "nul": (coco(images__0__file_name="a\0.png"), "no name of a file"),
    "a_number": (coco(images__0__file_name=7), r"images\[0\]: file_name: must be a text, not 7"),
    "no_height": (coco(images__0__height=None), "height: must be a whole number, not None"),
    "other_size": (coco(images__0__height=5, images__0__width=4), r"says 4 x 5 pixels, but .*1\.png has 5 x 4"),
    "true_id": (coco(images__0__id=True), "id: must be a whole number, not True"),
    "no_image": (coco(annotations__0__image_id=9), r"annotations\[0\]: image_id: there is no image 9"),
    "no_category": (coco(annotations__0__category_id=9), r"annotations\[0\]: category_id: there is no category 9"),
    "odd": (coco(annotations__0__segmentation=[[1, 2, 3]]), r"annotations\[0\]\.segmentation: must be pairs"),
    "two_corners": (coco(annotations__0__segmentation=[[1, 2, 3, 4]]), "three corners"),
    "infinite": (coco(annotations__0__segmentation=[[1, 2, 3, 4, 5, float("inf")]]), "not a finite number"),
    "far": (coco(annotations__0__segmentation=[[1, 2, 3, 4, 5, 1e9]]), "pixels away"),
    "words": (coco(annotations__0__segmentation=[["a", 2, 3, 4, 5, 6]]), "must be pairs of numbers"),
    "text": (coco(annotations__0__segmentation="abc"), "must be polygons or have counts"),
    "counts": (coco(annotations__0__segmentation={"size": [4, 5], "counts": 3}), "must be polygons or have counts"),
    "too_long": (coco(annotations__0__segmentation={"size": [4, 5], "counts": [10**12]}), "do not add up to 5 x 4"),
    "rle_size": (coco(annotations__0__segmentation={"size": [5, 4], "counts": [20]}), r"size: is \[5, 4\]"),
    "rle_text": (coco(annotations__0__segmentation={"size": [4, 5], "counts": "\x01"}), "not a compressed"),
    "twins": (coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "already another category's"),
    "no_list": (coco(categories={"id": 1}), "categories: must be a list"),
    "no_object": (coco(images=[3]), r"images\[0\]: must be an object with the key 'id'"),
    "hidden": (coco(images__0__file_name=".1.png"), "cannot be taken; rename it"),
    "many": (coco(categories=[{"id": n, "name": str(n)} for n in range(1, 300)]), "300 of them, but 253 at most"),
}


@pytest.mark.parametrize("case", WRONG_COCO)
def test_wrong_coco(case: str, export: Export):
    content, complaint = WRONG_COCO[case]
    export.photo("images/1.png")
    export.photo("images/.1.png")
    export.photo("../secret.png")
    path = export.json("annotations/instances.json", content)
    with pytest.raises(SegmintError, match=complaint) as caught:
        export.read("coco")
    assert case in ("many", "climbs", "hidden") or str(path) in str(caught.value)
    assert not export.out.exists()
    assert not list(export.out.parent.glob(".ours*"))


def test_absolute_paths_lead_to_the_file_of_that_name_in_the_source(export: Export):
    secret = export.photo("../secret.png", 4, 5)
    export.json("annotations/instances.json", coco(images__0__file_name=str(secret.resolve())))
    with pytest.raises(SegmintError, match="outside of"):
        export.read()
    mine = export.photo("images/1.png")
    export.json("annotations/instances.json", coco(images__0__file_name="/home/me/1.png"))
    export.read()
    assert (export.out / "images/1.png").read_bytes() == mine.read_bytes()


def test_links_out_of_the_source_are_refused_unless_named(export: Export, elsewhere: Export):
    photo = elsewhere.photo("1.png")
    (export.root / "images").mkdir(parents=True)
    (export.root / "images/1.png").symlink_to(photo)
    export.json("annotations/instances.json", coco())
    with pytest.raises(SegmintError, match="--images"):
        export.read()
    export.read(images=(photo.parent,))
    taken = export.out / "images/1.png"
    assert not taken.is_symlink()
    assert taken.read_bytes() == photo.read_bytes()


@pytest.mark.parametrize("name", ["img_dir", "ann_dir"])
def test_linked_folders_out_of_the_source_are_refused(name: str, export: Export, elsewhere: Export):
    elsewhere.photo("train/1.png")
    export.photo("1.png")
    for folder in ("img_dir", "ann_dir"):
        if folder == name:
            (export.root / folder).symlink_to(elsewhere.root)
        else:
            export.mask(f"{folder}/train/1.png", np.zeros((4, 5)))
    with pytest.raises(SegmintError, match="outside of"):
        export.read()


def test_an_xml_with_a_doctype_is_refused(export: Export):
    export.photo("images/1.png")
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
    export.text("annotations.xml", f'<?xml version="1.0"?>{bomb}<annotations><version>&c;</version></annotations>')
    with pytest.raises(SegmintError, match=r"annotations\.xml: has a DOCTYPE"):
        export.read()


CVAT_IMAGE = '<image id="0" name="1.png" width="5" height="4">{}</image>'
WRONG_CVAT = {
    "cut": ("<image", "not XML"),
    "track": ('<track id="0" label="cat"></track>', "holds tracks of a video"),
    "no_name": ('<image id="0" width="5" height="4"/>', "name: must be a text, not None"),
    "width": ('<image id="0" name="1.png" width="five" height="4"/>', "width: must be a whole number, not 'five'"),
    "label": (CVAT_IMAGE.format('<polygon label="cow" points="1,1;2,2;3,1"/>'), "polygon 0: there is no label 'cow'"),
    "points": (CVAT_IMAGE.format('<polygon label="cat" points="1,1;2"/>'), "must be pairs"),
    "no_points": (CVAT_IMAGE.format('<polygon label="cat"/>'), "points: must be numbers, not None"),
    "letters": (CVAT_IMAGE.format('<polygon label="cat" points="a,b"/>'), "points: must be numbers, not 'a,b'"),
    "layer": (CVAT_IMAGE.format('<polygon label="cat" points="1,1;2,2;3,1" z_order="x"/>'), "z_order: must be"),
    "rle": (CVAT_IMAGE.format('<mask label="cat" rle="1,x" left="0" top="0" width="2" height="1"/>'), "rle: must be"),
    "sum": (CVAT_IMAGE.format('<mask label="cat" rle="9" left="0" top="0" width="2" height="1"/>'), "do not add up"),
    "box": (
        CVAT_IMAGE.format('<mask label="cat" rle="9" left="0" top="0" width="99999999" height="99999999"/>'),
        "a box of 99999999 x 99999999",
    ),
}


@pytest.mark.parametrize("case", WRONG_CVAT)
def test_wrong_cvat(case: str, export: Export):
    body, complaint = WRONG_CVAT[case]
    export.photo("images/1.png")
    labels = "<meta><labels><label><name>cat</name></label></labels></meta>"
    path = export.text("annotations.xml", f"<annotations>{labels}{body}</annotations>")
    with pytest.raises(SegmintError, match=complaint) as caught:
        export.read()
    assert str(path) in str(caught.value)


def test_a_cvat_label_needs_a_name(export: Export):
    export.text("annotations.xml", "<annotations><meta><labels><label/></labels></meta></annotations>")
    with pytest.raises(SegmintError, match="a label without a name"):
        export.read()


def task(value: Any, kind: str = "brushlabels", **more: Any) -> dict[str, Any]:
    result = {"type": kind, "value": value, "original_width": 5, "original_height": 4, **more}
    return {"data": {"image": "1.png"}, "annotations": [{"result": [result]}]}


WRONG_TASKS = {
    "no_list": ({"annotations": 1}, "no list of tasks"),
    "no_tasks": ([], "no list of tasks"),
    "number": ([7, {"annotations": []}], r"\[0\]: must be an object"),
    "no_data": ([{"annotations": []}], r"\[0\]: data: must be an object"),
    "no_image": ([{"annotations": [], "data": {"text": "hello", "n": 3}}], "data: names no image"),
    "missing": ([{"annotations": [], "data": {"image": "2.png"}}], r"data: there is no image '2\.png'"),
    "result": ([{"data": {"image": "1.png"}, "annotations": [{"result": 3}]}], "result: must be a list"),
    "size": ([task({"rle": [], "brushlabels": ["a"]}, original_width=9)], r"result\[0\]: says 9 x 4"),
    "no_size": ([task({"rle": [], "brushlabels": ["a"]}, original_width=None)], "original_width: must be a whole"),
    "rle": ([task({"rle": [1, 2], "brushlabels": ["a"]})], r"value\.rle: it is not of 5 x 4 pixels"),
    "bytes": ([task({"rle": [1, 999], "brushlabels": ["a"]})], r"value\.rle: must be a list of numbers 0\.\.255"),
    "points": (
        [task({"points": [[1], [2], [3]], "polygonlabels": ["a"]}, "polygonlabels")],
        r"value\.points: a polygon needs three corners x, y",
    ),
    "kind": ([task({}, kind=3)], "type: must be a text"),
}


@pytest.mark.parametrize("case", WRONG_TASKS)
def test_wrong_label_studio(case: str, export: Export):
    content, complaint = WRONG_TASKS[case]
    export.photo("1.png")
    export.json("tasks.json", content)
    with pytest.raises(SegmintError, match=complaint):
        export.read("label_studio")


def labelme(**changes: Any) -> dict[str, Any]:
    shape = {"label": "cat", "points": SQUARE, "shape_type": "polygon"}
    content = {"shapes": [shape], "imagePath": "1.png", "imageHeight": 4, "imageWidth": 5}
    return {**content, **{key: value for key, value in changes.items() if key in content}} | (
        {"shapes": [{**shape, **changes["shape"]}]} if "shape" in changes else {}
    )


MASK = {"shape_type": "mask", "points": [[0, 0], [1, 1]]}
WRONG_LABELME = {
    "no_shapes": (labelme(shapes=3), "shapes: must be a list"),
    "no_path": (labelme(imagePath=3), "imagePath: must be a text"),
    "missing": (labelme(imagePath="2.png"), "imagePath: there is no image '2.png'"),
    "climbs": (labelme(imagePath="../secret.png"), "outside of"),
    "size": (labelme(imageHeight=9), "says 5 x 9"),
    "kind": (labelme(imagePath="1.bmp"), "only .png, .jpg"),
    "label": (labelme(shape={"label": 3}), r"shapes\[0\]: label: must be a text"),
    "points": (labelme(shape={"points": None}), r"shapes\[0\]: points: must be a list"),
    "one_point": (labelme(shape={"shape_type": "circle", "points": [[1, 1]]}), "a circle has two points"),
    "no_mask": (labelme(shape=MASK), "mask: must be a text"),
    "no_png": (labelme(shape={**MASK, "mask": "AAAA"}), "mask: is no PNG"),
    "no_base64": (labelme(shape={**MASK, "mask": "A"}), r"shapes\[0\]\.mask: "),
    "mask_size": (labelme(shape={**MASK, "mask": "PNG"}), "has 3 x 1 pixels, its points 2 x 2"),
    "huge": (labelme(shape={**MASK, "points": [[0, 0], [2, 0]], "mask": "PNG"}), None),
}


@pytest.mark.parametrize("case", WRONG_LABELME)
def test_wrong_labelme(case: str, export: Export):
    content, complaint = WRONG_LABELME[case]
    export.photo("1.png")
    export.photo("../secret.png")
    export.photo("1.bmp")
    png = export.mask("../mask.png", [[1, 0, 1]]).read_bytes()
    text = json.dumps(content).replace('"PNG"', json.dumps(base64.b64encode(png).decode()))
    path = export.text("1.json", text)
    if complaint is None:
        export.read("labelme")
        return
    with pytest.raises(SegmintError, match=complaint) as caught:
        export.read("labelme")
    assert case in ("kind", "climbs") or str(path) in str(caught.value)


def test_a_labelme_mask_larger_than_its_image(export: Export):
    export.photo("1.png", 1, 2)
    png = base64.b64encode(export.mask("../mask.png", [[1, 0, 1]]).read_bytes()).decode()
    shape = {"shape_type": "mask", "points": [[0, 0], [2, 0]], "mask": png}
    export.json("1.json", labelme(shape=shape, imageHeight=1) | {"imageWidth": 2})
    with pytest.raises(SegmintError, match="larger than the image"):
        export.read()


WRONG_YOLO = {
    "words": ("0 a b c d e f", "train: images/train\nnames: [cat]", "line 1: '0' and what follows must be numbers"),
    "class": ("\n3 0 0 1 0 1 1", "train: images/train\nnames: [cat]", "line 2: class 3 is not among the 1 names"),
    "odd": ("0 0 0 1 0 1", "train: images/train\nnames: [cat]", "line 1: must be pairs"),
    "nan": ("0 0 0 1 0 1 nan", "train: images/train\nnames: [cat]", "line 1: a coordinate is not a finite"),
    "bytes": ("\udcff", "train: images/train\nnames: [cat]", "cannot be read"),
    "folder": ("", "train: images/nowhere\nnames: [cat]", "train: there is no 'images/nowhere'"),
    "outside": ("", "train: ../../elsewhere\nnames: [cat]", "outside of"),
    "list": ("", "train: data.yaml\nnames: [cat]", "line 1: there is no image 'train: data.yaml'"),
    "gaps": ("", "train: images/train\nnames: {0: cat, 2: dog}", "names: must be a list"),
    "twins": ("", "train: images/train\nnames: [cat, cat]", "one name stands for two classes"),
    "yaml": ("", "train: images/train\nnames: [cat", "cannot be read as YAML"),
}


@pytest.mark.parametrize("case", WRONG_YOLO)
def test_wrong_yolo(case: str, export: Export):
    lines, content, complaint = WRONG_YOLO[case]
    export.photo("images/train/1.png")
    export.photo("../../elsewhere/1.png")
    label = export.text("labels/train/1.txt", "")
    label.write_bytes(lines.encode("utf-8", "surrogateescape"))
    path = export.text("data.yaml", content)
    with pytest.raises(SegmintError, match=complaint) as caught:
        export.read()
    assert case == "outside" or str(path) in str(caught.value) or str(label) in str(caught.value)


def test_two_yamls_of_yolo_are_one_too_many(export: Export):
    for name in ("a.yaml", "b.yml"):
        export.text(name, "train: images\nnames: [cat]")
    with pytest.raises(SegmintError, match="2 YAML files"):
        export.read()


@pytest.mark.parametrize(
    ("labelmap", "mask", "complaint"),
    [
        ("cat:1,2\n", [[0]], r"labelmap\.txt, line 1: must be name:red,green,blue"),
        ("cat:1,2,900::\n", [[0]], "line 1: must be"),
        ("a:0,0,0::\n\nb:0,0,0::\n", [[0]], "line 3: the name or colour is that of a line before"),
        ("a:0,0,0::\n", [[[9, 9, 9]]], r"1\.png: colour \(9, 9, 9\).*labelmap\.txt"),
        ("a:0,0,0::\n", [[3]], r"1\.png: class id 3"),
        (None, [[77]], r"1\.png: class id 77"),
        ("a:0,0,0::\n", [[0, 0]], "has 1 x 1 pixels, but its mask 2 x 1"),
    ],
)
def test_wrong_voc(labelmap: str | None, mask: Any, complaint: str, export: Export):
    export.photo("JPEGImages/1.png", 1, 1)
    export.mask("SegmentationClass/1.png", mask)
    if labelmap is not None:
        export.text("labelmap.txt", labelmap)
    with pytest.raises(SegmintError, match=complaint):
        export.read()


def test_a_palette_colour_that_no_label_has(export: Export):
    export.photo("JPEGImages/1.png", 1, 1)
    export.mask("SegmentationClass/1.png", [[2]], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    export.text("labelmap.txt", "a:0,0,0::\n")
    with pytest.raises(SegmintError, match=r"colour \(2, 2, 2\)"):
        export.read()


def test_voc_splits_that_overlap(export: Export):
    export.photo("JPEGImages/1.png", 1, 1)
    export.mask("SegmentationClass/1.png", [[0]])
    for split in ("train", "val"):
        export.text(f"ImageSets/Segmentation/{split}.txt", "1\n")
    with pytest.raises(SegmintError, match=r"'1' is in train\.txt too"):
        export.read()
    (export.root / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff")
    with pytest.raises(SegmintError, match=r"val\.txt: cannot be read"):
        export.read()
    (export.root / "VOC2012/SegmentationClass").mkdir(parents=True)
    with pytest.raises(SegmintError, match="2 folders SegmentationClass"):
        export.read()


@pytest.mark.parametrize(
    ("colors", "mask", "complaint"),
    [
        ("1 2 3\n", [[0]], r"label_colors\.txt, line 1: must be red green blue name"),
        ("0 0 0 a\n1 1 1 a\n", [[0]], "line 2: the name is that of a line before"),
        ("0 0 0 a\n", [[4]], r"labelIds\.png: class id 4"),
        (None, [[60]], "class id 60"),
        (None, [[[1, 2, 3]]], "holds colours, not ids"),
    ],
)
def test_wrong_cityscapes(colors: str | None, mask: Any, complaint: str, export: Export):
    export.photo("leftImg8bit/train/ulm/1_leftImg8bit.png", 1, 1)
    export.mask("gtFine/train/ulm/1_gtFine_labelIds.png", mask)
    if colors is not None:
        export.text("label_colors.txt", colors)
    with pytest.raises(SegmintError, match=complaint):
        export.read()


NNUNET = {
    "channel_names": {"0": "grey"},
    "labels": {"background": 0, "cat": 1},
    "numTraining": 1,
    "file_ending": ".png",
}


@pytest.mark.parametrize(
    ("changes", "files", "complaint"),
    [
        ({"file_ending": ".nii.gz"}, ["a_0000"], r"file_ending: \.nii\.gz is not read"),
        ({"labels": {"background": 0, "cat": [1, 2]}}, ["a_0000"], "labels: cat: must be a whole number"),
        ({"labels": {"background": 0, "cat": 0}}, ["a_0000"], "must be one whole number that no other has"),
        ({}, ["a_0000", "a_0001"], "images of several files"),
        ({}, ["a"], "must be named CASE_0000.png"),
        ({}, ["b_0000"], "nnU-Net needs one for every training case"),
    ],
)
def test_wrong_nnunet(changes: dict[str, Any], files: list[str], complaint: str, export: Export):
    for file in files:
        export.photo(f"imagesTr/{file}.png", 1, 1)
    export.mask("labelsTr/a.png", [[0]])
    export.json("dataset.json", {**NNUNET, **changes})
    with pytest.raises(SegmintError, match=complaint):
        export.read()


def test_wrong_folds_of_nnunet(export: Export):
    export.photo("imagesTr/a_0000.png", 1, 1)
    export.mask("labelsTr/a.png", [[0]])
    export.json("dataset.json", NNUNET)
    export.json("splits_final.json", {})
    with pytest.raises(SegmintError, match=r"splits_final\.json: must be a list of folds"):
        export.read()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"classes": ["a", "a"], "palette": []}, "classes: must be different names"),
        ({"classes": ["a"], "palette": [[1, 2]]}, r"palette\[0\]: must be three numbers"),
        ({"classes": ["a", "b"], "palette": [[1, 2, 3]]}, "1 colours for 2 classes"),
    ],
)
def test_wrong_mmseg(content: Any, complaint: str, export: Export):
    export.photo("img_dir/train/1.png", 1, 1)
    export.mask("ann_dir/train/1.png", [[0]])
    export.json("metainfo.json", content)
    with pytest.raises(SegmintError, match=complaint):
        export.read()


def test_nothing_that_is_known(export: Export):
    export.photo("1.png")
    with pytest.raises(SegmintError, match=r"none of the formats known here(.|\n)*coco: annotations/instances"):
        export.read()


def test_two_formats_at_once(export: Export):
    export.photo("images/1.png")
    export.json("annotations/instances.json", coco())
    export.text("data.yaml", "train: images\nnames: [cat]")
    with pytest.raises(SegmintError, match="could be coco or yolo; say which with --from"):
        export.read()
    assert export.read("coco").source_format == "coco"


@pytest.mark.parametrize("name", names())
def test_a_folder_of_something_else(name: str, export: Export):
    export.photo("1.png")
    with pytest.raises(SegmintError):
        export.read(name)


def test_json_that_is_none(export: Export):
    export.photo("images/1.png")
    export.text("annotations/instances.json", '{"images": [], "categories": [],\n oh}')
    with pytest.raises(SegmintError, match=r"instances\.json, line 2: not JSON"):
        export.read("coco")
    export.text("annotations/instances.json", '{"images": 1, "categories": ' + "[" * 200_000)
    with pytest.raises(SegmintError, match="JSON"):
        export.read("coco")
    export.text("annotations/instances.json", "").write_bytes(b'{"images": 1, "categories": "\xff"}')
    with pytest.raises(SegmintError, match="cannot be read as JSON"):
        export.read("coco")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_of_a_coco_file_is_read_or_refused(data: st.DataObject, export: Export, tmp_path: Path):
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.just([]),
        st.just({}),
        st.just([[]]),
    )
    keys = ["images", "annotations", "categories"]
    place = data.draw(st.sampled_from([(key,) for key in keys] + [(k, 0, n) for k in keys for n in coco()[k][0]]))
    content: Any = coco()
    target = content
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = data.draw(junk)
    export.photo("images/1.png")
    export.json("annotations/instances.json", content)
    shutil.rmtree(export.out, ignore_errors=True)
    with suppress(SegmintError):
        export.read("coco")


def test_targets_and_options_that_cannot_be(export: Export, tmp_path: Path):
    export.photo("images/1.png")
    export.json("annotations/instances.json", coco())
    with pytest.raises(SegmintError, match="no such file or folder"):
        convert(tmp_path / "nowhere", export.out)
    with pytest.raises(SegmintError, match="lies in"):
        convert(export.root, export.root / "inside")
    export.photo("../ours/full.png")
    with pytest.raises(SegmintError, match="exists already"):
        export.read()
    with pytest.raises(SegmintError, match="there is no 'cocoa'; choose one of segmint, cityscapes, coco"):
        convert(export.root, tmp_path / "new", source_format="cocoa")
    with pytest.raises(SegmintError, match="there is no 'cocoa'"):
        convert(export.root, tmp_path / "new", target_format="cocoa")
    with pytest.raises(SegmintError, match="no such folder; name a data folder"):
        convert(export.root / "images/1.png", tmp_path / "new", source_format="segmint", target_format="coco")
    with pytest.raises(SegmintError, match=r"--images .*no such folder"):
        convert(export.root, tmp_path / "new", reading=Reading(images=(tmp_path / "nowhere",)))
    (tmp_path / "file").write_text("")
    with pytest.raises(SegmintError, match="cannot be written"):
        convert(export.root, tmp_path / "file" / "new")
    for wrong in ({"unannotated": "x"}, {"empty": "x"}, {"overlap": "x"}):
        with pytest.raises(SegmintError, match="must be one of"):
            Reading(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SegmintError, match="--shapes: must be one of polygons, masks"):
        Writing(shapes="x")  # type: ignore[arg-type]


def test_a_format_needs_a_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import segmint.data.formats

    (tmp_path / "nothing.py").write_text("")
    monkeypatch.setattr(segmint.data.formats, "__path__", [*segmint.data.formats.__path__, str(tmp_path)])
    assert "nothing" in names()
    with pytest.raises(SegmintError, match="defines no subclass of Format"):
        find("nothing")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.png", "a"),
        ("images/train/a/b.c.png", "a/b.c"),
        ("train/images/x.jpg", "x"),
        ("data/images/valid/x.jpg", "x"),
        ("train-1/x.jpg", "train-1/x"),
        ("..\\images\\x.jpg", "x"),
        ("/home/me/x.jpg", "x"),
        ("C:\\pets\\x.jpg", "x"),
        ("train/x.jpg", "x"),
        ("train", "train"),
    ],
)
def test_names(path: str, name: str):
    assert item_name(path) == name


@pytest.mark.parametrize("path", ["#a.png", "a/.b.png", "", "..", "a\nb.png", " a.png"])
def test_names_that_cannot_be(path: str):
    with pytest.raises(SegmintError, match="cannot be taken"):
        item_name(path)


def test_splits():
    words = ["instances_train2017", "Validation", "valid", "TEST", "trainval", "default", "training_set"]
    assert [split_of(word) for word in words] == ["train", "val", "val", "test", None, None, "train"]


def test_files_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(SegmintError, match="cannot be read"):
        read_xml(tmp_path / "none.xml")
    assert Source(tmp_path).images(tmp_path / "none") == []
