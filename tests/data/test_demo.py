from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from segmint.data.check import check
from segmint.data.demo import make_demo
from segmint.data.folder import Data
from segmint.data.io import read_image
from segmint.data.masks import read_mask
from segmint.types import SegmintError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Data:
    pytest.importorskip("nilearn", reason="the demo data comes with nilearn")
    return make_demo(tmp_path_factory.mktemp("demo") / "data")


def heights(data: Data, split: str) -> list[int]:
    return [int(data.items[index].name[-3:]) for index in data.split(split)]


def test_the_demo_passes_its_own_check(demo: Data) -> None:
    found = check(demo.root)
    assert found.problems == []
    assert found.sizes == {(112, 96): len(demo)}
    assert demo.channels == 1
    assert demo.leaks == {}
    assert demo.classes.names == ("background", "cerebrospinal fluid", "grey matter", "white matter")


def test_no_test_slice_has_a_neighbour_in_training(demo: Data) -> None:
    train = np.array(heights(demo, "train"))
    assert len(train) >= 40
    assert len(heights(demo, "test")) >= 12
    for held in ("val", "test"):
        assert min(np.abs(train - height).min() for height in heights(demo, held)) > 6


def test_all_classes_are_in_every_slice_and_fit_the_image(demo: Data) -> None:
    for item in demo.items:
        mask, image = read_mask(item.masks[0], demo.classes), read_image(item.image)[..., 0]
        assert set(np.unique(mask)) == {0, 1, 2, 3}
        means = [float(image[mask == k].mean()) for k in range(4)]
        assert means == sorted(means), "T1: fluid is dark, grey matter grey, white matter white"
        assert means[0] < 1


def test_blocks_are_sequences_of_frames(demo: Data) -> None:
    for run in demo.sequences():
        numbers = [int(demo.items[index].name[-3:]) for index in run]
        assert np.diff(numbers).tolist() == [1] * (len(run) - 1)
    assert len(demo.sequences()) == 9


def test_the_budget_spreads_over_the_head(demo: Data) -> None:
    chosen = demo.labelled(8)
    assert len(chosen) == 8
    assert len({demo.items[index].group for index in chosen}) == 5
    assert len(demo.labelled()) == len(demo.split("train"))


def test_the_folder_says_what_it_is(demo: Data) -> None:
    text = (demo.root / "README.txt").read_text()
    assert "ONE AVERAGED BRAIN" in text
    assert "ICBM 152 2009a nonlinear symmetric" in text
    assert "Copyright (C) 1993-2004 Louis Collins" in text


def test_the_demo_is_the_same_each_time_and_is_not_made_twice(demo: Data, tmp_path: Path) -> None:
    again = make_demo(tmp_path / "again")
    files = sorted(path.relative_to(demo.root) for path in demo.root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again.root) for path in again.root.rglob("*") if path.is_file())
    assert all((demo.root / path).read_bytes() == (again.root / path).read_bytes() for path in files)
    stamp = demo.items[0].image.stat().st_mtime_ns
    assert make_demo(demo.root).items[0].image.stat().st_mtime_ns == stamp


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SegmintError, match=r"holds something else already; name a new folder"):
        make_demo(tmp_path)
    with pytest.raises(SegmintError, match=r"cannot be written"):
        make_demo(tmp_path / "mine.txt" / "demo")


def test_without_nilearn_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(SegmintError, match=r'pip install "segmint\[demo\]"'):
        make_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
