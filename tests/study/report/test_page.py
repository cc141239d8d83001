"""The page, the exports and the pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import segmint
from segmint.study import charts
from segmint.study.answer import decide
from segmint.study.examples import choose, write_examples
from segmint.study.exports import escape, latex, summary_csv, trials_csv
from segmint.study.findings import find
from segmint.study.outcomes import SETTLED, current_results
from segmint.study.page import _breakable, is_study, write_page
from segmint.study.pieces import make_plan
from segmint.study.plan import read_study
from segmint.study.results import Result, append_result
from segmint.types import SegmintError


def words(page: Path) -> str:
    """The text of a page, without its style and pictures."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_the_page_says_the_answer_first_and_needs_no_other_file(make_study):
    made = make_study({"plain": 0.60, "good": 0.66, "equal": 0.60}, budgets=(10, 40, "all"))
    page = write_page(made.folder)
    html = page.read_text(encoding="utf-8")
    places = [html.index(f'id="{name}"') for name in ("answer", "curve", "table", "pictures", "expert")]
    assert places == sorted(places)
    assert "Use good" in html[: places[1]]
    assert set(re.findall(r'(?:src|href)="(?!data:|#)', html)) == set()
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    answer = json.loads((made.folder / "answer.json").read_text())
    assert answer["recommended"] == "good"
    assert {"trials.csv", "summary.csv", "table.tex"} <= {path.name for path in made.folder.iterdir()}


def test_failures_and_strange_names_are_shown_as_they_are(make_study):
    made = make_study({"plain": 0.60, "<b>&": 0.61}, failed={("<b>&", 1): "loss < 0 & nan"}, budgets=(10,))
    html = write_page(made.folder).read_text(encoding="utf-8")
    assert "loss &lt; 0 &amp; nan" in html
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html
    assert "Only 2 seeds are finished by both" in words(made.folder / "report.html")
    assert "1 of 3 failed" in words(made.folder / "report.html")


def test_names_like_formulas_are_no_formulas(make_study):
    made = make_study({"plain": 0.60, "x$_$y": 0.61, "$": 0.6}, budgets=(10,))
    assert "x$_$y" in write_page(made.folder).read_text(encoding="utf-8").replace("<wbr>", "")


def test_a_strategy_that_failed_everywhere_is_in_the_table_and_in_no_chart(make_study):
    failed = {("never", seed): "out of memory" for seed in range(3)}
    made = make_study({"plain": 0.60, "good": 0.66, "never": 0.6}, failed=failed, budgets=(10, 40))
    text = words(write_page(made.folder))
    assert text.count("3 of 3 failed") == 2
    assert "never 6 failed out of memory" in text
    findings = made.findings()
    drawn = [charts.label_chart(findings), *(charts.gain_chart(findings, at) for at in (10, 40))]
    assert all(b"good" in chart and b"never" not in chart for chart in drawn)
    still = replace(findings, results=tuple(one for one in findings.results if one.strategy != "never"))
    assert b"never" not in charts.training_chart(still, 10)


def test_the_public_name_writes_the_page_of_a_study_or_of_runs(make_study, tmp_path, trained):
    made = make_study({"plain": 0.60, "good": 0.66})
    assert segmint.report(made.folder) == made.folder / "report.html"
    assert (made.folder / "answer.json").is_file()
    run = next(path for path in (trained / "pieces").iterdir() if path.is_dir())
    page = segmint.report(run)
    assert page == run / "report.html"
    assert not (run / "answer.json").exists()
    page.unlink()
    with pytest.raises(SegmintError, match="no such folder"):
        segmint.report(tmp_path / "nowhere")


@pytest.mark.parametrize("left", [("plain", "good"), ("good",), ("plain",)])
def test_a_study_that_has_just_begun_has_a_page_too(make_study, left):
    made = make_study({"plain": 0.60, "good": 0.66}, left=left)
    assert "still running" in words(write_page(made.folder))


