"""Trained without a method named: what is picked, why, and that two trainings are as good as one."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import segmint.methods
import segmint.training.train as loop
from segmint import cli
from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.methods.method import Facts, Hardware, find, load, names
from segmint.training import pace
from segmint.training.choice import Choice, choose, disagreement, hardware
from segmint.training.run import PREPARED, resume, train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"steps": 4, "batch_size": 2, "precision": "float32"}
FACTS = Facts(3, 3, (96, 144), (0.5, 0.3, 0.2), labelled=30, unlabelled=1600, steps=2000)
RATERS = replace(FACTS, classes=2, unlabelled=0, labelled=3000, raters=4, disagreement=0.4)
GPU = Hardware(16, "a card", 80.0)


@pytest.mark.parametrize(
    ("facts", "title"),
    [
        (FACTS, "supervised"),
        (replace(FACTS, steps=6000), "denoise, then supervised"),
        (replace(FACTS, steps=6000, labelled=600), "supervised"),
        (replace(FACTS, steps=6000, unlabelled=60), "supervised"),
        (replace(FACTS, steps=6000, unlabelled=0), "supervised"),
        (replace(FACTS, labelled=1, unlabelled=0, steps=20), "supervised"),
        (RATERS, "variational"),
        (replace(RATERS, steps=100), "supervised"),
        (replace(RATERS, disagreement=0.05), "supervised"),
        (replace(RATERS, labelled=30, unlabelled=3000, steps=9000), "variational"),
        (replace(RATERS, hardware=GPU), "variational"),
        (replace(RATERS, hardware=GPU, steps=20_000), "maskflow"),
        (replace(RATERS, steps=20_000), "variational"),
    ],
)
def test_what_suits_which_data(facts: Facts, title: str):
    choice = choose(facts)
    assert choice.title == title
    assert {name for names in choice.others for name in names.split(", ")} >= {"consistency", "adversarial"}
    assert choice.notes[0].startswith(f"picked {title}: ")
    assert f"{facts.labelled:,} labelled and {facts.unlabelled:,} unlabelled" in choice.notes[1]


@pytest.mark.parametrize("name", names())
def test_more_steps_make_no_method_suit_less(name: str):
    cases = [FACTS, RATERS, replace(RATERS, hardware=GPU), replace(FACTS, labelled=0), replace(FACTS, unlabelled=0)]
    for facts in cases:
        suits = [find(name).suits(replace(facts, steps=steps)) for steps in (0, 100, 1000, 5000, 50_000, sys.maxsize)]
        for before, after in itertools.pairwise(suits):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                assert 0 <= before.score <= after.score
                assert before.why
                assert 0 < before.share < 1


def test_samples_that_do_not_fit_into_memory_rule_a_method_out():
    suit = find("stochastic").suits
    small, large = replace(RATERS, hardware=Hardware(2, "", 8.0)), replace(RATERS, classes=19, size=(512, 1024))
    assert suit(small).score > 0
    assert suit(large).score > 0  # how much there is is not known
    refused = suit(replace(large, hardware=Hardware(2, "", 8.0)))
    assert refused.score == 0
    assert "GiB" in refused.why


def test_only_the_best_is_measured_and_what_does_not_fit_is_not_picked():
    facts, asked = replace(RATERS, steps=sys.maxsize), []

    def fast(name: str) -> int:
        asked.append(name)
        return 3000

    choice = choose(facts, minutes=30, steps_of=fast)
    assert (choice.method, asked) == ("variational", ["variational"])
    assert "3,000 steps in 30 min" in choice.seen
    slow = {"variational": 200, "supervised": 300}
    choice = choose(facts, minutes=1, steps_of=lambda name: slow[name])
    assert choice.method == "supervised"
    assert "needs 500 steps" in choice.others["stochastic, variational"]
    assert choice.facts.steps == 300


def test_pre_training_is_picked_by_the_time_that_there_is():
    facts = replace(FACTS, steps=sys.maxsize)
    assert choose(facts, minutes=60, steps_of=lambda name: 9000).title == "denoise, then supervised"
    assert choose(facts, minutes=5, steps_of=lambda name: 700).title == "supervised"


def test_given_settings_must_be_those_of_the_method():
    choice = choose(RATERS, given={"network"})
    assert choice.method == "maskflow"
    assert "has no setting network" in next(why for alike, why in choice.others.items() if "variational" in alike)
    with pytest.raises(SegmintError, match=r"method: none suits .*supervised has no setting nonsense"):
        choose(FACTS, given={"nonsense"})


def test_nothing_is_trained_before_where_it_cannot_help():
    facts = replace(FACTS, steps=6000)
    choice = choose(facts, starts=lambda first, then: False)
    assert choice.title == "supervised"
    assert choice.others["denoise"] == "has no weights that supervised could start from, with these settings"
    choice = choose(facts, alone="init names a run to start from")
    assert choice.others["denoise"] == "cannot come first, as init names a run to start from"
    assert (choice.prepare, choice.share) == (None, 0.0)


def test_a_new_method_that_suits_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "eager.py").write_text(
        "from segmint.methods.method import Method, Suit\n"
        "class Eager(Method):\n"
        "    def __init__(self, *, classes, in_channels=3, image_size=(8, 8)): super().__init__()\n"
        "    @classmethod\n"
        "    def suits(cls, facts): return Suit(9, 'is new')\n"
    )
    monkeypatch.setattr(segmint.methods, "__path__", [*segmint.methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert choose(FACTS).notes[0] == "picked eager: it is new"
    sys.modules.pop("segmint.methods.eager", None)
    vars(segmint.methods).pop("eager", None)


# What is known of data and machine


def rated(root: Path, sides: dict[str, tuple[int, ...]]) -> Path:
    """Images with as many raters as numbers: each drew a square of this side."""
    for name, drawn in sides.items():
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "images" / f"{name}.png")
        for rater, side in enumerate(drawn):
            mask = np.zeros((16, 16), np.uint8)
            mask[:side, :side] = 1
            Image.fromarray(mask).save(root / "masks" / name / f"{rater}.png")
    (root / "classes.yaml").write_text("classes:\n- {id: 0, name: ground}\n- {id: 1, name: thing}\n", encoding="utf-8")
    return root


def test_disagreement_is_the_mean_distance_of_two_raters(tmp_path: Path):
    data = open_folder(rated(tmp_path / "data", {"a": (8, 4), "b": (8, 8, 0), "c": (5,)}))
    pixels = Pixels.open(data)
    by_hand = {"a": 1 - 16 / 64, "b": (0 + 1 + 1) / 3}
    assert disagreement(pixels, [0]) == pytest.approx(by_hand["a"])
    assert disagreement(pixels, [0, 1, 2]) == pytest.approx(sum(by_hand.values()) / 2)
    assert disagreement(pixels, [2]) == 0


def test_the_machine_is_described():
    here = hardware("cpu")
    assert (here.gpu, here.cores >= 1, here.memory > 0) == ("", True, True)
    choice = choose(replace(RATERS, hardware=GPU))
    assert "a card with 80 GiB" in choice.seen
    assert "4 raters, whose masks are 0.40 apart" in choice.seen


# One training


def test_what_is_picked_is_trained_as_if_it_had_been_named(shapes: Path, tmp_path: Path):
    told: list[tuple[Path, Choice | None]] = []
    run = train(shapes, out=tmp_path / "a", settings=QUICK, begins=lambda *said: told.append(said), **PLAIN)
    assert told == [(tmp_path / "a", run.choice)]
    assert run.choice is not None
    assert run.settings.method == "supervised"
    assert run.settings.notes[: len(run.choice.notes)] == run.choice.notes
    assert (run.choice.facts.labelled, run.choice.facts.unlabelled) == (5, 3)
    named = train(shapes, method="supervised", out=tmp_path / "b", settings=QUICK, **PLAIN)
    assert named.choice is None
    assert not any("picked" in note for note in named.settings.notes)
    same_weights(run.folder, named.folder)
    assert resume(run.folder).settings.notes == run.settings.notes


def test_disagreeing_raters_are_learnt_and_time_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sides = {f"{number:02d}": (4 + number % 5, 12, 0) for number in range(9)}
    data = rated(tmp_path / "data", sides)
    monkeypatch.setattr(pace, "probe", lambda *_: ("float32", {"float32": 5.0}))
    monkeypatch.setattr(loop._Training, "_step", lambda self: setattr(self.outcome, "step", self.steps))
    run = train(data, out=tmp_path / "a", minutes=0.1, settings={"batch_size": 2, "validate_every": 10**6}, **PLAIN)
    assert run.settings.method == "variational"
    assert run.choice is not None
    assert run.choice.facts.raters == 3
    assert run.settings.training.steps == run.choice.facts.steps
    run = train(data, out=tmp_path / "b", minutes=0.02, settings={"batch_size": 2}, **PLAIN)
    assert run.settings.method == "supervised"
    assert any("of supervised fit into 0.02 minutes" in note for note in run.settings.notes)


def test_whole_epochs_are_counted_as_steps(shapes: Path, tmp_path: Path):
    run = train(shapes, out=tmp_path / "a", settings={**QUICK, "epochs": 2}, **PLAIN)
    assert run.choice is not None
    assert run.choice.facts.steps == 6
    assert "training.epochs" in run.choice.others["denoise"]


def test_without_masks_nothing_is_picked(shapes: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match="budget: 0 leaves any segmenter no mask to learn from"):
        train(shapes, out=tmp_path / "a", budget=0, settings=QUICK)
    assert not (tmp_path / "a").exists()


# Two trainings


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Denoising is wanted before every short training."""
    module = sys.modules[find("denoise").__module__]
    monkeypatch.setattr(module, "STEPS", 4)
    monkeypatch.setattr(module, "MANY", 0.1)
    monkeypatch.setattr(loop._Training, "REPORT", 1)


