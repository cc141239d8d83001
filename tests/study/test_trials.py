import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from segmint.study import files
from segmint.study.findings import find
from segmint.study.outcomes import current_results
from segmint.study.plan import read_study
from segmint.study.results import FILE, read_results
from segmint.study.trials import ATTEMPTS, Engine


def test_every_trial_has_a_result_after_equal_steps(whole, tiny):
    folder, engine = whole
    found = read_results(folder)
    assert {one.trial for one in found} == {trial.of for trial in engine.plan.trials}
    assert len(found) == 8
    assert {(one.status, one.steps) for one in found} == {("done", 4)}
    for one in found:
        assert 0 <= one.scores["miou"] <= 1
        assert one.curve[-1][0] in (2, 4)
        assert len(one.train_curve) == len(one.curve)
        assert one.seconds > 0
        entry = json.loads((folder / one.images).read_text(encoding="utf-8"))["test"]
        assert len(entry["per_image"]["names"]) == 3
        assert (folder / one.run / "model.safetensors").is_file()


def test_what_is_shared_is_done_once_and_accounted_for(whole):
    folder, _ = whole
    rows = json.loads((folder / "pieces.json").read_text(encoding="utf-8"))["pieces"]
    shared = [row for row in rows if len(row["used_by"]) > 1]
    used = {(row["method"], row["seed"]): row["used_by"] for row in shared}
    assert used == {
        ("supervised", 0): [["supervised", 3, 0], ["pasted", 3, 0]],
        ("supervised", 1): [["supervised", 3, 1], ["pasted", 3, 1]],
        ("denoise", 0): [["denoised", 3, 0], ["denoised", 3, 1]],
    }
    for one in read_results(folder):
        assert bool(one.shared) == (one.strategy != "self") == (one.shared_seconds > 0)
        assert (one.shared_steps > 0) == (one.strategy == "pasted")
    assert {row["status"] for row in rows} == {"done"}


def test_running_again_does_nothing(whole, tiny):
    folder, _ = whole
    before = (folder / FILE).read_bytes()
    pool = tiny.Here()
    engine = tiny.run(folder, pool)
    assert pool.started == []
    assert engine.left() == []
    assert (folder / FILE).read_bytes() == before


def test_test_images_are_read_once_a_strategy_when_all_its_trials_are_trained(tmp_path, shapes, tiny):
    strategies = {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT}
    pool = tiny.Here()
    engine = tiny.run(tiny.write(tmp_path / "s", shapes, strategies), pool)
    order = {name: number for number, name in enumerate(pool.started)}
    assert max(Counter(pool.started).values()) == 1
    for strategy in strategies:
        trials = [trial for trial in engine.plan.trials if trial.strategy == strategy]
        assert max(order[trial.last] for trial in trials) < min(order[trial.evaluation] for trial in trials)


def test_validation_images_are_judged_as_soon_as_a_trial_is_trained(tmp_path, shapes, tiny):
    pool = tiny.Here()
    tiny.run(tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, split="val"), pool)
    assert [name.split("-")[0] for name in pool.started] == ["supervised", "evaluate"] * 2


def test_a_failure_is_recorded_with_its_reason_and_the_others_go_on(tmp_path, shapes, tiny):
    wild = [{"train": "supervised", "training": {"lr": 1e30, "clip": 0}}]
    first = {"name": "first", "train": "supervised", "share": 0.5, "settings": {"loss": "nonsense"}}
    broken = [first, {"train": "supervised", "init": "first"}]
    strategies = {"supervised": tiny.SUPERVISED, "wild": wild, "broken": broken}
    folder = tiny.write(tmp_path / "s", shapes, strategies, seeds=[0])
    tiny.run(folder)
    found = {one.strategy: one for one in read_results(folder)}
    assert found["supervised"].status == "done"
    assert found["wild"].status == found["broken"].status == "failed"
    assert "no longer finite" in found["wild"].reason
    assert found["broken"].reason.startswith("supervised, 3 labels, seed 0: loss: there is no 'nonsense'")
    assert found["wild"].scores == {}


