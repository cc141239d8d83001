"""`segmint convert` as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segmint import cli
from segmint.data.folder import open_folder
from segmint.data.formats.format import names
from segmint.types import SegmintError


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def test_there_and_back(shapes: Path, tmp_path: Path):
    told = run(shapes, tmp_path / "coco", "--to", "coco")
    assert "looks like segmint" in told
    assert "with masks: train 5, val 3, test 3; without: 3" in told
    told = run(tmp_path / "coco", tmp_path / "back")
    assert "looks like coco: COCO" in told
    assert "coco to segmint" in told
    back = open_folder(tmp_path / "back")
    assert back.classes.names == ("ground", "square", "disc")
    assert [len(back.split(split)) for split in ("train", "val", "test")] == [8, 3, 3]


def test_options_arrive(tmp_path: Path, export: Any):
    export.photo("images/1.png")
    export.text("data.yaml", "train: images\nnames: [cat]")
    export.text("labels/1.txt", "0 0.2 0.25 0.6 0.25 0.6 0.75\n")
    told = run(export.root, tmp_path / "out", "--from", "yolo", "--unannotated", "ignore", "--overlap", "smaller")
    assert "unknown class (--unannotated ignore)" in told
    with pytest.raises(SegmintError, match="--empty: must be one of background, unlabelled"):
        run(export.root, tmp_path / "no", "--empty", "perhaps")
    with pytest.raises(SegmintError, match="--shapes masks"):
        run(tmp_path / "out", tmp_path / "no", "--to", "yolo", "--shapes", "masks")
    with pytest.raises(SegmintError, match="its classes"):
        run(tmp_path / "out", tmp_path / "no", "--to", "yolo", "--synthetic", _pairs(tmp_path))


def _pairs(tmp_path: Path) -> Path:
    """A folder of other classes."""
    import numpy as np
    from PIL import Image

    for kind in ("images", "masks"):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pairs" / kind / "1.png")
    (tmp_path / "pairs/classes.yaml").write_text("classes: [{id: 0, name: dog}]")
    return tmp_path / "pairs"


def test_the_help_names_every_format():
    help_text = next(command for command in cli.app.registered_commands if command.callback.__name__ == "convert")
    text = str(help_text.callback.__annotations__["from_"])
    assert all(name in text for name in names())
