import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segmint.data.folder import open_folder
from segmint.methods.method import Hardware
from segmint.study import presets
from segmint.study.pieces import make_plan
from segmint.study.plan import check, read_study
from segmint.study.presets import PRESETS, as_yaml, left_out, preset, raters, size_of, usual_budgets
from segmint.types import SegmintError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_run_written_and_read_again(tmp_path: Path, shapes: Path, name: str):
    made = preset(name, open_folder(shapes))
    check(made)
    assert make_plan(made.model_copy(update={"precision": "float32"})).trials
    path = tmp_path / "study.yaml"
    path.write_text(as_yaml(made), encoding="utf-8")
    assert read_study(path) == made
    assert made.split == "test"
    assert len(made.seeds) == 3


def test_names_that_yaml_would_take_for_something_else_are_quoted(tmp_path: Path, shapes: Path):
    made = preset("default", open_folder(shapes), budgets=[2])
    names = ["yes", "10", "a: b", "a #b", "*s", "null", "掩码"]
    made = made.model_copy(update={"strategies": dict.fromkeys(names, made.strategies["supervised"]), "baseline": "10"})
    path = tmp_path / "study.yaml"
    path.write_text(as_yaml(made), encoding="utf-8")
    assert read_study(path) == made


def test_the_overfitting_preset_has_each_remedy_alone_and_together(shapes: Path):
    made = preset("overfitting", open_folder(shapes)).strategies
    last = {name: parts[-1] for name, parts in made.items()}
    bare = last["no-remedy"]
    for name, key in {"augmented": "augment", "L1": "l1", "L2": "l2", "early-stopping": "patience"}.items():
        differ = {key for key in last[name].training if last[name].training[key] != bare.training.get(key)}
        assert differ == {key}
        assert last["all"].training[key] == last[name].training[key]
    assert last["dropout"].training == bare.training
    assert last["all"].settings == last["dropout"].settings == {"dropout": 0.5}
    assert last["generated"].synthetic == last["all"].synthetic == ["pairs"]


def test_the_default_shares_the_teachers_and_the_pre_training(shapes: Path):
    made = preset("default", open_folder(shapes), gpu=True, budgets=[2, 4], precision="float32")
    plan = make_plan(made)
    kinds = [piece.method for piece in plan.pieces.values() if piece.kind == "train"]
    cells = len(made.budgets) * len(made.seeds)
    assert kinds.count("denoise") == 1
    assert kinds.count("flow") == 1 + cells
    assert kinds.count("supervised") == cells * (1 + 1 + 2 + 1 + 1 + 1)


def test_without_a_gpu_painters_are_left_out_and_stand_there_as_comments(shapes: Path, tmp_path: Path):
    data = open_folder(shapes)
    whole, made = preset("default", data, gpu=True), preset("default", data, gpu=False)
    assert list(whole.strategies)[:6] == list(made.strategies)
    assert list(left_out(made)) == ["flow", "spade"]
    assert left_out(whole) == left_out(preset("losses", data, gpu=False)) == {}
    text = as_yaml(made, left_out(made))
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_study(path) == made
    path.write_text(re.sub("^  # ", "  ", text, flags=re.MULTILINE), encoding="utf-8")
    assert read_study(path) == whole
    assert all(f"{name}:\n" in text.split("  ## Pairs that a ", 1)[1] for name in ("flow", "spade"))
    assert "##" not in as_yaml(whole, left_out(whole))


def test_whether_there_is_a_gpu_is_looked_up(shapes: Path, monkeypatch):
    monkeypatch.setattr(presets, "hardware", lambda: Hardware(4, "a card", 16.0))
    assert "flow" in preset("default", open_folder(shapes)).strategies
    monkeypatch.setattr(presets, "hardware", lambda: Hardware(4))
    assert "flow" not in preset("default", open_folder(shapes)).strategies


def test_several_raters_are_judged_by_their_distance(tmp_path: Path):
    numbers = np.random.default_rng(0)
    for index in range(6):
        for rater in range(2):
            place = tmp_path / "masks" / f"{index}" / f"{rater}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 2, (16, 24), dtype=np.uint8)).save(place)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (16, 24, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{index}.png"
        )
    data = open_folder(tmp_path)
    made = preset("auto", data)
    assert raters(data) == 2
    assert (made.preset, made.metric, made.baseline) == ("ambiguity", "ged", "supervised")
    assert "stochastic" in made.strategies


def test_sizes_are_bounded_and_budgets_fit(shapes: Path):
    assert size_of(open_folder(shapes)) == (32, 24)
    assert usual_budgets(600, 1694, "default") == [10, 100, None]
    assert usual_budgets(367, 367, "default") == [10, 30, 100]
    assert usual_budgets(15, 15, "default") == [None]
    assert usual_budgets(60, 367, "overfitting") == [10, 30, None]
    assert usual_budgets(367, 367, "losses") == [None]


def test_the_baseline_has_all_labels_where_the_others_do_not(shapes: Path, monkeypatch: pytest.MonkeyPatch):
    data = open_folder(shapes)
    assert (preset("losses", data).budgets, preset("losses", data).baseline_budgets) == ([None], [])
    monkeypatch.setattr(presets, "usual_budgets", lambda labelled, images, name: [2, 4])
    usual = preset("default", data)
    assert (usual.budgets, usual.baseline_budgets, usual.every_budget) == ([2, 4], [None], [2, 4, None])
    assert preset("default", data, budgets=[4]).baseline_budgets == []


def test_what_a_preset_cannot_do_is_told(shapes: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match="there is no 'nonsense'; choose one of default"):
        preset("nonsense", open_folder(shapes))


def test_the_file_has_a_word_on_each_key(shapes: Path):
    text = as_yaml(preset("default", open_folder(shapes), budgets=[10, None]))
    assert "budgets: [10, all]" in text
    assert text.count("\n# ") >= 15
    assert yaml.safe_load(text)["strategies"]["supervised"] == [{"train": "supervised"}]
    assert max(map(len, text.splitlines())) < 250
