"""Training that starts from another run's weights, and from images alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from segmint.methods.method import load
from segmint.training.run import resume, train
from segmint.types import SegmintError

QUICK = {"steps": 2, "batch_size": 2, "precision": "float32"}
TINY = {"widths": [16, 16], "alignment": 0.0}


def test_it_starts_from_the_weights_that_fit(shapes: Path, tmp_path: Path):
    first = train(shapes, method="vae", out=tmp_path / "a", settings=QUICK, width=8, latent=4)
    still = {**QUICK, "lr": 0.0, "ema": 0.0}
    second = train(shapes, method="vae", out=tmp_path / "b", settings=still, seed=5, width=8, latent=4, init=first)
    ours, theirs = second.method.state_dict(), first.method.state_dict()
    assert torch.equal(ours["decoder.first.weight"], theirs["decoder.first.weight"])
    wider = train(shapes, method="vae", out=tmp_path / "c", settings=still, width=8, latent=6, init=first.folder)
    assert torch.equal(wider.method.state_dict()["decoder.image.weight"], theirs["decoder.image.weight"])
    assert wider.settings.init == str(first.folder.resolve())
    assert torch.equal(load(resume(wider.folder).folder).decoder.image.weight, wider.method.decoder.image.weight)


def test_what_counts_steps_begins_anew(shapes: Path, tmp_path: Path):
    small = {"encoder_name": "plain", "decoder_channels": [4, 4, 4, 4], "balance": "geco", "kappa": 0.1}
    first = train(shapes, method="variational", out=tmp_path / "a", settings=QUICK, **small)
    assert int(first.method.steps_done) == 2
    none = {**QUICK, "steps": 0}
    second = train(shapes, method="variational", out=tmp_path / "b", settings=none, init=first, **small)
    assert int(second.method.steps_done) == 0
    assert float(second.method.log_multiplier) != float(first.method.log_multiplier)


def test_weights_that_fit_nowhere_are_refused(shapes: Path, tmp_path: Path):
    vae = train(shapes, method="vae", out=tmp_path / "a", settings={**QUICK, "steps": 1}, width=8, latent=4)
    with pytest.raises(SegmintError, match=r"init: .* have no tensor of the same name and shape"):
        train(shapes, method="flow", out=tmp_path / "b", settings=QUICK, init=vae, **TINY)
    with pytest.raises(SegmintError, match=r"no method\.json"):
        train(shapes, method="vae", out=tmp_path / "c", settings=QUICK, init=tmp_path / "nowhere")
    assert not (tmp_path / "b").exists()


def test_images_alone_teach_a_method_that_can_use_them(shapes: Path, tmp_path: Path):
    run = train(shapes, method="flow", budget=0, out=tmp_path / "run", settings=QUICK, **TINY)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"]) == (0, 8)
    assert not any("no labelled training pixel" in note for note in run.settings.notes)
