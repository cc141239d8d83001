from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from segmint.data.classes import Classes, fill_colors, read_classes, write_classes
from segmint.data.folder import open_folder
from segmint.data.listing import natural, scan
from segmint.data.splits import halve, make_splits
from segmint.inference.inputs import find_inputs
from segmint.types import SegmintError

Maker = Callable[..., Path]


def split(root: Path, name: str, *names: str) -> None:
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits" / f"{name}.txt").write_text("# names\n\n" + "\n".join(names) + "\n")


def names(data: object, indices: list[int]) -> list[str]:
    return [data.items[index].name for index in indices]  # type: ignore[attr-defined]


def test_a_folder_is_described(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3, unlabelled=["g0/f1"]))
    assert [item.name for item in data.items] == ["g0/f0", "g0/f1", "g1/f0", "g1/f1", "g2/f0", "g2/f1"]
    assert [len(item.masks) for item in data.items] == [1, 0, 1, 1, 1, 1]
    assert (data.channels, data.depth, len(data), data.classes.names) == (3, 8, 6, ("sky", "road", "car"))
    assert "6 colour images, 5 with masks, in 3 groups" in data.describe()
    assert "splits: none yet" in data.describe()
    assert not (data.root / "splits").exists(), "opening writes nothing"
    assert data.sequences() == [[0, 1], [2, 3], [4, 5]]


def test_frames_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["a/f10", "a/f2", "a10/f1", "a2/f1", "b"], key=natural) == [
        "a/f2",
        "a/f10",
        "a2/f1",
        "a10/f1",
        "b",
    ]


def test_flat_and_nested_folders(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=2, flat=True))
    assert [item.group for item in data.items] == [item.name for item in data.items]
    assert data.sequences() == [[0], [1], [2], [3]]
    nested = data.root / "images" / "a" / "b"
    nested.mkdir(parents=True)
    shutil.copy(data.items[0].image, nested / "x.PNG")
    assert ("a/b/x", "a/b") in {(item.name, item.group) for item in open_folder(data.root).items}


def test_several_raters_in_the_order_of_their_numbers(make_folder: Maker) -> None:
    root = make_folder(groups=3)
    single = root / "masks" / "g0" / "f0.png"
    folder = root / "masks" / "g0" / "f0"
    folder.mkdir()
    for number in (10, 2, 0):
        shutil.copy(single, folder / f"{number}.png")
    with pytest.raises(SegmintError, match=r"masks/g0/f0 is both a file and a folder of raters"):
        open_folder(root)
    single.unlink()
    data = open_folder(root)
    assert [path.stem for path in data.items[0].masks] == ["0", "2", "10"]
    assert "raters per image: 1 to 3" in data.describe()


def test_strays_hidden_and_other_files_are_left_out_and_said(make_folder: Maker) -> None:
    root = make_folder(groups=3)
    (root / "images" / "notes.txt").touch()
    (root / "images" / ".hidden.png").touch()
    shutil.copy(root / "masks" / "g0" / "f0.png", root / "masks" / "stray.png")
    data = open_folder(root)
    assert len(data) == 6
    assert any("1 masks belong to no image" in note for note in data.notes)
    assert any("other kinds are left out (.txt)" in note for note in data.notes)


