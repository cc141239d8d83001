from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from segmint.data.classes import Classes
from segmint.data.io import bits_used, image_size, read_header, read_image, read_stored_mask, write_image
from segmint.data.masks import read_mask, write_mask
from segmint.data.windows import Window, open_raster
from segmint.types import IGNORE, SegmintError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (9, 7, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (9, 7), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (9, 7), dtype=np.uint16)
CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0, 7, 300), ignore=255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("array", [RGB, GREY], ids=["rgb", "grey"])
def test_lossless_images_come_back_as_they_were_written(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, array)
    channels = 3 if array.ndim == 3 else 1
    assert np.array_equal(read_image(path, channels=channels), array.reshape(9, 7, channels))
    assert image_size(path) == (9, 7)
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_jpeg_is_close_and_grey_stays_grey(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32, 1).astype(np.uint8)
    write_image(tmp_path / "a.jpg", smooth)
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (32, 32, 1)
    assert np.abs(read.astype(int) - smooth).max() < 8


def test_channels_are_converted_with_luma_weights(tmp_path: Path) -> None:
    write_image(tmp_path / "rgb.png", RGB)
    write_image(tmp_path / "grey.png", GREY)
    luma = np.asarray(Image.fromarray(RGB).convert("L")).astype(int)
    assert np.abs(read_image(tmp_path / "rgb.png", channels=1)[..., 0].astype(int) - luma).max() <= 1
    assert np.array_equal(read_image(tmp_path / "grey.png", channels=3), GREY[..., None].repeat(3, 2))


def test_alpha_palette_and_bilevel(tmp_path: Path) -> None:
    alpha = np.dstack([RGB, GREY])
    Image.fromarray(alpha).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GREY, GREY]), mode=None).save(tmp_path / "la.png")
    picture = Image.fromarray(RGB).quantize(16)
    picture.save(tmp_path / "p.png")
    Image.fromarray(GREY > 100).save(tmp_path / "one.png")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert np.array_equal(read_image(tmp_path / "rgba.png"), RGB)
    assert np.array_equal(read_image(tmp_path / "la.png"), GREY[..., None])
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(picture.convert("RGB")))
    assert np.array_equal(read_image(tmp_path / "one.png")[..., 0], (GREY > 100) * 255)
    assert read_image(tmp_path / "cmyk.jpg").shape == (9, 7, 3)
    headers = {name: read_header(tmp_path / name) for name in ("rgba.png", "la.png", "p.png", "one.png")}
    assert [header.channels for header in headers.values()] == [3, 1, 3, 1]


@pytest.mark.parametrize("kind", ["png", "tif", "bigtiff", "zstd"])
def test_sixteen_bits_are_scaled_by_their_depth(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    twelve = DEEP >> 4
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(twelve))
    else:
        options = {"bigtiff": kind == "bigtiff", "compression": "zstd" if kind == "zstd" else None}
        tifffile.imwrite(path, twelve, **options)
    assert read_header(path).bits == 16
    assert bits_used(path) == 12
    assert np.array_equal(read_image(path, depth=12)[..., 0], np.rint(twelve / 4095 * 255))
    twelve[0, 0], lower = 4095, np.minimum(twelve, 1023)
    lower[0, 0] = 4095
    path.write_bytes(imagecodecs.png_encode(lower)) if kind == "png" else tifffile.imwrite(path, lower)
    assert read_image(path, depth=10)[0, 0, 0] == 255, "what few values are above the depth are clipped"
    with pytest.raises(SegmintError, match=r"a\.(png|tif): \d+% of its values .* the 8 bits .* 4095\)"):
        read_image(path, depth=8)


