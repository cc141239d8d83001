from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

from segmint.cli import app
from segmint.data.classes import Classes
from segmint.data.io import read_image
from segmint.data.masks import read_mask
from segmint.data.windows import Decoded, Place, Window
from segmint.inference import outputs
from segmint.inference.batch import predict_folder
from segmint.inference.inputs import find_inputs
from segmint.inference.predict import predict
from segmint.inference.tiles import Cell, Tiling
from segmint.training.run import Run, train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "one", settings=QUICK, **PLAIN)


@pytest.fixture(scope="module")
def other(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "other", seed=1, settings=QUICK, **PLAIN)


def pixels(height: int = 40, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, channels), np.uint8)


def save(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if array is None else array).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "deep/b.jpg", "deep/er/c.webp"):
        save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text(encoding="utf-8"))))


# What is asked for


def test_inputs_are_files_folders_and_globs_with_names_of_their_own(photos: Path, tmp_path: Path):
    save(photos / ".hidden" / "x.png")
    (photos / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    names = [entry.name for entry in find_inputs(photos, out)]
    assert names == ["a", "deep/b", "deep/er/c"]
    assert [entry.name for entry in find_inputs(str(photos / "**" / "*.jpg"), out)] == ["deep/b"]
    assert [entry.name for entry in find_inputs(str(photos / "*" / "*"), out)] == ["deep/b"]
    assert [entry.name for entry in find_inputs([photos / "a.png", photos], out)] == names
    stream = find_inputs(["camera:0", "rtsp://host/one", "-"], out)
    assert [(entry.name, entry.moving) for entry in stream] == [
        ("camera-0", True),
        ("host-one", True),
        ("stdin", False),
    ]


def test_of_a_data_folder_the_images_are_taken(shapes: Path, tmp_path: Path):
    names = [entry.name for entry in find_inputs(shapes, tmp_path / "out")]
    assert names == [f"{number:02d}" for number in range(14)]


@pytest.mark.parametrize(
    ("given", "words"), [("missing.png", "no such file"), ("empty", "no image or video"), ("*.bmp", "matches")]
)
def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegmintError, match=words):
        find_inputs(given, tmp_path / "out")


def test_two_images_of_one_name_are_refused(photos: Path, tmp_path: Path):
    save(photos / "a.jpg")
    with pytest.raises(SegmintError, match=r"would be called a, like those of .*a\.jpg"):
        find_inputs(photos, tmp_path / "out")


@pytest.mark.parametrize("place", [".", "within", "deep/within"])
def test_results_do_not_go_among_the_images(photos: Path, place: str):
    with pytest.raises(SegmintError, match="lies in"):
        find_inputs(photos, photos / place)


def test_images_are_not_taken_from_where_results_go(run: Run, tmp_path: Path):
    save(tmp_path / "masks" / "a.png")
    with pytest.raises(SegmintError, match="lies where results go"):
        predict_folder(run, tmp_path / "masks", tmp_path)


@pytest.mark.parametrize("given", [".", "images"])
def test_masks_drawn_by_hand_are_not_overwritten(run: Run, shapes: Path, tmp_path: Path, given: str):
    data = shutil.copytree(shapes, tmp_path / "data")
    with pytest.raises(SegmintError, match=r"masks: holds files that .* did not write; choose another --out"):
        predict_folder(run, data / given, data)
    for mask in (shapes / "masks").iterdir():
        assert (data / "masks" / mask.name).read_bytes() == mask.read_bytes()
    assert not (data / "predictions.json").exists()


def test_a_call_that_was_killed_at_once_goes_on(run: Run, photos: Path, tmp_path: Path):
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(run, photos, tmp_path / "out", progress=lambda _, done, __: done and kill())
    assert (tmp_path / "out" / "masks" / "a.png").is_file()
    assert predict_folder(run, photos, tmp_path / "out").skipped == 1


# Results


