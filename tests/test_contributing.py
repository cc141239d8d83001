"""CONTRIBUTING.md, followed to the letter: its example becomes a method, in a folder of its own."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import segmint
import segmint.methods
from segmint import cli
from segmint.methods.method import find, names
from segmint.seeds import Seeds

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FAST = {"steps": 150, "batch_size": 4, "precision": "float32"}


def block(language: str, containing: str) -> str:
    """The one code block of a language that contains some words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    (found,) = [code for code in blocks if containing in code]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the example and nothing else."""
    assert "`src/segmint/methods/pixelwise.py`" in TEXT
    folder = tmp_path_factory.mktemp("methods")
    (folder / "pixelwise.py").write_text(block("python", "class"), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _added(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(segmint.methods, "__path__", [*segmint.methods.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("segmint.methods.pixelwise", None)
    vars(segmint.methods).pop("pixelwise", None)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_it_is_found_and_listed():
    assert "pixelwise" in names()
    assert find("pixelwise").capabilities() == {"segment"}
    told = run("methods")
    assert "pixelwise" in told
    assert "Logistic" in told


def test_it_learns_and_comes_back_from_its_files(shapes: Path, tmp_path: Path):
    made = segmint.train(shapes, method="pixelwise", out=tmp_path / "run", settings=FAST)
    entry = segmint.evaluate(made.folder, shapes, "test", resamples=20)
    assert entry["miou"]["value"] > 0.95
    image = torch.rand(2, 3, 20, 36) * 2 - 1
    logits = made.method.segment(image, Seeds.range(2))
    assert logits.shape == (2, 3, 20, 36)
    segmint.save(made.method, tmp_path / "copy")
    assert torch.equal(segmint.load(tmp_path / "copy").segment(image, Seeds.range(2)), logits)


def test_the_commands_work_as_written(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "data").symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    for line in block("sh", "segmint train").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "segmint"
        run(*arguments)
    assert (tmp_path / "runs" / "pixelwise" / "report.html").is_file()


def test_the_contract_test_discovers_it(folder: Path, tmp_path: Path):
    (tmp_path / "with_pixelwise.py").write_text(
        f"import segmint.methods\nsegmint.methods.__path__.append({str(folder)!r})\n", encoding="utf-8"
    )
    _, *arguments = shlex.split(block("sh", "test_contract.py"))
    done = subprocess.run(
        [sys.executable, *arguments, "-p", "with_pixelwise", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def test_it_keeps_to_the_style(folder: Path):
    for command in (["check"], ["format", "--check"]):
        config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config, str(folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