class Watch:
    """Notes the steps; at one of them it sends a signal, or fails as if the process had been killed."""

    def __init__(self, stop: int = 10**9, kill: int = 10**9) -> None:
        self.stop, self.kill, self.seen, self.of = stop, kill, list[int](), set[int]()

    def progress(self, step, steps, figures) -> None:
        self.seen.append(step)
        self.of.add(steps)
        if step >= self.kill:
            raise MemoryError
        if step >= self.stop:
            self.stop = 10**9
            os.kill(os.getpid(), signal.SIGTERM)


LONGER = {**QUICK, "steps": 8, "save_every": 0.0, "validate_every": 2}


def same_weights(a: Path, b: Path) -> None:
    left, right = load(a).state_dict(), load(b).state_dict()
    assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.fixture(scope="module")
def by_hand(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two trainings as somebody would do them."""
    out, half = tmp_path_factory.mktemp("by-hand"), {**LONGER, "steps": 4}
    first = train(shapes, method="denoise", out=out / "first", settings=half, **PLAIN)
    return train(shapes, method="supervised", out=out / "then", init=first, settings=half, **PLAIN).folder


def test_two_trainings_share_the_steps_and_are_those_by_hand(eager: None, by_hand: Path, shapes: Path, tmp_path: Path):
    watch = Watch()
    run = train(shapes, out=tmp_path / "run", settings=LONGER, watcher=watch, **PLAIN)
    assert run.choice is not None
    assert (run.choice.title, run.settings.method) == ("denoise, then supervised", "supervised")
    same_weights(run.folder, by_hand)
    assert run.settings.init == str((run.folder / PREPARED).resolve())
    assert run.settings.training.steps == 4
    assert watch.seen == sorted(watch.seen)
    assert (watch.of, watch.seen[-1]) == ({8}, 8)


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("step", [2, 6])
def test_interrupted_in_either_it_goes_on(
    eager: None, by_hand: Path, shapes: Path, tmp_path: Path, how: str, step: int
):
    out = tmp_path / "run"
    try:
        run = train(shapes, out=out, settings=LONGER, watcher=Watch(**{how: step}), **PLAIN)
        assert (
            json.loads((out / (PREPARED if step < 4 else "") / "summary.json").read_text())["status"] == "interrupted"
        )
        assert run.folder == out
    except MemoryError:
        assert how == "kill"
    assert not (out / "summary.json").exists() or how == "stop"
    moved = out.rename(tmp_path / "moved")
    watch = Watch()
    resume(moved, watch)
    same_weights(moved, by_hand)
    assert watch.seen[0] >= step - 1
    assert watch.seen[-1] == 8


def test_killed_before_the_first_or_between_the_two(
    eager: None, by_hand: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr("segmint.training.run._fit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(shapes, out=tmp_path / "run", settings=LONGER, **PLAIN)
    resume(tmp_path / "run" / PREPARED)
    resume(tmp_path / "run")
    same_weights(tmp_path / "run", by_hand)


def test_minutes_are_shared(eager: None, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "probe", lambda *_: ("float32", {"float32": 50.0}))
    run = train(shapes, out=tmp_path / "run", minutes=0.06, settings={"batch_size": 4, "validate_every": 999}, **PLAIN)
    told = [note for folder in (run.folder / PREPARED, run.folder) for note in train_notes(folder)]
    assert [note.split(" fit into ")[1].split(";")[0] for note in told] == ["0.03 minutes", "0.03 minutes"]
    assert run.choice is not None
    assert run.choice.minutes == 0.06


def train_notes(folder: Path) -> list[str]:
    return [note for note in resume(folder).settings.notes if note.startswith("steps:")]


def test_a_network_of_ones_own_starts_from_nothing(eager: None, shapes: Path, tmp_path: Path):
    network = torch.nn.Conv2d(3, 3, 1)
    run = train(shapes, out=tmp_path / "run", settings=QUICK, network=network)
    assert run.choice is not None
    assert run.choice.others["denoise"].startswith("has no weights that supervised could start from")


# The command line


def run_cli(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


OPTIONS = ["--set", "encoder_name=plain", "--set", "decoder_channels=[8,8,8,8]", "--set", "training.batch_size=2"]


def test_the_command_says_what_it_picked_and_why(shapes: Path, tmp_path: Path):
    quick = ["--steps", 2, "--set", "training.precision=float32"]
    told = run_cli("train", shapes, "--out", tmp_path / "run", *OPTIONS, *quick)
    assert "picked supervised" in told
    assert "5 labelled and 3 unlabelled images" in told
    assert "--method NAME decides otherwise" in told
    assert told.count("also considered") == 1
    assert "picked" not in run_cli("train", shapes, "--method", "supervised", "--out", tmp_path / "b", *OPTIONS, *quick)
    with pytest.raises(SegmintError, match="leave DATA and the others out"):
        run_cli("train", "--resume", tmp_path / "run", "--method", "supervised")


def test_the_command_goes_on_with_both_trainings(eager: None, shapes: Path, tmp_path: Path, capsys):
    train(shapes, out=tmp_path / "run", settings=LONGER, watcher=Watch(stop=2), **PLAIN)
    with pytest.raises(typer.Exit) as stop:
        cli.learn._tell(tmp_path / "run")
    assert stop.value.exit_code == 130
    assert f"train --resume {tmp_path / 'run'}\n" in capsys.readouterr().out
    told = run_cli("train", "--resume", tmp_path / "run")
    assert told.count("finished after 4 steps") == 2


# Several processes

TOGETHER = """
import os, sys
import torch
torch.set_num_threads(1)
from segmint.methods.method import Hardware, find
from segmint.training import run, setup
module = sys.modules[find("denoise").__module__]
module.STEPS, module.MANY = 4, 0.1
if os.environ["RANK"] == "1":
    setup.hardware = lambda device: Hardware(99)
data, out = sys.argv[1:]
settings = {"steps": 4, "batch_size": 2, "precision": "float32"}
plain = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
made = run.train(data, out=out, settings=settings, **plain)
sys.stdout.write(f"{made.choice.title}, {made.choice.facts.hardware.cores == 99}\\n")
"""


def test_processes_choose_alike(shapes: Path, tmp_path: Path):
    data = shutil.copytree(shapes, tmp_path / "data")
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(script), str(data), str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["denoise, then supervised, False"] * 2
    for folder in (tmp_path / "run" / PREPARED, tmp_path / "run"):
        assert json.loads((folder / "summary.json").read_text())["processes"] == 2