def test_folders_that_are_none(tmp_path: Path, make_folder: Maker) -> None:
    with pytest.raises(SegmintError, match=r"nowhere: no such folder; expected is\n  images/"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(SegmintError, match=r"no images/ folder in it"):
        open_folder(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(SegmintError, match=r"images: empty folder"):
        open_folder(tmp_path)
    root = make_folder(groups=3)
    shutil.copy(root / "images" / "g0" / "f0.png", root / "images" / "g0" / "f0.jpg")
    with pytest.raises(SegmintError, match=r"two files of one name: .*f0.jpg and .*f0.png; rename or remove one"):
        open_folder(root)


def test_splits_are_made_once_by_group_and_written(make_folder: Maker) -> None:
    root = make_folder(groups=20)
    data = open_folder(root)
    parts = {name: data.split(name) for name in ("train", "val", "test")}
    groups = {name: {data.items[index].group for index in part} for name, part in parts.items()}
    assert {name: len(members) for name, members in groups.items()} == {"train": 14, "val": 3, "test": 3}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    assert sorted(index for part in parts.values() for index in part) == list(range(40))
    again = open_folder(root)
    assert {name: again.split(name) for name in parts} == parts
    assert (root / "splits" / "val.txt").read_text().split() == names(data, parts["val"])
    assert any("splits were made by group and written" in note for note in data.notes)
    assert data.split_names == ("train", "val", "test")


def test_groups_without_labels_are_for_training(make_folder: Maker) -> None:
    hidden = [f"g{g}/f{f}" for g in range(3, 9) for f in range(2)]
    data = open_folder(make_folder(groups=9, unlabelled=hidden))
    assert set(hidden) <= set(names(data, data.split("train")))
    assert len(data.labelled()) == 2


def test_too_few_groups_to_split(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=2))
    with pytest.raises(SegmintError, match=r"only 2 groups of images with masks; .* needs 3 or more: label more"):
        data.split("train")


def test_splits_of_an_unwritable_folder_stay_in_memory(make_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise SegmintError("no rights")

    monkeypatch.setattr("segmint.data.folder.write_splits", refuse)
    data = open_folder(make_folder(groups=3))
    assert len(data.split("test")) == 2
    assert any("not written: no rights" in note for note in data.notes)


def test_split_files_are_obeyed(make_folder: Maker) -> None:
    root = make_folder(groups=5, unlabelled=["g2/f1"])
    split(root, "train", "g0/f1", "g0/f0")
    split(root, "val", "g1/f0")
    data = open_folder(root)
    assert names(data, data.split("val")) == ["g1/f0"]
    train = names(data, data.split("train"))
    assert train == ["g0/f0", "g0/f1", "g2/f0", "g2/f1", "g3/f0", "g3/f1", "g4/f0", "g4/f1"]
    assert "g1/f1" not in train, "its group is held out"
    with pytest.raises(SegmintError, match=r"there is no split 'test'; only train, val; add splits/test.txt"):
        data.split("test")


def test_every_wrong_line_of_the_split_files_is_named(make_folder: Maker) -> None:
    root = make_folder(groups=3)
    split(root, "train", "g0/f0", "g0/f0", "g9/f9", "g0/f1.png")
    split(root, "val", "g0/f0")
    with pytest.raises(SegmintError) as caught:
        open_folder(root)
    text = str(caught.value)
    for part in (
        "train.txt, line 4: 'g0/f0' is listed twice",
        "line 5: there is no image 'g9/f9'; correct or remove it",
        "line 6: there is no image 'g0/f1.png'; leave the suffix out",
        "'g0/f0' is in both train.txt and val.txt",
    ):
        assert part in text
    (root / "splits" / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SegmintError, match=r"val.txt: cannot be read"):
        open_folder(root)


def test_a_group_in_two_splits_is_said(make_folder: Maker) -> None:
    root = make_folder(groups=3, frames=3)
    split(root, "train", "g0/f0", "g0/f2", "g1/f0")
    split(root, "val", "g0/f1")
    data = open_folder(root)
    assert data.leaks == {"g0": ["train", "val"]}
    assert any("'g0' is in train and val" in note for note in data.notes)
    runs = [names(data, run) for run in data.sequences()]
    assert runs[:3] == [["g0/f0"], ["g0/f1"], ["g0/f2"]], "no held-out frame precedes a training frame"
    assert open_folder(make_folder("clean", groups=3)).leaks == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_budgets_are_nested(make_folder: Maker, seed: int) -> None:
    data = open_folder(make_folder(groups=12))
    everything = data.labelled()
    budgets = [data.labelled(budget, seed) for budget in (1, 3, 7, len(everything))]
    for small, large in pairwise(budgets):
        assert large[: len(small)] == small
    assert sorted(budgets[-1]) == everything
    assert data.labelled(7, 0) != data.labelled(7, 1)
    for budget in (0, len(everything) + 1):
        with pytest.raises(SegmintError, match=rf"budget: {budget} labelled images asked, but train has 16; ask 1..16"):
            data.labelled(budget)


def test_budget_files_are_obeyed_and_kept_to(make_folder: Maker) -> None:
    root = make_folder(groups=6, unlabelled=["g3/f0"])
    split(root, "val", "g5/f0", "g5/f1")
    split(root, "labelled-2-seed0", "g2/f1", "g0/f0")
    split(root, "labelled-4-seed0", "g2/f1", "g0/f0", "g1/f1", "g4/f0")
    data = open_folder(root)
    assert names(data, data.labelled(2)) == ["g2/f1", "g0/f0"]
    assert names(data, data.labelled(3)) == ["g2/f1", "g0/f0", "g1/f1"]
    assert names(data, data.labelled(6))[:4] == ["g2/f1", "g0/f0", "g1/f1", "g4/f0"]
    assert names(data, data.labelled(2, 1)) != ["g2/f1", "g0/f0"]
    split(root, "labelled-2-seed0", "g2/f1", "g5/f0")
    with pytest.raises(SegmintError, match=r"labelled-2-seed0.txt: 'g5/f0' is no training image with a mask"):
        open_folder(root).labelled(2)
    split(root, "labelled-2-seed0", "g2/f1")
    with pytest.raises(SegmintError, match=r"labelled-2-seed0.txt: lists 1 images"):
        open_folder(root).labelled(2)


def test_generated_items_are_added_to_training_only(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=6))
    pairs = open_folder(make_folder("pairs", groups=2, flat=True))
    manifest = [{"name": "g0-0", "kept": True}, {"name": "g0-1", "kept": False}]
    (pairs.root / "manifest.jsonl").write_text("\n".join(map(json.dumps, manifest)))
    both = data + pairs
    added = [item for item in both.items if item.synthetic]
    assert [item.name for item in added] == ["pairs/g0-0", "pairs/g1-0", "pairs/g1-1"]
    assert both.split("val") == data.split("val")
    assert both.split("train") == [*data.split("train"), 12, 13, 14]
    assert both.labelled(2) == [*data.labelled(2), 12, 13, 14], "generated ones come on top of the budget"
    assert "generated: 3" in both.describe()
    assert len({item.name for item in (both + pairs).items}) == 18
    assert not (pairs.root / "splits").exists()
    (pairs.root / "manifest.jsonl").write_text("{")
    with pytest.raises(SegmintError, match=r"manifest.jsonl, line 1: not an entry"):
        data + pairs


def test_generated_items_of_other_classes_are_refused(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3))
    other = open_folder(make_folder("pairs", classes="classes: [{id: 0, name: a}, {id: 1, name: b}, {id: 2, name: c}]"))
    with pytest.raises(SegmintError, match=r"its classes \(0: a, 1: b, 2: c\) are not those of .*0: sky"):
        data + other


