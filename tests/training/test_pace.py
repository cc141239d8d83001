"""`--minutes`: as many steps as fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from segmint.training import pace
from segmint.training.run import train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"batch_size": 4, "validate_every": 1000, "augment": "none"}


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a step takes 200 ms in float32 and 100 ms in bfloat16."""
    monkeypatch.setattr(pace, "probe", lambda *_: ("bfloat16", {"float32": 200.0, "bfloat16": 100.0}))


def test_steps_and_validations_fill_the_time_in_the_fastest_precision(fixed: None, shapes: Path, tmp_path: Path):
    run = train(shapes, minutes=0.15, out=tmp_path / "run", settings=QUICK, **PLAIN)
    shown = 3 + 5
    validating = 20 * shown / 4 * 0.1 / 3
    assert run.settings.training.steps == int((9 - validating) / 0.1)
    assert run.settings.training.precision == "bfloat16"
    assert any("fit into 0.15 minutes; a step takes 100 ms" in note for note in run.settings.notes)


def test_a_given_precision_is_kept(fixed: None, shapes: Path, tmp_path: Path):
    settings = {**QUICK, "precision": "float32"}
    run = train(shapes, minutes=0.2, out=tmp_path / "run", settings=settings, **PLAIN)
    assert run.settings.training.precision == "float32"
    assert run.settings.training.steps == int((12 - 20 * 8 / 4 * 0.2 / 3) / 0.2)


def test_too_little_time_and_whole_epochs_are_refused(fixed: None, shapes: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match=r"minutes: 0.01 is too short: a step of supervised takes 0.1 s"):
        train(shapes, minutes=0.01, out=tmp_path / "run", settings=QUICK, **PLAIN)
    with pytest.raises(SegmintError, match=r"minutes: gmm is fitted in whole epochs"):
        train(shapes, method="gmm", minutes=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
