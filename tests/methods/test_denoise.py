from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from segmint import cli
from segmint.config import TrainSettings
from segmint.data.folder import open_folder
from segmint.evaluation.evaluate import evaluate
from segmint.inference.predict import predict
from segmint.methods.denoise import Denoise, mix_noise
from segmint.methods.method import Facts, build
from segmint.training.optimizers import PartOptimizers
from segmint.training.run import Run, resume, train
from segmint.types import IGNORE, Batch, SegmintError

FACTS = Facts(classes=2, channels=3, size=(32, 24), shares=(0.5, 0.5), labelled=4, unlabelled=8, steps=100)
SMALL = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"steps": 2, "batch_size": 2, "precision": "float32"}
STILL = {**QUICK, "lr": 0.0, "ema": 0.0}


def make(**changes) -> Denoise:
    torch.manual_seed(0)
    return build("denoise", classes=3, in_channels=3, image_size=(32, 24), **{**SMALL, **changes})


def smooth(count: int = 4, size: tuple[int, int] = (32, 24)) -> Batch:
    """Slanted planes of colour, without masks."""
    torch.manual_seed(1)
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    slopes = torch.randn(count, 3, 1, 1), torch.randn(count, 3, 1, 1)
    image = (slopes[0] * rows + slopes[1] * columns).tanh()
    return Batch(image, torch.full((count, *size), IGNORE))


# --- the noise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.2, 0.95])
def test_the_mixture_has_the_stated_mean_and_variance(gamma: float):
    torch.manual_seed(0)
    image = torch.full((1, 1, 400, 400), 0.7)
    mixed = mix_noise(image, torch.randn_like(image), torch.tensor(gamma))
    assert float(mixed.mean()) == pytest.approx(0.7 * gamma**0.5, abs=0.01)
    assert float(mixed.var()) == pytest.approx(1 - gamma, rel=0.02)
    whole = mix_noise(torch.randn(1, 1, 400, 400), torch.randn(1, 1, 400, 400), torch.tensor(gamma))
    assert float(whole.var()) == pytest.approx(1, rel=0.02)


def test_each_image_draws_its_level_from_the_range():
    method = make(gamma=[0.5, 0.9])
    seen = []
    method.forward = lambda noisy: seen.append(noisy) or torch.zeros_like(noisy)
    method.loss(Batch(torch.zeros(64, 3, 32, 24), torch.full((64, 32, 24), IGNORE)))
    gamma = 1 - seen[0].flatten(1).var(1)
    assert 0.46 < float(gamma.min()) < 0.56
    assert 0.84 < float(gamma.max()) < 0.92


def test_no_prediction_has_error_one_and_a_perfect_one_none():
    method, batch = make(gamma=0.75), smooth()
    method.forward = torch.zeros_like
    assert float(method.loss(batch)["loss"].detach()) == pytest.approx(1, abs=0.05)
    method.forward = lambda noisy: (noisy - 0.75**0.5 * batch.image) / 0.5
    assert float(method.loss(batch)["loss"].detach()) == pytest.approx(0, abs=1e-6)
    clean = make(gamma=0.75, target="image")
    clean.forward = lambda noisy: batch.image
    assert float(clean.loss(batch)["loss"].detach()) == 0


def test_validation_shows_the_same_noise_each_time():
    method = make(gamma=[0.8, 0.95]).eval()
    torch.manual_seed(5)
    first = method.validate(smooth())["denoising_error"]
    torch.manual_seed(6)
    assert torch.equal(first, method.validate(smooth())["denoising_error"])


@pytest.mark.parametrize("target", ["noise", "image"])
def test_a_few_steps_reduce_the_error(target: str):
    method, batch = make(target=target, gamma=0.8), smooth()
    optimizers = PartOptimizers(method.parts(), TrainSettings(lr=5e-3))
    before = float(method.eval().validate(batch)["denoising_error"].detach())
    method.train()
    for _ in range(50):
        method.step(batch, optimizers)
    assert float(method.eval().validate(batch)["denoising_error"].detach()) < 0.5 * before


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 24), (33, 41), (5, 3)])
def test_it_predicts_at_full_resolution_from_a_coarser_map(size: tuple[int, int]):
    method = make(encoder_name="efficientnet_lite0", encoder_weights=None).eval()
    assert method.stride == 2
    with torch.inference_mode():
        assert method(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
    assert make().stride == 1


def test_looking_at_the_encoder_leaves_it_as_it_was():
    tensors = make().network.encoder.state_dict()
    counts = [value for key, value in tensors.items() if key.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 0 for count in counts)
    assert make().network.encoder.training


def test_a_frozen_encoder_keeps_weights_and_statistics():
    method = make(freeze_encoder=True)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    optimizers = PartOptimizers(method.parts(), TrainSettings(lr=1e-2))
    method.train().step(smooth(), optimizers)
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert "network.blocks.0.first.0.weight" in moved
    assert not any(key.startswith("network.encoder") for key in moved)


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        ({}, True),
        ({"encoder_weights": None}, None),
        ({"encoder_name": "plain"}, None),
        ({"freeze_encoder": False}, False),
        ({"encoder_name": "plain", "freeze_encoder": True}, True),
    ],
)
def test_only_an_encoder_that_knows_something_is_left_as_it_is(given: dict, frozen: bool | None):
    settled, notes = Denoise.adapt(given, FACTS)
    assert settled.get("freeze_encoder") is frozen
    assert any(note.startswith("freeze_encoder: true") for note in notes) is (not given)


