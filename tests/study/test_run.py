"""The study as people start it: settled once, checked against the data, and `train --like` after it."""

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from segmint import cli
from segmint.study import cost, like, run
from segmint.study.files import DONE, FAILED, FINISHED, fail
from segmint.study.outcomes import SETTLED, current_results, settled
from segmint.study.plan import read_study
from segmint.study.results import read_results
from segmint.types import SegmintError


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def here(monkeypatch, tiny):
    """Every pool is one whose workers are calls."""
    for module in (run, like, cost):
        monkeypatch.setattr(module, "LocalPool", lambda processes, threads: tiny.Here())
    return tiny.Here


def test_precision_and_threads_are_settled_once(tmp_path, shapes, tiny, here, monkeypatch):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, precision="auto", threads=None)
    monkeypatch.setattr(run, "cores_here", lambda: 8)
    study = read_study(folder)
    assert settled(study, folder) is None
    assert current_results(study, folder) == []
    first = run.settle(study, folder, 2)
    assert first.threads == 4
    assert first.precision in ("float32", "channels_last", "bfloat16")
    job = json.loads((folder / "pieces" / "pace" / "piece.json").read_text(encoding="utf-8"))
    assert job["precision"] == "auto"
    assert run.settle(study, folder, 8) == first
    assert json.loads((folder / SETTLED).read_text(encoding="utf-8"))["threads"] == 4


def test_a_baseline_that_cannot_begin_is_told(tmp_path, shapes, tiny, here):
    wrong = [{"train": "supervised", "settings": {"loss": "nonsense"}}]
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": wrong}, precision="auto")
    with pytest.raises(SegmintError, match="first step of the baseline failed: loss: there is no 'nonsense'"):
        run.run_study(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budgets": [99]}, "99 labelled images asked"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"metric": "ged"}, "metric: ged compares masks with those of several raters"),
    ],
)
def test_data_that_does_not_suit_is_refused_before_anything_runs(tmp_path, shapes, tiny, changes, told):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, **changes)
    with pytest.raises(SegmintError, match=told):
        run.run_study(folder)
    assert not (folder / SETTLED).exists()


def test_a_split_without_masks_is_refused(tmp_path, shapes, tiny):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for name in ("03", "04", "05"):
        (data / "masks" / f"{name}.png").unlink()
    folder = tiny.write(tmp_path / "s", data, {"supervised": tiny.SUPERVISED})
    with pytest.raises(SegmintError, match="no image of split 'test', which the study needs, has a mask"):
        run.run_study(folder)


def test_a_study_runs_and_tells_its_lines(tmp_path, shapes, tiny, here):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, seeds=[0])
    console = Console(file=io.StringIO(), width=120)
    assert run.run_study(folder, console=console)
    told = console.file.getvalue()
    assert "1 trials (1 strategy x 1 budget x 1 seed), 1 trainings to do: about " in told
    assert told.index("1 trainings to do") < told.index("done    supervised: supervised, 3 labels, seed 0")
    assert console.file.getvalue().rstrip().endswith("on validation images")
    place = folder / "pieces" / json.loads((folder / "pieces.json").read_text("utf-8"))["pieces"][0]["name"]
    (place / DONE).unlink()
    fail(place, "failed", "killed")
    assert run.run_study(folder, retry_failed=True, console=console)
    assert not (place / FAILED).exists()


def test_the_command_writes_a_file_for_a_data_folder(tmp_path, shapes, here, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "time_trainings", lambda folder, job: None)
    done = invoke("study", shapes, "--write-only", "--budgets", "2,all", "--seeds", 4, "--steps", 7, "--size", "16x24")
    assert done.exit_code == 0, done.output
    assert "48 trials (6 strategies x 2 budgets x 4 seeds)" in done.output
    assert "run it with `segmint study runs/study-shapes`" in done.output
    assert not Path("runs/study-shapes", SETTLED).exists()
    made = read_study(Path("runs/study-shapes"))
    assert (made.budgets, made.seeds, made.steps, made.size) == ([2, None], [0, 1, 2, 3], 7, (16, 24))
    words = ("--budgets", 2, "--baseline-budgets", "4,all", "--out", "more")
    more = invoke("study", shapes, "--write-only", *words)
    assert "24 trials (6 strategies x 1 budget x 3 seeds, and supervised at 2 more)" in more.output
    assert read_study(Path("more")).every_budget == [2, 4, None]
    again = invoke("study", shapes, "--write-only")
    assert "going on with runs/study-shapes/study.yaml" in again.output
    for words, told in [
        (["--steps", 7], ""),
        (["--steps", 8], "--steps: runs/study-shapes/study.yaml says otherwise"),
        (["--preset", "losses", "--out", "runs/study-shapes"], "--preset: runs/study-shapes/study.yaml says otherwise"),
    ]:
        assert told in str(invoke("study", shapes, "--write-only", *words).exception or "")
    shutil.copytree(shapes, tmp_path / "elsewhere/shapes")
    other = invoke("study", tmp_path / "elsewhere/shapes", "--write-only")
    assert f"is a study of {shapes}" in str(other.exception)
    losses = invoke("study", shapes, "--write-only", "--preset", "losses", "--out", "mine")
    assert losses.exit_code == 0
    assert read_study(Path("mine")).baseline == "cross_entropy"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "no such file or folder"),
        (["STUDY", "--seeds", "3"], "--seeds: is for a data folder"),
        (["STUDY", "--baseline-budgets", "3"], "--baseline-budgets: is for a data folder"),
        (["DATA", "--baseline-budgets", "few"], "--baseline-budgets: must be numbers or all"),
        (["DATA", "--budgets", "few"], "must be numbers or all"),
        (["DATA", "--preset", "nonsense"], "there is no 'nonsense'"),
        (["DATA", "--steps", "1"], "every strategy must take 1 in all"),
    ],
)
def test_what_the_command_refuses(tmp_path, shapes, tiny, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED})
    words = [{"STUDY": folder, "DATA": shapes}.get(word, word) for word in arguments]
    done = invoke("study", *words)
    assert isinstance(done.exception, SegmintError)
    assert told in str(done.exception)


