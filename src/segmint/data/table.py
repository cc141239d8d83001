"""The findings of `check` as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segmint.data.check import Findings

_BAR = 14


def render(found: Findings) -> RenderableType:
    """Counts per split, sizes, class shares with bars, then what is odd and what is wrong."""
    parts: list[RenderableType] = [Text(str(found.root), style="bold")]
    if found.counts:
        parts += [_counts(found), _facts(found)]
    if found.shares:
        parts.append(_shares(found))
    parts += [Text.assemble(("odd  ", "yellow"), oddity) for oddity in found.oddities]
    parts += [Text.assemble(("wrong  ", "bold red"), problem) for problem in found.problems]
    number = len(found.problems)
    parts.append(
        Text(f"{number:,} problem{'s' * (number > 1)}", style="bold red")
        if number
        else Text("no problems", style="bold green")
    )
    return Group(*parts)


def _counts(found: Findings) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("split")
    for column in ("images", "labelled", "unlabelled", "groups"):
        table.add_column(column, justify="right")
    for name, counts in found.counts.items():
        style = "bold" if name == "all" else ""
        table.add_row(name, *(f"{value:,}" for value in counts.values()), style=style)
    return table


def _facts(found: Findings) -> Text:
    sizes = [f"{width} x {height} ({count:,})" for (height, width), count in found.sizes.most_common(3)]
    if len(found.sizes) > 3:
        sizes.append(f"{len(found.sizes) - 3:,} more")
    kinds = " and ".join({1: "grey", 3: "colour"}[channels] for channels in sorted(found.channels))
    raters = ", ".join(f"{number} ({count:,} images)" for number, count in sorted(found.raters.items()))
    lines = [
        "",
        f"sizes    {', '.join(sizes) or 'none'}, width x height",
        f"colours  {kinds or 'none'}",
        f"raters   {raters or 'none'}",
    ]
    if set(found.counts) == {"all"}:
        lines.append("splits   none yet; made by group when first needed")
    return Text("\n".join([*lines, ""]))


def _shares(found: Findings) -> Table:
    """One row per class: its colour, id and name, a bar, and its share in all and in each split's labels."""
    assert found.classes is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("share of labelled pixels", min_width=_BAR)
    table.add_column("", justify="right")
    for name in found.split_shares:
        table.add_column(name, justify="right", style="dim")
    largest = max(found.shares) or 1.0
    for index, (name, share) in enumerate(zip(found.classes.names, found.shares, strict=True)):
        color = "rgb({},{},{})".format(*found.classes.colors[index])
        others = [f"{shares[index]:.2%}" for shares in found.split_shares.values()]
        bar = Text(_bar(share / largest), style="cyan")
        table.add_row(
            Text("██", style=color), str(found.classes.ids[index]), escape(name), bar, f"{share:.2%}", *others
        )
    table.add_row("")
    return table


def _bar(share: float) -> str:
    """Eighths of blocks; anything above nothing shows at least a sliver."""
    eighths = round(share * _BAR * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
