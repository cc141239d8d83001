"""Commands for data folders: check."""

from __future__ import annotations

import typer

from segmint.cli.app import DataArgument, app, console


@app.command()
def check(data: DataArgument) -> None:
    """Look through a data folder and name everything that is wrong with it."""
    from segmint.data.check import check as look

    found = look(data, progress=True)
    console.print(found.table)
    if found.problems:
        raise typer.Exit(1)
