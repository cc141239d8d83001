"""What the tabs of the page are made of: pictures inside HTML, legends, messages, and handlers that cannot crash."""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmint.data.classes import Classes, Color
from segmint.data.io import Array
from segmint.evaluation.pictures import to_rgb
from segmint.types import IGNORE, SegmintError, reason

SHOWN = 1600
"""Pictures with a longer side are made so small for the page; files to download are not."""

KEPT_SECONDS = 3600
"""Files that were uploaded or made are removed some time after this, and when the server ends."""

Handler = Callable[..., dict[Any, Any]]
log = logging.getLogger(__name__)


def html(value: Any = "", **more: Any) -> Any:
    """A component of our own HTML and CSS alone."""
    import gradio

    return gradio.HTML(value, apply_default_css=False, **more)


def notice(tab: str) -> Any:
    """The place for a tab's messages; it takes no room where there are none."""
    return html(elem_id=f"{tab}-notice", elem_classes="notices")


def speaking(notice: Any, *cleared: tuple[Any, Any]) -> Callable[[Handler], Handler]:
    """Make a handler say in the page what goes wrong.

    Args:
        notice: the component for messages; emptied where all goes well.
        cleared: components with what they are to show where it does not.

    Returns:
        A decorator for handlers that return a mapping of components to their new values.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def safe(*given: Any, **more: Any) -> dict[Any, Any]:
            try:
                return {notice: "", **handler(*given, **more)}
            except Exception as error:
                return {**dict(cleared), notice: message(told(error))}

        return safe

    return decorate


def told(error: Exception) -> str:
    """An error as the page tells it; what is not the user's mistake goes to the log in full."""
    if isinstance(error, SegmintError):
        return str(error)
    detail = getattr(error, "detail", None)
    if isinstance(detail, str):
        return detail
    log.error("the page failed", exc_info=error)
    return f"This did not work, through no fault of yours: {type(error).__name__}. The server's log says more."


def message(words: str, kind: str = "bad") -> str:
    """A sentence in a box; "bad" or "good"."""
    return f'<p class="notice {kind}" role="{"alert" if kind == "bad" else "status"}">{escape(words)}</p>'


def png(pixels: Array | Image.Image) -> str:
    """A picture as a data URL without loss: uint8 [H, W, 1, 3 or 4], or Pillow's."""
    return _url(picture_of(pixels), "PNG", compress_level=4)


def photo(pixels: Array) -> str:
    """A photograph as a data URL, uint8 [H, W, C]; small ones without loss, made smaller where it is very large."""
    picture = picture_of(to_rgb(pixels))
    if picture.width * picture.height <= 256 * 256:
        return _url(picture, "PNG", compress_level=4)
    return _url(smaller(picture), "JPEG", quality=92)


def transparent(labels: Array, colors: Sequence[Color]) -> str:
    """A mask as a data URL, [H, W] of class indices; unknown pixels are transparent."""
    small = np.asarray(smaller(Image.fromarray(labels.astype(np.uint8)), smooth=False))
    table = np.zeros((256, 4), np.uint8)
    table[: len(colors), :3], table[: len(colors), 3] = colors, 255
    table[IGNORE] = 0
    return png(table[small])


def smaller(picture: Image.Image, *, smooth: bool = True) -> Image.Image:
    """At most `SHOWN` pixels on the longer side."""
    scale = SHOWN / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)


def figure(url: str, caption: str, *, crisp: bool = False, save_as: str = "") -> str:
    """A picture with words below, and a link that saves it where `save_as` names a file."""
    link = f' <a href="{url}" download="{escape(save_as)}" title="Save">&#8681; save</a>' if save_as else ""
    kind = ' class="crisp"' if crisp else ""
    words = escape(caption)
    return f'<figure><img src="{url}" alt="{words}"{kind}><figcaption>{words}{link}</figcaption></figure>'


def figures(parts: Sequence[str]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="figures">{"".join(parts)}</div>'


def chip(color: Color) -> str:
    """A patch of a class's colour."""
    return f'<i class="chip" style="background:rgb{tuple(color)}"></i>'


def legend(classes: Classes, areas: Sequence[tuple[int | None, float]]) -> str:
    """The classes with their colours and areas, largest first.

    Args:
        classes: K classes.
        areas: for each its pixels (None: not told) and its share, 0..1.
    """
    order = sorted(range(len(classes)), key=lambda number: -areas[number][1])
    rows = [_legend_row(classes, number, *areas[number]) for number in order]
    return f'<table class="legend"><tbody>{"".join(rows)}</tbody></table>'


def _legend_row(classes: Classes, number: int, pixels: int | None, share: float) -> str:
    name, color = escape(classes.names[number]), classes.colors[number]
    bar = f'<b class="bar" style="width:{100 * share:.1f}%;background:rgb{tuple(color)}"></b>'
    count = "" if pixels is None else f'<td class="number">{pixels:,} px</td>'
    cells = f'<td>{chip(color)}{name}</td><td class="bars">{bar}</td><td class="number">{100 * share:.1f}%</td>{count}'
    return f'<tr class="{"absent" if share == 0 else "present"}">{cells}</tr>'


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns: what, and how much."""
    cells = "".join(f'<tr><th>{escape(what)}</th><td class="number">{escape(much)}</td></tr>' for what, much in rows)
    return f'<table class="facts"><tbody>{cells}</tbody></table>'


def whole(value: Any, least: int, most: int, what: str) -> int:
    """A whole number that came from the page.

    Raises:
        SegmintError: none, or out of its range.
    """
    if not isinstance(value, int | float) or value % 1 or not least <= value <= most:
        raise SegmintError(f"{what}: must be a whole number, at least {least} and at most {most}")
    return int(value)


def scratch(name: str) -> Path:
    """A path for a file to be downloaded, in a new folder; those of more than `KEPT_SECONDS` ago are removed."""
    root = Path(os.environ.get("GRADIO_TEMP_DIR", tempfile.gettempdir()))
    for old in root.glob("segmint-made-*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix="segmint-made-", dir=root)) / name


def stem(path: str | Path) -> str:
    """A file's name without suffix, 80 characters at most."""
    return Path(path).stem[:80] or "image"


def picture_of(pixels: Array | Image.Image) -> Image.Image:
    """uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as Pillow's picture."""
    if isinstance(pixels, Image.Image):
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _url(picture: Image.Image, kind: str, **options: Any) -> str:
    held = io.BytesIO()
    try:
        picture.save(held, kind, **options)
    except OSError as error:
        raise SegmintError(f"a picture of {picture.width} x {picture.height} pixels: {reason(error)}") from error
    return f"data:image/{kind.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"
