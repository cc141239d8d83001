import json

import pytest

from segmint.config import read_run, write_run
from segmint.evaluation.compare import compare, judge
from segmint.evaluation.evaluate import evaluate
from segmint.evaluation.tables import pack, read_tables
from segmint.types import SegmintError


@pytest.fixture
def scored(make_run, data):
    """scored(name, **settings) -> an evaluated run."""

    def make(name, **settings):
        run = make_run(name, **settings)
        evaluate(run, data, "test", pictures=False, resamples=20)
        return run

    return make


def test_a_better_run_is_called_better_in_words(scored, pairs, tmp_path):
    blind = scored("blind", blind=True)
    good = scored("good", synthetic=[str(pairs)])
    found = compare(blind, [good], "test", folder=tmp_path)
    (other,) = found["others"]
    assert other["verdict"] == "better"
    assert other["label"] == "supervised + pairs from VAE"
    assert other["difference"]["miou"]["low"] > 0
    assert other["difference"]["nll"]["high"] < 0
    assert other["per_class"]["disc"]["value"] > 0.5
    gain = other["scores"]["miou"]["value"] - found["baseline"]["scores"]["miou"]["value"]
    assert other["difference"]["miou"]["value"] == pytest.approx(gain)
    assert found["answer"].startswith("Training on pairs from the VAE as well made the segmenter better: +")
    assert any("One seed" in note for note in found["notes"])
    assert json.loads((tmp_path / "comparison.json").read_text())["answer"] == found["answer"]


def test_the_other_way_round_is_worse_and_a_copy_is_neither(scored):
    good, blind, copy = scored("good"), scored("blind", blind=True), scored("copy")
    found = compare(good, [blind, copy], "test")
    assert [other["verdict"] for other in found["others"]] == ["worse", "neither"]
    assert [other["label"] for other in found["others"]] == ["supervised (blind)", "supervised (copy)"]
    same = found["others"][1]
    assert same["difference"]["miou"]["value"] == 0
    assert same["p_holm"] == 1
    assert "neither better nor worse beyond chance: +0.0 points" in same["sentence"]
    assert "Using supervised (copy) instead of supervised (good)" in same["sentence"]
    assert any("Holm" in note for note in found["notes"])


def test_runs_that_differ_in_the_seed_alone_are_one_strategy(scored, pairs):
    base = scored("base-0", blind=True)
    others = [
        scored("base-1", blind=True, seed=1),
        scored("both-0", synthetic=[str(pairs)]),
        scored("both-1", synthetic=[str(pairs)], seed=1, blind=True),
    ]
    found = compare(base, others, "test")
    assert found["baseline"]["seeds"] == [0, 1]
    (other,) = found["others"]
    assert other["runs"] == ["both-0", "both-1"]
    one = compare(base, [others[1]], "test")["others"][0]["difference"]["miou"]
    two = other["difference"]["miou"]
    assert two["value"] == pytest.approx(one["value"] / 2)
    assert two["high"] - two["low"] > one["high"] - one["low"]
    assert other["verdict"] == "neither"
    assert any("so few seeds" in note for note in found["notes"])


def test_only_seeds_in_common_make_the_difference(scored, pairs):
    base, further = (
        scored("base-0", synthetic=[str(pairs)]),
        scored("base-1", synthetic=[str(pairs)], seed=1, blind=True),
    )
    other = scored("other")
    found = compare(base, [further, other], "test")
    assert found["baseline"]["seeds"] == [0, 1]
    alone = compare(base, [other], "test")["others"][0]
    assert found["others"][0]["difference"] == alone["difference"]
    assert found["others"][0]["verdict"] == "neither"
    assert any("have other seeds: their difference is over seed 0 alone" in note for note in found["notes"])
    apart = compare(base, [scored("late", seed=7)], "test")
    assert any("have no seed in common" in note for note in apart["notes"])


def test_what_is_not_like_for_like_is_said(scored):
    base = scored("base")
    other = scored("other", method="gmm", budget=3, training={"steps": 7})
    notes = " ".join(compare(base, [other], "test")["notes"])
    assert "same number of labelled images" in notes
    assert "same number of steps" in notes


def test_folders_without_manifest_are_called_by_their_names(scored, tmp_path):
    other = scored("other", synthetic=[str(tmp_path / "mine")])
    assert compare(scored("base"), [other], "test")["others"][0]["label"] == "supervised + pairs from mine"


def test_figures_on_val_and_train_carry_their_warning(make_run, data):
    runs = [make_run("a"), make_run("b")]
    for split, words in (("val", "chose which weights"), ("train", "training images")):
        for run in runs:
            evaluate(run, data, split, pictures=False, resamples=20)
        assert words in " ".join(compare(runs[0], [runs[1]], split, resamples=20)["notes"])