def test_grey_and_deep_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, largest in enumerate((900, 4000, 17)):
        deep = np.full((4, 4), largest, np.uint16)
        (tmp_path / "images" / f"{number}.png").write_bytes(imagecodecs.png_encode(deep))
    data = open_folder(tmp_path)
    assert (data.channels, data.depth, len(data.classes)) == (1, 12, 0)
    assert "neither masks nor a classes.yaml" in data.describe()
    (tmp_path / "images" / "1.png").write_text("no image")
    assert any("1.png: not an image" in note for note in open_folder(tmp_path).notes)


def test_classes_are_inferred_and_said_aloud(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3, classes=None))
    assert (data.classes.names, data.classes.ids) == (("class 0", "class 1", "class 2"), (0, 1, 2))
    assert any("no classes.yaml: 3 classes were inferred from 6 masks" in note for note in data.notes)


def write_masks(root: Path, array: np.ndarray) -> None:
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(array).save(path)


def test_classes_are_inferred_from_colours(make_folder: Maker) -> None:
    root = make_folder(groups=3, classes=None)
    array = np.zeros((12, 10, 3), np.uint8)
    array[0] = 255, 0, 9
    write_masks(root, array)
    classes = open_folder(root).classes
    assert classes.colors == ((0, 0, 0), (255, 0, 9))
    write_masks(root, np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    with pytest.raises(SegmintError, match=r"120 colours; write which ones are classes"):
        open_folder(root)


def test_masks_that_do_not_tell_their_classes(make_folder: Maker) -> None:
    root = make_folder(groups=3, classes=None)
    array = np.zeros((12, 10), np.uint8)
    array[0] = 255
    write_masks(root, array)
    with pytest.raises(SegmintError, match=r"the masks hold 0 and 255: is 255 a class, or unknown"):
        open_folder(root)
    array[1] = 128
    write_masks(root, array)
    with pytest.raises(SegmintError, match=r"the masks hold 0, 128 and 255: is 255 a class"):
        open_folder(root)
    array[1] = 1
    write_masks(root, array)
    assert any(
        "2 classes were inferred" in note and "255 is taken for unknown" in note for note in open_folder(root).notes
    )
    write_masks(root, np.full((12, 10), 255, np.uint8))
    with pytest.raises(SegmintError, match=r"the masks hold 0 ids"):
        open_folder(root)
    for path in (root / "masks").rglob("*.png"):
        path.write_text("no mask")
    with pytest.raises(SegmintError, match=r"the masks are unreadable or of two kinds"):
        open_folder(root)


def test_a_large_folder_opens_quickly(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "images" / "a0.png")
    for number in range(1, 3000):
        os.link(tmp_path / "images" / "a0.png", tmp_path / "images" / f"a{number}.png")
    assert len(open_folder(tmp_path)) == 3000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [", r"classes.yaml, line \d: cannot be parsed"),
        ("- 1", "classes: must be a list"),
        ("classes: []", "classes: must be a list"),
        ("classes: [{id: 0, name: a}]\nvoid: 3", "void: there is no such key"),
        ("classes: [sky]", r"classes\[0\]: must be like \{id: 0, name: sky\}, not 'sky'"),
        ("classes: [{id: 0, name: a}, {name: b}]", r"classes\[1\].id: must be a whole number .* not None"),
        ("classes: [{id: true, name: a}]", r"classes\[0\].id: must be a whole number"),
        ("classes: [{id: 70000, name: a}]", r"classes\[0\].id: must be a whole number"),
        ("classes: [{id: 0, name: no}]", r"classes\[0\].name: must be a word"),
        ("classes: [{id: 0, name: a, colour: 1}]", r"classes\[0\].colour: there is no such key"),
        ("classes: [{id: 0, name: a, color: [1, 2]}]", r"classes\[0\].color: must be three numbers"),
        ("classes: [{id: 0, name: a}, {id: 0, name: b}]", r"classes\[1\].id: 0 is already classes\[0\].id"),
        ("classes: [{id: 0, name: a}, {id: 1, name: a}]", r"classes\[1\].name: 'a' is already"),
        ("classes: [{id: 255, name: a}]", r"ignore: 255 is already classes\[0\].id"),
        ("ignore: x\nclasses: [{id: 0, name: a}]", "ignore: must be a whole number"),
        (
            "ignore_color: [1, 2, 3]\nclasses: [{id: 0, name: a, color: [1, 2, 3]}]",
            r"ignore_color: \(1, 2, 3\) is already classes\[0\].color",
        ),
        ("classes:\n" + "".join(f"- {{id: {k}, name: c{k}}}\n" for k in range(256)), "254 at most"),
    ],
)
def test_wrong_classes_files_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(SegmintError, match=message):
        read_classes(path)


