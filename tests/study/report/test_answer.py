"""What to use, in words: of made-up studies whose answer is known."""

from __future__ import annotations

import json
import math

import pytest

from segmint.study.answer import decide, minutes, points, write_answer
from segmint.study.results import FILE
from segmint.types import SegmintError


def test_what_is_ahead_but_may_be_chance_among_many_is_said_to_be(make_study):
    reached = {"plain": 0.60, **{f"equal {number}": 0.60 for number in range(12)}, "ahead": 0.607}
    findings = make_study(reached, budgets=(10,)).findings()
    row = findings.row("ahead", 10)
    assert row.comparison.low > 0
    assert row.verdict == "neither"
    assert "Of 13 comparisons one may come out like that by chance" in decide(findings).details


def test_too_few_groups_are_a_caution(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    assert not any("groups" in words for words in decide(made.findings()).cautions)
    for path in made.folder.glob("pieces/*/metrics.json"):
        scores = json.loads(path.read_text())
        scores["val"]["per_image"]["groups"] = ["one"] * 20 + ["two"] * 20
        path.write_text(json.dumps(scores))
    assert any("too few groups" in words for words in decide(made.findings()).cautions)


def test_the_better_strategy_is_recommended(make_study):
    made = make_study({"plain": 0.60, "good": 0.66, "equal": 0.60}, budgets=(10, "all"), seeds=4)
    answer = decide(made.findings())
    assert answer.recommended == "good"
    assert answer.kind == "better"
    assert answer.decided
    assert answer.finished
    assert answer.headline.startswith("Use good: with all 300 labels, mIoU ")
    assert answer.headline.endswith("higher than with plain.")
    assert "plain would need more than 300 labels" in answer.details
    assert [one["recommended"] for one in answer.by_budget] == ["good", "good"]
    verdicts = {(one["strategy"], one["budget"]): one["verdict"] for one in answer.claims}
    assert verdicts == {
        ("good", 10): "better",
        ("good", None): "better",
        ("equal", 10): "neither",
        ("equal", None): "neither",
    }


def test_where_nothing_beats_the_baseline_the_answer_is_to_label_more(make_study):
    made = make_study({"plain": 0.60, "equal": 0.601, "poor": 0.50}, seeds=4)
    answer = decide(made.findings())
    assert answer.recommended == "plain"
    assert answer.kind == "neither"
    assert answer.decided
    assert "train plain, and label more: none of the 2 others beat it beyond chance" in answer.headline
    assert "Worse than plain: poor." in answer.details
    assert "40 labels instead of 10 brought plain +" in answer.details


def test_one_rival_that_does_not_win_is_named(make_study):
    answer = decide(make_study({"plain": 0.60, "equal": 0.60}, budgets=(10,)).findings())
    assert "equal did not beat it beyond chance" in answer.headline


def test_one_that_leads_but_was_not_judged_leaves_it_open(make_study):
    made = make_study({"plain": 0.60, "equal": 0.60, "good": 0.70}, failed={("good", 2): "out of memory"})
    answer = decide(made.findings())
    assert not answer.decided
    assert "too few trials ended well" in answer.headline
    assert "good (mIoU" in answer.details
    assert "Not judged, for want of 3 finished trials of both: good." in answer.details


def test_one_that_was_not_judged_is_named_beside_the_winner(make_study):
    made = make_study({"plain": 0.60, "lost": 0.60, "good": 0.70}, failed={("lost", 2): "out of memory"})
    answer = decide(made.findings())
    assert answer.decided
    assert answer.headline.startswith("Use good")
    assert "of both: lost." in answer.details


def test_what_is_worse_but_in_doubt_does_not_keep_the_answer_open(make_study):
    answer = decide(make_study({"plain": 0.60, "equal": 0.60, "poor": 0.50}, rising=("poor",)).findings())
    assert answer.decided
    assert answer.kind == "neither"
    assert any("perhaps better than they look: poor" in words for words in answer.cautions)


def test_the_next_larger_budget_says_what_labels_are_worth(make_study):
    made = make_study({"plain": 0.60, "equal": 0.60}, budgets=(10,), baseline_budgets=[40, 160])
    assert "40 labels instead of 10 brought plain +6" in decide(made.findings()).details


def test_a_baseline_that_was_hardly_validated_is_a_caution(make_study):
    made = make_study({"plain": 0.60, "good": 0.70}, budgets=(10,))
    results = (made.folder / FILE).read_text().splitlines()
    rare = [json.dumps(one | {"curve": one["curve"][::5]}) for one in map(json.loads, results)]
    (made.folder / FILE).write_text("\n".join(rare) + "\n")
    assert any("validated too seldom" in words for words in decide(made.findings()).cautions)


def test_what_wins_with_few_labels_only_is_said(make_study):
    made = make_study({"plain": 0.60, "early": 0.66}, seeds=5, budgets=(10, 20))
    lines = (made.folder / FILE).read_text().splitlines()
    # At 20 labels the rival's trials become the baseline's.
    base = {one["seed"]: one for one in map(json.loads, lines) if (one["strategy"], one["budget"]) == ("plain", 20)}
    changed = []
    for one in map(json.loads, lines):
        if (one["strategy"], one["budget"]) == ("early", 20):
            one["images"] = base[one["seed"]]["images"]
        changed.append(json.dumps(one))
    (made.folder / FILE).write_text("\n".join(changed) + "\n")
    answer = decide(made.findings())
    assert answer.recommended == "plain"
    assert answer.headline.startswith("With 20 labels, train plain: ")
    assert "With 10 labels use early: mIoU" in answer.details
    assert [one["recommended"] for one in answer.by_budget] == ["early", "plain"]


def test_two_seeds_decide_nothing(make_study):
    answer = decide(make_study({"plain": 0.60, "good": 0.70}, seeds=2).findings())
    assert answer.recommended == "plain"
    assert not answer.decided
    assert answer.kind == "open"
    assert "2 seeds are too few" in answer.headline
    assert "good (mIoU" in answer.details
    assert any("2 seeds only" in words for words in answer.cautions)


def test_a_gain_over_a_baseline_that_was_still_improving_is_not_claimed(make_study):
    made = make_study({"plain": 0.60, "good": 0.70}, rising=("plain",))
    answer = decide(made.findings())
    assert answer.recommended == "plain"
    assert answer.kind == "open"
    assert "baseline was still improving" in answer.headline
    assert not [one for one in answer.claims if one["verdict"] == "better"]
    assert any("the baseline was still improving" in words for words in answer.cautions)
    doubtful = [one for one in answer.claims if one["verdict"] == "in doubt"]
    assert doubtful
    assert "worth nothing" in doubtful[0]["sentence"]


def test_more_steps_than_the_baseline_are_not_like_for_like(make_study):
    findings = make_study({"plain": 0.60, "good": 0.70}, steps={"good": 800}).findings()
    row = findings.row("good", 10)
    assert row.verdict == "in doubt"
    assert "800 steps and the baseline 400" in row.doubts[0]


def test_a_poor_result_after_fewer_steps_or_before_the_end_is_not_claimed(make_study):
    few = make_study({"plain": 0.60, "poor": 0.50}, steps={"poor": 100}).findings().row("poor", 10)
    assert few.verdict == "in doubt"
    assert "only 100 steps" in few.doubts[0]
    early = make_study({"plain": 0.60, "poor": 0.50}, "early", rising=("poor",)).findings()
    assert "might catch up" in early.row("poor", 10).doubts[0]
    assert any("poor (10 labels)" in words for words in decide(early).cautions)


def test_a_study_that_still_runs_says_so(make_study):
    made = make_study({"plain": 0.60, "good": 0.70, "later": 0.6}, left=("later",))
    answer = decide(made.findings())
    assert not answer.finished
    assert answer.recommended == "good"
    assert answer.cautions[0].startswith("12 of 18 trials have ended")


def test_comparisons_to_come_do_not_turn_a_verdict_round(make_study):
    some = make_study({"plain": 0.60, "good": 0.63, "later": 0.6}, left=("later",)).findings()
    whole = make_study({"plain": 0.60, "good": 0.63, "later": 0.6}, "whole").findings()
    assert some.row("good", 10).comparison.p_holm >= whole.row("good", 10).comparison.p


def test_nothing_finished_recommends_nothing(make_study):
    answer = decide(make_study({"plain": 0.6, "good": 0.7}, left=("plain", "good")).findings())
    assert answer.recommended is None
    assert "nothing to say" in answer.headline


def test_a_baseline_that_failed_leaves_it_open(make_study):
    failures = {("plain", seed): "out of memory" for seed in range(3)}
    answer = decide(make_study({"plain": 0.6, "good": 0.7}, failed=failures).findings())
    assert answer.kind == "open"
    assert answer.recommended is None
    assert "too few trials ended well" in answer.headline
    assert any("6 of 12 trials did not end well" in words for words in answer.cautions)


def test_a_baseline_alone_is_compared_with_nothing(make_study):
    answer = decide(make_study({"plain": 0.6}).findings())
    assert "nothing to compare it with" in answer.headline
    assert answer.recommended == "plain"


def test_where_less_is_better_the_lower_wins(make_study):
    made = make_study({"plain": 0.60, "good": 0.66}, metric="ged", budgets=("all",))
    findings = made.findings()
    answer = decide(findings)
    assert answer.recommended == "good"
    assert answer.headline.startswith("Use good: with all 300 labels, GED ")
    assert answer.headline.endswith("lower than with plain.")
    assert "It reaches GED 0.3" in answer.details
    assert findings.row("good", None).comparison.gain > 0


def test_energy_is_watts_times_hours(make_study):
    cost = make_study({"plain": 0.60, "good": 0.66}, watts=120).findings().row("good", 10).cost
    assert (cost.own, cost.shared) == (1.0, 0.5)
    assert cost.energy == pytest.approx(120 * 1.5 / 60)
    assert math.isnan(make_study({"plain": 0.6}, "other").findings().row("plain", 10).cost.energy)


def test_a_lost_evaluation_is_said_and_left_out(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    findings = made.findings()
    arm = findings.figures.arms["good", 10]
    (made.folder / arm.results[0].images).unlink()
    (made.folder / arm.results[1].images).write_text('{"val": {"classes": []}}')
    found = made.findings()
    assert len(found.notes) == 2
    assert found.row("good", 10).done == 1
    assert found.row("good", 10).verdict == "no claim"
    assert all("cannot be compared" in words for words in decide(found).cautions[-2:])


def test_trials_that_are_not_judged_on_the_split_yet_are_passed_over(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    path = made.folder / made.findings().figures.arms["good", 10].results[0].images
    path.write_text(json.dumps({"test": json.loads(path.read_text())["val"]}))
    assert made.findings().row("good", 10).done == 2
    assert made.findings().notes == ()


@pytest.mark.parametrize("key", ["classes", "size", "names"])
def test_trials_on_other_images_stop_everything(make_study, key):
    made = make_study({"plain": 0.60, "good": 0.66})
    path = made.folder / made.findings().figures.arms["good", 10].results[0].images
    told = json.loads(path.read_text())
    place = told["val"]["per_image"] if key == "names" else told["val"]
    place[key] = list(reversed([8, 9] if key == "size" else place[key]))
    path.write_text(json.dumps(told))
    with pytest.raises(SegmintError, match="data changed during the study"):
        made.findings()


def test_the_answer_is_written_with_a_reason(make_study, tmp_path):
    answer = decide(make_study({"plain": 0.60, "good": 0.70}).findings())
    told = json.loads(write_answer(tmp_path, answer).read_text())
    assert told["recommended"] == "good"
    assert told["reason"] == f"{answer.headline} {answer.details}"
    assert len(told["claims"]) == 2


def test_numbers_as_people_say_them():
    assert [minutes(value) for value in (0.5, 3.2, 119.0, 600.0)] == [
        "30 seconds",
        "3 minutes",
        "2.0 hours",
        "10.0 hours",
    ]
    assert [points(value) for value in (0.0123, -0.0123, math.nan)] == ["+1.2", "−1.2", "?"]
