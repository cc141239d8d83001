"""Data that is poor, odd or tiny: every segmenter learns from it all the same, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segmint.evaluation.evaluate import evaluate
from segmint.inference.predict import predict
from segmint.methods.method import find, names
from segmint.training.run import train
from segmint.types import SegmintError

SEGMENTERS = [name for name in names() if "segment" in find(name).capabilities()]
PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
SMALL = {
    "flow": {"widths": [16, 16], "alignment": 0.0, "perceptual": 0.0, "steps": 2},
    "gmm": {"components": 2},
    "maskflow": {**PLAIN, "widths": [16, 16], "steps": 2},
    "adversarial": {**PLAIN, "width": 8},
    "stochastic": {**PLAIN, "rank": 2, "samples": 2},
}

Mask = np.ndarray


def write(root: Path, masks: Callable[[int], list[Mask] | None], size: tuple[int, int] = (24, 20)) -> Path:
    """Eight images of noise, of which the last two are for validation; `masks` gives each its raters' masks."""
    random = np.random.default_rng(0)
    (root / "splits").mkdir(parents=True)
    for number in range(8):
        name = f"{number}.png"
        pixels = random.integers(0, 255, (*size, 3), np.uint8)
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / name)
        drawn = masks(number) or []
        for rater, mask in enumerate(drawn):
            path = root / "masks" / (name if len(drawn) == 1 else f"{number}/{rater}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(path)
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "left"}, {"id": 2, "name": "right"}]
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": classes, "ignore": 255}))
    (root / "splits" / "train.txt").write_text("".join(f"{number}\n" for number in range(6)))
    (root / "splits" / "val.txt").write_text("6\n7\n")
    return root


def halves(size: tuple[int, int] = (24, 20)) -> Mask:
    mask = np.ones(size)
    mask[:, size[1] // 2 :] = 2
    return mask


def one_label(number: int) -> list[Mask] | None:
    return [halves()] if number in (0, 6, 7) else None


def nothing_unlabelled(number: int) -> list[Mask]:
    return [halves()]


def background_alone(number: int) -> list[Mask]:
    return [np.zeros((24, 20))]


def no_right(number: int) -> list[Mask]:
    return [np.minimum(halves(), 1)]


def quarrel(number: int) -> list[Mask]:
    return [np.full((24, 20), rater) for rater in range(3)]


CASES = {each.__name__: each for each in (one_label, nothing_unlabelled, background_alone, no_right, quarrel)}


def learns(name: str, data: Path, out: Path) -> None:
    """Train for two steps, evaluate and predict; all figures must be numbers."""
    settings = {"batch_size": 2, "precision": "float32", **({"epochs": 1} if find(name).whole_epochs else {"steps": 2})}
    run = train(data, method=name, out=out, settings=settings, **SMALL.get(name, PLAIN))
    entry = evaluate(run, data, draws=2 if run.method.draws_differ else None, pictures=False, resamples=10)
    assert 0 <= entry["accuracy"]["value"] <= 1
    said = predict(run, next((data / "images").iterdir()), draws=2 if run.method.draws_differ else None)
    assert bool(torch.isfinite(said.probabilities).all())
    torch.testing.assert_close(said.probabilities.sum(0), torch.ones(said.labels.shape), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SEGMENTERS)
def test_it_learns_from_what_there_is(name: str, case: str, tmp_path: Path):
    learns(name, write(tmp_path / "data", CASES[case]), tmp_path / "run")


@pytest.mark.parametrize("name", SEGMENTERS)
def test_images_may_be_smaller_than_the_stride(name: str, tmp_path: Path):
    learns(name, write(tmp_path / "data", lambda number: [halves((11, 9))], (11, 9)), tmp_path / "run")


def test_images_of_a_few_pixels_have_to_be_enlarged(tmp_path: Path):
    data = write(tmp_path / "data", lambda number: [halves((9, 7))], (9, 7))
    with pytest.raises(SegmintError, match=r"data: its images are 9 x 7 pixels .* show them larger: --size 18x14"):
        train(data, out=tmp_path / "run", settings={"steps": 1}, **PLAIN)
    assert not (tmp_path / "run").exists()
