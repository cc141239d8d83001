import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from segmint.study.live import LiveView, Running, Standing, best_so_far, render, sentence, standing, told_time
from segmint.study.trials import Engine

NOW = Standing(9, 4, 1, 1, (Running("self: supervised, 30 labels, seed 0", 75.0, 300, 1500),), 5, 4000.0, "self +1.2")


def shown(what) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(what)
    return console.file.getvalue()


def test_the_sentence_counts():
    assert sentence(NOW) == "4 of 9 trials done, 1 failed, 1 given up, 1 running, 5 pieces to come, about 67 min left"
    waiting = replace(NOW, trained=2, failed=0, given_up=0)
    assert sentence(waiting).startswith("4 of 9 trials done, 2 trained and to be judged, 1 running")
    empty = Standing(9, 9, 0, 0, (), 0, None, "")
    assert sentence(empty) == "9 of 9 trials done, 0 running, 0 pieces to come"


def test_the_view_shows_steps_and_percent():
    text = shown(render("study-clothes", NOW))
    assert "study-clothes" in text
    assert "300/1500" in text
    assert "20%" in text
    assert "75 s" in text
    assert "best so far: self +1.2" in text
    many = Standing(9, 0, 0, 0, tuple(Running(f"p{n}", 1, 0, 0) for n in range(15)), 0, None, "")
    assert "and 3 more" in shown(render("x", many))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({}, ""),
        ({"supervised": 0.5}, "supervised mIoU 50.0% on validation images"),
        ({"supervised": 0.5, "self": 0.53}, "self, +3.0 points of mIoU over supervised on validation images (1 trial)"),
        (
            {"supervised": 0.5, "self": 0.49},
            "supervised, then self, -1.0 points of mIoU on validation images (1 trial)",
        ),
        ({"self": 0.49}, ""),
    ],
)
def test_the_best_so_far_is_paired_with_the_baseline(tmp_path, shapes, tiny, scores, told):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT}, seeds=[0])
    engine = Engine(folder, tiny.plan_of(folder), tiny.Here())
    for trial in engine.plan.trials:
        if trial.strategy in scores:
            engine.state.done[trial.last] = {"miou": scores[trial.strategy]}
    assert best_so_far(engine) == told


def test_times_in_words():
    assert [told_time(s) for s in (5, 89.4, 600, 5400, 12_000)] == ["5 s", "89 s", "10 min", "1 h 30 min", "3 h 20 min"]


def test_what_stands_where_all_is_done(whole):
    _, engine = whole
    now = standing(engine)
    assert (now.trials, now.done, now.failed, now.left, now.seconds) == (8, 8, 0, 0, 0.0)
    assert now.trained == 0
    assert "points of mIoU" in now.best
    assert now.best.endswith("on validation images (2 trials)")


def test_what_stands_before_and_while_something_runs(tmp_path, shapes, tiny):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT})
    engine = Engine(folder, tiny.plan_of(folder), tiny.Here())
    first = standing(engine)
    assert (first.trials, first.done, first.left, first.seconds, first.best) == (4, 0, 10, None, "")
    foreseen = Engine(folder, engine.plan, tiny.Here(), costs=dict.fromkeys(engine.plan.pieces, 7.0))
    assert standing(foreseen).seconds == 70.0
    name = engine.ready()[0]
    engine.running[name] = time.monotonic() - 5
    place = engine.state.where(name)
    place.mkdir(parents=True)
    (place / "log.jsonl").write_text('{"step": 2, "seconds": 4.0, "split": "train"}\n', encoding="utf-8")
    now = standing(engine)
    assert now.running[0].label == "supervised: supervised, 3 labels, seed 0"
    assert (now.running[0].done, now.running[0].of) == (2, 4)
    assert now.seconds is not None
    assert 16 < now.seconds < 60


def test_a_terminal_gets_a_live_table_and_a_file_gets_lines(whole):
    _, engine = whole
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=110, force_terminal=terminal, color_system=None)
        with LiveView(console, "whole") as view:
            view.tell("start   self: supervised")
            view.tell("failed  wild: a loss is no longer finite")
            view.watch(engine)
            view.watch(engine)
        text = console.file.getvalue()
        assert "no longer finite" in text
        assert ("start   self" in text) != terminal
        assert "8 of 8 trials done" in text
