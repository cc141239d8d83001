from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segmint.data.windows import Decoded, TiffRaster, Window, open_raster, read_place
from segmint.functional import ambiguity
from segmint.inference.draws import draw
from segmint.inference.fields import FieldSeeds
from segmint.inference.tiles import Tiling, _weights, segment_tiles
from segmint.methods.method import Method, build
from segmint.types import SegmintError

RANDOM = np.random.default_rng(0)
PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8], "encoder_weights": None}


class Pixelwise(Method):
    """Classes by brightness, pixel by pixel; with noise, each draw by noise of its own and some of the whole image."""

    def __init__(self, *, classes=3, in_channels=3, image_size=(8, 8), noise=0.0):
        super().__init__()
        self.noise, self.draws_differ = noise, noise > 0

    def segment(self, image, seeds):
        level = image.mean(1, keepdim=True)
        logits = torch.cat([level, -level, 0.2 - level.abs()], 1) * 5
        if not self.noise:
            return logits
        shared = seeds.randn(3)[:, :, None, None]
        first = seeds.randn(3, *image.shape[-2:])
        second = seeds.rand(3, *image.shape[-2:]) + seeds.integers(2, 3, *image.shape[-2:])
        return logits + self.noise * (shared + first + second)

    def errors(self, image, logits):
        return logits.softmax(1)[:, 0]


def together(cells, size):
    """The cells of an image, laid side by side; each pixel once."""
    cells, seen = list(cells), torch.zeros(size, dtype=torch.int64)
    maps = {name: torch.zeros(size) for name in cells[0].maps}
    probabilities = torch.zeros(len(cells[0].probabilities), *size)
    for cell in cells:
        y, x, height, width = cell.window
        place = (slice(y, y + height), slice(x, x + width))
        seen[place] += 1
        probabilities[:, *place] = cell.probabilities
        for name, values in cell.maps.items():
            maps[name][place] = values
    assert bool((seen == 1).all())
    return probabilities, maps


def picture(height, width, channels=3):
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows / 9) + np.cos(columns / 13) + np.sin((rows + columns) / 31)
    waves = waves[..., None] * 40 + 128 + RANDOM.normal(0, 12, (height, width, channels))
    return waves.clip(0, 255).astype(np.uint8)


# Noise


def test_windows_of_a_field_agree_where_they_overlap():
    whole = FieldSeeds([3, 4], Window(0, 0, 300, 400)).fork("draw", 1)
    part = FieldSeeds([3, 4], Window(100, 250, 90, 140)).fork("draw", 1)
    for name in ("randn", "rand"):
        wide, narrow = (getattr(seeds, name)(2, *seeds.window[2:]) for seeds in (whole, part))
        assert torch.equal(wide[:, :, 100:190, 250:390], narrow)
    wide, narrow = (seeds.integers(9, *seeds.window[2:]) for seeds in (whole, part))
    assert torch.equal(wide[:, 100:190, 250:390], narrow)


def test_a_field_is_noise_and_every_item_call_and_draw_has_its_own():
    seeds = FieldSeeds([1, 2], Window(0, 0, 256, 384))
    first, second, other = seeds.randn(256, 384), seeds.randn(256, 384), seeds.fork("draw", 0).randn(256, 384)
    assert float(first.mean()) == pytest.approx(0, abs=0.02)
    assert float(first.std()) == pytest.approx(1, abs=0.02)
    maps = torch.stack([*first, *second, *other, first[0].roll(128, 0), first[0].roll(128, 1)]).flatten(1)
    assert float((torch.corrcoef(maps) - torch.eye(len(maps))).abs().max()) < 0.02
    assert torch.equal(FieldSeeds([1, 2], Window(0, 0, 256, 384))[1:].randn(256, 384)[0], first[1])


def test_numbers_without_a_place_are_the_same_for_every_tile():
    one, other = (FieldSeeds([5], Window(top, 32, 64, 64)) for top in (0, 640))
    one.randn(3, 64, 64)
    assert torch.equal(one.randn(6), other.randn(6))
    assert torch.equal(one.rand(2), other.rand(2))
    assert torch.equal(one.integers(7, 2), other.integers(7, 2))


def test_noise_for_cells_of_pixels_is_cut_from_one_field_too():
    whole, part = FieldSeeds([0], Window(0, 0, 640, 640)), FieldSeeds([0], Window(320, 96, 64, 32))
    assert torch.equal(whole.randn(2, 160, 160)[..., 80:96, 24:32], part.randn(2, 16, 8))


def test_noise_that_does_not_fit_the_tile_is_refused():
    with pytest.raises(SegmintError, match="asks for noise of 16 x 20"):
        FieldSeeds([0], Window(0, 0, 64, 64)).randn(4, 16, 20)


