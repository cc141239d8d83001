"""The tab that leafs through generated pairs, and keeps or drops them by hand."""

from __future__ import annotations

from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from segmint.data.io import read_header
from segmint.data.masks import read_mask
from segmint.evaluation.pictures import colorize, overlay
from segmint.evaluation.sorting import Pairs
from segmint.serve.page import parts
from segmint.types import SegmintError

ALL, KEPT, DROPPED = "all", "kept", "dropped"
AS_MADE = "as generated"

MEANINGS = {
    "miou": "mIoU: the segmenter's mask against the one drawn",
    "accuracy": "Share of pixels where the segmenter agrees",
    "ignored": "Share of pixels that the assay ignores",
    "distance": "Feature distance to the nearest real image",
    "closeness": "Closeness to real images",
    "rarity": "Rarity of its classes",
    "usefulness": "Usefulness (cosine with the validation gradient)",
}
"""What is said of the scores of `segmint.evaluation.assay`."""

Entry = dict[str, Any]


class Desk:
    """A generated folder, to be sorted. The manifest is read anew each time, as others may write it too.

    Args:
        folder: of `segmint generate`.

    Raises:
        SegmintError: there is no manifest, it names no pairs, or an image cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._turn = folder, Lock()
        first = Pairs(folder, 3)
        self.channels = read_header(first.image(first.names[0])).channels

    def open(self) -> Pairs:
        """The folder as it is now."""
        return Pairs(self.folder, self.channels)

    def decide(self, name: str, kept: bool) -> None:
        """Keep or drop a pair, in the manifest and by moving its files.

        Raises:
            SegmintError: there is no such pair, or the folder cannot be written.
        """
        with self._turn:
            self.open().decide(name, kept)


def tab(desk: Desk) -> None:
    """Build the tab, inside a Gradio context."""
    import gradio

    held = desk.open()
    start = arranged(held, ALL, AS_MADE)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=2, min_width=380):
            notice = parts.notice("pairs")
            pair = parts.html(pictures(held, start[0]), elem_id="pairs-pair")
            with gradio.Row():
                back = gradio.Button("\u2190 Back", elem_id="pairs-back", min_width=80)
                keep = gradio.Button("Keep", variant="primary", elem_id="pairs-keep", min_width=90)
                drop = gradio.Button("Drop", variant="stop", elem_id="pairs-drop", min_width=90)
                forth = gradio.Button("Next \u2192", elem_id="pairs-next", min_width=80)
            parts.html('<p class="why">Keys: k keeps, d drops, the arrows leaf. Choices are written at once.</p>')
        with gradio.Column(scale=1, min_width=280):
            shown = gradio.Radio([ALL, KEPT, DROPPED], value=ALL, label="Show", elem_id="pairs-show")
            order = gradio.Dropdown(orders(held), value=AS_MADE, label="Order", elem_id="pairs-order")
            goto = gradio.Dropdown(start, value=start[0], label="Pair", elem_id="pairs-goto")
            facts = parts.html(facts_of(held, start[0], start), elem_id="pairs-facts")

    outputs = [notice, pair, facts, goto]

    def at(name: str | None, only: str, by: str, *, step: int = 0, after: list[str] | None = None) -> dict[Any, Any]:
        """The page with the pair `step` places after `name`; `after`: the list before the last decision."""
        now = desk.open()
        names = arranged(now, only, by)
        if not names:
            return {pair: empty(only), facts: counts(now), goto: gradio.update(choices=[], value=None)}
        name = _moved(name, names, step, after)
        return {
            pair: pictures(now, name),
            facts: facts_of(now, name, names),
            goto: gradio.update(choices=names, value=name),
        }

    @parts.speaking(notice)
    def go(name: str | None, only: str, by: str) -> dict[Any, Any]:
        return at(name, only, by)

    @parts.speaking(notice)
    def go_first(_: str | None, only: str, by: str) -> dict[Any, Any]:
        return at(None, only, by)

    @parts.speaking(notice)
    def go_back(name: str | None, only: str, by: str) -> dict[Any, Any]:
        return at(name, only, by, step=-1)

    @parts.speaking(notice)
    def go_forth(name: str | None, only: str, by: str) -> dict[Any, Any]:
        return at(name, only, by, step=1)

    def deciding(kept: bool) -> Any:
        @parts.speaking(notice)
        def decide(name: str | None, only: str, by: str) -> dict[Any, Any]:
            if not name:
                raise SegmintError("there is no pair to decide on; show all of them")
            before = arranged(desk.open(), only, by)
            desk.decide(name, kept)
            return at(name, only, by, after=before)

        return decide

    told = {
        "inputs": [goto, shown, order],
        "outputs": outputs,
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_id": "pairs",
    }
    back.click(go_back, **told)
    forth.click(go_forth, **told)
    keep.click(deciding(True), **told)
    drop.click(deciding(False), **told)
    goto.input(go, **told)
    shown.input(go, **told)
    order.input(go_first, **told)


def arranged(held: Pairs, only: str, by: str) -> list[str]:
    """The names of the pairs to show, in order.

    Args:
        held: the folder.
        only: "all", "kept" or "dropped".
        by: "as generated", or one of `orders`.
    """
    chosen = [entry for entry in held.entries if only == ALL or bool(entry.get("kept", True)) == (only == KEPT)]
    key, _, way = by.partition(", ")
    if way:
        known = [entry for entry in chosen if _number(entry, key) is not None]
        known.sort(key=lambda entry: _number(entry, key) or 0.0, reverse=way.startswith("highest"))
        chosen = known + [entry for entry in chosen if _number(entry, key) is None]
    return [str(entry["name"]) for entry in chosen]


def orders(held: Pairs) -> list[str]:
    """The orders that there are scores for."""
    keys = [key for key in MEANINGS if any(_number(entry, key) is not None for entry in held.entries)]
    return [AS_MADE, *(f"{key}, {way} first" for key in keys for way in ("lowest", "highest"))]


def pictures(held: Pairs, name: str) -> str:
    """A pair: image, mask, overlay, and the mask without what an assay ignores."""
    image, drawn = held.pixels(name), held.mask(name)
    colors = held.classes.colors
    crisp = max(drawn.shape) <= 256
    shown = [
        parts.figure(parts.photo(image), "image", crisp=crisp),
        parts.figure(parts.png(colorize(drawn, colors)), "mask as drawn", crisp=crisp),
        parts.figure(parts.png(overlay(image, drawn, colors, 0.5)), "overlay", crisp=crisp),
    ]
    kept = held.ignoring(name)
    if kept is not None:
        left = colorize(read_mask(kept, held.classes), colors)
        shown.append(parts.figure(parts.png(left), "mask, ignored pixels white", crisp=crisp))
    present = [number for number in np.unique(drawn).tolist() if number < len(colors)]
    chips = " ".join(f"<span>{parts.chip(colors[k])}{escape(held.classes.names[k])}</span>" for k in present)
    return parts.figures(shown) + f'<p class="chips">{chips}</p>'


def facts_of(held: Pairs, name: str, names: list[str]) -> str:
    """What the manifest says of a pair, and how far one is."""
    entry = _entry(held, name)
    kept = bool(entry.get("kept", True))
    badge = f'<span class="badge {"kept" if kept else "dropped"}">{"kept" if kept else "dropped"}</span>'
    why = f'<p class="why">{escape(str(entry["why"]))}</p>' if entry.get("why") else ""
    rows = [(MEANINGS.get(key, key), _told(value)) for key, value in (entry.get("scores") or {}).items()]
    scores = parts.table(rows) if rows else '<p class="why">No scores yet; `segmint assay` writes them.</p>'
    made = parts.table([(key.capitalize(), str(entry[key])) for key in ("method", "seed", "mask") if key in entry])
    head = f'<p class="place"><b>{escape(name)}</b> {badge} {names.index(name) + 1} of {len(names)}</p>'
    return head + why + scores + made + counts(held)


def counts(held: Pairs) -> str:
    """How many are kept and dropped."""
    kept = sum(bool(entry.get("kept", True)) for entry in held.entries)
    return f'<p class="counts">{kept} kept, {len(held.entries) - kept} dropped, in {escape(held.folder.name)}</p>'


def empty(only: str) -> str:
    """What is shown where there is no pair to show."""
    return f'<div class="empty">No pair is {escape(only)}.</div>'


def _moved(name: str | None, names: list[str], step: int, before: list[str] | None) -> str:
    """The pair to show next; where a decision took `name` off the list, the one that followed it."""
    if name in names:
        place = names.index(name) + step
    elif before and name in before:
        place = before.index(name)
    else:
        place = 0
    return names[max(0, min(place, len(names) - 1))]


def _entry(held: Pairs, name: str) -> Entry:
    return next(entry for entry in held.entries if str(entry["name"]) == name)


def _number(entry: Entry, key: str) -> float | None:
    value = (entry.get("scores") or {}).get(key)
    return float(value) if isinstance(value, int | float) else None


def _told(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "unknown"
