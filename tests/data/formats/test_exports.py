"""Exports laid out as the programs themselves write them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.data.folder import open_folder
from segmint.data.rle import pack_brush, pack_counts, to_counts

Export = Any

B, C, D, U = "background", "cat", "dog", "?"
SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]
"""Columns 1 and 2 of rows 1 and 2."""
SQUARE_WORDS = [[B, B, B, B, B], [B, C, C, B, B], [B, C, C, B, B], [B, B, B, B, B]]


def annotation(number: int, image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": 4.0,
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "iscrowd": 0,
        **more,
    }


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]] | None, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "", "id": 1, "name": ""}],
        "images": images,
        "categories": [
            {"supercategory": "animal", "id": 17, "name": "cat"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ],
        **more,
    }
    if annotations is not None:
        content["annotations"] = annotations
    return content


def image(number: int, name: str, height: int = 4, width: int = 5) -> dict[str, Any]:
    return {"license": 1, "file_name": name, "coco_url": "", "height": height, "width": width, "id": number}


def test_coco_as_published(export: Export):
    for name in ("train2017/000000000009.jpg", "train2017/000000000025.jpg", "val2017/000000000139.jpg"):
        export.photo(name)
    crowd = {"counts": [0, 4, 16], "size": [4, 5]}
    export.json(
        "annotations/instances_train2017.json",
        coco(
            [image(9, "000000000009.jpg"), image(25, "000000000025.jpg")],
            [annotation(1, 9, 17, [SQUARE]), annotation(900, 9, 18, crowd, iscrowd=1)],
        ),
    )
    export.json(
        "annotations/instances_val2017.json",
        coco([image(139, "000000000139.jpg")], [annotation(2, 139, 18, [SQUARE, [4, 3, 5, 3, 5, 4, 4, 4]])]),
    )
    export.json("annotations/captions_train2017.json", {"images": [], "annotations": [], "info": {}, "licenses": []})
    export.json("annotations/person_keypoints_train2017.json", coco([image(9, "000000000009.jpg")], []))
    done = export.read()
    assert done.source_format == "coco"
    assert export.words("000000000009") == [[D, *row[1:]] for row in SQUARE_WORDS]
    assert export.words("000000000025") == [[B] * 5] * 4
    last = [[word.replace(C, D) for word in row] for row in SQUARE_WORDS]
    last[3][4] = D
    assert export.words("000000000139") == last
    found = open_folder(export.out)
    assert found.classes.ids == (0, 17, 18)
    assert [len(found.split(split)) for split in ("train", "val")] == [2, 1]
    assert any("not instances" in note for note in done.notes)
    assert any("1 images without annotations count as background" in note for note in done.notes)


def test_coco_unlabelled_images_and_other_categories_of_one_name(export: Export):
    export.photo("unlabeled2017/1.jpg")
    export.photo("train/2.jpg")
    info = coco([image(1, "1.jpg")], None)
    del info["categories"]
    export.json("annotations/image_info_unlabeled2017.json", info)
    mine = coco([image(2, "2.jpg")], [annotation(1, 2, 0, [SQUARE])], categories=[{"id": 0, "name": "cat"}])
    export.json("annotations/instances_train.json", mine)
    export.read()
    found = open_folder(export.out)
    assert [len(item.masks) for item in found.items] == [0, 1]
    assert found.classes.names == (B, C)
    assert export.words("2") == SQUARE_WORDS


def test_coco_of_roboflow(export: Export):
    export.photo("train/a_jpg.rf.1.jpg")
    export.photo("valid/a_jpg.rf.1.jpg")
    for split in ("train", "valid"):
        content = coco([image(0, "a_jpg.rf.1.jpg")], [annotation(0, 0, 1, [SQUARE])])
        content["categories"] = [
            {"id": 0, "name": "cat", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "cat"},
        ]
        export.json(f"{split}/_annotations.coco.json", content)
    done = export.read()
    assert any("have the name of another" in note for note in done.notes)
    found = open_folder(export.out)
    assert sorted(item.name for item in found.items) == ["a_jpg.rf.1", "a_jpg.rf.1-2"]
    assert found.classes.names == (B, "cat", "cat 1")
    assert set(found.split_names) == {"train", "val"}


def test_coco_of_cvat_and_label_studio(export: Export):
    export.photo("images/drive/1.png")
    content = coco([image(1, "drive/1.png")], [annotation(1, 1, 17, [SQUARE])])
    export.json("annotations/instances_default.json", content)
    done = export.read()
    assert export.words("drive/1") == SQUARE_WORDS
    assert any("no images are held out there" in note for note in done.notes)


def test_coco_run_lengths_go_down_the_columns(export: Export):
    export.photo("images/1.png")
    flags = np.zeros((4, 5), bool)
    flags[1:3, 1:3] = True
    packed = {"size": [4, 5], "counts": pack_counts(to_counts(flags, columns=True))}
    export.json("annotations/instances.json", coco([image(1, "1.png")], [annotation(1, 1, 17, packed)]))
    export.read()
    assert export.words("1") == SQUARE_WORDS


def test_coco_boxes_alone_are_left_out_and_ignored_regions_are_unknown(export: Export):
    export.photo("images/1.png")
    rows = [annotation(1, 1, 17, []), annotation(2, 1, 99, [SQUARE], iscrowd=1)]
    more = [{"id": 17, "name": "cat"}, {"id": 99, "name": "ignore"}]
    export.json("annotations/instances.json", coco([image(1, "1.png")], rows, categories=more))
    done = export.read()
    assert any("1 annotations without an outline" in note for note in done.notes)
    assert export.words("1") == [[word.replace(C, U) for word in row] for row in SQUARE_WORDS]


@pytest.mark.parametrize(("overlap", "top"), [("later", D), ("smaller", C)])
def test_overlaps_follow_the_rule_and_are_said(export: Export, overlap: str, top: str):
    export.photo("images/1.png")
    everything = [0, 0, 5, 0, 5, 4, 0, 4]
    rows = [annotation(1, 1, 17, [SQUARE]), annotation(2, 1, 18, [everything])]
    export.json("annotations/instances.json", coco([image(1, "1.png")], rows))
    done = export.read(overlap=overlap)
    assert any("lie over each other in 1 masks" in note and overlap in note for note in done.notes)
    assert export.words("1")[1][1] == top
    assert open_folder(export.out).classes.names == (C, D), "no pixel is background, so it is no class"


def test_unannotated_pixels_and_empty_images_as_wished(export: Export):
    export.photo("images/1.png")
    export.photo("images/2.png")
    export.json(
        "annotations/instances.json",
        coco([image(1, "1.png"), image(2, "2.png")], [annotation(1, 1, 17, [SQUARE])]),
    )
    done = export.read(unannotated="ignore", empty="unlabelled")
    assert export.words("1") == [[word.replace(B, U) for word in row] for row in SQUARE_WORDS]
    assert open_folder(export.out).classes.names == (C, D)
    assert not (export.out / "masks/2.png").exists()
    assert any("unknown class (--unannotated ignore)" in note for note in done.notes)


VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128, 128, 128, 128, 64, 0, 0]
VOC_PALETTE += [0] * (765 - len(VOC_PALETTE)) + [224, 224, 192]


def test_voc_as_published(export: Export):
    base = "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000001"):
        export.photo(f"{base}/JPEGImages/{name}.jpg", 2, 3)
    export.mask(f"{base}/SegmentationClass/2007_000032.png", [[0, 8, 255], [8, 8, 0]], VOC_PALETTE)
    export.mask(f"{base}/SegmentationClass/2007_000033.png", [[0, 20, 255], [1, 0, 0]], VOC_PALETTE)
    export.text(f"{base}/ImageSets/Segmentation/train.txt", "2007_000032\n")
    export.text(f"{base}/ImageSets/Segmentation/val.txt", "2007_000033\n")
    export.text(f"{base}/ImageSets/Segmentation/trainval.txt", "2007_000032\n2007_000033\n")
    done = export.read()
    assert done.source_format == "voc"
    assert export.words("2007_000032") == [[B, C, U], [C, C, B]]
    found = open_folder(export.out)
    assert len(found.classes) == 21
    assert found.classes.colors[8] == (64, 0, 0)
    assert found.classes.colors[20] == (0, 64, 128)
    assert [found.items[index].name for index in found.split("val")] == ["2007_000033"]
    assert [len(item.masks) for item in found.items] == [1, 1, 0]


@pytest.mark.parametrize("kind", ["palette", "rgb", "grey"])
def test_voc_of_cvat(export: Export, kind: str):
    export.photo("JPEGImages/img 1.png", 2, 3)
    export.text(
        "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n"
    )
    export.text("ImageSets/Segmentation/default.txt", '"img 1"\n')
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)])
    values = np.array([[0, 1, 2], [2, 1, 0]])
    if kind == "rgb":
        export.mask("SegmentationClass/img 1.png", colors[values])
    elif kind == "grey":
        export.mask("SegmentationClass/img 1.png", values)
    else:  # the palette's order is not that of the labels
        palette = np.full((256, 3), 77)
        palette[[2, 5, 7]] = colors
        export.mask("SegmentationClass/img 1.png", np.array([2, 5, 7])[values], palette.ravel().tolist())
    export.read()
    assert export.words("img 1") == [[B, C, D], [D, C, B]]


def test_voc_without_images_finds_them_elsewhere(export: Export, elsewhere: Export):
    photo = elsewhere.photo("1.png", 1, 2)
    export.text("labelmap.txt", "background:0,0,0::\ncat:9,9,9::\n")
    export.mask("SegmentationClass/1.png", [[0, 1]])
    with pytest.raises(Exception, match="no image of this name"):
        export.read()
    export.read(images=(photo.parent,))
    assert export.words("1") == [[B, C]]


def test_cityscapes_as_published(export: Export):
    for split, city, stem in (
        ("train", "aachen", "aachen_000000_000019"),
        ("val", "lindau", "lindau_000000_000019"),
        ("test", "berlin", "berlin_000000_000019"),
        ("train_extra", "erlangen", "erlangen_000000_000000"),
    ):
        export.photo(f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", 2, 3)
        values = [[0, 1, 3], [3, 3, 3]] if split == "test" else [[7, 26, 4], [33, 9, 11]]
        if split != "train_extra":
            export.mask(f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png", values)
            export.photo(f"gtFine/{split}/{city}/{stem}_gtFine_color.png", 2, 3)
            export.json(f"gtFine/{split}/{city}/{stem}_gtFine_polygons.json", {"imgHeight": 2, "objects": []})
    done = export.read()
    assert done.source_format == "cityscapes"
    assert export.words("aachen/aachen_000000_000019") == [["road", "car", U], ["bicycle", U, "building"]]
    found = open_folder(export.out)
    assert len(found.classes) == 19
    assert found.classes.ids[:2] == (7, 8)
    assert [item.name.split("/")[0] for item in found.items] == ["aachen", "erlangen", "lindau"]
    assert any("1 images of val or test have no masks" in note for note in done.notes)


def test_cityscapes_train_ids_alone(export: Export):
    export.photo("leftImg8bit/train/ulm/ulm_1_leftImg8bit.png", 1, 3)
    export.mask("gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png", [[0, 18, 255]])
    export.read()
    assert export.words("ulm/ulm_1") == [["road", "bicycle", U]]


def test_cityscapes_of_cvat(export: Export):
    export.photo("imgsFin/leftImg8bit/default/1_leftImg8bit.png", 1, 3)
    export.mask("gtFine/default/1_gtFine_labelIds.png", [[0, 1, 2]])
    export.text("label_colors.txt", "0 0 0 background\n250 50 83 traffic cone\n51 221 255 dog\n")
    export.read()
    assert export.words("1") == [[B, "traffic cone", D]]


def test_yolo_of_ultralytics(export: Export):
    for name in ("train/000000000009", "train/000000000025", "train/000000000030", "val/000000000036"):
        export.photo(f"images/{name}.jpg")
    export.text("labels/train/000000000009.txt", "1 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75\n0 0.5 0.5 0.1 0.1\n")
    export.text("labels/train/000000000025.txt", "")
    export.text("labels/val/000000000036.txt", "0 0 0 1 0 1 1 0 1\n")
    names = "names:\n  0: dog\n  1: cat\n"
    export.text(
        "coco8-seg.yaml", f"path: ../datasets/coco8-seg # root\ntrain: images/train\nval: images/val\ntest:\n{names}"
    )
    done = export.read()
    assert done.source_format == "yolo"
    assert export.words("000000000009") == SQUARE_WORDS
    assert export.words("000000000025") == [[B] * 5] * 4
    assert export.words("000000000036") == [[D] * 5] * 4
    assert not (export.out / "masks/000000000030.png").exists()
    assert any("1 boxes are left out" in note for note in done.notes)
    found = open_folder(export.out)
    assert [len(found.split(split)) for split in ("train", "val")] == [3, 1]


@pytest.mark.parametrize(("empty", "masks"), [("background", 3), ("unlabelled", 1)])
def test_yolo_images_without_lines_as_wished(export: Export, empty: str, masks: int):
    for number in (1, 2, 3):
        export.photo(f"images/train/{number}.png")
    export.text("labels/train/1.txt", "0 0 0 1 0 1 1\n")
    export.text("labels/train/2.txt", "\n")
    export.text("data.yaml", "train: images/train\nnames: [cat]\n")
    export.read(empty=empty)
    assert len(list((export.out / "masks").iterdir())) == masks


def test_yolo_of_roboflow_and_cvat(export: Export):
    export.photo("train/images/a.png")
    export.text("train/labels/a.txt", "0 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75")
    export.photo("images/valid/deep/b.png")
    export.text("labels/valid/deep/b.txt", "0 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75")
    export.text("val.txt", "data/images/valid/deep/b.png\n\n")
    export.text("data.yaml", "train: ../train/images\nval: val.txt\nnc: 1\nnames: ['cat']\n")
    export.read()
    assert export.words("a") == export.words("deep/b") == SQUARE_WORDS


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id><name>pets</name><size>3</size><mode>annotation</mode><overlap>0</overlap>
      <labels>
        <label><name>dog</name><color>#33ddff</color><type>any</type><attributes></attributes></label>
        <label><name>cat</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
        <label><name>nose</name><type>points</type><parent>dog</parent></label>
      </labels>
    </task>
    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="1.png" subset="Train" task_id="4" width="5" height="4">
    <polygon label="cat" source="manual" occluded="0" points="1.00,1.00;3.00,1.00;3.00,3.00;1.00,3.00" z_order="1">
    </polygon>
    <polygon label="dog" source="manual" occluded="0" points="0.00,0.00;2.00,0.00;2.00,2.00;0.00,2.00" z_order="0">
      <attribute name="age">3</attribute>
    </polygon>
    <box label="dog" source="manual" occluded="0" xtl="0.00" ytl="0.00" xbr="2.00" ybr="2.00" z_order="0"></box>
  </image>
  <image id="1" name="2.png" subset="Validation" task_id="4" width="5" height="4">
    <mask label="cat" source="manual" occluded="0" rle="1, 2, 1, 1" left="2" top="1" width="5" height="1" z_order="0">
    </mask>
  </image>
  <image id="2" name="3.png" width="5" height="4"></image>
  <image id="3" name="4.png" width="5" height="4"><tag label="good" source="manual"></tag></image>
</annotations>
"""