def test_before_anything_was_settled_there_is_a_page(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    (made.folder / SETTLED).unlink()
    assert "No trial is finished yet" in words(write_page(made.folder))


def test_several_raters_and_watts_are_told(make_study):
    made = make_study({"plain": 0.60, "good": 0.66}, metric="ged", budgets=("all",), watts=100)
    text = words(write_page(made.folder))
    assert "Judged by GED (generalised energy distance" in text
    assert "lower is better) on 40 validation images" in text
    assert "Wh" in text


def test_what_was_shared_is_accounted_for(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    piece = {
        "label": "gan, 10 labels, seed 0",
        "folder": "pieces/gan",
        "used_by": [["a", 1, 0], ["b", 1, 0]],
        "steps": 9,
    }
    pieces = [{**piece, "seconds": 30.0, "status": "done"}, {**piece, "steps": None, "seconds": 4.0, "status": "left"}]
    (made.folder / "pieces.json").write_text(json.dumps({"pieces": pieces}))
    text = words(write_page(made.folder))
    assert "2 pieces of work took 34.0 s" in text
    assert "taken 1 min 8 s" in text


def test_long_names_break_after_their_signs():
    assert str(_breakable("mse+<b>_c")) == "mse+<wbr>&lt;b&gt;_<wbr>c"


def test_ten_strategies_fit_on_the_page(make_study):
    names = {f"a strategy with a name that is rather long, number {number}": 0.6 for number in range(10)}
    assert write_page(make_study(names, budgets=(10, 40)).folder).is_file()


def test_a_folder_without_a_study_is_refused(tmp_path):
    assert not is_study(tmp_path)
    with pytest.raises(SegmintError, match=r"holds no study\.yaml"):
        write_page(tmp_path)


def test_the_tables_can_be_read_by_other_programs(make_study):
    findings = make_study(
        {"plain": 0.60, "a, b": 0.66}, failed={("a, b", 2): "no\nroom"}, budgets=(10, "all")
    ).findings()
    trials = list(csv.DictReader(io.StringIO(trials_csv(findings))))
    assert len(trials) == 12
    assert {one["status"] for one in trials} == {"done", "failed"}
    assert {one["budget"] for one in trials} == {"10", "all"}
    assert {one["reason"] for one in trials} == {"", "no\nroom"}
    rows = list(csv.DictReader(io.StringIO(summary_csv(findings))))
    assert [(one["strategy"], one["budget"]) for one in rows] == [
        ("plain", "10"), ("plain", "all"), ("a, b", "10"), ("a, b", "all")
    ]  # fmt: skip
    good = findings.row("a, b", 10)
    assert float(rows[2]["gain"]) == pytest.approx(good.comparison.gain)
    assert rows[2]["baseline_needs"] == good.saved.words(good.saved.needed)
    assert rows[0]["gain"] == ""


def test_the_latex_table_has_a_cell_for_each_budget(make_study):
    findings = make_study({"plain_1": 0.60, "good & 5%": 0.70, "later": 0.6}, left=("later",), seeds=4).findings()
    lines = latex(findings).splitlines()
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert all(line.replace("\\&", "").count("&") == 2 and line.endswith(r"\\") for line in body)
    assert body[0].startswith("plain\\_1 & ")
    assert "\\textbf{+" in body[2]
    assert "--" in body[3]
    assert escape("a_b\\{x}~−") == r"a\_b\textbackslash{}\{x\}\textasciitilde{}$-$"


def test_the_baselines_further_budgets_tell_how_many_labels_are_saved(make_study):
    short = make_study({"plain": 0.60, "good": 0.70}, budgets=(10,)).findings()
    assert short.row("good", 10).saved is None
    made = make_study({"plain": 0.60, "good": 0.70}, budgets=(10,), baseline_budgets=[40, 160])
    findings = made.findings()
    assert (findings.planned, findings.finished, findings.study.comparisons) == (12, True, 1)
    assert findings.row("good", 10).saved.needed == pytest.approx(100, rel=0.2)
    assert findings.row("good", 160).trials == 0
    answer = decide(findings)
    assert (answer.recommended, [one["budget"] for one in answer.by_budget]) == ("good", [10])
    assert "plain would need" in answer.details
    text = write_page(made.folder).read_text(encoding="utf-8")
    assert "2 more for the baseline alone" in text
    body = latex(findings).splitlines()
    assert any(line.startswith("good & ") and line.endswith(r" &  &  \\") for line in body)
    assert len(summary_csv(findings).splitlines()) == 5


def test_while_the_baselines_further_trials_run_there_is_a_page(make_study):
    made = make_study({"plain": 0.60, "good": 0.70}, budgets=(10,), baseline_budgets=["all"])
    lines = (made.folder / "results.jsonl").read_text().splitlines(keepends=True)
    (made.folder / "results.jsonl").write_text("".join(line for line in lines if json.loads(line)["budget"] == 10))
    findings = made.findings()
    assert (findings.finished, findings.row("plain", None).labels, findings.row("good", 10).saved) == (False, 0, None)
    assert "all labels" in write_page(made.folder).read_text(encoding="utf-8")


def test_runs_that_were_judged_with_their_mirror_images_are_refused(make_study):
    made = make_study({"plain": 0.60, "good": 0.70}, budgets=(10,))
    path = made.folder / json.loads((made.folder / "results.jsonl").read_text().splitlines()[1])["images"]
    told = json.loads(path.read_text())
    told["val"]["mirror"] = True
    path.write_text(json.dumps(told))
    with pytest.raises(SegmintError, match=r"metrics\.json: was judged with --mirror"):
        made.findings()


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two real, tiny trainings."""
    folder = tmp_path_factory.mktemp("study")
    tiny = {"encoder_name": "plain"}
    study = {
        "data": str(shapes),
        "strategies": {
            "short": [{"train": "supervised", "settings": tiny, "training": {"lr": 0.0}}],
            "long": [{"train": "supervised", "settings": tiny}],
        },
        "baseline": "short",
        "budgets": [4],
        "seeds": [0],
        "steps": 6,
        "split": "val",
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    (folder / SETTLED).write_text(json.dumps({"precision": "float32", "threads": 1}))
    settled = read_study(folder).model_copy(update={"precision": "float32", "threads": 1})
    for trial in make_plan(settled).trials:
        out = folder / "pieces" / trial.last
        lr = 0.0 if trial.strategy == "short" else 0.01
        settings = {"steps": 6, "precision": "float32", "augment": "none", "lr": lr}
        segmint.train(shapes, method="supervised", budget=4, out=out, settings=settings, **tiny)
        segmint.evaluate(out, shapes, pictures=False)
        run = f"pieces/{trial.last}"
        append_result(folder, Result(*trial.of, "done", run=run, images=f"{run}/metrics.json", key=trial.key, steps=6))
    return folder


def test_the_images_on_which_strategies_differ_most_are_painted_once(trained):
    study = read_study(trained)
    findings = find(trained, study, current_results(study, trained), 50)
    choice = choose(findings)
    assert list(choice.runs) == ["short", "long"]
    spread = [findings.figures.arms[name, 4].images[0] for name in ("short", "long")]
    gaps = abs(spread[0] - spread[1])
    assert choice.places[0] == gaps.argmax()
    found = write_examples(trained, findings)
    assert [name for name, _ in found["classes"]] == ["ground", "square", "disc"]
    files = [mask["file"] for one in found["images"] for mask in one["masks"]]
    assert len(files) == 2 * len(choice.places)
    before = {path: (trained / path).stat().st_mtime_ns for path in files}
    assert write_examples(trained, findings) == json.loads((trained / "pictures/examples/examples.json").read_text())
    assert before == {path: (trained / path).stat().st_mtime_ns for path in files}
    page = write_page(trained).read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4 * len(choice.places)


def test_pictures_that_cannot_be_made_are_said_to_be_missing(make_study):
    made = make_study({"plain": 0.60, "good": 0.66})
    found = write_examples(made.folder, made.findings())
    assert found["missing"].startswith("There are no pictures: ")
    alone = make_study({"plain": 0.60}, "alone")
    assert "No two strategies" in write_examples(alone.folder, alone.findings())["missing"]
    assert "No pictures were asked for" in words(write_page(made.folder, pictures=False))
