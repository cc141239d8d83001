"""What a study will take, told before it begins."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from segmint.study import cost
from segmint.study.cost import PACES, PAINTING, PLACE, START, Forecast, foresee, time_paces
from segmint.study.files import DONE
from segmint.study.pieces import make_plan
from segmint.study.plan import read_study
from segmint.types import SegmintError

GAN = [{"train": "gan", "steps": 40}, {"generate": "gan", "count": 4}, {"train": "supervised", "synthetic": ["pairs"]}]
WRONG = [{"train": "supervised", "settings": {"loss": "nonsense"}}]


@pytest.fixture
def here(monkeypatch, tiny):
    """The worker is a call; gives the pools."""
    pools = []
    monkeypatch.setattr(cost, "LocalPool", lambda processes, threads: pools.append(tiny.Here()) or pools[-1])
    return pools


def study_of(tiny, folder: Path, data: Path, strategies, **changes):
    return read_study(tiny.write(folder, data, strategies, **changes))


def test_every_kind_of_training_is_timed_once(tmp_path, shapes, tiny, here):
    strategies = {"supervised": tiny.SUPERVISED, "self": tiny.SELF_TAUGHT, "pasted": tiny.PASTED, "gan": GAN}
    made = study_of(tiny, tmp_path / "s", shapes, strategies, precision="auto")
    console = Console(file=io.StringIO(), width=100)
    paces, precision = time_paces(made, tmp_path / "s", 1, console)
    assert [json.loads(kind)[0] for kind in paces] == ["supervised", "gan"]
    assert {pace["precision"] for pace in paces.values()} == {precision}
    assert all(pace["step"] > 0 and pace["batch"] for pace in paces.values())
    assert "timing some steps" in console.file.getvalue()
    assert time_paces(made, tmp_path / "s", 1, console) == (paces, precision)
    assert len(here) == 1
    time_paces(made.model_copy(update={"precision": "float32"}), tmp_path / "s", 1)
    assert len(here) == 2


def test_a_training_on_pairs_alone_is_timed_on_the_masks_that_there_are(tmp_path, shapes, tiny, here):
    alone = [*GAN[:2], {"train": "supervised", "synthetic": ["pairs"], "labels": "none"}]
    made = study_of(tiny, tmp_path / "s", shapes, {"alone": alone})
    paces, _ = time_paces(made, tmp_path / "s", 1)
    assert not any("error" in pace for pace in paces.values())


def test_the_baseline_must_begin_and_others_are_told(tmp_path, shapes, tiny, here):
    with pytest.raises(SegmintError, match="first step of the baseline failed: loss: there is no 'nonsense'"):
        time_paces(study_of(tiny, tmp_path / "a", shapes, {"wrong": WRONG}), tmp_path / "a", 1)
    made = study_of(tiny, tmp_path / "b", shapes, {"supervised": tiny.SUPERVISED, "wrong": WRONG})
    paces, precision = time_paces(made, tmp_path / "b", 1)
    assert precision == "float32"
    forecast = foresee(make_plan(made), paces, 3)
    assert len(forecast.problems) == 1
    assert "mind: wrong: supervised cannot begin: loss: there is no 'nonsense'" in forecast.lines([], 1)[-1]


class Killed:
    """A pool whose worker is killed by the system after its first finding, or before."""

    def __init__(self, found: dict) -> None:
        self.found = found

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        if self.found:
            (folder / PACES).write_text(json.dumps(self.found), encoding="utf-8")

    def ended(self) -> dict[str, int]:
        return {PLACE: -9}

    def close(self) -> None: ...


def test_what_was_timed_before_the_worker_was_killed_is_kept(tmp_path, shapes, tiny, monkeypatch):
    made = study_of(tiny, tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED, "gan": GAN})
    kind = next(iter(cost._kinds(make_plan(made))))
    monkeypatch.setattr(cost, "LocalPool", lambda *_: Killed({kind: {"precision": "bfloat16", "step": 1.0}}))
    assert time_paces(made, tmp_path / "s", 1)[1] == "bfloat16"
    assert not (tmp_path / "s" / "pieces" / PLACE / DONE).exists()
    monkeypatch.setattr(cost, "LocalPool", lambda *_: Killed({}))
    with pytest.raises(SegmintError, match="was stopped: ended with code -9"):
        time_paces(made, tmp_path / "s", 1)


def forecast_of(tiny, tmp_path, shapes, strategies, paces=(2.0, 6.0), **changes) -> Forecast:
    """A step of `supervised` takes 2 s, one of the GAN 6 s; batches have two images, or sixteen."""
    plan = make_plan(study_of(tiny, tmp_path / "s", shapes, strategies, steps=10, **changes))
    made = {}
    for kind in cost._kinds(plan):
        method, batch, _ = json.loads(kind)
        made[kind] = {"step": paces[method == "gan"], "validation": 3.0, "batch": batch}
    return foresee(plan, made, images=6)


def test_costs_add_up(tiny, tmp_path, shapes):
    strategies = {"supervised": tiny.SUPERVISED, "gan": GAN}
    forecast = forecast_of(tiny, tmp_path, shapes, strategies, seeds=[0])
    pieces = forecast.plan.pieces
    found = {(piece.kind, piece.method): forecast.costs[name] for name, piece in pieces.items()}
    batch = next(piece for piece in pieces.values() if piece.method == "gan").job["training"]["batch_size"]
    assert found["train", "supervised"] == START + 10 * 2 + 10 // 2 * 3
    assert found["train", "gan"] == START + 40 * 6
    assert found["generate", "gan"] == pytest.approx(START + 4 * PAINTING * 6 / batch)
    assert found["evaluate", "supervised"] == pytest.approx(START + 6 * 2 / 2 / 3)
    assert sum(forecast.costs.values()) == pytest.approx(
        2 * found["train", "supervised"] + found["train", "gan"] + found["generate", "gan"]
        + 2 * found["evaluate", "supervised"]
    )  # fmt: skip


def test_the_lines_say_what_it_takes_and_how_it_takes_less(tiny, tmp_path, shapes):
    strategies = {"supervised": tiny.SUPERVISED, "gan": GAN}
    forecast = forecast_of(tiny, tmp_path, shapes, strategies, budgets=[3, 4], minutes=2)
    left = list(forecast.plan.pieces)
    whole, each, less, mind = forecast.lines(left, 2)
    minutes = math.floor(sum(forecast.costs.values()) / 2 / 60 + 0.5)
    assert whole.startswith("8 trials (2 strategies x 2 budgets x 2 seeds), 12 trainings to do: about ")
    assert f"about {minutes} min on this machine, 2 at a time" in whole
    assert each.startswith("a trial with all it needs: supervised 47 s, gan ")
    assert less.startswith("for less: ")
    assert mind == "mind: a trial of gan may take longer than its 2 minutes"
    assert "0 trainings to do: about 0 s" in forecast.lines([], 2)[0]


def test_what_was_not_timed_is_taken_for_quick(tiny, tmp_path, shapes):
    made = study_of(tiny, tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED, "pasted": tiny.PASTED})
    assert set(foresee(make_plan(made), {}, 3).costs.values()) == {START}