def test_cvat_for_images(export: Export):
    for number in (1, 2, 3, 4):
        export.photo(f"images/{number}.png" if number != 1 else "images/Train/1.png")
    export.text(
        "annotations.xml",
        CVAT.replace('width="5" height="1"', 'width="3" height="2"').replace("1, 2, 1, 1", "0, 2, 3, 1"),
    )
    done = export.read()
    assert done.source_format == "cvat"
    assert export.words("1") == [[D, D, B, B, B], [D, C, C, B, B], [B, C, C, B, B], [B] * 5]
    assert export.words("2") == [[B] * 5, [B, B, C, C, B], [B, B, B, B, C], [B] * 5]
    assert export.words("4") == [[B] * 5] * 4
    found = open_folder(export.out)
    assert found.classes.names == (B, D, C)
    assert found.classes.colors[1:] == ((51, 221, 255), (250, 50, 83))
    assert [len(item.masks) for item in found.items] == [1, 1, 0, 1]
    assert any("left out (1 box)" in note for note in done.notes)
    assert any("1 images without any shape are unlabelled" in note for note in done.notes)


def test_the_run_lengths_of_cvats_own_documentation_are_a_disc(export: Export):
    rle = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"
    export.photo("images/1.png", 20, 20)
    export.text(
        "annotations.xml",
        "<annotations><meta><labels><label><name>cat</name></label></labels></meta>"
        f'<image id="0" name="1.png" width="20" height="20"><mask label="cat" rle="{rle}" left="4" top="3" '
        'width="13" height="15" z_order="0"></mask></image></annotations>',
    )
    export.read()
    seen = np.array(export.words("1")) == C
    assert seen[3:18, 4:17].sum() == seen.sum() > 100
    assert seen[3, 7:12].all()
    assert not seen[3, 4:7].any()