def test_classes_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_bytes(b"\xff\xff")
    with pytest.raises(SegmintError, match=r"cannot be read"):
        read_classes(path)
    path.write_text("ignore: 9\nclasses: [{id: 3, name: sky, color: '#0102ff'}, {id: 0, name: Straße}]")
    classes = read_classes(path)
    assert classes.colors[0] == (1, 2, 255)
    assert (classes.ids, classes.names, classes.ignore) == ((3, 0), ("sky", "Straße"), 9)
    for written in (classes, Classes(("a",), ((1, 2, 3),), (0,), 255, (9, 9, 9))):
        write_classes(path, written)
        assert read_classes(path) == written


def test_filled_colours_are_far_apart() -> None:
    colors = np.array(fill_colors([None, (1, 1, 1), *[None] * 60]), float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=2) + 999 * np.eye(len(colors))
    assert colors[1].tolist() == [1, 1, 1]
    assert distances[:20, :20].min() > 55
    assert distances.min() > 25


def test_halves_keep_groups_together_and_cut_a_single_group_in_the_middle():
    groups = [f"drive{index // 4}" for index in range(20)]
    first, second = halve(range(20), groups)
    assert sorted(first + second) == list(range(20))
    assert {groups[item] for item in first}.isdisjoint(groups[item] for item in second)
    assert abs(len(first) - len(second)) == 4
    assert halve(range(20), groups) == (first, second)
    assert halve(range(7), ["one"] * 7) == ([0, 1, 2, 3], [4, 5, 6])
    assert halve([], []) == ([], [])


