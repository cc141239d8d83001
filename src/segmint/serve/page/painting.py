"""The tab that paints: draw a mask with class brushes, and a generator paints the photograph for it."""

from __future__ import annotations

import random
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from segmint.data.classes import Classes
from segmint.data.folder import open_folder
from segmint.data.io import IMAGE_SUFFIXES, Bytes
from segmint.data.masks import read_mask
from segmint.serve.limits import naming, read_uploaded_image
from segmint.serve.models import Model, Models
from segmint.serve.page import parts
from segmint.serve.settings import Settings
from segmint.types import IGNORE, SegmintError

VARIANTS = 8
"""Pictures painted for a mask at most."""

LARGEST_SEED = 2**31 - 1
HERE = Path(__file__).parent
BOARD = (HERE / "board.html").read_text(encoding="utf-8")
BRUSH = (HERE / "board.js").read_text(encoding="utf-8")
BLANK = '<div class="empty">Draw on the left; the photograph is painted here.</div>'


class DataMasks:
    """The masks of a data folder, to paint from.

    Args:
        folder: the data folder.

    Raises:
        SegmintError: it is none, or has no masks.
    """

    def __init__(self, folder: Path) -> None:
        self.data = open_folder(folder)
        if not self.names:
            raise SegmintError(f"{folder}: no image has a mask, so there is none to paint from; name another")

    @cached_property
    def names(self) -> dict[str, Path]:
        """Item names and their (first) masks."""
        return {item.name: item.masks[0] for item in self.data.items if item.masks}

    def read(self, name: str, classes: Classes) -> Bytes:
        """A mask, uint8 [H, W] of class indices.

        Raises:
            SegmintError: there is no such item, or its classes are not those of the model.
        """
        if name not in self.names:
            raise SegmintError(f"the data have no mask called {name[:80]!r}; choose one of the list")
        if not self.data.classes.same_as(classes):
            raise SegmintError("the classes of these data are not those of the model; choose another model")
        return read_mask(self.names[name], self.data.classes)


def tab(models: Models, settings: Settings, data: DataMasks | None) -> None:
    """Build the tab, inside a Gradio context."""
    import gradio

    names = models.able("paint")
    first = models[names[0]]
    segmenters = models.able("segment")
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=1, min_width=340):
            model = gradio.Dropdown(list(names), value=names[0], label="Painter", visible=len(names) > 1)
            board = parts.html(
                board_of(blank(first), first), html_template=BOARD, js_on_load=BRUSH, elem_id="paint-board"
            )
            with gradio.Accordion("Start from another mask", open=False, visible=bool(data or segmenters)):
                item = gradio.Dropdown(
                    list(data.names) if data else [],
                    value=None,
                    label="A mask of the data",
                    visible=data is not None,
                    elem_id="paint-item",
                )
                with gradio.Row(visible=bool(segmenters)):
                    file = gradio.File(
                        label="An image, which is segmented first",
                        file_types=list(IMAGE_SUFFIXES),
                        height=150,
                        elem_id="paint-file",
                        min_width=180,
                    )
                    segmenter = gradio.Dropdown(
                        list(segmenters),
                        value=segmenters[0] if segmenters else None,
                        label="Segmenter",
                        visible=len(segmenters) > 1,
                        min_width=140,
                    )
        with gradio.Column(scale=1, min_width=340):
            notice = parts.notice("paint")
            pictures = parts.html(BLANK, elem_id="paint-pictures")
            with gradio.Row():
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed", min_width=90, elem_id="paint-seed")
                dice = gradio.Button("Another seed", min_width=110)
                count = gradio.Slider(1, VARIANTS, value=1, step=1, label="Variants", elem_id="paint-count")
            with gradio.Row():
                live = gradio.Checkbox(True, label="Paint after every stroke", min_width=170)
                over = gradio.Checkbox(
                    False, label="Paint over the segmented photograph", visible="repaint" in first.jobs, min_width=170
                )
                button = gradio.Button("Paint", variant="primary", elem_id="paint-button", min_width=100)
    photograph = gradio.State(None, time_to_live=3600)

    @parts.speaking(notice)
    def paint(name: str, drawn: Any, start: float, variants: float, below: Any, repaint: bool) -> dict[Any, Any]:
        chosen = models[name]
        image = None
        if repaint and "repaint" in chosen.jobs:
            if below is None:
                raise SegmintError("there is no photograph to paint over; start from an image that is segmented")
            image = below
        mask = mask_of(drawn, chosen, settings)
        begin = parts.whole(start, 0, LARGEST_SEED, "Seed")
        number = parts.whole(variants, 1, VARIANTS, "Variants")
        return {pictures: painted(chosen, mask, range(begin, begin + number), image)}

    @parts.speaking(notice)
    def paint_live(wanted: bool, *given: Any) -> dict[Any, Any]:
        return paint(*given) if wanted else {}

    @parts.speaking(notice)
    def choose(name: str) -> dict[Any, Any]:
        chosen = models[name]
        return {
            board: board_of(blank(chosen), chosen),
            over: gradio.update(visible="repaint" in chosen.jobs, value=False),
            pictures: BLANK,
        }

    @parts.speaking(notice)
    def take(name: str, wanted: str | None) -> dict[Any, Any]:
        if data is None or not wanted:
            return {}
        chosen = models[name]
        return {board: board_of(chosen.fit_mask(data.read(wanted, chosen.classes)), chosen), photograph: None}

    @parts.speaking(notice)
    def trace(name: str, path: str | None, by: str) -> dict[Any, Any]:
        if not path:
            return {photograph: None}
        chosen = models[name]
        image, mask = traced(models, chosen, by, Path(path), settings)
        return {board: board_of(mask, chosen), photograph: image}

    told = {"api_visibility": "private"}
    given = [model, board, seed, count, photograph, over]
    once = {"fn": paint, "inputs": given, "outputs": [notice, pictures], "show_progress_on": [pictures], **told}
    many = {
        **once,
        "fn": paint_live,
        "inputs": [live, *given],
        "trigger_mode": "always_last",
        "show_progress": "hidden",
    }
    button.click(**once)
    board.input(**many)
    model.change(choose, model, [notice, board, over, pictures], **told).then(**many)
    item.input(take, [model, item], [notice, board, photograph], **told).then(**many)
    file.change(trace, [model, file, segmenter], [notice, board, photograph], **told).then(**many)
    dice.click(lambda: random.randrange(10_000), None, seed, **told).then(**once)
    seed.submit(**once)
    count.release(**once)
    over.input(**once)