def test_failures_are_tried_again_only_where_asked(tmp_path, shapes, tiny, monkeypatch):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, seeds=[0])
    monkeypatch.setattr("segmint.training.run.fit", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no room")))
    tiny.run(folder)
    assert read_results(folder)[0].reason == "out of memory: no room"
    monkeypatch.undo()
    pool = tiny.Here()
    tiny.run(folder, pool)
    assert pool.started == []
    tiny.run(folder, pool, retry=True)
    assert len(pool.started) == 2
    assert [one.status for one in read_results(folder)] == ["done"]
    assert (folder / FILE).read_bytes().count(b"\n") == 2


class Ends:
    """A pool whose workers all end with the same code, having done nothing."""

    room = 1

    def __init__(self, code: int, output: str = "") -> None:
        self.code, self.output, self.codes, self.started = code, output, {}, 0

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        (folder / files.LOG).write_text(self.output, encoding="utf-8")
        self.codes[name] = self.code
        self.started += 1

    def ended(self) -> dict[str, int]:
        codes, self.codes = self.codes, {}
        return codes

    def stop(self, at_once: bool = False) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("code", "output", "told", "times"),
    [
        (-9, "", "killed by the system (signal 9), most likely because memory ran out", 1),
        (-11, "", "ended by signal 11", 1),
        (1, "first\nImportError: no torch\n", "ended with code 1: ImportError: no torch", 1),
        (files.BROKEN, "", "ended with code 4", 1),
        (files.STOPPED, "", f"was stopped {ATTEMPTS} times", ATTEMPTS),
        (-15, "", f"was stopped {ATTEMPTS} times", ATTEMPTS),
    ],
)
def test_workers_that_do_not_say_why_they_end(tmp_path, shapes, tiny, code, output, told, times):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, seeds=[0])
    pool = Ends(code, output)
    tiny.run(folder, pool)
    assert [(one.status, one.reason) for one in read_results(folder)] == [("failed", told)]
    assert pool.started == times


def test_a_trial_without_time_left_is_recorded_as_such(tmp_path, shapes, tiny):
    strategies = {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT}
    folder = tiny.write(tmp_path / "s", shapes, strategies, seeds=[0], minutes=1e-6)
    tiny.run(folder, tiny.Here())
    found = {one.strategy: one for one in read_results(folder)}
    assert {one.status for one in found.values()} <= {"out of time", "done"}
    assert found["self"].status == "out of time"


def test_poor_strategies_are_given_up_and_the_others_end_as_without_halving(whole, tmp_path, tiny):
    folder, engine = whole
    slow = {"lr": 0.0}
    strategies = {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT}
    strategies["still"] = [{"train": "supervised", "training": slow}]
    strategies["stiller"] = [{"train": "supervised", "training": {**slow, "augment": "none"}}]
    changes = {"halving": True, "rungs": [0.5], "seeds": [0], "split": "test", "baseline_budgets": [2]}
    halved = tiny.write(tmp_path / "s", Path(engine.plan.study.data), strategies, **changes)
    pool = tiny.Here()
    tiny.run(halved, pool)
    found = {one.strategy: one for one in read_results(halved)}
    told = json.loads((halved / "halving.json").read_text(encoding="utf-8"))["rungs"]
    assert told[0]["share"] == 0.5
    given_up = set(told[0]["given_up"])
    assert given_up
    assert "supervised" not in given_up
    assert {name for name, one in found.items() if one.status == "given up"} == given_up
    for name in given_up:
        assert found[name].curve[-1][0] <= 2
        assert found[name].scores == {}
    before = {one[:3]: one[3:-1] for one in tiny.table(folder)}
    after = {one[:3]: one[3:-1] for one in tiny.table(halved)}
    assert after["supervised", 3, 0] == before["supervised", 3, 0]
    assert after["supervised", 2, 0][0] == "done"
    again = tiny.Here()
    tiny.run(halved, again)
    assert again.started == []