def test_the_depth_is_that_of_the_deepest_of_all_images(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(64):
        deep = np.full((128, 128), 4000 if number == 33 else 900, np.uint16)
        deep[0, 0] = 60_000 if number == 5 else 0  # a dead pixel
        (tmp_path / "images" / f"{number}.png").write_bytes(imagecodecs.png_encode(deep))
    assert open_folder(tmp_path).depth == 12
    assert len(list(cache.glob("*.json"))) == 1, "it is remembered"
    (tmp_path / "images" / "33.png").unlink()
    assert open_folder(tmp_path).depth == 10


def test_nested_groups_are_split_by_the_outermost_that_suffice() -> None:
    visits = [f"p{patient}/v{visit}" for patient in range(6) for visit in range(3)]
    splits = make_splits(visits, range(len(visits)))
    homes = [{visits[item].split("/")[0] for item in members} for members in splits.values()]
    assert sum(len(home) for home in homes) == 6, "no patient is in two splits"
    one = [f"all/p{patient}" for patient in range(6)]
    assert all(make_splits(one, range(6)).values()), "where there is one folder around all, those in it are split"


def test_splits_are_written_all_at_once_or_not_at_all(make_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()

    def full(self: Path, *_: object, **__: object) -> int:
        if self.name == "test.txt":
            raise OSError(28, "No space left on device")
        return original(self, *_, **__)  # type: ignore[arg-type]

    original = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    data = open_folder(root)
    data.split("val")
    assert any("not written" in note and "No space" in note for note in data.notes)
    assert sorted(path.name for path in root.iterdir()) == ["classes.yaml", "images", "masks"]
    monkeypatch.undo()
    again = open_folder(root)
    assert again.split("val") == data.split("val")
    assert {path.name for path in (root / "splits").iterdir()} == {"train.txt", "val.txt", "test.txt"}


def test_split_files_of_windows_and_names_that_look_like_comments(make_folder: Maker) -> None:
    root = make_folder(groups=4, frames=1, flat=True)
    for kind in ("images", "masks"):
        (root / kind / "g0-0.png").rename(root / kind / "#0.png")
    (root / "splits").mkdir()
    (root / "splits" / "val.txt").write_bytes("\ufeffg1-0\r\n# a comment\r\n#0\r\n".encode())
    assert [open_folder(root).items[item].name for item in open_folder(root).split("val")] == ["g1-0", "#0"]


def test_links_are_followed_but_not_in_circles(make_folder: Maker, tmp_path: Path) -> None:
    root = make_folder(groups=3, frames=1)
    (tmp_path / "elsewhere").mkdir()
    (root / "images" / "g0" / "f0.png").rename(tmp_path / "elsewhere" / "f0.png")
    (root / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "images" / "g1" / "round").symlink_to(root / "images")
    names = [item.name for item in scan(root).items]
    assert names == ["g1/f0", "g2/f0", "linked/f0"]
    found = find_inputs([str(root)], tmp_path / "out")
    assert [one.name for one in found] == names, "what is trained on is what is segmented"
