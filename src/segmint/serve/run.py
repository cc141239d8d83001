"""Listen, serve, and end well: requests that are being answered are answered before the process ends."""

from __future__ import annotations

import signal
import socket
import warnings
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from segmint.serve.settings import Settings
from segmint.types import SegmintError, reason

GRACE = 5.0
"""Seconds beyond the longest answer that are allowed for at the end."""


def usual_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(app: FastAPI, *, host: str, port: int, settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM. Then nothing new is taken, and what has come is answered.

    Args:
        app: of `create_app`.
        host: address to listen at; `port`: 0 for a free one.
        settings: those of the application; an answer takes `seconds` at most, and then the process ends.

    Raises:
        SegmintError: there is no listening at this address and port.
    """
    listener = _listen(host, port)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower, or wanted
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.upload_seconds + settings.seconds + GRACE),
    )
    before = signal.signal(signal.SIGTERM, _already_told)
    try:
        _Server(config).run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SegmintError(
            f"--host {host} --port {port}: cannot listen there ({reason(error)}); choose another, or --port 0"
        ) from error


def _already_told(number: int, frame: FrameType | None) -> None:
    """Uvicorn raises the signal again once it has ended; that is no reason to die of it."""


class _Server(uvicorn.Server):
    """Says where it listens, on standard output."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for place in sockets or []:
            host, port = place.getsockname()[:2]
            print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let go of pages that are open (see `segmint.serve.page`), and finish what is being answered."""
        ending = getattr(getattr(self.config.app, "state", None), "ending", None)
        if ending is not None:
            ending.set()
        await super().shutdown(sockets)
