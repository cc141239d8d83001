from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from segmint import cli
from segmint.cli.options import settings_of
from segmint.training.run import train
from segmint.types import SegmintError

PLAIN = ["--set", "encoder_name=plain", "--set", "decoder_channels=[16,16,16,16]"]
QUICK = ["--steps", "4", "--set", "training.batch_size=4", "--set", "training.precision=float32"]


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    run("train", shapes, "--budget", 4, "--out", out, *PLAIN, *QUICK)
    return out


def test_check_says_what_it_found(shapes: Path):
    assert "no problems" in run("check", shapes)


def test_check_fails_with_every_problem_named(shapes: Path, tmp_path: Path):
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(shapes, bad)
    (bad / "images" / "07.png").write_bytes(b"not an image")
    (bad / "masks" / "99.png").write_bytes((bad / "masks" / "06.png").read_bytes())
    assert "no such folder" in " ".join(run("check", tmp_path / "nowhere", code=1).split())
    told = run("check", bad, code=1)
    assert "07.png" in told
    assert "99.png" in told


def test_the_whole_way(shapes: Path, segmenter: Path, tmp_path: Path):
    assert "finished" in json.loads((segmenter / "summary.json").read_text())["status"]
    out = tmp_path / "vae"
    run("train", shapes, "--method", "vae", "--out", out, *QUICK, "--set", "width=8", "--set", "latent=4")
    told = run("generate", out, "--count", 9, "--out", tmp_path / "pairs")
    assert "9 pairs" in told
    assert "diversity" in told
    assert (tmp_path / "pairs" / "pairs.json").exists()
    both = tmp_path / "both"
    run("train", shapes, "--budget", 4, "--synthetic", tmp_path / "pairs", "--out", both, *PLAIN, *QUICK)
    for folder in (segmenter, both):
        assert "miou" in run("evaluate", folder, "--split", "test")
    assert "mIoU" in run("compare", segmenter, both, "--split", "test", "--out", tmp_path)
    assert "report.html" in run("report", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")


def test_methods_are_listed():
    told = run("methods")
    assert all(name in told for name in ("supervised", "gmm", "vae", "gan"))


def test_finished_runs_resume_at_once_and_interrupted_ones_say_how_to_go_on(segmenter: Path):
    assert "finished after 4 steps" in run("train", "--resume", segmenter).replace("\n", " ")
    summary = segmenter / "summary.json"
    text = summary.read_text()
    summary.write_text(text.replace("finished", "interrupted"))
    with pytest.raises(typer.Exit) as stop:
        cli.learn._tell(segmenter)
    summary.write_text(text)
    assert stop.value.exit_code == 130


def test_settings_come_from_a_file_and_from_the_command_line(shapes: Path, tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text("training: {batch_size: 2, augment: weak, steps: 3}\nmethod_settings: {width: 8, latent: 4}\n")
    options = ["--config", path, "--set", "training.lr=3e-4", "--set", "training.augment.flip=0.1", "--size", "24x16"]
    run("train", shapes, "--method", "vae", "--out", tmp_path / "run", *options)
    made = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert made["training"]["batch_size"] == 2
    assert made["training"]["lr"] == 3e-4
    assert made["training"]["augment"] == {"preset": "weak", "flip": 0.1}
    assert made["size"] == [24, 16]
    assert made["method_settings"]["latent"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a data folder"),
        (["train", "DATA", "--size", "large"], "height x width"),
        (["train", "DATA", "--set", "loss"], "must be KEY=VALUE"),
        (["train", "DATA", "--set", "training.nonsense=1"], r"training\.nonsense: there is no such setting"),
        (["train", "DATA", "--set", "loss=[oops"], "is not a value"),
        (["train", "DATA", "--set", "loss=2024-13-45"], "is not a value"),
        (["train", "DATA", "--set", "seed=3"], "seed: is no setting of the method; give --seed"),
        (["train", "DATA", "--set", "masks_from=runs/1"], "give --masks-from"),
        (["train", "DATA", "--set", "image_size=[32, 32]"], "give --size"),
        (["train", "DATA", "--set", "classes=2"], "classes: follows from the data"),
        (["train", "DATA", "--set", "settings.lr=1"], r"--set training\.KEY=VALUE"),
        (["train", "DATA", "--set", "loss=hinge", "--out", "OUT"], "hinge"),
        (["train", "DATA", "--method", "nonsense"], "there is no 'nonsense'"),
        (["train", "DATA", "--budget", "99"], "99"),
        (["train", "DATA", "--resume", "DATA"], "leave DATA and the others out"),
        (["train", "--resume", "DATA"], r"config\.yaml: no such file"),
        (["train", "nowhere"], "nowhere"),
        (["evaluate", "DATA"], r"config\.yaml: no such file"),
        (["generate", "DATA"], r"method\.json"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_give_one_clear_message(shapes: Path, tmp_path: Path, arguments: list[str], message: str):
    words = {"DATA": str(shapes), "OUT": str(tmp_path / "out")}
    with pytest.raises(SegmintError, match=message):
        run(*[words.get(word, word) for word in arguments])


def test_bad_settings_files_are_refused(shapes: Path, tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text("trainings: {}\n")
    with pytest.raises(SegmintError, match="trainings: there is no such key"):
        run("train", shapes, "--config", path)
    path.write_text("- 1\n")
    with pytest.raises(SegmintError, match="should hold settings"):
        run("train", shapes, "--config", path)
    for text in ("a: [\n", "training: 2024-13-45\n"):
        path.write_text(text)
        with pytest.raises(SegmintError, match="cannot be read as YAML"):
            run("train", shapes, "--config", path)
    for text in ("training: 5\n", "training: [lr]\n", "method_settings: {1: 2}\n", "method_settings: [loss]\n"):
        path.write_text(text)
        with pytest.raises(SegmintError, match=r"settings\.yaml: \w+: should hold settings"):
            run("train", shapes, "--config", path)
    path.write_text("method_settings: {budget: 8}\n")
    with pytest.raises(SegmintError, match="budget: is no setting of the method; give --budget"):
        run("train", shapes, "--config", path)


def test_whatever_train_takes_beside_settings_of_the_method_is_refused_among_them():
    for name in inspect.signature(train).parameters.keys() - {"method_settings"}:
        with pytest.raises(SegmintError, match=f"{name}: is no setting of the method"):
            settings_of([f"{name}=1"], None)


def test_no_traceback_for_a_users_mistake(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "segmint", "train", "no/such/[folder]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "[folder]" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_errors_of_the_system_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys):
    def full() -> None:
        raise OSError(28, "No space left on device", "runs/1")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "runs/1: No space left on device" in capsys.readouterr().err

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130


def test_too_little_memory_is_told_in_a_line_and_other_errors_are_not(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(cli, "app", lambda: torch.empty(2**60))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: does not fit into memory")
    assert "training.batch_size" in told
    assert "Traceback" not in told
    monkeypatch.setattr(cli, "app", lambda: torch.ones(2).view(3))
    with pytest.raises(RuntimeError, match="invalid for input"):
        cli.main()
