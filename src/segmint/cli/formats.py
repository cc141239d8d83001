"""The command for other programs' data sets: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segmint.cli.app import advance, app, console, plain


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A data set's folder, or its file of annotations.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="cityscapes, coco, cvat, label_studio, labelme, mmseg, nnunet, segmint, voc, yolo; auto finds out.",
        ),
    ] = "auto",
    to: Annotated[
        str, typer.Option(help="The same names; segmint is a data folder for the other commands.")
    ] = "segmint",
    images: Annotated[
        list[Path] | None, typer.Option(help="Where images lie, if not in SOURCE; may be repeated.")
    ] = None,
    unannotated: Annotated[
        str, typer.Option(help="Pixels that no object covers: background, or ignore (unknown).")
    ] = "background",
    empty: Annotated[
        str | None, typer.Option(help="Images without objects: background or unlabelled; else as the format has it.")
    ] = None,
    overlap: Annotated[
        str, typer.Option(help="Which of two objects is on top: later (in the file) or smaller.")
    ] = "later",
    shapes: Annotated[
        str | None, typer.Option(help="Write objects as polygons or masks; else as suits the format.")
    ] = None,
    rater: Annotated[
        int | None, typer.Option(help="Which of several raters' masks to write; else the majority.")
    ] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Generated pairs to add to train; may be repeated.")
    ] = None,
) -> None:
    """Convert another program's data set to a data folder, or a data folder to another format."""
    from rich.progress import Progress

    from segmint.data.convert import Reading, Writing
    from segmint.data.convert import convert as translate

    chosen: dict[str, Any] = {"unannotated": unannotated, "empty": empty, "overlap": overlap}
    reading = Reading(images=tuple(images or ()), **chosen)
    kind: Any = shapes
    writing = Writing(shapes=kind, rater=rater, synthetic=tuple(synthetic or ()))
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("converting", total=None)
        done = translate(
            source,
            out,
            source_format=from_,
            target_format=to,
            reading=reading,
            writing=writing,
            progress=lambda count, total: advance(bar, task, count, total),
        )
    for note in done.notes:
        console.print(f"note: {plain(note)}", highlight=False, soft_wrap=True)
    console.print(f"{done.source_format} to {done.target_format}: {out}", highlight=False, soft_wrap=True)
