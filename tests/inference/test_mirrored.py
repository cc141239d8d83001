from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segmint.cli import app
from segmint.evaluation.compare import compare
from segmint.evaluation.evaluate import evaluate
from segmint.inference.batch import predict_folder
from segmint.inference.draws import draw
from segmint.inference.export import export
from segmint.inference.mirrored import Mirrored, methods_of
from segmint.inference.predict import predict
from segmint.inference.tiles import Tiling
from segmint.methods.method import build
from segmint.seeds import Seeds
from segmint.training.run import Run, train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "one", settings=QUICK, **PLAIN)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_what_is_said_of_an_image_is_the_mirror_image_of_what_is_said_of_its_mirror_image(run: Run, picture: Path):
    flipped = picture.with_name("b.png")
    Image.fromarray(np.asarray(Image.open(picture))[:, ::-1]).save(flipped)
    one, other = (predict(run, path, mirror=True).probabilities for path in (picture, flipped))
    torch.testing.assert_close(one, other.flip(-1), atol=1e-4, rtol=0)
    straight, mirrored = (predict(run, path).probabilities for path in (picture, flipped))
    assert float((straight - mirrored.flip(-1)).abs().max()) > 1e-3
    torch.testing.assert_close(one, (straight + mirrored.flip(-1)) / 2, atol=1e-4, rtol=0)


def test_the_two_views_are_members_and_draw_their_own_masks(run: Run):
    assert [type(method).__name__ for method in methods_of([run])] == ["Supervised"]
    method = build("stochastic", classes=3, image_size=(32, 24), **PLAIN).eval()
    image = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    found = draw([method, Mirrored(method=method)], image, Seeds([1, 2]), 3)
    assert (len(found.masks), found.differ, found.epistemic is not None) == (6, True, True)
    own = Seeds([1, 2]).fork("member", 1).fork("draw", 2)
    last = method.segment(image.flip(-1), own).flip(-1).argmax(1)
    assert float((found.masks[5] == last).float().mean()) > 0.99


def test_judges_of_errors_see_the_mirror_image():
    method = build("adversarial", classes=2, image_size=(32, 32), **PLAIN).eval()
    image, logits = torch.randn(1, 3, 32, 32), torch.randn(1, 2, 32, 32)
    expected = method.errors(image.flip(-1), logits.flip(-1)).flip(-1)
    torch.testing.assert_close(Mirrored(method=method).errors(image, logits), expected)


def test_folders_are_not_mixed_and_noise_of_tiles_is_not_mirrored(
    run: Run, shapes: Path, picture: Path, tmp_path: Path
):
    predict_folder(run, picture, tmp_path / "out")
    with pytest.raises(SegmintError, match="mirror False instead of True"):
        predict_folder(run, picture, tmp_path / "out", mirror=True)
    told = CliRunner().invoke(app, ["predict", str(run.folder), str(picture), "--mirror", "--out", str(tmp_path / "m")])
    assert told.exit_code == 0, told.output
    drawing = train(shapes, method="stochastic", out=tmp_path / "run", settings={**QUICK, "steps": 1}, **PLAIN)
    with pytest.raises(SegmintError, match="--mirror: noise cut out of one field"):
        predict_folder(drawing, picture, tmp_path / "tiles", mirror=True, tiling=Tiling(32, 0))


def test_passes_with_dropout_are_made_of_the_image_alone(run: Run, shapes: Path, picture: Path, tmp_path: Path):
    for job in (
        lambda: predict(run, picture, draws=2, mirror=True),
        lambda: evaluate(run, shapes, draws=2, mirror=True),
        lambda: predict_folder(run, picture, tmp_path / "out", draws=2, mirror=True),
    ):
        with pytest.raises(SegmintError, match="leave out draws, or mirror"):
            job()
    assert len(predict(run, picture, draws=1, mirror=True).draws) == 2


def test_exported_models_workers_and_tiles_see_it_as_well(run: Run, picture: Path, tmp_path: Path):
    expected = predict(run, picture, mirror=True).labels.numpy()
    exported = export(run, out=tmp_path / "model.onnx").path
    alike = predict(exported, picture, mirror=True).labels.numpy() == expected
    assert alike.mean() > 0.99
    other = picture.with_name("other.png")
    other.write_bytes(picture.read_bytes())
    predict_folder(run, [picture, other], tmp_path / "two", mirror=True, workers=2, save=["masks"])
    alike = np.asarray(Image.open(tmp_path / "two" / "masks" / "a.png")) == expected
    assert alike.mean() > 0.99
    predict_folder(run, picture, tmp_path / "tiles", mirror=True, tiling=Tiling(64, 32), save=["masks"])
    assert (tmp_path / "tiles" / "masks" / "a.png").is_file()


def test_what_was_segmented_before_there_was_a_mirror_goes_on_without(run: Run, picture: Path, tmp_path: Path):
    predict_folder(run, picture, tmp_path / "out")
    path = tmp_path / "out" / "predictions.json"
    told = json.loads(path.read_text())
    del told["settings"]["mirror"]
    path.write_text(json.dumps(told))
    assert predict_folder(run, picture, tmp_path / "out").skipped == 1
    with pytest.raises(SegmintError, match="mirror False instead of True"):
        predict_folder(run, picture, tmp_path / "out", mirror=True)
    del told["settings"]["models"]
    path.write_text(json.dumps(told))
    with pytest.raises(SegmintError, match=r"predictions\.json: damaged"):
        predict_folder(run, picture, tmp_path / "out")


def test_scores_with_it_and_without_are_not_compared(run: Run, shapes: Path, tmp_path: Path):
    again = train(shapes, out=tmp_path / "again", seed=1, settings=QUICK, **PLAIN)
    plain = evaluate(run, shapes, pictures=False, resamples=20)
    evaluate(again, shapes, pictures=False, resamples=20)
    seen = evaluate(run, shapes, mirror=True, pictures=False, resamples=20)
    assert (plain["mirror"], seen["mirror"]) == (False, True)
    assert seen["nll"]["value"] != plain["nll"]["value"]
    with pytest.raises(SegmintError, match=r"was evaluated with --mirror on val, .*again without; evaluate both alike"):
        compare(run.folder, [again.folder], "val")
