from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.data.check import check
from segmint.data.folder import open_folder
from segmint.inference.generate import BLOCK, generate
from segmint.inference.predict import predict
from segmint.training.run import Run, train
from segmint.types import SegmintError

QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


@pytest.fixture(scope="module")
def maker(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, method="vae", out=tmp_path_factory.mktemp("vae") / "run", settings=QUICK, width=8, latent=4)


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("segmenter") / "run"
    return train(shapes, out=out, settings=QUICK, encoder_name="plain", decoder_channels=[16, 16, 16, 16])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_generated_folders_pass_check_and_open(maker: Run, tmp_path: Path):
    data = generate(maker, count=11, out=tmp_path / "pairs")
    assert len(data) == 11
    assert data.classes.names == maker.classes.names
    problems = check(tmp_path / "pairs").problems
    assert not [problem for problem in problems if "never" not in problem]
    manifest = [json.loads(line) for line in (tmp_path / "pairs/manifest.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in manifest] == [f"{number:05d}" for number in range(11)]
    assert all(entry["kept"] and entry["method"] == "vae" for entry in manifest)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_is_the_same_for_every_count_and_number_of_workers(maker: Run, tmp_path: Path, workers: int):
    few = generate(maker, count=3, out=tmp_path / "few", seed=5).root
    many = generate(maker, count=2 * BLOCK + 1, out=tmp_path / "many", seed=5, workers=workers).root
    all_of_them = files(many)
    assert all(all_of_them[name] == content for name, content in files(few).items())
    other = generate(maker, count=3, out=tmp_path / "other", seed=6).root
    assert files(other) != files(few)


def test_a_killed_generation_goes_on_to_the_same_folder(maker: Run, tmp_path: Path):
    whole = generate(maker, count=20, out=tmp_path / "whole").root
    part = generate(maker, count=10, out=tmp_path / "part").root
    manifest = part / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"name": "00010", "se')
    (part / "masks" / "00009.png").unlink()
    generate(maker, count=20, out=part)
    assert files(part) == files(whole)
    assert manifest.read_text() == (whole / "manifest.jsonl").read_text()


def test_progress_is_told(maker: Run, tmp_path: Path):
    told: list[tuple[int, int]] = []
    generate(maker, count=10, out=tmp_path / "pairs", progress=lambda done, count: told.append((done, count)))
    assert told == [(8, 10), (10, 10)]


def test_wrong_uses_of_generate_are_refused(maker: Run, segmenter: Run, tmp_path: Path):
    with pytest.raises(SegmintError, match="supervised does not generate"):
        generate(segmenter, count=1)
    with pytest.raises(SegmintError, match="--count: must be at least 1"):
        generate(maker, count=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SegmintError, match="is not empty"):
        generate(maker, count=1, out=tmp_path / "full")
    generate(maker, count=1, out=tmp_path / "pairs", seed=1)
    with pytest.raises(SegmintError, match="was begun with seed 1, now it is 2"):
        generate(maker, count=1, out=tmp_path / "pairs", seed=2)


def test_pairs_can_be_trained_on(shapes: Path, maker: Run, tmp_path: Path):
    pairs = generate(maker, count=6, out=tmp_path / "pairs")
    plain = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}
    run = train(open_folder(shapes) + pairs, out=tmp_path / "run", settings=QUICK, **plain)
    assert run.settings.synthetic == [str(tmp_path / "pairs")]
    assert json.loads((run.folder / "summary.json").read_text())["synthetic"] == 6
    again = train(shapes, synthetic=[tmp_path / "pairs"], out=tmp_path / "again", settings=QUICK, **plain)
    for key, value in run.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[key])


@pytest.mark.parametrize("size", [(32, 24), (47, 81), (300, 20), (5, 5)])
def test_predictions_have_the_images_own_size(segmenter: Run, tmp_path: Path, size: tuple[int, int]):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    p = predict(segmenter, path, draws=3)
    assert p.epistemic is not None
    assert p.labels.shape == p.uncertainty.shape == p.aleatoric.shape == p.epistemic.shape == size
    assert p.probabilities.shape == (3, *size)
    assert p.draws.shape == (3, *size)
    assert torch.allclose(p.probabilities.sum(0), torch.ones(size), atol=1e-4)
    assert p.names == ("ground", "square", "disc")
    assert float(p.epistemic.min()) >= 0
    assert p.overlay().size == size[::-1]


def test_grey_files_are_shown_in_the_networks_channels(segmenter: Run, tmp_path: Path):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((32, 24), 90, np.uint8)).save(path)
    assert predict(str(segmenter.folder), path).image.shape == (32, 24, 3)


def test_wrong_uses_of_predict_are_refused(maker: Run, segmenter: Run, tmp_path: Path):
    with pytest.raises(SegmintError, match="vae does not segment"):
        predict(maker, tmp_path / "x.png")
    with pytest.raises(SegmintError, match=r"x\.png"):
        predict(segmenter, tmp_path / "x.png")
    with pytest.raises(SegmintError, match="draws: must be at least 1"):
        predict(segmenter, tmp_path / "x.png", draws=0)