def region(kind: str, value: dict[str, Any], label: str | None = "cat", **more: Any) -> dict[str, Any]:
    value = value if label is None else {**value, f"{kind}labels": [label]}
    return {
        "original_width": 5,
        "original_height": 4,
        "image_rotation": 0,
        "value": value,
        "id": "Xs3a",
        "from_name": "tag",
        "to_name": "image",
        "type": f"{kind}labels",
        "origin": "manual",
        **more,
    }


POINTS = {"points": [[20, 25], [60, 25], [60, 75], [20, 75]], "closed": True}


def flags(*places: tuple[int, int]) -> np.ndarray[Any, Any]:
    found = np.zeros((4, 5), bool)
    for row, column in places:
        found[row, column] = True
    return found


def task(image: str, *results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    annotations = [
        {"id": number, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False}
        for number, result in enumerate(results)
    ]
    return {"id": 5, "annotations": annotations, "drafts": [], "predictions": [], "data": {"image": image}, **more}


def test_label_studio_json(export: Export):
    export.photo("images/1a2b3c4d-first.png")
    export.photo("second.png")
    export.photo("images/deep/third.png")
    export.photo("fourth one.png")
    brush = {"format": "rle", "rle": pack_brush(flags((1, 1), (1, 2), (2, 1), (2, 2)))}
    cancelled = task("/data/upload/1/9f8e7d6c-second.png", [region("polygon", POINTS)])
    cancelled["annotations"][0]["was_cancelled"] = True
    tasks = [
        task("/data/upload/1/1a2b3c4d-first.png", [region("brush", brush)], [region("polygon", POINTS, "dog")]),
        cancelled,
        task(
            "/data/local-files/?d=images%2Fdeep%2Fthird.png",
            [region("rectangle", {"x": 1}), region("brush", brush, "ignore")],
        ),
        task(
            "s3://bucket/fourth%20one.png",
            [
                region("polygon", POINTS, None, type="polygon"),
                {"id": "Xs3a", "type": "labels", "from_name": "l", "to_name": "image", "value": {"labels": ["cat"]}},
            ],
        ),
    ]
    export.json("project-1-at-2024-01-01-00-00-abc.json", tasks)
    done = export.read()
    assert done.source_format == "label_studio"
    assert export.words("first", 0) == SQUARE_WORDS
    assert export.words("first", 1) == [[word.replace(C, D) for word in row] for row in SQUARE_WORDS]
    assert export.words("deep/third") == [[word.replace(C, U) for word in row] for row in SQUARE_WORDS]
    assert export.words("fourth one") == SQUARE_WORDS
    assert not list((export.out / "masks").glob("second*"))
    assert any("left out (1 rectanglelabels)" in note for note in done.notes)


def test_label_studio_interface_tells_order_and_colours(export: Export):
    export.photo("1.png")
    export.json("tasks.json", [task("http://host/1.png?x=1", [region("polygon", POINTS)])])
    export.text(
        "config.xml",
        '<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">'
        '<Label value="dog" background="red"/><Label value="cat" background="#0a0b0c"/>'
        '<Label value="x" background="?"/>'
        "</PolygonLabels></View>",
    )
    export.text("other.xml", "<a/>")
    export.read()
    found = open_folder(export.out)
    assert found.classes.names == (B, D, C, "x")
    assert found.classes.colors[1:3] == ((255, 0, 0), (10, 11, 12))


def test_one_file_may_be_named_and_its_images_be_elsewhere(export: Export, elsewhere: Export):
    photo = elsewhere.photo("00c0ffee-1.png")
    path = export.json("a/tasks.json", [task("/data/upload/1/00c0ffee-1.png", [region("polygon", POINTS)])])
    export.json("a/more.json", [task("/data/upload/1/2.png")])
    export.read(source=path, images=(photo.parent,))
    assert export.words("1") == SQUARE_WORDS


def labelme(shapes: list[dict[str, Any]], image: str, **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": 4,
        "imageWidth": 5,
        **more,
    }


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        **more,
    }


