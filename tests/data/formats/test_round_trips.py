"""Our folder to every format and back: the same masks, classes and splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segmint.data.classes import Classes, write_classes
from segmint.data.convert import Reading, Writing, convert
from segmint.data.folder import open_folder
from segmint.data.formats.format import find, names
from segmint.data.io import read_image, write_image
from segmint.data.masks import write_mask
from segmint.types import IGNORE, SegmintError

Words = Callable[[Path], dict[str, list[Any]]]
SPLITS = {"train": ["a/1", "a/2", "b/1.5"], "val": ["c/1"], "test": ["d/1"]}
WITH_SHAPES = ("coco", "cvat", "label_studio", "labelme")
CASES = [(name, None) for name in names()] + [(name, kind) for name in WITH_SHAPES for kind in ("polygons", "masks")]


def make(root: Path, classes: Classes, *, unknown: bool, raters: int = 1) -> Path:
    """Masks of noise: holes, single pixels, corners that touch. a/2 is unlabelled, c/1 has nothing but class 0."""
    random = np.random.default_rng(0)
    for split, members in SPLITS.items():
        for name in members:
            size = tuple(random.integers(7, 20, 2))
            write_image(root / "images" / f"{name}.png", random.integers(0, 256, (*size, 3)))
            for rater in range(raters if name != "a/2" else 0):
                mask = random.integers(0, 1 if name == "c/1" else len(classes), size).astype(np.uint8)
                if unknown:
                    mask[random.random(size) < 0.1] = IGNORE
                home = name if raters == 1 else f"{name}/{rater}"
                write_mask(root / "masks" / f"{home}.png", mask, classes)
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in members))
    write_classes(root / "classes.yaml", classes)
    return root


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("ground", ["background", "sky"])
@pytest.mark.parametrize(("name", "shapes"), CASES)
def test_there_and_back(name: str, shapes: Any, ground: str, unknown: bool, tmp_path: Path, words_of: Words):
    if name == "yolo" and unknown and ground == "background":
        pytest.skip("YOLO cannot hold both")
    classes = Classes((ground, "car", "tree"), ((9, 8, 7), (10, 200, 30), (40, 50, 250)), (0, 1, 2))
    folder = make(tmp_path / "data", classes, unknown=unknown)
    there = convert(folder, tmp_path / "there", target_format=name, writing=Writing(shapes=shapes))
    assert (there.source_format, there.target_format) == ("segmint", name)
    reading = Reading(unannotated="ignore" if name == "yolo" and unknown else "background")
    back = convert(tmp_path / "there", tmp_path / "back", reading=reading)
    assert back.source_format == name

    before, after = words_of(folder), words_of(tmp_path / "back")
    if name == "nnunet":
        before = {key.replace("/", "__"): value for key, value in before.items() if value}
    if name == "coco" and ground == "background":
        assert before["c/1"] == after["c/1"], "an image without objects is background in COCO"
    assert after == before
    found = open_folder(tmp_path / "back")
    assert [name for name in found.classes.names if name != "background"] == [
        name for name in classes.names if name != "background"
    ]
    if name not in ("yolo", "labelme", "nnunet"):  # which have no place for colours
        kept = dict(zip(found.classes.names, found.classes.colors, strict=True))
        assert all(
            kept.get(name, color) == color for name, color in zip(classes.names[1:], classes.colors[1:], strict=True)
        )
    for split, members in SPLITS.items():
        expected = [member.replace("/", "__") if name == "nnunet" else member for member in members]
        expected = [member for member in expected if member in after]
        assert [found.items[index].name for index in found.split(split)] == expected


@pytest.mark.parametrize("name", [name for name in names() if name not in ("voc", "nnunet")])
def test_images_are_taken_as_they_are(name: str, tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    convert(folder, tmp_path / "there", target_format=name)
    convert(tmp_path / "there", tmp_path / "back")
    for path in (tmp_path / "back" / "images").rglob("*.png"):
        original = folder / path.relative_to(tmp_path / "back")
        assert path.read_bytes() == original.read_bytes()


def test_from_one_foreign_format_to_another(tmp_path: Path, words_of: Words):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    convert(folder, tmp_path / "coco", target_format="coco")
    done = convert(tmp_path / "coco", tmp_path / "cvat", target_format="cvat")
    assert done.source_format == "coco"
    convert(tmp_path / "cvat", tmp_path / "back")
    assert words_of(tmp_path / "back") == words_of(folder)
    assert not list(tmp_path.glob(".*"))


def test_several_raters_become_their_majority_or_one_of_them(tmp_path: Path, words_of: Words):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False, raters=3)
    before = words_of(folder)["b/1.5"]
    done = convert(folder, tmp_path / "most", target_format="mmseg")
    assert any("3 raters" in note and "majority" in note for note in done.notes)
    convert(tmp_path / "most", tmp_path / "most-back")
    votes = np.array(before) == "car"
    expected = np.where(votes.sum(0) >= 2, "car", "background").tolist()
    assert words_of(tmp_path / "most-back")["b/1.5"] == [expected]

    convert(folder, tmp_path / "second", target_format="voc", writing=Writing(rater=1))
    convert(tmp_path / "second", tmp_path / "second-back")
    assert words_of(tmp_path / "second-back")["b/1.5"] == [before[1]]
    with pytest.raises(SegmintError, match=r"--rater 3: 'a/1' has masks 0 to 2"):
        convert(folder, tmp_path / "none", target_format="voc", writing=Writing(rater=3))
    with pytest.raises(SegmintError, match="0 or more"):
        convert(folder, tmp_path / "none", target_format="voc", writing=Writing(rater=-1))
    assert not (tmp_path / "none").exists()


def test_label_studio_keeps_all_raters(tmp_path: Path, words_of: Words):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False, raters=2)
    done = convert(folder, tmp_path / "there", target_format="label_studio")
    assert any("all of them are kept" in note for note in done.notes)
    convert(tmp_path / "there", tmp_path / "back")
    assert words_of(tmp_path / "back") == words_of(folder)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A generated folder: no splits, and one pair of three that an assay did not keep but left there."""
    root = tmp_path / "pairs"
    classes = Classes.named(("background", "car"))
    for number in range(3):
        write_image(root / "images" / f"{number}.png", np.zeros((4, 4, 3)))
        write_mask(root / "masks" / f"{number}.png", np.eye(4, dtype=np.uint8), classes)
    lines = [json.dumps({"name": str(number), "seed": number, "kept": number != 1}) for number in range(3)]
    (root / "manifest.jsonl").write_text("\n".join(lines))
    write_classes(root / "classes.yaml", classes)
    return root