def test_what_was_given_up_is_trained_after_all_where_the_study_is_changed(tmp_path, shapes, tiny):
    slow = [{"train": "supervised", "training": {"lr": 0.0}}]
    strategies = {"supervised": tiny.SUPERVISED, "still": slow}
    changes = {"halving": True, "rungs": [0.5], "seeds": [0]}
    halved = tiny.write(tmp_path / "s", shapes, strategies, **changes)
    tiny.run(halved, tiny.Here())
    assert {one.strategy for one in read_results(halved) if one.status == "given up"} == {"still"}
    tiny.write(halved, shapes, {"still": slow, "supervised": tiny.SUPERVISED}, **changes)
    pool = tiny.Here()
    tiny.run(halved, pool)
    found = {one.strategy: one.status for one in current_results(read_study(halved), halved)}
    assert found["still"] == "done"
    tiny.write(halved, shapes, {"supervised": tiny.SUPERVISED, "still": tiny.SELF_TAUGHT}, **changes)
    pool = tiny.Here()
    tiny.run(halved, pool)
    assert any(name.startswith("supervised") for name in pool.started)


def test_draws_are_of_methods_that_draw_and_the_figures_are_the_studys_own(tmp_path, shapes, tiny):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, seeds=[0], draws=3, split="val")
    tiny.run(folder, tiny.Here())
    (found,) = read_results(folder)
    assert found.images.startswith("pieces/evaluate-")
    entry = json.loads((folder / found.images).read_text(encoding="utf-8"))["val"]
    assert entry["draws"] == 1
    (folder / found.run / "metrics.json").unlink()
    findings = find(folder, read_study(folder), current_results(read_study(folder), folder), 20)
    assert findings.row("supervised", 3).done == 1


def test_more_strategies_use_what_is_done_and_other_settings_leave_it_out(whole, tmp_path, tiny):
    folder, engine = whole
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = Path(engine.plan.study.data)
    tiny.write(
        copy, data, {"supervised": tiny.SUPERVISED, "deep": [{"train": "supervised", "settings": {"dropout": 0.5}}]}
    )
    (copy / "settled.json").write_text((folder / "settled.json").read_text(encoding="utf-8"), encoding="utf-8")
    pool = tiny.Here()
    tiny.run(copy, pool)
    assert len(pool.started) == 4
    shown = current_results(read_study(copy), copy)
    assert [one.strategy for one in shown] == ["supervised", "deep"] * 2
    tiny.write(copy, data, {"supervised": tiny.SUPERVISED}, steps=5)
    assert current_results(read_study(copy), copy) == []


def test_killed_at_random_moments_it_ends_with_the_same_table(whole, tmp_path, tiny):
    """`kill -9` again and again: the process that works dies at once, wherever it is."""
    folder, engine = whole
    strategies = _strategies(folder)
    training = {"validate_every": 2, "batch_size": 2, "save_every": 0.0}
    cut = tiny.write(tmp_path / "cut", Path(engine.plan.study.data), strategies, training=training)
    moments, kills, patience = random.Random(0), 0, 0.3
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                tiny.run(cut)
                code = 0
            finally:
                os._exit(code)
        until = time.monotonic() + moments.uniform(0.05, patience)
        ended = 0
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if ended:
            assert status == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills, patience = kills + 1, 1.15 * patience
    assert kills >= 10
    assert tiny.table(cut) == tiny.table(folder)


def _strategies(folder: Path):
    study = read_study(folder)
    return {
        name: [part.model_dump(mode="json", exclude_unset=True) for part in parts]
        for name, parts in study.strategies.items()
    }


def test_asked_to_stop_it_starts_nothing_more_and_goes_on_later(tmp_path, shapes, tiny):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED})

    class Stopping(tiny.Here):
        def ended(self):
            if len(self.started) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().ended()

    pool = Stopping()
    engine = Engine(folder, tiny.plan_of(folder), pool)
    assert engine.run() is False
    assert len(pool.started) == 1
    assert len(engine.left()) == 3
    tiny.run(folder)
    assert [one.status for one in read_results(folder)] == ["done", "done"]