def test_a_file_elsewhere_is_copied_to_out(tmp_path, shapes, tiny, here):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED})
    for _ in range(2):
        assert invoke("study", folder / "study.yaml", "--out", tmp_path / "o", "--write-only").exit_code == 0
    assert read_study(tmp_path / "o") == read_study(folder)
    values = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    (folder / "study.yaml").write_text(yaml.safe_dump({**values, "steps": 9}), encoding="utf-8")
    done = invoke("study", folder, "--out", tmp_path / "o", "--write-only")
    assert "differs from" in str(done.exception)


def test_the_command_tells_failures_and_the_answer(tmp_path, shapes, tiny, here):
    wild = [{"train": "supervised", "training": {"lr": 1e30, "clip": 0}}]
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED, "wild": wild}, seeds=[0])
    done = invoke("study", folder)
    assert done.exit_code == 0, done.exception
    assert "failed: wild, budget 3, seed 0: " in done.output
    assert "report: " in done.output
    assert (folder / "answer.json").is_file()


def test_what_a_study_recommends_is_trained_on_all_labels(whole, tmp_path, shapes, tiny, here):
    folder, _ = whole
    study = tmp_path / "study"
    study.mkdir()
    for name in ("study.yaml", SETTLED):
        (study / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SegmintError, match="finish the study first"):
        like.recommended(study)
    told = {"recommended": "denoised", "reason": "best", "headline": "No answer yet.", "decided": False}
    (study / "answer.json").write_text(json.dumps(told), encoding="utf-8")
    with (study / "study.yaml").open("a", encoding="utf-8") as file:
        file.write("baseline_budgets: [2]\n")
    out = tmp_path / "run"
    done = invoke("train", shapes, "--like", study, "--out", out, "--seed", 3)
    assert done.exit_code == 0, done.exception
    assert "recommends denoised" in done.output
    assert "that is no finding yet: No answer yet." in done.output
    told = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert (told["method"], told["budget"], told["seed"], told["training"]["steps"]) == ("supervised", None, 3, 2)
    assert (out / "model.safetensors").is_file()
    parts = list((out / "parts").iterdir())
    assert [part.name.split("-")[0] for part in parts] == ["denoise"]
    assert told["init"] == str(parts[0])
    assert like.train_like(study, shapes, out, seed=3)
    for others in ({"seed": 4}, {"seed": 3, "steps": 8}):
        with pytest.raises(SegmintError, match="holds a run of something else"):
            like.train_like(study, shapes, out, **others)
    wrong = invoke("train", shapes, "--like", study, "--budget", 3)
    assert "--like: needs DATA" in str(wrong.exception)


@pytest.mark.parametrize(
    ("answer", "told"), [('{"recommended": null}', "recommends no strategy"), ('{"recommended": "x"}', "does not have")]
)
def test_a_study_without_a_recommendation(whole, tmp_path, answer, told):
    folder, _ = whole
    (tmp_path / "study.yaml").write_text((folder / "study.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "answer.json").write_text(answer, encoding="utf-8")
    with pytest.raises(SegmintError, match=told):
        like.plan_like(tmp_path, tmp_path)


def test_a_part_that_fails_is_told(tmp_path, shapes, tiny, here):
    wild = [{"train": "supervised", "training": {"lr": 1e30, "clip": 0}}]
    study = tiny.write(tmp_path / "s", shapes, {"supervised": wild})
    (study / "answer.json").write_text('{"recommended": "supervised"}', encoding="utf-8")
    with pytest.raises(SegmintError, match="no longer finite"):
        like.train_like(study, shapes, tmp_path / "out")


def test_cores_are_those_of_this_process():
    assert run.cores_here() >= 1
    assert FINISHED == 0
    assert read_results(Path("nowhere")) == []


def test_data_that_changed_since_the_study_was_begun_is_refused(tmp_path, shapes, tiny, here):
    data = shutil.copytree(shapes, tmp_path / "data")
    folder = tiny.write(tmp_path / "s", data, {"supervised": tiny.SUPERVISED})
    run.run_study(folder)
    run.run_study(folder)
    next((data / "masks").rglob("*.png")).unlink()
    with pytest.raises(SegmintError, match=r"data: its images, masks, classes or splits have changed since the study"):
        run.run_study(folder)