@pytest.mark.parametrize("name", names())
def test_of_generated_folders_only_kept_pairs_are_written_for_training(name: str, pairs: Path, tmp_path: Path):
    done = convert(pairs, tmp_path / "out", target_format=name)
    assert any("generated" in note for note in done.notes)
    convert(tmp_path / "out", tmp_path / "back")
    assert {path.stem for path in (tmp_path / "back" / "masks").rglob("*.png")} == {"0", "2"}
    assert not (pairs / "splits").exists()


def test_generated_pairs_are_added_to_training(pairs: Path, tmp_path: Path, words_of: Words):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    convert(folder, tmp_path / "out", target_format="yolo", writing=Writing(synthetic=(pairs,)))
    assert sorted(path.name for path in (tmp_path / "out/labels/train/pairs").iterdir()) == ["0.txt", "2.txt"]
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert content["train"] == "images/train"
    assert content["names"] == {0: "car"}
    assert len(list((tmp_path / "out/labels/val").rglob("*.txt"))) == 1


def test_a_folder_where_every_pair_was_dropped_is_refused(pairs: Path, tmp_path: Path):
    (pairs / "manifest.jsonl").write_text("\n".join(json.dumps({"name": str(n), "kept": False}) for n in range(3)))
    with pytest.raises(SegmintError, match="no image is left"):
        convert(pairs, tmp_path / "out", target_format="yolo")


