"""What the commands share: the application, the consoles, and arguments that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes; else 1, with --ray local one a processor.", min=1, show_default=False)
]
RayOption = Annotated[
    str | None,
    typer.Option(help="Address of a Ray cluster that shares the folders; local: one here.", show_default=False),
]


def plain(text: str) -> str:
    """Text as it is, none of it taken for markup."""
    return text.replace("[", r"\[")


def advance(bar: Any, task: Any, done: int, total: int) -> None:
    """Tell a progress bar how far its task is."""
    bar.update(task, completed=done, total=total)