def blank(model: Model) -> Bytes:
    """A mask with nothing but the first class, uint8 [h, w] of the model's size."""
    return np.zeros(model.size, np.uint8)


def board_of(mask: Bytes, model: Model) -> dict[str, Any]:
    """What the drawing board shows: the mask in runs, row by row, and the classes of the model.

    Args:
        mask: uint8 [h, w] of class indices.
        model: whose classes these are.
    """
    runs = [[int(value), sum(1 for _ in group)] for value, group in groupby(mask.ravel().tolist())]
    classes = model.classes
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "runs": [number for run in runs for number in run],
        "names": list(classes.names),
        "colors": [list(color) for color in classes.colors],
    }


def mask_of(drawn: Any, model: Model, settings: Settings) -> Bytes:
    """The mask on the drawing board, uint8 [H, W]; what comes from a browser may be anything.

    Raises:
        SegmintError: it is not a mask of the model's classes.
    """
    board = drawn if isinstance(drawn, dict) else {}
    runs = board.get("runs")
    numbers = [board.get("height"), board.get("width"), *(runs if isinstance(runs, list) else [None])]
    if all(type(number) is int and 0 <= number <= settings.pixels for number in numbers):
        height, width, values, lengths = *numbers[:2], numbers[2::2], numbers[3::2]
        known = all(value < len(model.classes) or value == IGNORE for value in values)
        if known and len(values) == len(lengths) and 0 < sum(lengths) == height * width <= settings.pixels:
            return np.repeat(np.array(values, np.uint8), lengths).reshape(height, width)
    raise SegmintError("the drawing could not be read; clear it, and draw again")


def painted(model: Model, mask: Bytes, seeds: range, image: Bytes | None) -> str:
    """The pictures painted for a mask, one for each seed, as HTML."""
    fitted = model.fit_mask(mask)
    below = None if image is None else [model.fit_image(image)] * len(seeds)
    made = model.paint([fitted] * len(seeds), list(seeds), below)
    crisp = max(model.size) <= 64
    figures = [
        parts.figure(parts.png(pixels), f"seed {seed}", crisp=crisp, save_as=f"painted-seed{seed}.png")
        for seed, pixels in zip(seeds, made, strict=True)
    ]
    return parts.figures(figures)


def traced(models: Models, painter: Model, by: str, path: Path, settings: Settings) -> tuple[Bytes, Bytes]:
    """An image that was uploaded, and its mask at the painter's size.

    Raises:
        SegmintError, RefusedError: it is no image, or the segmenter has other classes.
    """
    chosen = models[by]
    if not chosen.classes.same_as(painter.classes):
        raise SegmintError(f"the classes of {by} are not those of {painter.name}; choose another segmenter")
    with naming(path, path.name):
        image = read_uploaded_image(path, path.name, settings, chosen.run.settings.depth)
        return image, painter.fit_mask(models.segment(by, image).labels.numpy())
