"""The command line: thin, and everything heavy is imported when a command needs it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segmint.options import changes_of, keep_of, settings_of, size_of
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
PairsArgument = Annotated[Path, typer.Argument(help="A folder of generated pairs.", show_default=False)]
ByOption = Annotated[str, typer.Option(help="What ranks the pairs: agreement, usefulness or none.")]


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
    resume: Annotated[Path | None, typer.Option(help="Continue this run.")] = None,
) -> None:
    """Train a method, or continue an interrupted run."""
    from segmint.training import run as runs
    from segmint.training.progress import TrainingBar

    if resume is not None:
        given = (data, budget, masks_from, masks_confidence, init, size, steps, minutes, synthetic, out, set_, config)
        if any(value is not None for value in given) or method != "supervised" or seed:
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
        folder = out if out is not None else runs.next_folder(method)
        with TrainingBar(console, str(folder)) as bar:
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
                out=folder,
                minutes=minutes,
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
    count: Annotated[
        int | None, typer.Option(help="How many pairs (else 100), or sequences with --frames (else 4).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else RUN/generated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the whole set.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    masks: Annotated[Path | None, typer.Option(help="Data folder whose masks are painted.")] = None,
    mix: Annotated[
        str | None, typer.Option(help="Masks to paint, e.g. real=1,predicted=1,varied=2,drawn=1.", show_default=False)
    ] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Run that predicts masks, and judges for --keep.")] = None,
    mask_generator: Annotated[Path | None, typer.Option(help="Run whose generated masks are painted.")] = None,
    repaint: Annotated[bool, typer.Option("--repaint", help="Paint over the photographs of the masks.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the method, e.g. steps=50; may be repeated.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Make sequences of so many frames; RUN/sequences.")] = None,
    split: Annotated[str | None, typer.Option(help="With --frames: only sequences of this split of --masks.")] = None,
    speed: Annotated[float, typer.Option(help="With --frames: how far the noise walks per frame.")] = 1 / 16,
    independent: Annotated[
        bool, typer.Option("--independent", help="With --frames: also frames of fresh noise, to compare flicker with.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="With --frames: write videos/*.mp4 too.")] = False,
    fps: Annotated[int, typer.Option(help="Frames a second of the videos.", min=1)] = 12,
    keep: Annotated[str | None, typer.Option(help="Share or count of pairs that --segmenter keeps.")] = None,
    by: ByOption = "agreement",
) -> None:
    """Make image-and-mask pairs: a data folder with a manifest. Called again, it goes on where it was stopped."""
    from rich.progress import Progress

    from segmint.inference.generate import generate as make
    from segmint.training.run import Run

    changed = Run(run, changes=changes_of(set_ or []))
    if frames is not None:
        if mix or segmenter or mask_generator or repaint or keep:
            raise SegmintError(
                "--frames: paints sequences of masks (--masks DATA) or makes its own; leave --mix, --segmenter, "
                "--mask-generator, --repaint and --keep out"
            )
        asked: dict[str, Any] = {"count": 4 if count is None else count, "frames": frames, "masks": masks}
        asked |= {"split": split, "speed": speed, "seed": seed, "workers": workers}
        _generate_sequences(changed, out or run / "sequences", independent, fps if video else 0, **asked)
        return
    if split or independent or video:
        raise SegmintError("--split, --independent, --video: are for sequences; give --frames N as well")
    if keep is not None and segmenter is None:
        raise SegmintError("--keep: needs --segmenter RUN, a run trained on real masks, to judge the pairs")
    count = 100 if count is None else count
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("generating", total=count)
        data = make(
            changed,
            count=count,
            out=out,
            seed=seed,
            workers=workers,
            masks=masks,
            mix=mix,
            segmenter=None if keep and "predicted" not in (mix or "") else segmenter,
            mask_generator=mask_generator,
            repaint=repaint,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    console.print(f"{len(data)} pairs in {data.root}", highlight=False, soft_wrap=True)
    if keep and segmenter:
        assay(data.root, segmenter, keep=keep, by=by)
    _describe_pairs(run, data.root)


def _generate_sequences(run: Any, folder: Path, independent: bool, fps: int, **asked: Any) -> None:
    """Make sequences, and the same with independent frames; then say how much they flicker."""
    from rich.progress import Progress

    from segmint.data.video import require_video
    from segmint.evaluation.sequences import INDEPENDENT, measure_sequences, summary
    from segmint.inference.sequences import generate_sequences, write_videos

    if fps:
        require_video()
    with Progress(console=console, transient=True) as bar:
        for place in [folder, folder / INDEPENDENT] if independent else [folder]:
            task = bar.add_task("independent frames" if place != folder else "sequences", total=asked["count"])
            told = partial(_advance, bar, task)
            generate_sequences(run, out=place, independent=place != folder, progress=told, **asked)
        if fps:
            write_videos(folder, fps, partial(_advance, bar, bar.add_task("videos")))
    for line in summary(measure_sequences(folder)):
        console.print(_plain(line), highlight=False, soft_wrap=True)
    console.print(f"frames in {folder}, side by side in {folder / 'pictures' / 'strip.png'}", soft_wrap=True)


def _advance(bar: Any, task: Any, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _describe_pairs(run: Path, folder: Path) -> None:
    """Compare a generated folder with what its run learnt from, where that is still there."""
    from segmint.data.folder import open_folder
    from segmint.evaluation.pairs import describe_pairs, embedder
    from segmint.training.run import Run

    made = Run(run)
    if len(open_folder(folder)) < 2:
        return
    if not Path(made.settings.data).is_dir():
        console.print(f"note: {made.settings.data} is gone, so the pairs were not compared with the real images")
        return
    real = open_folder(made.settings.data)
    embed = embedder(made.method.config["in_channels"])
    facts = describe_pairs(folder, real, size=made.size, indices=real.split("train"), embed=embed)
    console.print(
        f"diversity {facts['diversity']:.2f} of the real images'; nearest real neighbour at "
        f"{facts['nearest_ratio']:.2f} of the real-to-real distance; pictures in {folder / 'pictures'}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def assay(
    pairs: PairsArgument,
    segmenter: Annotated[Path, typer.Option(help="Run trained on real masks, which judges.", show_default=False)],
    keep: Annotated[str, typer.Option(help="Share (0.5) or count (200) of pairs to keep, or all.")] = "0.5",
    by: ByOption = "agreement",
    validation: Annotated[str, typer.Option(help="For usefulness: (half of) a split, or a file.")] = "val-half0",
    confident: Annotated[float, typer.Option(help="Ignore pixels surer than this to be of another class.")] = 0.8,
    copies: Annotated[bool, typer.Option("--copies", help="Let suspected copies of real images pass.")] = False,
    data: Annotated[Path | None, typer.Option(help="The real data; else the segmenter's.")] = None,
) -> None:
    """Score generated pairs, keep the best, ignore doubtful pixels; starts from all pairs each time."""
    from rich.progress import Progress

    from segmint.evaluation.assay import assay as select
    from segmint.evaluation.assay import sentence
    from segmint.evaluation.files import read_json

    chosen: dict[str, Any] = {"segmenter": segmenter, "keep": keep_of(keep), "by": by, "data": data}
    chosen |= {"confident": confident, "copies": copies}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        select(pairs, validation=validation, progress=partial(_advance, bar, task), **chosen)
    console.print(sentence(read_json(pairs / "assay.json")), highlight=False, soft_wrap=True)


@app.command()
def measure(
    pairs: PairsArgument,
    data: Annotated[Path | None, typer.Argument(help="The real data; else the run's.", show_default=False)] = None,
    segmenter: Annotated[Path | None, typer.Option(help="Run trained on real masks, to compare masks with.")] = None,
    split: Annotated[str, typer.Option(help="Real images to compare with: train, val or test.")] = "train",
) -> None:
    """Measure how real, diverse and copied generated pairs are, and how well their masks fit."""
    from segmint.evaluation.measure import as_tables, real_of
    from segmint.evaluation.measure import measure as compare_with

    entry = compare_with(pairs, data if data is not None else real_of(pairs), segmenter=segmenter, split=split)
    console.print(as_tables(entry, f"{pairs} against {entry['compared'][1]} real images of {split}"))


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Argument(help="A data folder; else the run's own.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="train, val, test, or a half, e.g. val-half1.")] = "val",
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