def test_results_are_those_of_predict(run: Run, photos: Path, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    found = predict_folder(
        run,
        photos,
        tmp_path / "out",
        save=["uncertainty", "masks", "probabilities", "overlays"],
        progress=lambda *counts: told.append(counts),
    )
    assert (found.done, found.skipped, found.failed) == (3, 0, ())
    assert told[-1] == ("images", 3, 3)
    out, single = tmp_path / "out", predict(run, photos / "deep" / "b.jpg")
    mask = Image.open(out / "masks" / "deep" / "b.png")
    assert mask.mode == "P"
    assert mask.getpalette()[: 3 * 3] == [value for color in run.classes.colors for value in color]
    np.testing.assert_array_equal(np.asarray(mask), single.labels.numpy())
    np.testing.assert_array_equal(read_mask(out / "masks" / "deep" / "b.png", run.classes), single.labels.numpy())
    stored = np.load(out / "probabilities" / "deep" / "b.npz")
    assert stored["probabilities"].dtype == np.float16
    np.testing.assert_allclose(stored["probabilities"], single.probabilities.permute(1, 2, 0), atol=1e-3)
    assert stored["names"].tolist() == list(run.classes.names)
    doubt = np.asarray(Image.open(out / "uncertainty" / "deep" / "b.png"))
    np.testing.assert_allclose(doubt / 255 * np.log(3), single.uncertainty, atol=np.log(3) / 255)
    assert (
        np.abs(
            read_image(out / "overlays" / "a.png").astype(int) - np.asarray(predict(run, photos / "a.png").overlay())
        ).max()
        <= 2
    )
    row = rows(out)[1]
    assert [row["name"], row["height"], row["width"]] == ["deep/b", "40", "30"]
    assert row["file"] == str((photos / "deep" / "b.jpg").resolve())
    assert float(row["expected_dice"]) == pytest.approx(single.expected_dice, abs=1e-4)
    assert float(row["confidence"]) == pytest.approx(float(single.probabilities.amax(0).mean()), abs=1e-4)
    areas = torch.bincount(single.labels.flatten().long(), minlength=3).tolist()
    assert [int(row[f"pixels {name}"]) for name in run.classes.names] == areas
    assert sum(float(row[f"share {name}"]) for name in run.classes.names) == pytest.approx(1, abs=1e-5)
    facts = json.loads((out / "predictions.json").read_text())
    assert "nats" in str(facts["scales"])
    assert [entry["name"] for entry in facts["classes"]] == list(run.classes.names)


def test_an_ensemble_knows_what_it_does_not_know_and_a_run_alone_does_not(
    run: Run, other: Run, photos: Path, tmp_path: Path
):
    predict_folder([run, other.folder], photos, tmp_path / "out", save=["epistemic", "aleatoric"])
    assert Image.open(tmp_path / "out" / "epistemic" / "a.png").size == (30, 40)
    with pytest.raises(SegmintError, match="epistemic is not known"):
        predict_folder(run, photos, tmp_path / "alone", save=["epistemic"])
    with pytest.raises(SegmintError, match="errors is not known"):
        predict_folder(run, photos, tmp_path / "judge", save=["errors"])
    with pytest.raises(SegmintError, match="there is no 'draws'"):
        predict_folder(run, photos, tmp_path / "x", save=["draws"])


@pytest.mark.parametrize("tiling", [None, Tiling(64, 32)])
def test_a_tiff_stays_one_with_its_place_on_the_map(run: Run, tmp_path: Path, tiling: Tiling | None):
    path, keys = tmp_path / "in" / "map.tif", (1, 1, 0, 1, 1024, 0, 1, 1)
    path.parent.mkdir()
    tags = [(33550, 12, 3, (2.0, 2.0, 0.0), True), (34735, 3, 8, keys, True), (34737, 2, 4, "abc|", True)]
    options = {"photometric": "rgb", "resolution": (300, 300), "extratags": tags}
    tifffile.imwrite(path, pixels(90, 300).astype(np.uint16), **options)
    predict_folder(run, path, tmp_path / "out", save=["masks", "overlays", "uncertainty"], tiling=tiling)
    with tifffile.TiffFile(tmp_path / "out" / "masks" / "map.tif") as mask:
        page = mask.pages[0]
        assert page.tags[33550].value == (2.0, 2.0, 0.0)
        assert page.tags[34735].value == keys
        assert page.tags[282].value == (300, 1)
        assert page.is_tiled
        assert page.compression == 8
        assert page.colormap[:, 1].tolist() == [value * 257 for value in run.classes.colors[1]]
        labels = page.asarray()
    assert labels.shape == (90, 300)
    if tiling is None:
        np.testing.assert_array_equal(labels, predict(run, path).labels.numpy())
    assert tifffile.imread(tmp_path / "out" / "overlays" / "map.tif").shape == (90, 300, 3)
    assert tifffile.imread(tmp_path / "out" / "uncertainty" / "map.tif").shape == (90, 300)
    assert sum(int(rows(tmp_path / "out")[0][f"pixels {name}"]) for name in run.classes.names) == 90 * 300


def test_a_large_image_goes_through_a_temporary_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels(300, 280), photometric="rgb", tile=(64, 64), compression="deflate")
    kinds = ["masks", "overlays", "probabilities"]
    predict_folder(run, tmp_path / "a.tif", tmp_path / "small", save=kinds, tiling=Tiling(128, 32))
    monkeypatch.setattr(outputs, "IN_MEMORY", 1000)
    predict_folder(run, tmp_path / "a.tif", tmp_path / "large", save=kinds, tiling=Tiling(128, 32))
    for path in ("masks/a.tif", "overlays/a.tif"):
        one, two = (tifffile.imread(tmp_path / size / path) for size in ("small", "large"))
        np.testing.assert_array_equal(one, two)
    one, two = (np.load(tmp_path / size / "probabilities/a.npz") for size in ("small", "large"))
    np.testing.assert_array_equal(one["probabilities"], two["probabilities"])
    assert not list((tmp_path / "large").rglob(".*"))