def test_a_run_that_was_begun_before_encoders_were_frozen_goes_on(shapes: Path, tmp_path: Path):
    settings = {**QUICK, "steps": 4, "save_every": 0.0}
    run = train(shapes, method="denoise", out=tmp_path / "run", settings=settings, freeze_encoder=False)
    values = yaml.safe_load((run.folder / "config.yaml").read_text())
    for key in ("method_settings", "given"):
        assert values[key].pop("freeze_encoder") is False
    (run.folder / "config.yaml").write_text(yaml.safe_dump(values))
    (run.folder / "summary.json").unlink()
    assert resume(run.folder).method.frozen is False


def test_wrong_settings_are_refused():
    for gamma in (1.0, 0.0, [0.9, 0.8], [0.1, 0.2, 0.3]):
        with pytest.raises(SegmintError, match=r"denoise\.gamma: must be a number between 0 and 1"):
            make(gamma=gamma)
    with pytest.raises(SegmintError, match=r"denoise\.target: there is no 'both'; choose one of noise, image"):
        make(target="both")


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("denoise") / "run"
    return train(shapes, method="denoise", budget=0, out=out, settings=QUICK, **SMALL)


def test_it_learns_from_images_alone_and_keeps_the_best(prepared: Run):
    summary = json.loads((prepared.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"]) == (0, 8)
    assert summary["best_step"] == 2
    assert summary["best"] > 0


@pytest.mark.parametrize("method", ["supervised", "adversarial"])
def test_others_start_from_its_encoder_and_decoder_but_not_its_head(
    shapes: Path, tmp_path: Path, prepared: Run, method: str
):
    options = {"out": tmp_path / "run", "settings": STILL, "seed": 3}
    started = train(shapes, method=method, init=prepared, **options, **SMALL).method.state_dict()
    given = prepared.method.state_dict()
    inside = {key for key in started if key.startswith(("network.encoder.", "network.blocks."))}
    assert inside == {key for key in given if key.startswith("network.")}
    weights = [key for key in inside if key.endswith("weight")]
    assert weights
    assert all(torch.equal(started[key], given[key]) for key in weights)
    assert not any("head" in key for key in given)
    assert not any("denoiser" in key for key in started)


def test_it_works_where_no_image_has_a_mask(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes / "images", data / "images")
    run = train(data, method="denoise", out=tmp_path / "run", settings=QUICK, **SMALL)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["status"], summary["unlabelled"], summary["best"]) == ("finished", 14, None)
    assert any("no image has a mask" in note for note in run.settings.notes)
    assert not (data / "splits").exists()
    assert resume(run.folder).method.config["classes"] == 0
    with pytest.raises(SegmintError, match="no training image has a mask"):
        train(data, method="supervised", out=tmp_path / "other", settings=QUICK, **SMALL)


def test_images_held_out_without_masks_validate_it(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes / "images", data / "images")
    shutil.copytree(shapes / "splits", data / "splits")
    run = train(data, method="denoise", out=tmp_path / "run", settings=QUICK, **SMALL)
    assert json.loads((run.folder / "summary.json").read_text())["best"] > 0


def test_what_it_cannot_do_is_said(shapes: Path, prepared: Run):
    with pytest.raises(SegmintError, match=r"it only prepares others; evaluate a segmenter, .* --init"):
        evaluate(prepared, open_folder(shapes), "val")
    with pytest.raises(SegmintError, match="denoise does not segment"):
        predict(prepared, shapes / "images" / "00.png")
    done = CliRunner().invoke(cli.app, ["report", str(prepared.folder)])
    assert done.exit_code == 0
    assert (prepared.folder / "report.html").is_file()
    row = next(line for line in CliRunner().invoke(cli.app, ["methods"]).output.splitlines() if "denoise" in line)
    assert "prepares" in row


def test_grey_images_work():
    method = build("denoise", classes=1, in_channels=1, image_size=(32, 24), **SMALL)
    error = method.validate(Batch(torch.zeros(2, 1, 32, 24), torch.full((2, 32, 24), IGNORE)))["denoising_error"]
    assert np.isfinite(float(error.detach()))
