"""The command line: thin, and everything heavy is imported when a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from segmint.types import SegmintError

app = typer.Typer(
    name="segmint",
    help="Semantic segmentation from few masks, with deep generative models and honest comparisons.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

RunArgument = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
DataArgument = Annotated[Path, typer.Argument(help="A data folder: images/, masks/, classes.yaml.", show_default=False)]


def main() -> None:
    """Run the command line; a user's mistake gives one message and exit code 2, never a traceback."""
    try:
        app()
    except SegmintError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[bold red]error:[/] {_plain(where + (error.strerror or str(error)))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


@app.command()
def check(data: DataArgument) -> None:
    """Look through a data folder and name everything that is wrong with it."""
    from segmint.data.check import check as look

    found = look(data, progress=True)
    console.print(found.table)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def train(
    data: Annotated[Path | None, typer.Argument(help="A data folder (not with --resume).", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="See `segmint methods`.")] = "supervised",
    budget: Annotated[int | None, typer.Option(help="How many training images keep their masks.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses them, and everything random.")] = 0,
    size: Annotated[str | None, typer.Option(help="Height x width to train at, e.g. 96x128.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps.")] = None,
    synthetic: Annotated[list[Path] | None, typer.Option(help="Generated pairs to train on as well.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; else the next of runs/1-METHOD, ...")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the method, or training.KEY=VALUE; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with `training:` and `method_settings:`.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run.")] = None,
) -> None:
    """Train a method, or continue an interrupted run."""
    from segmint.training import run as runs
    from segmint.training.progress import TrainingBar

    if resume is not None:
        given = (data, budget, size, steps, synthetic, out, set_, config)
        if any(value is not None for value in given) or method != "supervised" or seed:
            raise SegmintError("--resume: takes its data and settings from the run; leave DATA and the others out")
        with TrainingBar(console, str(resume)) as bar:
            made = runs.resume(resume, watcher=bar)
    else:
        if data is None:
            raise SegmintError("DATA: name a data folder, or continue a run with --resume RUN")
        chosen, training = _settings(set_ or [], config)
        if steps is not None:
            training["steps"] = steps
        folder = out if out is not None else runs.next_folder(method)
        with TrainingBar(console, str(folder)) as bar:
            made = runs.train(
                data,
                method=method,
                synthetic=[str(path) for path in synthetic or []],
                budget=budget,
                seed=seed,
                size=_size(size),
                out=folder,
                settings=training,
                watcher=bar,
                **chosen,
            )
    _tell(made.folder)


def _tell(folder: Path) -> None:
    """Say how a training ended and what to do next."""
    from segmint.config import read_run

    for note in read_run(folder).notes:
        console.print(f"note: {_plain(note)}", highlight=False, soft_wrap=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    best = "" if summary["best"] is None else f", best {summary['best']:.4g} at step {summary['best_step']}"
    console.print(
        f"{folder}: {summary['status']} after {summary['steps']} steps, {summary['seconds']:.0f} s, "
        f"{summary['images_per_second']:.1f} images/s ({summary['precision']}){best}",
        highlight=False,
        soft_wrap=True,
    )
    if summary["status"] == "interrupted":
        console.print(f"everything is saved; go on with: segmint train --resume {folder}", soft_wrap=True)
        raise typer.Exit(130)


@app.command()
def generate(
    run: RunArgument,
    count: Annotated[int, typer.Option(help="How many pairs.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else RUN/generated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the whole set.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
) -> None:
    """Make image-and-mask pairs: a data folder with a manifest. Called again, it goes on where it was stopped."""
    from rich.progress import Progress

    from segmint.inference.generate import generate as make

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("generating", total=count)
        data = make(
            run,
            count=count,
            out=out,
            seed=seed,
            workers=workers,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    console.print(f"{len(data)} pairs in {data.root}", highlight=False, soft_wrap=True)
    _describe_pairs(run, data.root)


def _describe_pairs(run: Path, folder: Path) -> None:
    """Compare a generated folder with what its run learnt from, where that is still there."""
    from segmint.data.folder import open_folder
    from segmint.evaluation.pairs import describe_pairs
    from segmint.nets.encoders import EfficientNetLite0
    from segmint.training.run import Run

    made = Run(run)
    if len(open_folder(folder)) < 2:
        return
    if not Path(made.settings.data).is_dir():
        console.print(f"note: {made.settings.data} is gone, so the pairs were not compared with the real images")
        return
    real = open_folder(made.settings.data)
    embed = EfficientNetLite0(made.method.config["in_channels"], head=True).eval().embed
    facts = describe_pairs(folder, real, size=made.size, indices=real.split("train"), embed=embed)
    console.print(
        f"diversity {facts['diversity']:.2f} of the real images'; nearest real neighbour at "
        f"{facts['nearest_ratio']:.2f} of the real-to-real distance; pictures in {folder / 'pictures'}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Argument(help="A data folder; else the run's own.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    draws: Annotated[int, typer.Option(help="Draws of masks per image.", min=1)] = 1,
) -> None:
    """Score a trained segmenter: mIoU and others, with intervals; writes metrics.json and a picture grid."""
    from segmint.config import read_run
    from segmint.evaluation.evaluate import evaluate as score

    entry = score(run, data if data is not None else Path(read_run(run).data), split, draws=draws)
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
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json.")] = None,
) -> None:
    """Say which runs are better or worse than a baseline, over the same images, with intervals."""
    from segmint.evaluation.compare import compare as weigh

    found = weigh(baseline, others, split, folder=out)
    for other in found["others"]:
        console.print(f"[bold]{_plain(other['sentence'])}[/]", highlight=False, soft_wrap=True)
    for note in found["notes"]:
        console.print(f"note: {_plain(note)}", highlight=False, soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run, or a folder of runs.", show_default=False)]) -> None:
    """Write report.html, one file that needs nothing else."""
    from segmint.evaluation.report import write_report

    console.print(f"report: {write_report(folder).resolve()}", highlight=False, soft_wrap=True)


@app.command()
def methods() -> None:
    """List the methods and what they can do."""
    from segmint.methods.method import find, names

    table = Table("method", "segments", "generates", "uses unlabelled", "what")
    for name in names():
        cls = find(name)
        able = cls.capabilities()
        told = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0]
        marks = ["yes" if fact else "" for fact in ("segment" in able, "generate" in able, cls.uses_unlabelled)]
        table.add_row(name, *marks, told)
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Optimisation steps of each segmenter.", min=1)] = 150,
) -> None:
    """The whole way from a folder to an answer, on data that comes with no download."""
    from segmint.demo import run_demo

    console.print(f"report: {run_demo(out, steps, console).resolve()}", highlight=False, soft_wrap=True)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise SegmintError(f"--size: must be height x width, e.g. 96x128, not {text!r}") from error
    return height, width


def _settings(pairs: list[str], path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the method and of the training, from a file and then from KEY=VALUE."""
    from segmint.config import read_yaml

    stored = read_yaml(path) if path is not None else {}
    for key in stored:
        if key not in ("training", "method_settings"):
            raise SegmintError(f"{path}: {key}: there is no such key; a file has `training:` and `method_settings:`")
    chosen, training = dict(stored.get("method_settings") or {}), dict(stored.get("training") or {})
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise SegmintError(f"--set {pair}: must be KEY=VALUE")
        if key.startswith("training."):
            _put(training, key.removeprefix("training."), _value(text))
        else:
            _put(chosen, key, _value(text))
    return chosen, training


def _put(settings: dict[str, Any], path: str, value: Any) -> None:
    key, dot, rest = path.partition(".")
    if not dot:
        settings[key] = value
        return
    inner = settings.setdefault(key, {})
    if not isinstance(inner, dict):
        inner = settings[key] = {"preset": inner}
    _put(inner, rest, value)


def _value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SegmintError(f"--set: {text!r} is not a value; write it as in YAML") from error
