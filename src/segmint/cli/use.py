"""Commands that put a trained run to use: predict, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segmint.cli.app import RayOption, RunArgument, WorkersOption, app, console, errors, plain
from segmint.cli.options import changes_of
from segmint.types import SegmintError


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model that export wrote.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, videos, camera:0, addresses, or -.", show_default=False),
    ],
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run of an ensemble; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else RUN/predictions.")] = None,
    save: Annotated[
        str,
        typer.Option(help="Of masks, overlays, probabilities, uncertainty, aleatoric, epistemic, errors."),
    ] = "masks,overlays",
    draws: Annotated[
        int | None, typer.Option(help="Draws of masks per image; else 16 where they differ.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    mirror: Annotated[bool, typer.Option("--mirror", help="Look at the mirror image, too: twice the work.")] = False,
    tile: Annotated[
        int | None, typer.Option(help="Segment at the image's own size in tiles of so many pixels.", show_default=False)
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Of tiles; else a quarter of them.", show_default=False)] = None,
    scale: Annotated[
        float | None, typer.Option(help="With --tile: show the image so many times as large.", show_default=False)
    ] = None,
    smooth: Annotated[bool, typer.Option(help="Smooth videos along the motion.")] = True,
    frames: Annotated[
        int | None, typer.Option(help="At most so many frames of a video.", min=1, show_default=False)
    ] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
) -> None:
    """Segment images and videos: masks, overlays, areas. Called again, it goes on where it was stopped."""
    from rich.progress import Progress

    from segmint.inference.batch import predict_folder

    runs = [run, *(with_ or [])]
    tiling = _tiling(tile, overlap, scale)
    chosen: dict[str, Any] = {"draws": draws, "seed": seed, "mirror": mirror, "tiling": tiling}
    chosen |= {"workers": workers, "ray": ray}
    if out is None and inputs == ["-"]:
        _to_standard_output(runs, **chosen)
        return
    chosen |= {"save": _words(save), "most": frames}
    if not smooth:
        chosen["memory"] = 0.0
    folder = out or (run / "predictions" if run.is_dir() else run.with_name(f"{run.stem}-predictions"))
    with Progress(console=errors, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total or None)

        found = predict_folder(runs, inputs, folder, progress=tell, **chosen)
    for _, why in found.failed:
        errors.print(f"[bold red]left out:[/] {plain(why)}", highlight=False, soft_wrap=True)
    skipped = f", {found.skipped} there before" if found.skipped else ""
    left = f", {len(found.failed)} left out" if found.failed else ""
    console.print(f"{found.done} segmented{skipped}{left}: {plain(str(folder))}", highlight=False, soft_wrap=True)
    if found.failed:
        raise typer.Exit(1)


def _tiling(tile: int | None, overlap: int | None, scale: float | None) -> Any:
    """The `Tiling` that is asked for; None for images segmented whole."""
    from segmint.inference.tiles import Tiling

    if tile is None:
        if overlap is not None or scale is not None:
            raise SegmintError("--overlap, --scale: are for images segmented in tiles; give --tile 512 as well")
        return None
    return Tiling(tile, tile // 4 // 32 * 32 if overlap is None else overlap, 1.0 if scale is None else scale)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _to_standard_output(runs: list[Path], **chosen: Any) -> None:
    """The mask of an image from standard input, as PNG."""
    import tempfile

    from segmint.inference.batch import predict_folder

    with tempfile.TemporaryDirectory() as folder:
        found = predict_folder(runs, "-", folder, save=["masks"], **chosen)
        for _, why in found.failed:
            raise SegmintError(why)
        sys.stdout.buffer.write((Path(folder) / "masks" / "stdin.png").read_bytes())
        sys.stdout.buffer.flush()


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="File to write; else model.onnx or model.xml in RUN, -int8 with --int8.")
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="segment, generate or paint; else the first that the method can.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, for segmenters.")] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Data to calibrate --int8 with; else the run's.")] = None,
    points: Annotated[float, typer.Option(help="Points of mean IoU that --int8 may cost.", min=0.0)] = 0.5,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the method, e.g. steps=4; may be repeated.")
    ] = None,
) -> None:
    """Write a run as a model file that runs without torch; it is compared with the run first."""
    from segmint.inference.export import export as write
    from segmint.training.run import Run

    changed = Run(run, changes=changes_of(set_ or []))
    with console.status("exporting and comparing"):
        made = write(changed, to, out=out, job=job, int8=int8, calibrate=calibrate, points=points)
    console.print(str(made.parity), highlight=False, soft_wrap=True)
    console.print(f"{made.path} ({made.megabytes:.1f} MB, {made.precision})", highlight=False, soft_wrap=True)
