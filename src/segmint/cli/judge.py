"""Commands that score and compare: evaluate, compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from segmint.cli.app import RunArgument, app, console, plain


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Argument(help="A data folder; else the run's own.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or a half, e.g. val-half1.")] = "val",
    draws: Annotated[
        int | None, typer.Option(help="Draws of masks per image; else 16 where they differ.", min=1, show_default=False)
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Look at the mirror images, too.")] = False,
) -> None:
    """Score a trained segmenter: mIoU and others, with intervals; writes metrics.json and a picture grid."""
    from segmint.config import read_run
    from segmint.evaluation.evaluate import evaluate as score

    entry = score(run, data if data is not None else Path(read_run(run).data), split, draws=draws, mirror=mirror)
    table = Table(title=f"{run} on {split} ({entry['images']} images)", title_justify="left")
    for name in ("measure", "value", "95% interval"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, cell in entry.items():
        if not (isinstance(cell, dict) and "low" in cell):
            continue
        table.add_row(name, f"{cell['value']:.4f}", f"{cell['low']:.4f} .. {cell['high']:.4f}")
    console.print(table)


@app.command()
def compare(
    baseline: RunArgument,
    others: Annotated[list[Path], typer.Argument(help="Runs to compare with it.", show_default=False)],
    split: Annotated[str, typer.Option(help="Which metrics to compare.")] = "val",
    by: Annotated[str, typer.Option(help="The measure that the verdict is about, e.g. dice or ged.")] = "miou",
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json.")] = None,
) -> None:
    """Say which runs are better or worse than a baseline, over the same images, with intervals."""
    from segmint.evaluation.compare import compare as weigh

    found = weigh(baseline, others, split, by=by, folder=out)
    for other in found["others"]:
        console.print(f"[bold]{plain(other['sentence'])}[/]", highlight=False, soft_wrap=True)
    for note in found["notes"]:
        console.print(f"note: {plain(note)}", highlight=False, soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run, a folder of runs, or a study.", show_default=False)],
) -> None:
    """Write report.html, one file that needs nothing else. Of a study, running or done, its answer and tables, too."""
    from segmint.study.page import report as write

    console.print(f"report: {write(folder).resolve()}", highlight=False, soft_wrap=True)
