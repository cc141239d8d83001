"""What is done with images, names and classes, whatever the format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from segmint.data.folder import open_folder
from segmint.data.foreign import Source
from segmint.data.formats.format import Entry, Found, Label
from segmint.data.importing import write_ours
from segmint.types import SegmintError

Export = Any


def write(found: Found, tmp_path: Path) -> list[str]:
    done: list[tuple[int, int]] = []
    source = Source(tmp_path)
    told = write_ours(
        found,
        source,
        tmp_path / "out",
        ignore_unannotated=False,
        progress=lambda count, total: done.append((count, total)),
    )
    assert done == [(number + 1, len(done)) for number in range(len(done))]
    return told


def test_images_of_one_name_get_numbers(export: Export, tmp_path: Path):
    photo = export.photo("1.png")
    entries = [Entry(photo, name) for name in ("a", "a-2", "a", "a")]
    told = write(Found(entries, [Label("x")]), tmp_path)
    assert any("2 images have the name of another" in note for note in told)
    assert sorted(path.stem for path in (tmp_path / "out/images").iterdir()) == ["a", "a-2", "a-3", "a-4"]


def test_images_share_their_bytes_where_the_disk_can(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photo = export.photo("1.PNG")
    write(Found([Entry(photo, "a")], [Label("x")]), tmp_path)
    assert (tmp_path / "out/images/a.png").samefile(photo)

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    write(Found([Entry(photo, "b")], [Label("x")]), tmp_path)
    copied = tmp_path / "out/images/b.png"
    assert not copied.samefile(photo)
    assert copied.read_bytes() == photo.read_bytes()


def test_names_ids_and_colours_are_made_distinct(export: Export, tmp_path: Path):
    photo = export.photo("1.png")
    red = (255, 0, 0)
    labels = [Label(" sky", 3, red), Label("sky", 3, red), Label("", 255), Label(" ", 70000)]
    write(Found([Entry(photo, "a")], labels), tmp_path)
    classes = open_folder(tmp_path / "out").classes
    assert classes.names == ("sky", "sky 2", "unnamed", "unnamed 2")
    assert classes.ids == (0, 1, 2, 3)
    assert classes.colors[0] == red
    assert len(set(classes.colors)) == 4


def test_held_out_images_without_masks_stay_only_if_there_is_nothing_else(export: Export, tmp_path: Path):
    photo = export.photo("1.png")
    told = write(Found([Entry(photo, "a", "test"), Entry(photo, "b", "val")], [Label("x")]), tmp_path)
    assert len(open_folder(tmp_path / "out")) == 2
    assert not any("left out" in note for note in told)


def test_nothing_to_import(export: Export, tmp_path: Path):
    with pytest.raises(SegmintError, match="there is no image in it"):
        write(Found([], [Label("x")]), tmp_path)
    with pytest.raises(SegmintError, match="classes: the data set has none"):
        write(Found([Entry(export.photo("1.png"), "a")], []), tmp_path)
