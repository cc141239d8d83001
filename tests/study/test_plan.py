from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segmint.study.plan import Study, chain, check, read_study, split_steps
from segmint.types import SegmintError

ONE = [{"train": "supervised"}]


def study(strategies, **changes) -> Study:
    values = {"data": "/data", "strategies": {"one": ONE, **strategies}, "baseline": "one", "steps": 100}
    return Study.model_validate(values | changes)


def steps_of(parts, **changes):
    made = study({"two": parts}, **changes)
    return split_steps(made, made.strategies["two"], "two")


def test_pre_training_counts_and_the_rest_is_for_the_last():
    denoised = [{"train": "denoise", "share": 0.33}, {"train": "supervised", "init": "denoise"}]
    assert steps_of(denoised) == {"denoise": 33, "supervised": 67}
    assert steps_of(denoised, steps=1500) == {"denoise": 495, "supervised": 1005}


def test_a_teacher_of_the_segmenter_counts_and_one_of_the_generator_does_not():
    self_taught = [
        {"name": "first", "train": "supervised"},
        {"train": "supervised", "init": "first", "masks_from": "first"},
    ]
    assert steps_of(self_taught) == {"first": 50, "supervised": 50}
    painted = [
        {"name": "teacher", "train": "supervised"},
        {"name": "painter", "train": "spade", "masks_from": "teacher", "steps": 800},
        {"generate": "painter", "segmenter": "teacher", "mix": "predicted=1"},
        {"train": "supervised", "synthetic": ["pairs"]},
    ]
    assert steps_of(painted) == {"teacher": 100, "painter": 800, "supervised": 100}
    assert [part.called for part in chain(study({"two": painted}).strategies["two"])] == ["supervised"]


def test_generators_take_their_usual_steps_and_methods_of_epochs_none():
    parts = [{"train": "gan"}, {"generate": "gan"}, {"train": "supervised", "synthetic": ["pairs"]}]
    assert steps_of(parts) == {"gan": None, "supervised": 100}
    assert steps_of([{"train": "gmm"}]) == {"gmm": None}


@given(st.integers(3, 3000), st.lists(st.one_of(st.none(), st.floats(0.05, 0.2)), min_size=1, max_size=3))
def test_steps_always_add_up(steps: int, shares):
    parts = [{"name": f"p{n}", "train": "supervised", "share": share} for n, share in enumerate(shares)]
    parts = [{**part, "init": f"p{n - 1}"} if n else part for n, part in enumerate(parts)]
    parts.append({"name": "last", "train": "supervised", "init": parts[-1]["name"]})
    known = [{key: value for key, value in part.items() if value is not None} for part in parts]
    if steps < 10:
        with suppress(SegmintError):  # too few for each to have one
            assert sum(steps_of(known, steps=steps).values()) == steps
        return
    found = steps_of(known, steps=steps)
    assert sum(found.values()) == steps
    assert min(found.values()) >= 1


@pytest.mark.parametrize(
    "parts",
    [
        [{"train": "supervised", "share": 0.5}],
        [{"train": "supervised", "steps": 101}],
        [{"train": "denoise", "steps": 100}, {"train": "supervised", "init": "denoise"}],
    ],
)
def test_unequal_steps_are_refused(parts):
    with pytest.raises(SegmintError, match="every strategy must take 100 in all"):
        check(study({"two": parts}))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "has no part"),
        ([{"name": "a"}], "must have one of train, generate and assay, not none"),
        ([{"train": "supervised", "generate": "x"}], "not train and generate"),
        ([{"train": "nonsense"}], "there is no 'nonsense'"),
        ([{"train": "supervised", "init": "first"}], r"two\[0\].init: there is no part 'first' before it"),
        ([{"train": "supervised", "count": 3}], "count: is nothing that train takes"),
        ([{"train": "supervised", "share": 1, "steps": 100}], "share and steps say the same"),
        ([{"train": "supervised", "once": True}], "once: with a trial's own labels"),
        ([{"train": "gan"}], "its last part must train a segmenter, not 'gan'"),
        ([*ONE, {"train": "supervised"}], "there is a part called 'supervised' before it"),
        ([*ONE, {"generate": "supervised"}], "supervised does not generate"),
        ([{"train": "gan"}, {"name": "x", "train": "supervised", "masks_from": "gan"}], "gan does not segment"),
        ([{"train": "gan"}, {"generate": "gan"}, {"train": "supervised", "init": "pairs"}], "'pairs' is not a tr"),
        ([{"train": "gan"}, {"name": "x", "train": "supervised", "synthetic": ["gan"]}], "'gan' is not pairs"),
        ([{"train": "gan"}, {"generate": "gan"}, {"assay": "pairs"}], "segmenter: is missing"),
        ([{"train": "supervised", "training": {"steps": 3}}], r"two\[0\].training.steps: .* give the part steps"),
        ([{"train": "supervised", "training": {"epochs": 3}}], r"two\[0\].training.epochs: .* give the part steps"),
        ([{"train": "supervised", "training": {"device": "cpu"}}], "training.device: .* the same for all"),
    ],
)
def test_what_cannot_be_done_is_named(parts, told: str):
    with pytest.raises(SegmintError, match=told):
        check(study({"two": parts}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baseline": "none"}, "baseline: 'none' is none of one"),
        ({"metric": "beauty"}, "metric: 'beauty' cannot be compared"),
        ({"seeds": [1, 1]}, "seeds: .* names one twice"),
        ({"seeds": [-1]}, "seeds 0 or more"),
        ({"budgets": [0]}, "budgets must be 1 or more"),
        ({"budgets": [3], "baseline_budgets": [0]}, "budgets must be 1 or more"),
        ({"baseline_budgets": [3, 3]}, "baseline_budgets: the baseline has 3 labels anyway"),
        ({"budgets": [3, None], "baseline_budgets": ["all"]}, "baseline_budgets: the baseline has all labels anyway"),
        ({"rungs": [0.5, 0.25]}, "rungs: must be rising"),
        ({"training": {"steps": 5}}, "training.steps: is the same for all"),
        (
            {"settings": {"encoder": "plain"}},
            "settings.encoder: no method of the study has it; they have .*encoder_name",
        ),
        ({"metric": "ged", "halving": True}, "halving: goes by mIoU"),
    ],
)
def test_settings_of_the_whole_are_checked(changes, told: str):
    with pytest.raises(SegmintError, match=told):
        check(study({}, **changes))


def test_a_file_is_read_with_all_and_beside_its_data(tmp_path: Path):
    values = {"data": "mine", "strategies": {"one": ONE}, "baseline": "one"}
    values |= {"budgets": [10, "all"], "baseline_budgets": [9]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    made = read_study(tmp_path)
    assert made == read_study(tmp_path / "study.yaml")
    assert (made.budgets, made.every_budget) == ([10, None], [9, 10, None])
    assert made.data == str(tmp_path / "mine")
    assert made.model_dump(mode="json")["budgets"] == [10, "all"]


def test_wrong_keys_are_named_by_their_path(tmp_path: Path):
    values = {"data": "mine", "strategies": {"one": [{"trian": "supervised"}]}, "baseline": "one", "budgets": ["x"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(SegmintError, match=r"strategies.one.0.trian: there is no such setting.*budgets.0: Input"):
        read_study(tmp_path)


def test_a_name_that_a_chart_would_hide_is_refused():
    with pytest.raises(SegmintError, match="'_x' cannot be a name"):
        check(study({"_x": ONE}))
