"""Two processes never write to one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segmint.inference.generate import generate
from segmint.locks import locked
from segmint.training.run import resume, train
from segmint.types import SegmintError

QUICK = {"batch_size": 4, "precision": "float32", "steps": 2}


def test_a_folder_in_use_is_left_alone(shapes: Path, tmp_path: Path):
    run = train(shapes, method="vae", out=tmp_path / "run", settings=QUICK, width=8, latent=4)
    with locked(run.folder), pytest.raises(SegmintError, match="run: another process is writing there; wait"):
        resume(run.folder)
    with (
        locked(tmp_path / "pairs"),
        pytest.raises(SegmintError, match="pairs: another process is writing there"),
    ):
        generate(run, count=2, out=tmp_path / "pairs")
    assert len(generate(run, count=2, out=tmp_path / "pairs").items) == 2


def test_a_killed_process_lets_it_go(tmp_path: Path):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom segmint.locks import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    with locked(tmp_path):
        pass