def test_labelme_beside_its_images(export: Export):
    for name in ("a/1.png", "a/2.png", "a/3.png", "a/4.png"):
        export.photo(name)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8)).save(buffer, format="PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    corners = [[1, 1], [3, 1], [3, 3], [1, 3]]
    export.json("a/1.json", labelme([shape("cat", corners), shape("dog", [[0, 0], [4, 4]], "line")], "1.png"))
    mask = shape("cat", [[3, 2], [4, 3]], "mask", mask=code)
    export.json("a/2.json", labelme([shape("dog", [[2, 1], [0, 0]], "rectangle"), mask], "2.png", imageData="x" * 10))
    export.json("a/3.json", labelme([], "..\\a\\3.png"))
    export.text("labels.txt", "__ignore__\n_background_\ndog\ncat\n")
    done = export.read()
    assert done.source_format == "labelme"
    b = "_background_"
    assert export.words("a/1") == [[word.replace(B, b) for word in row] for row in SQUARE_WORDS]
    assert export.words("a/2") == [[D, D, b, b, b], [b] * 5, [b, b, b, C, b], [b, b, b, C, C]]
    assert export.words("a/3") == [[b] * 5] * 4
    found = open_folder(export.out)
    assert found.classes.names == (b, D, C)
    assert [len(item.masks) for item in found.items] == [1, 1, 1, 0]
    assert any("left out (1 line)" in note for note in done.notes)


def test_labelme_circles_and_ignored_regions(export: Export):
    export.photo("img/1.png", 30, 30)
    rows = [shape("cat", [[15, 15], [15, 25]], "circle"), shape("__ignore__", [[0, 0], [2, 0], [2, 2]])]
    export.json("ann/1.json", labelme(rows, "../img/1.png", imageHeight=30, imageWidth=30))
    export.read()
    seen = np.array(export.words("1"))
    assert abs((seen == C).sum() / (np.pi * 100) - 1) < 0.03
    assert (seen == U).sum() > 0


def test_nnunet(export: Export):
    for name in ("imagesTr/case_a_0000", "imagesTr/case_b_0000", "imagesTs/case_c_0000"):
        export.photo(f"{name}.png", 1, 3, "L")
    export.mask("labelsTr/case_a.png", [[0, 1, 2]])
    export.mask("labelsTr/case_b.png", [[0, 0, 1]])
    export.json(
        "dataset.json",
        {
            "channel_names": {"0": "grey"},
            "labels": {"background": 0, "cat": 1, "ignore": 2},
            "numTraining": 2,
            "file_ending": ".png",
        },
    )
    export.json("splits_final.json", [{"train": ["case_a"], "val": ["case_b"]}])
    done = export.read()
    assert done.source_format == "nnunet"
    assert export.words("case_a") == [[B, C, U]]
    found = open_folder(export.out)
    assert found.channels == 1
    assert [item.name for item in found.items] == ["case_a", "case_b"]
    assert [found.items[index].name for index in found.split("val")] == ["case_b"]


def test_mmseg_without_names_of_classes(export: Export):
    export.photo("img_dir/train/1.jpg", 1, 3)
    export.mask("ann_dir/train/1.png", [[0, 1, 255]])
    export.photo("img_dir/val/2.jpg", 1, 3)
    export.mask("ann_dir/val/2.png", [[0, 1, 1]])
    done = export.read()
    assert done.source_format == "mmseg"
    assert any("2 classes were inferred" in note for note in done.notes)
    assert export.words("1") == [["class 0", "class 1", U]]


def test_ours_is_recognised_and_needs_a_target(export: Export):
    export.photo("images/1.png")
    export.text("classes.yaml", "classes: [{id: 0, name: sky}]")
    with pytest.raises(Exception, match="is that already; choose one of segmint, cityscapes"):
        export.read()


def test_json_survives_a_byte_order_mark(export: Export):
    export.photo("images/1.png")
    content = json.dumps(coco([image(1, "1.png")], [annotation(1, 1, 17, [SQUARE])]))
    export.text("annotations/instances.json", "\ufeff" + content)
    export.read()
    assert export.words("1") == SQUARE_WORDS
