"""Settings of a trained method that are changed when it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.cli import app
from segmint.data.folder import open_folder
from segmint.data.io import read_image
from segmint.inference.generate import generate
from segmint.inference.sequences import generate_sequences
from segmint.training.run import Run, train
from segmint.types import SegmintError

TINY = {"widths": [16, 16], "alignment": 0.0}


@pytest.fixture(scope="module")
def flow(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("flow") / "run"
    return train(shapes, method="flow", out=out, settings={"steps": 4, "batch_size": 4, "precision": "float32"}, **TINY)


def test_changes_hold_for_this_folder_and_are_remembered(flow: Run, tmp_path: Path):
    changed = Run(flow.folder, changes={"steps": 2})
    assert changed.method.config["steps"] == 2
    pairs = generate(changed, count=2, out=tmp_path / "two")
    usual = generate(flow, count=2, out=tmp_path / "usual")
    assert (read_image(pairs.items[0].image) != read_image(usual.items[0].image)).any()
    assert json.loads((tmp_path / "two" / "generate.json").read_text())["changes"] == {"steps": 2}
    with pytest.raises(SegmintError, match="changes"):
        generate(flow, count=3, out=tmp_path / "two")


def test_the_command_line_changes_them_too(flow: Run, tmp_path: Path):
    out = tmp_path / "pairs"
    asked = ["generate", str(flow.folder), "--count", "2", "--out", str(out), "--repaint", "--set", "strength=0"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert len(open_folder(out)) == 2
    assert json.loads((out / "generate.json").read_text())["changes"] == {"strength": 0}


def test_changes_that_mean_nothing_or_need_other_weights_are_refused(flow: Run):
    with pytest.raises(SegmintError, match=r"flow\.colour: there is no such setting"):
        _ = Run(flow.folder, changes={"colour": 1}).method
    with pytest.raises(SegmintError, match=r"model\.safetensors"):
        _ = Run(flow.folder, changes={"widths": [16, 24]}).method


def test_sequences_remember_them_too(flow: Run, tmp_path: Path):
    out = tmp_path / "film"
    generate_sequences(Run(flow.folder, changes={"steps": 2}), count=1, frames=2, out=out)
    with pytest.raises(SegmintError, match="was begun with changes"):
        generate_sequences(flow, count=2, frames=2, out=out)