def test_sixteen_bit_colours_keep_their_precision(tmp_path: Path) -> None:
    deep = RANDOM.integers(0, 1024, (9, 7, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    tifffile.imwrite(tmp_path / "planes.tif", deep.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("a.png", "planes.tif"):
        assert np.array_equal(read_image(tmp_path / name, depth=10), np.rint(deep / 1023 * 255))
        assert read_header(tmp_path / name).channels == 3


def test_unusual_tiffs(tmp_path: Path) -> None:
    colormap = RANDOM.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", GREY, photometric="palette", colormap=colormap)
    tifffile.imwrite(tmp_path / "white.tif", GREY, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "bits.tif", GREY > 100, photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "p.tif"), (colormap >> 8).T[GREY])
    assert np.array_equal(read_stored_mask(tmp_path / "p.tif"), GREY)
    assert np.array_equal(read_image(tmp_path / "white.tif")[..., 0], 255 - GREY)
    assert np.array_equal(read_image(tmp_path / "bits.tif")[..., 0], (GREY > 100) * 255)
    assert np.array_equal(read_stored_mask(tmp_path / "bits.tif"), GREY > 100)
    tifffile.imwrite(tmp_path / "float.tif", GREY.astype(np.float32))
    with pytest.raises(SegmintError, match=r"float.tif: holds float32 values; save it as 8 or 16 bit"):
        read_image(tmp_path / "float.tif")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([GREY, GREY]), photometric="minisblack")
    with pytest.raises(SegmintError, match=r"pages.tif: holds 2 pages; save one image per file"):
        read_image(tmp_path / "pages.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(read_image(path), upright)
    assert image_size(path) == upright.shape[:2]
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(read_image(tmp_path / "a.tif"), upright)
    assert image_size(tmp_path / "a.tif") == upright.shape[:2]


def test_masks_of_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 7], [300, 255]], np.uint16)
    expected = np.array([[0, 1], [2, IGNORE]], np.uint8)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(ids))
    tifffile.imwrite(tmp_path / "deep.tif", ids)
    for name in ("deep.png", "deep.tif"):
        assert np.array_equal(read_mask(tmp_path / name, CLASSES), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_are_not_stretched(tmp_path: Path, bits: int) -> None:
    ids = np.arange(2**bits, dtype=np.uint8)[None].repeat(3, 0)
    classes = Classes.named([f"c{k}" for k in range(2**bits)])
    per_byte = 8 // bits
    padded = np.pad(ids, ((0, 0), (0, -ids.shape[1] % per_byte)))
    weights = 2 ** (bits * np.arange(per_byte)[::-1])
    rows = (padded.reshape(3, -1, per_byte) * weights).sum(2).astype(np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path = tmp_path / "a.png"
    path.write_bytes(
        _png(_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**bits, 3, bits, 0, 0, 0, 0)), _chunk(b"IDAT", data))
    )
    assert np.array_equal(read_mask(path, classes), ids)


def test_masks_of_colours(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    colored = np.array(CLASSES.colors, np.uint8)[indices]
    Image.fromarray(colored).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([colored, np.full((2, 2), 9, np.uint8)])).save(tmp_path / "rgba.png")
    assert np.array_equal(read_mask(tmp_path / "rgb.png", CLASSES), indices)
    assert np.array_equal(read_mask(tmp_path / "rgba.png", CLASSES), indices)
    void = Classes(CLASSES.names, CLASSES.colors, CLASSES.ids, ignore_color=(9, 9, 9))
    colored[0, 0] = 9
    Image.fromarray(colored).save(tmp_path / "void.png")
    assert read_mask(tmp_path / "void.png", void)[0, 0] == IGNORE
    with pytest.raises(SegmintError, match=r"colour \(9, 9, 9\) \(first at x=0, y=0; 1 pixel\)"):
        read_mask(tmp_path / "void.png", CLASSES)


