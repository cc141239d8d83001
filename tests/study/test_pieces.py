from pathlib import Path

import pytest

from segmint.study.pieces import Plan, job_of, make_plan
from segmint.study.plan import Study
from segmint.types import SegmintError

ONE = [{"train": "supervised"}]
DENOISED = [{"train": "denoise", "share": 0.5, "once": True}, {"train": "supervised", "init": "denoise"}]
PAINTED = [
    {"name": "teacher", "train": "supervised"},
    {"name": "painter", "train": "spade", "masks_from": "teacher", "steps": 8},
    {"generate": "painter", "segmenter": "teacher", "mix": "predicted=1", "count": 5},
    {"assay": "pairs", "segmenter": "teacher"},
    {"train": "supervised", "synthetic": ["kept"]},
]


def plan(strategies, **changes) -> Plan:
    values = {"data": "/data", "strategies": strategies, "baseline": next(iter(strategies)), "steps": 100}
    return make_plan(Study.model_validate(values | {"precision": "float32"} | changes))


def kinds(made: Plan) -> list[str]:
    return [f"{piece.kind} {piece.method}" for piece in made.pieces.values()]


def test_a_teacher_that_equals_the_baseline_is_trained_once():
    made = plan({"one": ONE, "painted": PAINTED}, seeds=[0], budgets=[30])
    assert kinds(made) == [
        *("train supervised", "evaluate supervised", "train spade", "generate spade", "assay spade"),
        *("train supervised", "evaluate supervised"),
    ]
    shared = [name for name in made.pieces if len(made.users(name)) > 1]
    assert shared == [made.trials[0].last]


def test_pre_training_without_masks_is_shared_between_budgets_and_where_asked_between_seeds():
    once = plan({"one": ONE, "denoised": DENOISED}, budgets=[10, None])
    assert kinds(once).count("train denoise") == 1
    first = next(name for name, piece in once.pieces.items() if piece.method == "denoise")
    assert len(once.users(first)) == 6
    assert once.pieces[first].job["budget"] == 0
    apart = [{**DENOISED[0], "once": False}, DENOISED[1]]
    assert kinds(plan({"one": ONE, "denoised": apart}, budgets=[10, None])).count("train denoise") == 3


def test_the_same_settings_said_otherwise_are_the_same():
    made = plan({"one": ONE, "same": [{"name": "x", "train": "supervised", "training": {"batch_size": 8}}]})
    assert len(made.pieces) == 6
    assert len(made.trials) == 6
    other = plan({"one": [{"train": "supervised", "training": {"save_every": 1.0}}]})
    assert set(other.pieces) <= set(made.pieces)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 99},
        {"size": (32, 32)},
        {"precision": "bfloat16"},
        {"data": "/other"},
        {"settings": {"dropout": 0.3}},
        {"training": {"lr": 0.5}},
        {"budgets": [10]},
        {"seeds": [5]},
        {"split": "val"},
    ],
)
def test_whatever_changes_the_result_changes_the_key(change):
    keys = {trial.key for trial in plan({"one": ONE}).trials}
    assert keys.isdisjoint(trial.key for trial in plan({"one": ONE}, **change).trials)


def test_more_seeds_and_strategies_leave_what_is_done():
    few = plan({"one": ONE}, seeds=[0, 1])
    more = plan({"one": ONE, "denoised": DENOISED}, seeds=[0, 1, 2])
    assert set(few.pieces) <= set(more.pieces)


def test_the_baseline_alone_has_its_further_budgets():
    made = plan({"one": ONE, "denoised": DENOISED}, seeds=[0, 1], budgets=[30], baseline_budgets=["all", 10])
    assert [trial.of[:2] for trial in made.trials if trial.seed == 1] == [
        ("one", 10), ("one", 30), ("denoised", 30), ("one", None)
    ]  # fmt: skip
    without = plan({"one": ONE, "denoised": DENOISED}, seeds=[0, 1], budgets=[30])
    assert set(without.pieces) < set(made.pieces)


def test_settings_for_all_reach_every_segmenter_that_has_them():
    asked = {"encoder_name": "plain", "dropout": 0.0}
    made = plan({"one": ONE, "denoised": DENOISED, "painted": PAINTED}, settings=asked, training={"batch_size": 3})
    found = {piece.method: piece.job for piece in made.pieces.values() if piece.kind == "train"}
    assert found["supervised"]["settings"] == asked
    assert found["supervised"]["training"]["batch_size"] == 3
    assert found["denoise"]["settings"] == {"encoder_name": "plain"}
    assert found["spade"]["settings"] == {}
    assert found["spade"]["training"]["batch_size"] != 3


def test_every_piece_comes_after_those_that_it_needs():
    made = plan({"one": ONE, "denoised": DENOISED, "painted": PAINTED})
    seen: set[str] = set()
    for name, piece in made.pieces.items():
        assert set(piece.needs) <= seen
        seen.add(name)
    for trial in made.trials:
        assert trial.pieces[-1] == trial.evaluation
        assert trial.last in trial.pieces


def test_a_job_names_the_folders_of_its_inputs(tmp_path: Path):
    made = plan({"painted": PAINTED}, seeds=[0])
    jobs = {piece.kind: job_of(piece, tmp_path.joinpath) for piece in made.pieces.values()}
    assert jobs["assay"]["pairs"].endswith("/pairs")
    assert "generate-spade" in jobs["assay"]["pairs"]
    assert jobs["train"]["synthetic"][0].endswith("/pairs")
    assert "assay-spade" in jobs["train"]["synthetic"][0]
    assert "spade" in jobs["generate"]["run"]
    assert "supervised" in jobs["generate"]["segmenter"]


def test_a_setting_that_training_does_not_have_is_refused():
    with pytest.raises(SegmintError, match=r"strategies.one: training: lrr: there is no such setting"):
        plan({"one": [{"train": "supervised", "training": {"lrr": 1}}]})
