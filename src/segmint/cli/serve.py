"""The command that puts trained runs on the network: serve."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from segmint.cli.app import app, console, plain
from segmint.types import SegmintError


@app.command()
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folders or models that export wrote; NAME=RUN names one.", show_default=False),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key clients must give.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: cuda where there is one.")] = "auto",
    max_megabytes: Annotated[float, typer.Option(help="Largest body of a request.")] = 32.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest image, in millions of pixels.")] = 16.0,
    max_seconds: Annotated[float, typer.Option(help="Longest computing of an answer.")] = 60.0,
    max_upload_seconds: Annotated[float, typer.Option(help="Longest sending of a body.")] = 60.0,
    max_draws: Annotated[int, typer.Option(help="Most draws of an image.")] = 64,
    max_pairs: Annotated[int, typer.Option(help="Most pairs a request.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Most images waiting for a model.")] = 128,
    batch: Annotated[int, typer.Option(help="Most images computed together; 1: each alone.")] = 8,
    wait: Annotated[float, typer.Option(help="Seconds that the first of them waits for others.")] = 0.005,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page", help="The web page at /page; else if Gradio is installed.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="For the page: a data folder whose masks may be painted.", show_default=False)
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="For the page: generated pairs to keep or drop.", show_default=False)
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="For the page: a folder with reports to read.", show_default=False)
    ] = None,
) -> None:
    """Serve models over HTTP: segment, generate, paint, with metrics, and a web page for them."""
    from segmint.serve.settings import Settings

    settings = Settings(
        key=_key(api_key_env),
        megabytes=max_megabytes,
        megapixels=max_megapixels,
        seconds=max_seconds,
        upload_seconds=max_upload_seconds,
        draws=max_draws,
        pairs=max_pairs,
        waiting=max_waiting,
        batch=batch,
        wait=wait,
    )
    require()
    with_page = _with_page(page, anything=any((data, pairs, reports)))
    from segmint.serve.app import create_app
    from segmint.serve.models import Models
    from segmint.serve.run import run, usual_device

    with console.status("loading the models"):
        models = Models(_named(runs), usual_device() if device == "auto" else device)
    served = create_app(models, settings)
    told = ", ".join(f"{model.name} ({' '.join(model.jobs)})" for model in models)
    console.print(f"serving {plain(told)}", highlight=False, soft_wrap=True)
    if with_page:
        _add_page(served, models, settings=settings, data=data, pairs=pairs, reports=reports)
    run(served, host=host, port=port, settings=settings)


def require() -> None:
    """Raise a SegmintError unless the packages of a server are there."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SegmintError(f"{error.name} is not installed, which serve needs: pip install 'segmint[serve]'") from error


def _with_page(asked: bool | None, *, anything: bool) -> bool:
    """Whether there is to be a page; if nobody asked for it (or for `anything` on it), only where it can be."""
    if asked is False:
        if anything:
            raise SegmintError("--data, --pairs, --reports: are for the web page; leave out --no-page")
        return False
    if asked or anything or find_spec("gradio") is not None:
        return True
    told = "no web page, as Gradio is not installed: pip install 'segmint[page]'"
    console.print(plain(told), highlight=False, soft_wrap=True)
    return False


def _key(name: str | None) -> str | None:
    """The key, from an environment variable, so that it is in no list of processes."""
    if name is None:
        return None
    if not os.environ.get(name):
        raise SegmintError(f"--api-key-env {name}: this environment variable is not set; export {name}=...")
    return os.environ[name]


def _named(runs: list[str]) -> Any:
    """Runs by name: of NAME=RUN, or the usual one."""
    from segmint.serve.models import name_of

    named: dict[str, Path] = {}
    for text in runs:
        name, sign, path = text.partition("=")
        if not sign or Path(text).exists():
            name, path = name_of(text), text
        if name in named:
            raise SegmintError(f"{text}: there is a model {name!r} already; name one of them, NAME=RUN")
        named[name] = Path(path)
    return named


def _add_page(served: Any, models: Any, **shown: Any) -> None:
    """The web page, to which / leads."""
    from starlette.responses import RedirectResponse

    from segmint.serve.page import mount

    mount(served, models, **shown)
    served.add_route("/", lambda _: RedirectResponse("/page"), include_in_schema=False)
