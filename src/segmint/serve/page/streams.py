"""Streams of the page that have no end of their own end with the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Ending:
    """ASGI middleware that ends heartbeats, which each open page listens to, once the server is to end.

    Without it the server would wait for every page that somebody left open.

    Args:
        app: what it is around.
        ending: set when the server is asked to end.
    """

    def __init__(self, app: ASGIApp, ending: asyncio.Event) -> None:
        self.app, self.ending = app, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def receive_or_end() -> Message:
            received, ended = asyncio.ensure_future(receive()), asyncio.ensure_future(self.ending.wait())
            try:
                await asyncio.wait([received, ended], return_when=asyncio.FIRST_COMPLETED)
                return received.result() if received.done() else {"type": "http.disconnect"}
            finally:
                received.cancel()
                ended.cancel()

        endless = scope["type"] == "http" and "/heartbeat/" in scope["path"]
        await self.app(scope, receive_or_end if endless else receive, send)
