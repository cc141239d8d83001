"""Commands that train: train, methods, demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from segmint.cli.app import app, console, plain
from segmint.cli.options import settings_of, size_of
from segmint.types import SegmintError

if TYPE_CHECKING:
    from segmint.training.choice import Choice
    from segmint.training.progress import TrainingBar


@app.command()
def train(
    data: Annotated[Path | None, typer.Argument(help="A data folder (not with --resume).", show_default=False)] = None,
    method: Annotated[
        str | None, typer.Option(help="See `segmint methods`; without it the one that suits the data is picked.")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="How many training images keep their masks; 0: none.")] = None,
    masks_from: Annotated[
        Path | None, typer.Option(help="Run whose segmenter predicts masks for the images without.")
    ] = None,
    masks_confidence: Annotated[
        float | None, typer.Option(help="Its predictions count from this probability on; else 0.7.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Run whose weights this one starts from, where they fit.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses them, and everything random.")] = 0,
    size: Annotated[str | None, typer.Option(help="Height x width to train at, e.g. 96x128.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="As many steps as fit into this time here.", min=0.1)] = None,
    synthetic: Annotated[list[Path] | None, typer.Option(help="Generated pairs to train on as well.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; else the next of runs/1-METHOD, ...")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the method, or training.KEY=VALUE; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with `training:` and `method_settings:`.")] = None,
    like: Annotated[Path | None, typer.Option(help="Train what this study recommends, on all labels.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run.")] = None,
) -> None:
    """Train a method, or continue an interrupted run."""
    if like is not None:
        others = (method, budget, masks_from, masks_confidence, init, size, minutes, synthetic, set_, config, resume)
        if data is None or any(value is not None for value in others):
            raise SegmintError("--like: needs DATA, and takes all but --seed, --steps and --out from the study")
        _train_like(like, data, out, seed, steps)
        return
    from segmint.ranks import rank
    from segmint.training import run as runs
    from segmint.training.parallel import join
    from segmint.training.progress import TrainingBar

    join()
    console.quiet = rank() > 0
    if resume is not None:
        given = (data, method, budget, masks_from, masks_confidence, init, size, steps, minutes, synthetic, out, set_)
        if any(value is not None for value in (*given, config)) or seed:
            raise SegmintError("--resume: takes its data and settings from the run; leave DATA and the others out")
        with TrainingBar(console, str(resume)) as bar:
            made = runs.resume(resume, watcher=bar)
    else:
        if data is None:
            raise SegmintError("DATA: name a data folder, or continue a run with --resume RUN")
        chosen, training = settings_of(set_ or [], config)
        if steps is not None and minutes is not None:
            raise SegmintError("--minutes: decides on the steps itself; leave --steps out")
        if steps is not None:
            training["steps"] = steps
        with TrainingBar(console, "training") as bar:
            made = runs.train(
                data,
                method=method,
                synthetic=[str(path) for path in synthetic or []],
                budget=budget,
                masks_from=masks_from,
                masks_confidence=0.7 if masks_confidence is None else masks_confidence,
                init=init,
                seed=seed,
                size=size_of(size),
                out=out,
                minutes=minutes,
                settings=training,
                watcher=bar,
                begins=partial(_announce, bar),
                **chosen,
            )
    _tell(made.folder, made.choice.notes if made.choice is not None else ())


def _train_like(study: Path, data: Path, out: Path | None, seed: int, steps: int | None) -> None:
    """Train what a study recommends."""
    from segmint.study.like import recommended, train_like
    from segmint.training.run import new_folder

    name, doubt = recommended(study)
    folder = out if out is not None else new_folder(name)
    console.print(f"{plain(str(study))} recommends [bold]{plain(name)}[/]", highlight=False, soft_wrap=True)
    if doubt:
        console.print(f"that is no finding yet: {plain(doubt)}", highlight=False, soft_wrap=True)
    if not train_like(study, data, folder, seed=seed, steps=steps, console=console):
        again = f"segmint train {data} --like {study} --seed {seed} --out {folder}"
        again += "" if steps is None else f" --steps {steps}"
        console.print(f"everything is saved; go on with: {plain(again)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    _tell(folder)


def _announce(bar: TrainingBar, folder: Path, choice: Choice | None) -> None:
    """Say where it is trained and which strategy was picked, before it is trained."""
    bar.title = str(folder)
    if choice is None:
        return
    console.print(f"picked [bold]{choice.title}[/] ({plain(str(folder))}): {plain(choice.reason)}", soft_wrap=True)
    console.print(f"for {plain(choice.seen)}", highlight=False, soft_wrap=True)
    console.print("also considered (--method NAME decides otherwise):", highlight=False)
    for names, why in choice.others.items():
        console.print(f"  {names}: {plain(why)}", highlight=False, soft_wrap=True)


def _tell(folder: Path, known: Collection[str] = ()) -> None:
    """Say how a training ended and what to do next; notes that are known already are left out."""
    from segmint.config import read_run
    from segmint.training.run import PREPARED

    for note in read_run(folder).notes:
        if note not in known:
            console.print(f"note: {plain(note)}", highlight=False, soft_wrap=True)
    for part in (folder / PREPARED, folder):
        if (part / "summary.json").exists():
            summary = json.loads((part / "summary.json").read_text(encoding="utf-8"))
            console.print(_ended(part, summary), highlight=False, soft_wrap=True)
    if summary["status"] == "interrupted":
        start = "segmint" if summary["processes"] == 1 else "torchrun ... -m segmint"
        console.print(f"everything is saved; go on with: {start} train --resume {folder}", soft_wrap=True)
        raise typer.Exit(130)


def _ended(folder: Path, summary: Mapping[str, Any]) -> str:
    best = "" if summary["best"] is None else f", best {summary['best']:.4g} at step {summary['best_step']}"
    return (
        f"{folder}: {summary['status']} after {summary['steps']} steps, {summary['seconds']:.0f} s, "
        f"{summary['images_per_second']:.1f} images/s ({summary['precision']}){best}"
    )


@app.command()
def methods() -> None:
    """List the methods and what they can do."""
    from segmint.methods.method import find, names

    table = Table("method", "does", "uses unlabelled", "what")
    for name in names():
        cls = find(name)
        able = cls.capabilities()
        told = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]
        facts = {"segments": "segment" in able, "generates": "generate" in able, "prepares others": cls.prepares}
        jobs = ", ".join(job for job, fact in facts.items() if fact)
        table.add_row(name, jobs, "yes" if cls.uses_unlabelled else "", told)
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Optimisation steps of each segmenter.", min=1)] = 150,
) -> None:
    """The whole way from a folder to an answer, on data that comes with no download."""
    from segmint.demo import run_demo

    console.print(f"report: {run_demo(out, steps, console).resolve()}", highlight=False, soft_wrap=True)
