"""The tab that shows reports: the HTML pages of a folder, each as it is, in a frame of its own."""

from __future__ import annotations

import re
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from segmint.serve.page import parts
from segmint.types import SegmintError, reason

MOST = 500
"""Pages that are listed at most."""

_HEAD = re.compile(r"(<head[^>]*>)", re.IGNORECASE)
"""Where a base address goes; without it a link to "#figures" would lead to that of the page around the frame."""


class Shelf:
    """The HTML pages in a folder.

    Args:
        place: the folder, or one page.

    Raises:
        SegmintError: there is none.
    """

    def __init__(self, place: Path) -> None:
        root = place.parent if place.is_file() else place
        found = [place] if place.is_file() else sorted(islice(place.rglob("*.html"), MOST))
        if not found:
            raise SegmintError(f"{place}: holds no HTML page; write one with `segmint report`")
        found.sort(key=lambda page: (len(page.relative_to(root).parts), page.name != "report.html", str(page)))
        self.pages = {page.relative_to(root).as_posix(): page for page in found}

    def read(self, name: str) -> str:
        """A page in a frame. It may not run scripts that reach out of the frame, nor send forms.

        Raises:
            SegmintError: there is no such page, or it cannot be read.
        """
        if name not in self.pages:
            raise SegmintError(f"there is no page called {name[:80]!r}; choose one of the list")
        try:
            text = self.pages[name].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SegmintError(f"{name}: cannot be read ({reason(error)}); write it again") from error
        inside = escape(_HEAD.sub(r'\1<base href="about:srcdoc">', text, count=1))
        return f'<iframe class="report" sandbox="allow-scripts" title="{escape(name)}" srcdoc="{inside}"></iframe>'


def tab(shelf: Shelf) -> None:
    """Build the tab, inside a Gradio context."""
    import gradio

    names = list(shelf.pages)
    chosen = gradio.Dropdown(names, value=names[0], label="Page", visible=len(names) > 1, elem_id="reports-page")
    notice = parts.notice("reports")
    frame = parts.html(shelf.read(names[0]), elem_id="reports-frame")

    @parts.speaking(notice, (frame, ""))
    def read(name: str) -> dict[Any, Any]:
        return {frame: shelf.read(name)}

    chosen.input(read, chosen, [notice, frame], api_visibility="private")
