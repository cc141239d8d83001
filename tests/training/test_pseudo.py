"""Learning from predicted masks, and from generated pairs alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import segmint.training.pseudo as pseudo
from segmint.config import read_run, write_run
from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.data.store import cache_folder
from segmint.methods.method import build, load, save
from segmint.seeds import Seeds
from segmint.training.checkpoint import load_state
from segmint.training.pseudo import predict_masks
from segmint.training.run import resume, train
from segmint.types import IGNORE, SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 6, "validate_every": 3}


@pytest.fixture(scope="module")
def teacher(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {**QUICK, "steps": 60, "validate_every": 60}
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "teacher", settings=settings, **PLAIN).folder


@pytest.fixture(scope="module")
def pixels(shapes: Path) -> Pixels:
    return Pixels.open(open_folder(shapes))


def test_the_masks_are_the_segmenters_sure_ones(pixels: Pixels, teacher: Path):
    items = [11, 12, 13]
    found = predict_masks(pixels, items, teacher, confidence=0.8)
    method = load(teacher)
    image = pixels.batch(items).image
    with torch.inference_mode():
        straight = method.segment(image, Seeds(items)).softmax(1)
        mirrored = method.segment(image.flip(-1), Seeds(items)).softmax(1).flip(-1)
    probability, labels = ((straight + mirrored) / 2).max(1)
    assert torch.equal(found.batch(items).mask, labels.masked_fill(probability < 0.8, IGNORE))
    assert "3 images without masks have those that" in found.notes[0]


def test_all_other_items_are_as_they_were(pixels: Pixels, teacher: Path):
    found = predict_masks(pixels, [11, 13], teacher)
    got, plain = found.batch([6, 13, 12, 7], labelled=[True, False, False, False]), pixels.batch([6, 13, 12, 7])
    assert torch.equal(got.image, plain.image)
    assert torch.equal(got.mask[0], plain.mask[0])
    assert bool((got.mask[2:] == IGNORE).all())
    assert bool((got.mask[1] != IGNORE).any())
    assert found.batch([6, 13], previous=True).previous is not None


def test_they_are_predicted_once(pixels: Pixels, teacher: Path, monkeypatch: pytest.MonkeyPatch):
    first = predict_masks(pixels, [11, 12], teacher)
    monkeypatch.setattr(pseudo, "_fill", lambda *_: pytest.fail("predicted again"))
    again = predict_masks(pixels, [11, 12], teacher)
    assert again.digest == first.digest
    assert torch.equal(again.batch([12]).mask, first.batch([12]).mask)
    with pytest.raises(pytest.fail.Exception):
        predict_masks(pixels, [11, 12], teacher, confidence=0.9)


def test_other_sizes_and_no_items_are_fine(shapes: Path, teacher: Path):
    larger = Pixels.open(open_folder(shapes), (48, 36))
    assert predict_masks(larger, [11], teacher).batch([11]).mask.shape == (1, 48, 36)
    assert predict_masks(larger, [], teacher).batch([6]).mask.shape == (1, 48, 36)


def test_any_method_learns_from_images_without_masks(shapes: Path, teacher: Path, tmp_path: Path):
    run = train(shapes, out=tmp_path / "run", budget=2, masks_from=teacher, settings=QUICK, **PLAIN)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"]) == (2, 6)
    assert run.settings.masks_from == str(teacher.resolve())
    assert any("6 images without masks" in note for note in run.settings.notes)
    assert any("a comparison at equal labels" in note for note in run.settings.notes)


def test_resumed_it_is_the_same_and_another_segmenter_is_noticed(shapes: Path, teacher: Path, tmp_path: Path):
    segmenter = tmp_path / "segmenter"
    shutil.copytree(teacher, segmenter)
    options = {"masks_from": segmenter, "masks_confidence": 0.5, **PLAIN}
    whole = train(shapes, out=tmp_path / "whole", settings=QUICK, **options)
    half = train(shapes, out=tmp_path / "half", settings={**QUICK, "steps": 3, "schedule": "constant"}, **options)
    for left in cache_folder().glob("*.predicted.u8"):
        left.unlink()
    resume(half.folder)
    again = resume(whole.folder)
    first, second = load_state(whole.folder)["method"], load_state(again.folder)["method"]
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    weights = segmenter / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(SegmintError, match=r"or the segmenter in .* have changed since this run began"):
        resume(half.folder)


def test_a_run_that_cannot_give_masks_is_refused(shapes: Path, pixels: Pixels, teacher: Path, tmp_path: Path):
    vae = train(shapes, method="vae", out=tmp_path / "vae", settings={**QUICK, "steps": 1}, width=8, latent=4)
    with pytest.raises(SegmintError, match="vae, which does not segment"):
        train(shapes, out=tmp_path / "a", masks_from=vae, settings=QUICK, **PLAIN)
    deep = shutil.copytree(teacher, tmp_path / "deep")
    write_run(read_run(deep).model_copy(update={"depth": 12}), deep)
    with pytest.raises(SegmintError, match=r"deep was trained on images of 12 bits, those of .* have 8; train it anew"):
        train(shapes, out=tmp_path / "a", masks_from=deep, settings=QUICK, **PLAIN)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "classes.yaml").write_text("classes:\n- {id: 0, name: sky}\n", encoding="utf-8")
    with pytest.raises(SegmintError, match="trained on other classes"):
        predict_masks(pixels, [11], other)
    grey = tmp_path / "grey"
    shutil.copytree(teacher, grey)
    save(build("supervised", **{**load(teacher).config, "in_channels": 1}), grey)
    with pytest.raises(SegmintError, match="takes images of 1 channels"):
        predict_masks(pixels, [11], grey)
    with pytest.raises(SegmintError, match=r"no method\.json"):
        train(shapes, out=tmp_path / "b", masks_from=tmp_path / "nowhere", settings=QUICK, **PLAIN)
    assert not (tmp_path / "a").exists()


def test_trained_on_generated_pairs_alone(shapes: Path, tmp_path: Path):
    pairs = tmp_path / "pairs"
    for part in ("images", "masks"):
        (pairs / part).mkdir(parents=True)
        for number in (7, 9):  # squares only
            shutil.copy(shapes / part / f"{number:02d}.png", pairs / part)
    shutil.copy(shapes / "classes.yaml", pairs)
    run = train(shapes, out=tmp_path / "run", budget=0, synthetic=[pairs], settings=QUICK, **PLAIN)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"], summary["synthetic"]) == (0, 0, 2)
    assert summary["best"] is not None
    assert run.method.config["shares"][2] == 0
    vae = train(shapes, method="vae", out=tmp_path / "vae", budget=0, synthetic=[pairs], settings=QUICK, width=8)
    assert json.loads((vae.folder / "summary.json").read_text())["unlabelled"] == 8
    with pytest.raises(SegmintError, match="budget: 0 leaves any segmenter no mask to learn from"):
        train(shapes, out=tmp_path / "none", budget=0, settings=QUICK, **PLAIN)


def test_a_copy_of_the_images_is_as_good(shapes: Path, teacher: Path, tmp_path: Path):
    copy = shutil.copytree(shapes, tmp_path / "copy", copy_function=shutil.copy)
    first = predict_masks(Pixels.open(open_folder(shapes)), [11, 12], teacher)
    again = predict_masks(Pixels.open(open_folder(copy)), [11, 12], teacher)
    assert again.digest == first.digest
    (copy / "images" / "12.png").write_bytes((copy / "images" / "11.png").read_bytes())
    moved = predict_masks(Pixels.open(open_folder(copy)), [11, 12], teacher)
    assert moved.digest != first.digest
    assert torch.equal(moved.batch([12]).mask, moved.batch([11]).mask)
