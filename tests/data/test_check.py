from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from segmint.data.check import Findings, check
from segmint.data.table import _bar

Maker = Callable[..., Path]


def printed(found: Findings) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(found.table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def split(root: Path, name: str, *names: str) -> None:
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits" / f"{name}.txt").write_text("\n".join(names))


def good(make_folder: Maker, **options: object) -> Path:
    root = make_folder(groups=4, **options)
    split(root, "val", "g1/f0", "g1/f1")
    split(root, "test", "g2/f0", "g2/f1")
    return root


def test_a_good_folder_has_no_problems(make_folder: Maker) -> None:
    root = good(make_folder, unlabelled=["g0/f1"])
    before = sorted(root.rglob("*"))
    found = check(root)
    assert (found.problems, found.oddities) == ([], [])
    assert found.counts["train"] == {"images": 4, "labelled": 3, "unlabelled": 1, "groups": 2}
    assert found.counts["all"]["images"] == 8
    assert found.sizes == {(12, 10): 8}
    assert sum(found.shares) == pytest.approx(1)
    assert sorted(root.rglob("*")) == before, "checking writes nothing"
    text = printed(found)
    for part in ("train", "val", "test", "10 x 12 (8)", "road", "colour", "1 (7 images)", "no problems"):
        assert part in text


def test_every_problem_is_named(make_folder: Maker) -> None:
    root = good(make_folder)
    images, masks = root / "images", root / "masks"
    shutil.copy(masks / "g0" / "f0.png", masks / "stray.png")
    Image.new("L", (9, 9)).save(masks / "g0" / "f0.png")
    ids = np.zeros((12, 10), np.uint8)
    ids[4, 2:6] = 77
    Image.fromarray(ids).save(masks / "g0" / "f1.png")
    content = (images / "g3" / "f0.png").read_bytes()
    (images / "g3" / "f0.png").write_bytes(content[: len(content) // 2])
    (images / "g3" / "f1.png").write_text("not an image")
    (masks / "g3" / "f1.png").write_bytes(b"")
    shutil.copy(images / "g1" / "f0.png", images / "g1" / "f0.webp")
    (masks / "g2" / "f1.png").unlink()
    (root / "classes.yaml").write_text(
        "classes: [{id: 0, name: sky}, {id: 1, name: road}, {id: 2, name: car}, {id: 3, name: ghost}]"
    )
    split(root, "train", "g0/f0", "g1/f1", "g2/f0", "nobody")
    split(root, "labelled-2-seed0", "g0/f0")
    (root / "manifest.jsonl").write_text("[]")
    found = check(root, progress=True)
    text = "\n".join(found.problems)
    for part in (
        "stray.png: mask without image; add the image or remove the mask",
        "f0.png: 9 x 9 pixels, but its image f0.png has 10 x 12; make the mask for the image as it is",
        "f1.png: class id 77 (first at x=2, y=4; 4 pixels) not among the classes",
        "g3/f0.png: truncated or damaged",
        "g3/f1.png: not an image",
        "masks/g3/f1.png: empty file (0 bytes)",
        "two files of one name",
        "splits: group 'g1' is in train and val",
        "splits: group 'g2' is in test and train",
        "'g1/f1' is in both train.txt and val.txt",
        "train.txt, line 4: there is no image 'nobody'",
        "splits/labelled-2-seed0.txt: lists 1 images",
        "manifest.jsonl, line 1: not an entry",
    ):
        assert part in text
    assert f"{len(found.problems)} problems" in printed(found)
    assert "splits/test.txt: 1 image without a mask, held out but not scored, e.g. 'g2/f1'" in found.oddities
    (root / "manifest.jsonl").unlink()
    assert any("class 'ghost' (id 3) is never seen in any mask" in problem for problem in check(root).problems)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    assert "no such folder" in check(tmp_path / "nowhere").problems[0]
    (tmp_path / "images").mkdir()
    found = check(tmp_path)
    assert "empty folder" in found.problems[0]
    assert "1 problem" in printed(found)


def test_an_unreadable_classes_file_hides_nothing_else(make_folder: Maker) -> None:
    root = good(make_folder)
    (root / "classes.yaml").write_text("classes: [{id: 0}]")
    (root / "images" / "g0" / "f0.png").write_text("broken")
    text = "\n".join(check(root).problems)
    assert "classes[0].name" in text
    assert "not an image" in text


def test_a_generated_folder_may_lack_a_class(make_folder: Maker) -> None:
    root = make_folder(groups=2, flat=True)
    for path in (root / "masks").iterdir():
        Image.new("L", (10, 12)).save(path)
    (root / "manifest.jsonl").write_text('{"name": "g0-0", "kept": true}\n')
    found = check(root)
    assert found.problems == []
    assert "class 'car' (id 2) is in none of the generated masks" in found.oddities


def test_what_is_odd_is_said_but_is_no_problem(make_folder: Maker) -> None:
    root = make_folder(groups=4)
    images, masks = root / "images", root / "masks"
    split(root, "val", "g1/f0", "g1/f1")
    split(root, "test", "g2/f0")
    shutil.copy(images / "g0" / "f0.png", images / "g1" / "f0.png")
    shutil.copy(images / "g3" / "f0.png", images / "g3" / "f1.png")
    Image.new("L", (20, 12)).save(images / "g0" / "f1.png")
    Image.new("L", (20, 12), 255).save(masks / "g0" / "f1.png")
    for name in ("g0/f0", "g3/f0", "g3/f1"):
        ids = np.array(Image.open(masks / f"{name}.png"))
        Image.fromarray(np.where(ids == 2, 1, ids)).save(masks / f"{name}.png")
    (images / "notes.txt").touch()
    found = check(root)
    assert found.problems == []
    text = "\n".join(found.oddities)
    for part in (
        "1 files of other kinds are not read: images/notes.txt",
        "class 'car' (id 2) is never seen in the training labels",
        "images are of 2 sizes, 10 to 20 wide and 12 to 12 high",
        "1 images are grey, the others not",
        "1 images have masks in which every pixel is unknown",
        "one image in two splits: 'g0/f0' (train) and 'g1/f0' (val) are the same pixel by pixel",
        "1 image is a copy of another",
    ):
        assert part in text


def test_rare_classes_and_raters_and_few_groups(make_folder: Maker) -> None:
    root = make_folder(groups=2)
    mask = np.zeros((60, 60), np.uint8)
    for number, path in enumerate(sorted((root / "masks").rglob("*.png"))):
        mask[0, :2] = (1, 2) if number == 0 else 0
        Image.fromarray(mask).save(path)
        Image.new("RGB", (60, 60), (number, 0, 0)).save(root / "images" / path.relative_to(root / "masks"))
    raters = root / "masks" / "g0" / "f1"
    raters.mkdir()
    for rater in range(2):
        shutil.copy(root / "masks" / "g0" / "f1.png", raters / f"{rater}.png")
    (root / "masks" / "g0" / "f1.png").unlink()
    found = check(root)
    assert found.problems == []
    text = "\n".join(found.oddities)
    assert "class 'road' (id 1) is nearly empty: 0.006% of the labelled pixels" in text
    assert "the number of masks per image varies: 3 images have 1, 1 images have 2" in text
    assert "only 2 groups have masks" in text
    assert "splits   none yet" in printed(found)


def test_folders_without_labels(make_folder: Maker) -> None:
    root = make_folder(groups=2)
    shutil.rmtree(root / "masks")
    found = check(root)
    assert found.problems == []
    assert any("no image has a mask" in oddity for oddity in found.oddities)
    assert "raters   none" in printed(found)


def test_bars_grow_with_shares() -> None:
    assert _bar(0) == ""
    assert _bar(1e-9) == "▏"
    assert _bar(1) == "█" * 14
    assert _bar(0.5) == "█" * 7


def test_many_sizes_are_summed_up(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for side in range(2, 7):
        Image.new("L", (side, side)).save(tmp_path / "images" / f"{side}.png")
    assert "2 more" in printed(check(tmp_path))