def test_class_ids_above_255_make_grey_masks_of_16_bits(tmp_path: Path):
    classes = Classes.named(["low", "high"], [7, 1000])
    path = tmp_path / "masks" / "a.tif"
    cell = Cell(Window(0, 0, 2, 2), torch.full((2, 2, 2), 0.5), {}, torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8))
    with outputs.Result({"masks": path}, (2, 2), classes, Place()) as result:
        result.put(cell, Decoded(np.zeros((2, 2, 3), np.uint8)))
        result.write()
    assert tifffile.imread(path).tolist() == [[7, 1000], [1000, 7]]


# Going on


def test_what_is_there_is_left_as_it_is_unless_the_image_is_newer(run: Run, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    predict_folder(run, photos, out)
    before = rows(out)
    assert predict_folder(run, photos, out).skipped == 3
    (out / "masks" / "deep" / "b.png").unlink()
    save(photos / "a.png", pixels(50, 20))
    later = (out / "masks" / "a.png").stat().st_mtime + 5
    os.utime(photos / "a.png", (later, later))
    save(photos / "z.png")
    found = predict_folder(run, photos, out)
    assert (found.done, found.skipped) == (3, 1)
    assert Image.open(out / "masks" / "a.png").size == (20, 50)
    assert [row["name"] for row in rows(out)] == ["a", "deep/b", "deep/er/c", "z"]
    assert rows(out)[1:3] == before[1:]
    assert predict_folder(run, photos, out, save=["masks", "uncertainty"]).done == 4


def test_other_settings_or_images_are_not_mixed_in(run: Run, other: Run, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    predict_folder(run, photos, out)
    with pytest.raises(SegmintError, match=r"draws None instead of 2"):
        predict_folder(run, photos, out, draws=2)
    with pytest.raises(SegmintError, match="other models"):
        predict_folder(other, photos, out)
    elsewhere = save(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(SegmintError, match="under the same name"):
        predict_folder(run, elsewhere, out)
    (out / "predictions.csv").write_text("name,file\na\n", encoding="utf-8")
    with pytest.raises(SegmintError, match="too few or too many cells"):
        predict_folder(run, photos, out)
    (out / "predictions.json").write_text("{", encoding="utf-8")
    with pytest.raises(SegmintError, match="damaged"):
        predict_folder(run, photos, out)


def test_what_cannot_be_read_is_told_at_the_end_and_the_rest_is_done(run: Run, photos: Path, tmp_path: Path):
    save(photos / "grey.png", pixels()[..., 0])
    save(photos / "long.png", pixels(30000, 1))
    save(photos / "one.png", pixels(1, 1))
    save(photos / "alpha.png", pixels(20, 20, 4))
    (photos / "empty.jpg").touch()
    (photos / "text.png").write_text("no picture")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:300])
    found = predict_folder(run, photos, tmp_path / "out")
    assert found.done == 5
    told = {Path(source).name: why for source, why in found.failed}
    assert set(told) == {"grey.png", "long.png", "empty.jpg", "text.png", "cut.png"}
    assert "is grey, but the run was trained on images that are in colour" in told["grey.png"]
    assert "long.png: 30000 x 1 pixels: too long and thin" in told["long.png"]
    assert all(name in why for name, why in told.items())
    tiled = predict_folder(run, [photos / "long.png", photos / "one.png"], tmp_path / "tiled", tiling=Tiling(1024, 32))
    assert (tiled.done, tiled.failed) == (2, ())
    assert Image.open(tmp_path / "tiled" / "masks" / "long.png").size == (1, 30000)


def test_an_image_turned_by_exif_gives_an_upright_mask(run: Run, tmp_path: Path):
    picture = Image.fromarray(pixels(40, 30))
    exif = picture.getexif()
    exif[274] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    predict_folder(run, tmp_path / "turned.jpg", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "masks" / "turned.png").size == (40, 30)


def test_a_tiff_too_large_to_be_read_at_once_names_the_way_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tifffile.imwrite(tmp_path / "a.tif", pixels(64, 64), photometric="rgb")
    monkeypatch.setattr("segmint.inference.batch.MAX_PIXELS", 64)
    found = predict_folder(run, tmp_path / "a.tif", tmp_path / "out")
    assert "--tile 512" in found.failed[0][1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_for_one_image_names_the_way_out(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("segmint.inference.batch.predict_pixels", fail)
    assert "--tile" in predict_folder(run, photos, tmp_path / "out").failed[0][1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
@pytest.mark.parametrize("limit", [1000, 200_000])
def test_a_full_disk_stops_it_and_leaves_whole_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    import resource
    import signal

    source = save(tmp_path / "in" / "a.png", pixels(400, 300))
    monkeypatch.setattr(outputs, "IN_MEMORY", 1000)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SegmintError, match="cannot be written"):
            predict_folder(run, source, tmp_path / "out", save=["overlays", "masks"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".raw", ".tmp")]
    assert not list((tmp_path / "out").rglob("a.png"))
    assert predict_folder(run, source, tmp_path / "out", save=["overlays", "masks"]).done == 1


# The command


def test_the_command_ends_with_1_where_something_was_left_out(run: Run, photos: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "out"
    done = runner.invoke(app, ["predict", str(run.folder), str(photos), "--out", str(out), "--tile", "64"])
    assert done.exit_code == 0, done.output
    assert "3 segmented" in done.stdout
    (photos / "x.png").touch()
    again = runner.invoke(app, ["predict", str(run.folder), str(photos), "--out", str(out), "--tile", "64"])
    assert again.exit_code == 1
    assert "0 segmented, 3 there before, 1 left out" in again.stdout.replace("\n", "")
    wrong = runner.invoke(app, ["predict", str(run.folder), str(photos), "--scale", "2"])
    assert isinstance(wrong.exception, SegmintError)


def test_the_folder_for_results_is_in_the_run_unless_named(run: Run, photos: Path):
    assert CliRunner().invoke(app, ["predict", str(run.folder), str(photos / "a.png")]).exit_code == 0
    assert (run.folder / "predictions" / "masks" / "a.png").is_file()


def test_an_image_from_standard_input_gives_a_mask_on_standard_output(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = (photos / "a.png").read_bytes()
    done = CliRunner().invoke(app, ["predict", str(run.folder), "-"], input=data)
    assert done.exit_code == 0, done.output
    mask = np.asarray(Image.open(io.BytesIO(done.stdout_bytes)))
    np.testing.assert_array_equal(mask, predict(run, photos / "a.png").labels.numpy())
    broken = CliRunner().invoke(app, ["predict", str(run.folder), "-"], input=b"nothing")
    assert isinstance(broken.exception, SegmintError)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    predict_folder(run, "-", tmp_path / "out")
    assert (tmp_path / "out" / "masks" / "stdin.png").is_file()
    assert rows(tmp_path / "out")[0]["file"] == "-"
