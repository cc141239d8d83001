"""Commands that make pairs and judge them: generate, assay, measure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from segmint.cli.app import ByOption, PairsArgument, RayOption, RunArgument, WorkersOption, advance, app, console, plain
from segmint.cli.options import changes_of, keep_of
from segmint.types import SegmintError


@app.command()
def generate(
    run: RunArgument,
    count: Annotated[
        int | None, typer.Option(help="How many pairs (else 100), or sequences with --frames (else 4).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else RUN/generated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the whole set.")] = 0,
    workers: WorkersOption = None,
    ray: RayOption = None,
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
        asked |= {"split": split, "speed": speed, "seed": seed, "workers": workers, "ray": ray}
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
            ray=ray,
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
            told = partial(advance, bar, task)
            generate_sequences(run, out=place, independent=place != folder, progress=told, **asked)
        if fps:
            write_videos(folder, fps, partial(advance, bar, bar.add_task("videos")))
    for line in summary(measure_sequences(folder)):
        console.print(plain(line), highlight=False, soft_wrap=True)
    console.print(f"frames in {folder}, side by side in {folder / 'pictures' / 'strip.png'}", soft_wrap=True)


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
        select(pairs, validation=validation, progress=partial(advance, bar, task), **chosen)
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
