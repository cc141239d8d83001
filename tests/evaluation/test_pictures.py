import json

import numpy as np
import pytest
from PIL import Image

from segmint.data.cache import Pixels
from segmint.evaluation import pictures as paint
from segmint.types import IGNORE, SegmintError

COLORS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def test_masks_take_their_colours_and_unknown_pixels_are_white():
    mask = np.array([[0, 1, 2, IGNORE]])
    assert paint.colorize(mask, COLORS).tolist() == [[[0, 0, 0], [255, 0, 0], [0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize(("channels", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_is_shown(channels, expected):
    image = np.arange(channels, dtype=np.uint8).reshape(1, 1, channels)
    assert paint.to_rgb(image).tolist() == [[expected]]


def test_errors_are_red_where_known_and_wrong_only():
    image = np.full((1, 3, 1), 100, np.uint8)
    shown = paint.errors(image, np.array([[0, 1, 1]]), np.array([[0, 0, IGNORE]]))
    assert shown.tolist() == [[[190, 190, 190], list(paint.WRONG), list(paint.UNKNOWN)]]


def test_overlays_leave_unknown_pixels_as_they_are():
    image = np.full((1, 2, 3), 100, np.uint8)
    shown = paint.overlay(image, np.array([[1, IGNORE]]), COLORS, opacity=0.5)
    assert shown.tolist() == [[[178, 50, 50], [100, 100, 100]]]


def test_heat_rises_from_dark_to_bright():
    shown = paint.heat(np.array([[0.0, 0.5, 1.0, 9.0]]), 1.0).astype(int).sum(-1)[0]
    assert shown[0] < shown[1] < shown[2] == shown[3]


def test_small_pictures_grow_by_whole_pixels_and_large_ones_shrink():
    small = np.array([[[0] * 3, [255] * 3]], np.uint8)
    grown = np.asarray(paint.tile(small, 10))
    assert grown.shape == (5, 10, 3)
    assert set(grown.ravel()) == {0, 255}
    mask = paint.colorize(np.random.default_rng(0).integers(0, 3, (300, 600)), COLORS)
    shrunk = np.asarray(paint.tile(mask, 100, smooth=False))
    assert shrunk.shape == (50, 100, 3)
    assert {tuple(color) for color in shrunk.reshape(-1, 3).tolist()} == set(COLORS)
    assert paint.tile(mask, 100).size == (100, 50)


def test_words_are_cut_where_there_is_no_room():
    whole, cut = paint.text("a long class name"), paint.text("a long class name", width=60)
    assert cut.width <= 60 < whole.width
    assert paint.text("two\nlines").height == 2 * paint.text("two").height
    assert paint.text("").width == 1


def test_pictures_are_put_together():
    red = Image.new("RGB", (4, 3), (255, 0, 0))
    assert paint.beside([red, red], 2).size == (10, 3)
    assert paint.beneath([red, red, red], 1).size == (4, 11)
    assert paint.wrapped([red] * 5, 2, 1).size == (9, 11)
    assert paint.framed(red, 5).size == (14, 13)
    assert paint.framed(red, 5).getpixel((5, 5)) == (255, 0, 0)
    assert paint.note("no mask", (40, 30)).size == (40, 30)
    table = paint.table_of_tiles([[red, red]], ["a", "b"], ["first\nline"])
    assert table.width > 8


def test_a_legend_takes_as_many_lines_as_it_needs():
    names, colors = [f"class {k}" for k in range(12)], [(k, k, k) for k in range(12)]
    assert paint.legend(names, colors, 200).height > paint.legend(names, colors, 2000).height
    assert paint.legend(names, colors, 200).width == 200


def test_the_data_at_a_glance(data, tmp_path):
    pixels = Pixels.open(data, (32, 24))
    path = paint.write_data_summary(
        pixels, tmp_path, description="Shapes.", budget=2, commands=["segmint check"], timings=[("train", 3.5)]
    )
    summary = json.loads(path.read_text())
    rows = {row["split"]: row for row in summary["table"]}
    assert rows["train"] == {"split": "train", "images": 8, "with masks": 5, "masks used": 2, "groups": "none"}
    assert rows["val"]["masks used"] == 3
    assert sum(share["val"] for share in summary["class_shares"].values()) == pytest.approx(1)
    assert summary["timings"] == [{"step": "train", "seconds": 3.5}]
    assert np.asarray(Image.open(tmp_path / summary["picture"])).std() > 20


def test_unlabelled_images_alone_make_no_picture_of_the_data(data):
    pixels = Pixels.open(data, (32, 24))
    assert paint.sample_picture(pixels, count=2).width > 100
    with pytest.raises(SegmintError, match="no image with a mask"):
        paint.sample_picture(pixels, [13])
