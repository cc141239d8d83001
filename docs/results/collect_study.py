"""Keep what a study found: its settings, trials, tables, answer and charts; no weights, no image of the data.

python docs/results/collect_study.py FOLDER [FOLDER ...]
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

import segmint
from segmint.study import charts
from segmint.study.findings import find
from segmint.study.outcomes import current_results
from segmint.study.plan import FILE, read_study
from segmint.study.results import Result

HERE = Path(__file__).parent
KEPT = ("summary.csv", "trials.csv")


def collect(folder: Path) -> None:
    segmint.report(folder)
    study = read_study(folder)
    target = HERE / "studies" / folder.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    text = (folder / FILE).read_text(encoding="utf-8")
    (target / FILE).write_text(re.sub(r"(?m)^data: .*$", f"data: {Path(study.data).name}", text), encoding="utf-8")
    for name in KEPT:
        (target / name).write_bytes((folder / name).read_bytes())
    results = current_results(study, folder)
    (target / "results.jsonl").write_text("".join(_line(one) for one in results), encoding="utf-8")
    answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    told = {key: answer[key] for key in ("headline", "details", "cautions", "finished")} | {"metric": study.metric}
    (target / "answer.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    findings = find(folder, study, results)
    if len({row.labels for row in findings.rows if row.level is not None}) > 1:
        (target / "labels.svg").write_bytes(charts.label_chart(findings))
    for budget in findings.budgets:
        if any(row.comparison is not None for row in findings.rows if row.budget == budget):
            (target / f"gains-{budget or 'all'}.svg").write_bytes(charts.gain_chart(findings, budget))
        if study.preset == "overfitting":
            (target / f"training-{budget or 'all'}.svg").write_bytes(charts.training_chart(findings, budget))
    Console().print(f"{target}: {len(results)} trials", highlight=False)


def _line(result: Result) -> str:
    """A trial without what only its own folder has."""
    return json.dumps({key: value for key, value in asdict(result).items() if key not in ("images", "key")}) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        collect(Path(name))