# Tiles


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 8), st.integers(0, 4), st.sampled_from([0.25, 0.7, 1.0, 1.5]))
def test_weights_of_all_tiles_sum_to_one_everywhere(length, tile, overlap, scale):
    tiling = Tiling(32 * tile, 32 * min(overlap, tile // 2), scale)
    spans = tiling.spans(length)
    total = torch.zeros(length)
    for place, (start, stop) in enumerate(spans):
        assert stop > start
        total[start:stop] += _weights(spans, place)
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(
    ("values", "words"),
    [((500,), "--tile"), ((0,), "--tile"), ((64, 48), "--overlap"), ((64, 64), "--overlap"), ((64, 0, 0.0), "--scale")],
)
def test_a_tiling_out_of_range_is_refused(values, words):
    with pytest.raises(SegmintError, match=words):
        Tiling(*values)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("size", [(200, 333), (1, 1), (7, 300), (64, 64)])
def test_tiles_of_a_pixelwise_method_are_the_whole_image(noise, size):
    method, pixels, told = Pixelwise(noise=noise), picture(*size), []
    cells = segment_tiles(
        [method], Decoded(pixels), Tiling(64, 32), draws=3, seed=5, progress=lambda *counts: told.append(counts)
    )
    probabilities, maps = together(cells, size)
    shown = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = draw([method], shown, FieldSeeds([5], Window(0, 0, *size)), 3)
    torch.testing.assert_close(probabilities, whole.probabilities[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(maps["uncertainty"], whole.uncertainty[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(maps["aleatoric"], whole.aleatoric[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(maps["errors"], whole.errors[0], atol=1e-4, rtol=0)
    assert told[-1] == (len(told), len(told))


def test_an_ensemble_in_tiles_tells_what_its_members_differ_on():
    methods, pixels = [Pixelwise(), Pixelwise(noise=0.5)], picture(90, 100)
    _, maps = together(segment_tiles(methods, Decoded(pixels), Tiling(64, 32), draws=2), (90, 100))
    assert float(maps["epistemic"].min()) >= 0
    assert float(maps["epistemic"].mean()) > 0.001
    torch.testing.assert_close(maps["uncertainty"], maps["aleatoric"] + maps["epistemic"])


@pytest.mark.parametrize("name", ["supervised", "stochastic", "maskflow"])
def test_there_are_no_seams(name):
    torch.manual_seed(0)
    more = {"samples": 2} if name == "stochastic" else {}
    more |= {"steps": 2} if name == "maskflow" else {}
    method = build(name, classes=3, in_channels=3, image_size=(64, 64), **PLAIN, **more).eval()
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.05)  # else what a new network says is nearly the same everywhere
    size, tiling = (224, 352), Tiling(160, 64)
    pixels = picture(*size)
    tiled, _ = together(segment_tiles([method], Decoded(pixels), tiling, draws=2, seed=1), size)
    shown = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = draw([method], shown, FieldSeeds([1], Window(0, 0, *size)), 2).probabilities[0]
    difference = (tiled - whole).abs().sum(0) / 2
    seam = torch.zeros(size, dtype=torch.bool)
    for axis in (0, 1):
        spans = tiling.spans(size[axis])
        for (_, end), (begin, _) in pairwise(spans):
            middle = (begin + end) // 2
            seam.narrow(axis, middle - 8, 16).fill_(True)
    agree = (tiled.argmax(0) == whole.argmax(0)).float()
    assert float(whole.std((1, 2)).mean()) > 0.01
    assert float(difference.mean()) < 0.02
    assert float(agree[seam].mean()) > 0.97
    assert float(agree[~seam].mean()) - float(agree[seam].mean()) < 0.02


def test_a_scale_shows_the_image_smaller_or_larger():
    pixels = np.full((100, 130, 3), 20, np.uint8)
    pixels[:, 65:] = 230
    for scale in (0.5, 2.0):
        probabilities, _ = together(
            segment_tiles([Pixelwise()], Decoded(pixels), Tiling(64, 32, scale), draws=1), (100, 130)
        )
        labels = probabilities.argmax(0)
        assert bool((labels[:, :60] == 1).all())
        assert bool((labels[:, 70:] == 0).all())


def test_expected_dice_of_parts_adds_up_to_that_of_the_whole():
    probabilities = torch.rand(1, 3, 20, 30).softmax(1)
    labels, classes = probabilities.argmax(1), (0, 1, 2)
    halves = [
        ambiguity.dice_counts(labels[:, :, a:b], probabilities[..., a:b], classes) for a, b in ((0, 11), (11, 30))
    ]
    whole = ambiguity.expected_dice(labels, probabilities, classes)
    torch.testing.assert_close(ambiguity.dice_of(halves[0] + halves[1]), whole)


# Windows of files


VARIANTS = {
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "deflated strips": {"rowsperstrip": 7, "compression": "deflate", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "lzw tiles": {"tile": (32, 48), "compression": "lzw"},
    "jpeg tiles": {"tile": (32, 48), "compression": "jpeg", "photometric": "ycbcr"},
    "planes": {"planarconfig": "separate", "tile": (32, 32), "compression": "deflate"},
    "plain planes": {"planarconfig": "separate"},
    "big endian": {"byteorder": ">"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "grey", "alpha"])
def test_a_tiff_is_read_window_by_window(tmp_path: Path, name: str, kind: str):
    options = {"photometric": "rgb", **VARIANTS[name]}
    if kind == "uint16" and "jpeg" in str(options):
        pytest.skip("JPEG has 8 bits")
    if kind != "uint8" and options.get("photometric") == "ycbcr":
        pytest.skip("YCbCr has three channels of 8 bits")
    pixels = picture(70, 101, 4 if kind == "alpha" else 3)
    if kind == "grey":
        pixels, options["photometric"] = pixels[..., 0], "minisblack"
        options.pop("planarconfig", None)
    pixels = pixels.astype(np.uint16) * 257 if kind == "uint16" else pixels
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, 2, 0)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, extrasamples=["unassalpha"] if kind == "alpha" else None, **options)
    whole = np.moveaxis(pixels, 0, 2) if options.get("planarconfig") == "separate" else pixels
    whole = tifffile.imread(path) if "jpeg" in str(options) else whole
    expected = (whole // 257).astype(np.uint8) if kind == "uint16" else whole
    expected = expected[..., None] if kind == "grey" else expected[..., :3]
    with open_raster(path) as raster:
        assert isinstance(raster, TiffRaster)
        assert (raster.size, raster.channels) == ((70, 101), 1 if kind == "grey" else 3)
        for window in (Window(0, 0, 70, 101), Window(5, 40, 33, 61), Window(69, 100, 1, 1)):
            top, left, height, width = window
            np.testing.assert_array_equal(
                raster.read(window), expected[top : top + height, left : left + width], strict=True
            )


def test_what_is_decoded_is_not_decoded_again_and_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, picture(128, 128), photometric="rgb", tile=(32, 32), compression="deflate")
    monkeypatch.setattr("segmint.data.windows.CACHE", 4 * 32 * 32 * 3)
    with TiffRaster(path) as raster:
        raster.read(Window(0, 0, 32, 32))
        kept = dict(raster._kept)
        raster.read(Window(0, 0, 32, 64))
        assert raster._kept[0] is kept[0]
        raster.read(Window(64, 0, 64, 128))
        assert len(raster._kept) <= 4


def test_an_empty_tile_is_black(tmp_path: Path):
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, picture(64, 64), photometric="rgb", tile=(32, 32), compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags[325].overwrite([0, *counts[1:]])
    with open_raster(path) as raster:
        assert int(raster.read(Window(0, 0, 32, 32)).max()) == 0
        assert int(raster.read(Window(32, 0, 32, 32)).max()) > 0


def test_other_tiffs_are_read_whole_unless_they_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "turned.tif"
    tifffile.imwrite(path, picture(20, 30), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    with open_raster(path) as raster:
        assert isinstance(raster, Decoded)
        assert raster.size == (30, 20)
    monkeypatch.setattr("segmint.data.windows.MAX_PIXELS", 100)
    with pytest.raises(SegmintError, match="to be turned"), open_raster(path):
        pass
    strip = tmp_path / "strip.tif"
    tifffile.imwrite(strip, picture(64, 64), photometric="rgb", compression="deflate", rowsperstrip=64)
    monkeypatch.setattr("segmint.data.windows.PIECE", 100)
    with pytest.raises(SegmintError, match="in pieces of"), open_raster(strip):
        pass


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_truncated_tiff_is_told(tmp_path: Path, compression: str | None):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, picture(64, 64), photometric="rgb", rowsperstrip=8, compression=compression)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(SegmintError, match="truncated or damaged"), open_raster(path) as raster:
        raster.read(Window(0, 0, 64, 64))
    path.write_bytes(b"II*\0nothing")
    with pytest.raises(SegmintError, match="truncated or damaged"), open_raster(path):
        pass


def test_a_png_is_read_from_memory(tmp_path: Path):
    pixels = picture(20, 30)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with open_raster(tmp_path / "image.png") as raster:
        np.testing.assert_array_equal(raster.read(Window(3, 4, 5, 6)), pixels[3:8, 4:10])


def test_the_place_on_the_map_is_read(tmp_path: Path):
    path = tmp_path / "map.tif"
    scale, keys = (0.5, 0.5, 0.0), (1, 1, 0, 1, 1024, 0, 1, 1)
    tags = [(33550, 12, 3, scale, True), (34735, 3, 8, keys, True)]
    tifffile.imwrite(path, picture(20, 30), photometric="rgb", resolution=(118, 118), resolutionunit=3, extratags=tags)
    place = read_place(path)
    assert place.geo == ((33550, 12, 3, scale), (34735, 3, 8, keys))
    assert (place.resolution, place.unit) == (((118, 1), (118, 1)), 3)
    tifffile.imwrite(path, picture(20, 30), photometric="rgb", extratags=[*tags, (274, 3, 1, 6, True)])
    with pytest.raises(SegmintError, match="orientation"):
        read_place(path)
