from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from segmint import demo
from segmint.types import SegmintError


def shell(folder: Path) -> demo._Shell:
    return demo._Shell(folder, Console(file=io.StringIO()))


def test_commands_are_run_remembered_and_timed(tmp_path: Path):
    made = shell(tmp_path)
    made.run([["methods"], ["--help"]])
    assert made.commands == ["segmint methods", "segmint --help"]
    assert sorted(job for job, _ in made.timings) == ["segmint --help", "segmint methods"]


def test_a_failing_command_stops_the_demo_and_says_what_it_printed(tmp_path: Path):
    with pytest.raises(SegmintError, match=r"segmint train .*nowhere\nended with 2:\nerror: .*nowhere"):
        shell(tmp_path).run([["train", str(tmp_path / "nowhere")]])


def test_a_started_run_is_resumed(tmp_path: Path):
    run = tmp_path / "run"
    assert demo._train(run, ["data"]) == ["train", "data", "--out", str(run)]
    run.mkdir()
    (run / "config.yaml").touch()
    assert demo._train(run, ["data"]) == ["train", "--resume", str(run)]