def test_nnunet_gets_what_its_own_checks_demand(tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("sky", "car")), unknown=True)
    done = convert(folder, tmp_path / "out", target_format="nnunet")
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "sky": 1, "car": 2, "ignore": 3}
    assert content["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert content["numTraining"] == len(list((tmp_path / "out/labelsTr").iterdir())) == 3
    assert content["file_ending"] == ".png"
    assert json.loads((tmp_path / "out/splits_final.json").read_text()) == [
        {"train": ["a__1", "b__1.5"], "val": ["c__1"]}
    ]
    assert (tmp_path / "out/imagesTs/d__1_0000.png").is_file()
    assert any("no class is called background" in note for note in done.notes)


def test_nnunet_refuses_names_that_become_one(tmp_path: Path):
    classes = Classes.named(("background", "car"))
    for name in ("a/b", "a__b"):
        write_image(tmp_path / "data/images" / f"{name}.png", np.zeros((4, 4, 3)))
        write_mask(tmp_path / "data/masks" / f"{name}.png", np.zeros((4, 4), np.uint8), classes)
    write_classes(tmp_path / "data/classes.yaml", classes)
    with pytest.raises(SegmintError, match="a__b"):
        convert(tmp_path / "data", tmp_path / "out", target_format="nnunet")


def test_voc_images_become_jpeg_of_good_quality(tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    smooth = np.add.outer(np.arange(40), np.arange(30))[..., None] * np.array([1, 2, 3])
    write_image(folder / "images/a/2.png", smooth)
    done = convert(folder, tmp_path / "out", target_format="voc")
    assert any("5 images were encoded as JPEG" in note for note in done.notes)
    assert abs(read_image(tmp_path / "out/JPEGImages/a/2.jpg").astype(int) - smooth).max() <= 8


def test_mmseg_has_a_configuration_that_runs(tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    write_image(folder / "images/e/1.jpg", np.zeros((5, 5, 3)))
    done = convert(folder, tmp_path / "out", target_format="mmseg")
    scope: dict[str, Any] = {}
    exec((tmp_path / "out/dataset.py").read_text(), scope)
    assert scope["metainfo"]["classes"] == ("background", "car")
    assert scope["val_dataset"]["data_prefix"] == {"img_path": "img_dir/val", "seg_map_path": "ann_dir/val"}
    assert scope["train_dataset"]["img_suffix"] == ".png"
    assert any("encoded as PNG" in note for note in done.notes)


def test_cityscapes_own_classes_keep_its_ids(tmp_path: Path, words_of: Words):
    from segmint.data.formats.cityscapes import STANDARD

    numbers, called, colors = zip(*STANDARD, strict=True)
    folder = make(tmp_path / "data", Classes(called[::-1], colors[::-1], tuple(range(19))), unknown=True)
    convert(folder, tmp_path / "out", target_format="cityscapes")
    assert not (tmp_path / "out/label_colors.txt").exists()
    convert(tmp_path / "out", tmp_path / "back")
    assert words_of(tmp_path / "back") == words_of(folder)
    assert open_folder(tmp_path / "back").classes.ids == numbers


def test_data_without_splits_gets_them_and_too_little_of_it_is_all_for_training(tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    for path in (folder / "splits").iterdir():
        path.unlink()
    convert(folder, tmp_path / "out", target_format="yolo")
    assert (tmp_path / "out/labels/val").is_dir()
    assert (folder / "splits/train.txt").is_file()
    few = tmp_path / "few"
    write_image(few / "images/a.png", np.zeros((4, 4, 3)))
    write_mask(few / "masks/a.png", np.zeros((4, 4), np.uint8), Classes.named(("background", "car")))
    write_classes(few / "classes.yaml", Classes.named(("background", "car")))
    done = convert(few, tmp_path / "less", target_format="yolo")
    assert any("all images are for training" in note for note in done.notes)
    assert any("there is no val" in note for note in done.notes)
    assert (tmp_path / "less/labels/train/a.txt").read_text() == ""


@pytest.mark.parametrize(("name", "shapes"), [("yolo", "masks")])
def test_shapes_that_a_format_does_not_know_are_refused(name: str, shapes: Any, tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car")), unknown=False)
    with pytest.raises(SegmintError, match=f"--shapes {shapes}"):
        convert(folder, tmp_path / "out", target_format=name, writing=Writing(shapes=shapes))


def test_voc_refuses_names_that_its_list_of_labels_cannot_hold(tmp_path: Path):
    folder = make(tmp_path / "data", Classes.named(("background", "car:red")), unknown=False)
    with pytest.raises(SegmintError, match="car:red"):
        convert(folder, tmp_path / "out", target_format="voc")


def test_a_mask_of_another_size_is_named(tmp_path: Path):
    classes = Classes.named(("background", "car"))
    folder = make(tmp_path / "data", classes, unknown=False)
    write_mask(folder / "masks/a/1.png", np.zeros((3, 3), np.uint8), classes)
    with pytest.raises(SegmintError, match=r"masks/a/1\.png: 3 x 3"):
        convert(folder, tmp_path / "out", target_format="coco")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", names())
def test_every_format_says_what_it_is(name: str):
    chosen = find(name)
    assert chosen.title
    assert chosen.layout
    assert (type(chosen).read.__doc__ or "").strip()
