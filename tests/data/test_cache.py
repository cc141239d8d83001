from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segmint.data.cache as module
from segmint.data.cache import Pixels, from_pixels, resize, to_pixels
from segmint.data.folder import open_folder
from segmint.data.io import read_image
from segmint.data.masks import read_mask
from segmint.types import IGNORE, SegmintError

Maker = Callable[..., Path]


def test_pixels_are_those_of_the_files(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3, unlabelled=["g1/f0"]))
    pixels = Pixels.open(data)
    assert pixels.size == (12, 10)
    assert pixels.images.shape == (6, 12, 10, 3)
    assert pixels.masks.shape == (5, 12, 10)
    assert pixels.rows == [(0,), (1,), (), (2,), (3,), (4,)]
    for index, item in enumerate(data.items):
        assert np.array_equal(pixels.images[index], read_image(item.image))
        for row, path in zip(pixels.rows[index], item.masks, strict=True):
            assert np.array_equal(pixels.masks[row], read_mask(path, data.classes))


def test_batches_have_the_documented_ranges(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3, unlabelled=["g1/f0"]))
    pixels = Pixels.open(data)
    batch = pixels.batch([3, 2, 3], labelled=[True, True, False])
    assert (batch.image.dtype, batch.mask.dtype) == (torch.float32, torch.int64)
    assert batch.image.shape == (3, 3, 12, 10)
    expected = torch.from_numpy(np.array(pixels.images[3])).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(batch.image[0], expected)
    assert batch.labelled.tolist() == [True, False, False]
    assert torch.equal(batch.mask[0], torch.from_numpy(np.array(pixels.masks[2])).long())
    assert (batch.mask[1:] == IGNORE).all()
    assert batch.previous is None
    assert float(batch.image.min()) >= -1
    assert float(batch.image.max()) <= 1


def test_previous_frames_follow_the_sequences(make_folder: Maker) -> None:
    pixels = Pixels.open(open_folder(make_folder(groups=2, frames=3)))
    batch = pixels.batch([0, 1, 2, 3, 5], previous=True)
    assert batch.previous is not None
    assert torch.equal(batch.previous, pixels.batch([0, 0, 1, 3, 4]).image)


def test_raters_go_round(make_folder: Maker) -> None:
    root = make_folder(groups=3)
    path = root / "masks" / "g0" / "f0.png"
    path.unlink()
    for rater in range(3):
        path.with_suffix("").mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 10), rater, np.uint8)).save(path.with_suffix("") / f"{rater}.png")
    pixels = Pixels.open(open_folder(root))
    assert pixels.batch([0, 0, 0, 0], raters=[0, 1, 2, 4]).mask[:, 0, 0].tolist() == [0, 1, 2, 1]
    assert pixels.shares([0]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_shares_count_labelled_pixels_only(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=3, unlabelled=["g1/f0"]))
    ids = np.full((12, 10), 255, np.uint8)
    ids[0] = 1
    ids[1:4] = 2
    Image.fromarray(ids).save(data.items[0].masks[0])
    pixels = Pixels.open(data)
    assert pixels.shares([0, 2]) == pytest.approx((0, 0.25, 0.75))
    assert pixels.shares([2]) == (0, 0, 0)


def test_images_without_masks(make_folder: Maker) -> None:
    root = make_folder(groups=2)
    shutil.rmtree(root / "masks")
    batch = Pixels.open(open_folder(root)).batch([0, 1])
    assert not batch.labelled.any()