def test_what_cannot_be_compared_is_refused(scored, make_run, data):
    base, other = scored("base"), make_run("other")
    with pytest.raises(SegmintError, match=r"metrics.json: missing; run `segmint evaluate"):
        compare(base, [other], "test")
    evaluate(other, data, "val", pictures=False, resamples=20)
    with pytest.raises(SegmintError, match=r"has no split 'test' .it has val."):
        compare(base, [other], "test")
    with pytest.raises(SegmintError, match="nothing to compare"):
        compare(base, [], "test")
    evaluate(other, data, "test", pictures=False, resamples=20, size=(16, 16))
    with pytest.raises(SegmintError, match=r"image sizes .16, 16. differ"):
        compare(base, [other], "test")
    evaluate(other, data, "test", pictures=False, resamples=20)
    path = other / "metrics.json"
    scores = json.loads(path.read_text())
    scores["test"]["per_image"]["names"][0] = "stranger"
    path.write_text(json.dumps(scores))
    with pytest.raises(SegmintError, match="which are not the 3 of"):
        compare(base, [other], "test")
    del scores["test"]["per_image"]["confusion"]
    path.write_text(json.dumps(scores))
    with pytest.raises(SegmintError, match="test: incomplete"):
        compare(base, [other], "test")


def test_the_verdict_may_be_about_another_measure(scored):
    good, blind = scored("good"), scored("blind", blind=True)
    found = compare(blind, [good], "test", by="nll")
    (other,) = found["others"]
    assert other["difference"]["nll"]["value"] < 0
    assert other["verdict"] == "better"  # less is better
    assert "points of nll [-" in other["sentence"]
    assert found["by"] == "nll"
    assert {"nll", "aurc", "ged"} <= set(found["lower"])
    assert not {"miou", "diversity_ratio"} & set(found["lower"])
    assert "p" in other["difference"]["kept_80"]
    with pytest.raises(SegmintError, match="--by: 'ged' cannot be compared; these runs have miou"):
        compare(blind, [good], "test", by="ged")
    with pytest.raises(SegmintError, match="--by: 'expected_dice'"):
        compare(blind, [good], "test", by="expected_dice")


def test_runs_scored_by_an_earlier_version_are_compared_by_what_they_have(scored):
    good, blind = scored("good"), scored("blind", blind=True)
    path = blind / "metrics.json"
    scores = json.loads(path.read_text())
    for key in [key for key in scores["test"] if key.startswith(("aurc", "kept", "image_dice", "expected", "error_"))]:
        del scores["test"][key]
    for key in ("doubt", "detection"):
        del scores["test"]["per_image"][key]
    path.write_text(json.dumps(scores))
    (other,) = compare(blind, [good], "test")["others"]
    assert other["verdict"] == "better"
    assert "aurc" not in other["difference"]
    assert "aurc" in other["scores"]


def test_a_verdict_needs_both_the_interval_and_the_corrected_p_value():
    gain = {"value": 0.1, "low": 0.01, "high": 0.2}
    loss = {"value": -0.1, "low": -0.2, "high": -0.01}
    unsure = {"value": 0.1, "low": -0.01, "high": 0.2}
    assert [judge(d, 0.01) for d in (gain, loss, unsure)] == ["better", "worse", "neither"]
    assert [judge(d, 0.06) for d in (gain, loss, unsure)] == ["neither"] * 3
    assert [judge(d, 0.01, "ged") for d in (gain, loss, unsure)] == ["worse", "better", "neither"]


def test_what_helped_a_segmenter_is_named(scored, pairs):
    helped = {"masks_from": "first", "init": "first"}
    runs = [scored(key, blind=True, **{key: value}) for key, value in helped.items()]
    found = compare(scored("good"), [*runs, scored("both", synthetic=[str(pairs)], masks_from="first")], "test")
    labels = [other["label"] for other in found["others"]]
    assert labels[:2] == ["supervised + predicted masks", "supervised, pre-trained"]
    assert labels[2] == "supervised + pairs from VAE + predicted masks"
    assert found["others"][2]["sentence"].startswith(f"Using {labels[2]} instead of supervised made")


def test_runs_on_other_data_are_no_seeds_and_minutes_hide_no_seed(make_run, data, scored):
    runs = [scored("one"), scored("two", seed=1), scored("three", seed=2)]
    for run, place, minutes, steps in zip(
        runs, ("/a/few", "/a/many", "/b/many"), (None, 10, 10), (9, 8, 7), strict=True
    ):
        settings = read_run(run)
        training = settings.training.model_copy(update={"steps": steps})
        write_run(settings.model_copy(update={"data": place, "minutes": minutes, "training": training}), run)
    found = compare(runs[0], runs[1:], "test")
    assert found["baseline"]["seeds"] == [0]
    assert [other["seeds"] for other in found["others"]] == [[1, 2]]


def test_other_masks_of_the_same_images_are_refused(scored):
    first, second = scored("first"), scored("second", seed=1)
    scores = json.loads((second / "metrics.json").read_text())
    tables = read_tables(scores["test"])
    tables["confusion"][1] = tables["confusion"][1].roll(1, 0)
    scores["test"]["per_image"] |= pack(tables)
    (second / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(SegmintError, match=r"second: was evaluated on other masks than .*first, that of '.+' for one"):
        compare(first, [second], "test")