def test_unknown_ids_are_named_with_place_and_number(tmp_path: Path) -> None:
    ids = np.zeros((4, 5), np.uint8)
    ids[1, 3] = ids[2, 0] = 17
    ids[3, 4] = 9
    Image.fromarray(ids).save(tmp_path / "m.png")
    with pytest.raises(SegmintError) as caught:
        read_mask(tmp_path / "m.png", CLASSES)
    text = str(caught.value)
    assert "m.png: class id 9 (first at x=4, y=3; 1 pixel), class id 17 (first at x=3, y=1; 2 pixels)" in text
    assert "add to classes.yaml or correct the mask" in text
    Image.fromarray(np.arange(20, 40, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "m.png")
    with pytest.raises(SegmintError, match=r"and 12 others"):
        read_mask(tmp_path / "m.png", CLASSES)


def test_written_masks_are_read_back_and_coloured(tmp_path: Path) -> None:
    indices = RANDOM.integers(0, 3, (6, 5), dtype=np.uint8)
    indices[0, 0] = IGNORE
    small = Classes(("a", "b", "c"), CLASSES.colors, (0, 7, 9), ignore=254, ignore_color=(1, 2, 3))
    for name, classes in (("small.png", small), ("large.png", CLASSES)):
        write_mask(tmp_path / name, indices, classes)
        assert np.array_equal(read_mask(tmp_path / name, classes), indices)
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.mode == "P"
        colored = np.asarray(picture.convert("RGB"))
    assert colored[0, 0].tolist() == [1, 2, 3]
    assert np.array_equal(colored[1:], np.array(small.colors)[indices[1:]])


def _png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(
        _png(_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)), _chunk(b"IDAT", b""))
    )
    with pytest.raises(SegmintError, match=r"bomb.png: .*cut it into tiles or shrink it"):
        read_image(tmp_path / "bomb.png")
    with tifffile.TiffWriter(tmp_path / "bomb.tif") as writer:
        tiles = (np.zeros((4096, 4096), np.uint8) for _ in range(16))
        writer.write(tiles, shape=(16384, 16384), dtype=np.uint8, tile=(4096, 4096), compression="zlib")
    with pytest.raises(SegmintError, match=r"bomb.tif: 16384 x 16384 pixels, but 178,956,970 at most"):
        read_image(tmp_path / "bomb.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(SegmintError, match=rf"a{suffix}: .*(copy it again|convert it)"):
        read_image(path)


def test_truncated_deep_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    content = imagecodecs.png_encode(RANDOM.integers(0, 65536, (64, 64), dtype=np.uint16))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SegmintError, match=r"truncated or damaged"):
        read_image(path)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "text.png": r"text.png: not an image \(PNG, JPEG, TIFF or WebP\); convert it or remove it",
        "empty.png": r"empty.png: empty file \(0 bytes\); copy it again or remove it",
        "missing.png": "missing.png: no such file; correct the name",
        "folder.png": "folder.png: cannot be opened",
    }.items():
        for read in (read_image, read_header, read_stored_mask):
            with pytest.raises(SegmintError, match=message):
                read(tmp_path / name)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(SegmintError, match=r"cannot write .xyz; use .png"):
        write_image(tmp_path / "a.xyz", RGB)
    (tmp_path / "file").touch()
    with pytest.raises(SegmintError, match=r"cannot be written"):
        write_image(tmp_path / "file" / "a.png", RGB)


def test_a_palette_that_contradicts_the_ids_is_refused(tmp_path: Path) -> None:
    classes = Classes(("sky", "car", "road"), ((0, 0, 0), (250, 0, 0), (0, 0, 250)), (0, 1, 2))

    def saved(ids: list[int], colors: list[tuple[int, int, int]]) -> Path:
        picture = Image.fromarray(np.array([ids], np.uint8))
        picture.putpalette([value for color in colors for value in color] + [0] * (768 - 3 * len(colors)))
        picture.save(tmp_path / "p.png")
        return tmp_path / "p.png"

    right = [(0, 0, 0), (250, 0, 0), (0, 0, 250)]
    assert read_mask(saved([0, 1, 2], right), classes).tolist() == [[0, 1, 2]]
    with pytest.raises(SegmintError, match=r"p\.png: id 0 has the colour of class 'road' in .* RGB if"):
        read_mask(saved([0, 1, 2], right[::-1]), classes)
    strange = [(0, 0, 250), (1, 2, 3), (0, 0, 0)]
    assert read_mask(saved([0, 1, 2], strange), classes).tolist() == [[0, 1, 2]], "colours of no class say nothing"
    assert read_mask(saved([1, 2, 255], [(0, 0, 0)] * 3), classes).tolist() == [[1, 2, IGNORE]], "nor does all black"


def test_tiffs_of_other_bands_than_grey_and_colour_are_refused(tmp_path: Path) -> None:
    bands = RANDOM.integers(0, 255, (9, 7, 13), dtype=np.uint8)

    def saved(count: int, **options: Any) -> Path:
        usual = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "b.tif", bands[..., :count], **{**usual, **options})
        return tmp_path / "b.tif"

    for count, options in (
        (13, {}),
        (4, {}),
        (2, {}),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (4, {"photometric": "separated"}),
    ):
        path = saved(count, **options)
        with pytest.raises(SegmintError, match=rf"b\.tif: holds {count} bands of kind \w+; save one of them"):
            read_image(path)
        with pytest.raises(SegmintError, match="bands"):
            read_header(path)
        with pytest.raises(SegmintError, match="bands"), open_raster(path):
            pass
    for count, options in ((3, {}), (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]})):
        path = saved(count, **options)
        assert np.array_equal(read_image(path), bands[..., :3])
        with open_raster(path) as raster:
            assert (raster.channels, read_header(path).channels) == (3, 3)
            assert np.array_equal(raster.read(Window(2, 1, 4, 5)), bands[2:6, 1:6, :3])