def test_nothing_is_decoded_twice_unless_it_changed(make_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_folder(make_folder(groups=2))
    decoded = []
    real = module._decode

    def count(item: object, *rest: object) -> object:
        decoded.append(item)
        return real(item, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_decode", count)
    for _ in range(2):
        Pixels.open(data, (16, 8))
    assert len(decoded) == 4
    Pixels.open(data, (8, 8))
    assert len(decoded) == 8
    Image.new("RGB", (10, 12)).save(data.items[0].image)
    os.utime(data.items[0].image, ns=(1, 1))
    assert int(Pixels.open(data, (16, 8)).images[0].max()) == 0


def test_resizing_keeps_classes_and_means(make_folder: Maker) -> None:
    data = open_folder(make_folder(groups=2))
    pixels = Pixels.open(data, (6, 5))
    assert set(np.unique(pixels.masks)) <= {0, 1, 2}
    image = read_image(data.items[0].image)
    assert abs(float(pixels.images[0].mean()) - float(image.mean())) < 8, "the filter is antialiased"
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    assert resize(grey, (2, 2), Image.Resampling.BILINEAR).shape == (2, 2, 1)
    with pytest.raises(SegmintError, match=r"size: 0 x 5 has no pixels"):
        Pixels.open(data, (0, 5))


def test_images_of_many_sizes_get_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, (width, height) in enumerate([(1024, 500), (1030, 510), (1000, 600)]):
        Image.new("L", (width, height), number).save(tmp_path / "images" / f"{number}.png")
    data = open_folder(tmp_path)
    for _ in range(2):
        pixels = Pixels.open(data)
        assert pixels.size == (256, 512)
        assert pixels.images.shape == (3, 256, 512, 1)
        assert "500 to 600 high and 1000 to 1030 wide; all are resized to 256 x 512" in pixels.notes[0]


def test_large_files_are_decoded_by_several_threads_with_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    for number in range(4):
        Image.fromarray(noise[number]).save(tmp_path / "images" / f"{number}.png")
    assert np.array_equal(Pixels.open(open_folder(tmp_path), progress=True).images, noise)
    assert capsys.readouterr() == ("", ""), "no bar where there is no terminal"
    monkeypatch.setenv("FORCE_COLOR", "1")
    Pixels.open(open_folder(tmp_path), (64, 64), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decoding" in captured.err


def test_masks_must_be_as_large_as_their_images(make_folder: Maker, cache: Path) -> None:
    data = open_folder(make_folder(groups=2))
    Image.new("L", (9, 9)).save(data.items[1].masks[0])
    with pytest.raises(SegmintError, match=r"f1.png: 9 x 9 pixels, but its image f1.png has 10 x 12"):
        Pixels.open(data)
    assert not list(cache.glob("*.tmp")), "nothing half-written remains"
    data.items[0].image.unlink()
    with pytest.raises(SegmintError, match=r"f0.png: cannot be opened"):
        Pixels.open(data)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_leaves_nothing(
    make_folder: Maker, cache: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    data = open_folder(make_folder(groups=2))
    if when == "before":
        usage = shutil.disk_usage(cache)._replace(free=100)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    else:

        def fail(*args: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module, "_fill", fail)
    with pytest.raises(SegmintError, match=r"cannot be written \(No space left on device\); it needs .* SEGMINT_CACHE"):
        Pixels.open(data, (12, 10))
    assert list(cache.iterdir()) == []


def test_damaged_caches_are_named(make_folder: Maker, cache: Path) -> None:
    data = open_folder(make_folder(groups=2))
    Pixels.open(data, (12, 10))
    (folder,) = cache.iterdir()
    (folder / "images.u8").write_bytes(b"short")
    with pytest.raises(SegmintError, match=r"damaged cache .* delete this folder and try again"):
        Pixels.open(data, (12, 10))


def test_leftovers_of_killed_builds_are_removed_after_a_day(make_folder: Maker, cache: Path) -> None:
    old, new = cache / "old.tmp", cache / "new.tmp"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    Pixels.open(open_folder(make_folder(groups=2)), (12, 10))
    assert (old.exists(), new.exists()) == (False, True)


def test_who_is_second_uses_what_the_first_has_built(
    make_folder: Maker, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_folder(make_folder(groups=2))
    real = module._fill

    def overtaken(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(module, "_fill", real)
        Pixels.open(data, (12, 10))

    monkeypatch.setattr(module, "_fill", overtaken)
    assert Pixels.open(data, (12, 10)).images.shape == (4, 12, 10, 3)
    assert len(list(cache.iterdir())) == 1


def _open(root: Path) -> int:
    return int(Pixels.open(open_folder(root), (64, 64)).images.astype(int).sum())


def test_builds_at_once_agree(make_folder: Maker, cache: Path) -> None:
    root = make_folder(groups=30)
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(_open, [root] * 4))
    assert len(set(sums)) == 1
    assert len(list(cache.iterdir())) == 1


def test_pixels_and_values_turn_into_each_other():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    values = from_pixels(pixels)
    assert values.shape == (1, 1, 16, 16)
    assert (float(values.min()), float(values.max())) == (-1, 1)
    assert torch.equal(to_pixels(values), pixels)
    assert to_pixels(torch.full((3, 2, 2), 7.0)).tolist() == [[[255] * 3] * 2] * 2
