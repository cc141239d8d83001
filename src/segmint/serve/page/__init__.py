"""The web page of a server: drop an image, paint a mask, sort generated pairs, read reports.

Built with Gradio (the extra `page`) and mounted in the server's own process. It needs no internet: no font, script or
picture comes from elsewhere, and nothing is told to anybody.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import warnings
from hmac import compare_digest
from pathlib import Path
from typing import Any

from segmint.serve.models import Models
from segmint.serve.page.streams import Ending
from segmint.serve.settings import Settings
from segmint.types import SegmintError

HERE = Path(__file__).parent
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path fill="#14b8a6" d="M0 0h4v4H0z"/>'
    '<path fill="#e69f00" d="M0 2h2v2H0z"/><path fill="#0072b2" d="M2 1h2v3H2z"/></svg>'
)


def mount(
    app: Any,
    models: Models,
    *,
    settings: Settings | None = None,
    data: str | Path | None = None,
    pairs: str | Path | None = None,
    reports: str | Path | None = None,
    path: str = "/page",
) -> Any:
    """Add the web page to a FastAPI application.

    Shown are only the tabs that there is something for: Segment and Paint where a model can, Pairs and Reports where a
    folder is given. Where `settings.key` is set, the page asks for it as the password before anything else.

    Args:
        app: a `fastapi.FastAPI`.
        models: the server's.
        settings: its limits and its key.
        data: a data folder whose masks may be taken to paint from. Whoever opens the page sees them.
        pairs: a folder of `segmint generate`, to be sorted by hand. Whoever opens the page may.
        reports: a folder that holds HTML pages, such as a run with its report.html, at any depth; or one such file.
        path: where the page is.

    Returns:
        `app`; whoever runs it sets the event `app.state.ending` when it is to end, so that open pages do not delay it.

    Raises:
        SegmintError: Gradio is not installed, a folder does not hold what it should, or there is nothing to show.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while Gradio is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    gradio = require_gradio()
    _own_folder()
    limits = Settings() if settings is None else settings
    blocks = _build(gradio, models, limits, data, pairs, reports)
    app.state.ending = asyncio.Event()
    app.add_middleware(Ending, ending=app.state.ending)
    app.add_route("/favicon.ico", _icon, include_in_schema=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return gradio.mount_gradio_app(
            app,
            blocks,
            path=path,
            theme=_theme(gradio),
            css=(HERE / "page.css").read_text(encoding="utf-8"),
            js=(HERE / "keys.js").read_text(encoding="utf-8"),
            max_file_size=limits.bytes,
            footer_links=[],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            auth=None if limits.key is None else _gate(limits.key),
            auth_message="Any user name; the password is the server's API key.",
        )


def require_gradio() -> Any:
    """The package.

    Raises:
        SegmintError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gradio
    except ImportError as error:
        raise SegmintError('the web page needs Gradio: pip install "segmint[page]"; or give --no-page') from error
    return gradio


def _build(
    gradio: Any,
    models: Models,
    settings: Settings,
    data: str | Path | None,
    pairs: str | Path | None,
    reports: str | Path | None,
) -> Any:
    from segmint.serve.page import painting, parts, reading, segmenting, sorting

    tabs: list[tuple[str, Any]] = []
    if models.able("segment"):
        tabs.append(("Segment", lambda: segmenting.tab(models, settings)))
    if models.able("paint"):
        source = None if data is None else painting.DataMasks(Path(data))
        tabs.append(("Paint", lambda: painting.tab(models, settings, source)))
    if pairs is not None:
        desk = sorting.Desk(Path(pairs))
        tabs.append(("Pairs", lambda: sorting.tab(desk)))
    if reports is not None:
        shelf = reading.Shelf(Path(reports))
        tabs.append(("Reports", lambda: reading.tab(shelf)))
    if not tabs:
        raise SegmintError(
            "the web page: no model segments or paints, and there is no folder of pairs or reports; give --no-page"
        )
    with gradio.Blocks(
        title="Segmint", analytics_enabled=False, delete_cache=(parts.KEPT_SECONDS, parts.KEPT_SECONDS), fill_width=True
    ) as blocks:
        parts.html('<h1 class="brand">Segmint</h1>')
        with gradio.Tabs(elem_id="tabs"):
            for name, build in tabs:
                with gradio.Tab(name, elem_id=f"tab-{name.lower()}"):
                    build()
    blocks.queue(max_size=settings.waiting, default_concurrency_limit=1, api_open=False)
    return blocks


def _theme(gradio: Any) -> Any:
    """Gradio's plainest, with the fonts of the reader's own system."""
    from gradio.themes.utils.fonts import Font

    return gradio.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="sm",
        font=[Font("system-ui"), Font("sans-serif")],
        font_mono=[Font("ui-monospace"), Font("monospace")],
    )


def _icon(_request: Any) -> Any:
    from starlette.responses import Response

    return Response(ICON, media_type="image/svg+xml")


def _gate(key: str) -> Any:
    def let_in(_user: str, password: str) -> bool:
        return compare_digest(password.encode(), key.encode())

    return let_in


def _own_folder() -> None:
    """Keep what is uploaded where other users of the machine cannot look, and remove it at the end."""
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="segmint-page-")
        os.environ["GRADIO_TEMP_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
