"""How many bytes and pixels a request may have, and how long its body may take, whatever the client says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse

from segmint.data.classes import Classes
from segmint.data.io import Bytes, read_header, read_image
from segmint.data.masks import read_mask
from segmint.serve.models import LEAST_SIDE
from segmint.serve.settings import Settings
from segmint.types import SegmintError, reason

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER = 2.0
"""Seconds for which more of a refused body is received and thrown away, so that the client gets to read why."""

MOST_SCANS = 100
"""Scans of a JPEG; files with many more take minutes to decode, whatever their size."""

_KINDS = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WebP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}


class RefusedError(HTTPException):
    """A request that is refused, with its HTTP status and what to do about it."""


class CutOffError(RefusedError, MultiPartException):
    """The same in the midst of a form that the page reads: Gradio removes what has come if it is told in this way."""

    @property
    def message(self) -> str:  # type: ignore[override]
        """What Gradio answers."""
        return self.detail


class BodyLimit:
    """ASGI middleware that ends bodies which are too large or too slow, those of the page's uploads too.

    Bytes are counted as they arrive; a Content-Length that is too large is believed, no other. Where an answer is
    sent before the body is all there, what follows is thrown away for `LINGER` seconds, and the connection closed.

    Args:
        app: what it is around.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ours = scope["path"].startswith("/v1/")
        body = _Body(scope, receive, send, self.settings, RefusedError if ours else CutOffError)
        app = self.app
        if not ours and body.declared > self.settings.bytes:
            app = JSONResponse({"error": body.too_large().detail}, 413)
        await app(scope, body.receive, body.send)


class _Body:
    """The body of one request, and the answer to it."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: Settings, refused: type[RefusedError]
    ) -> None:
        self._receive, self._send, self.settings, self._refused = receive, send, settings, refused
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        self.declared = int(told) if told.isdigit() else 0
        self.whole = self.declared == 0 and b"transfer-encoding" not in headers
        self.count, self.end = 0, time.monotonic() + settings.upload_seconds

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()
        if self.declared > self.settings.bytes:
            raise self.too_large()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self.end - time.monotonic()))
        except TimeoutError as error:
            raise self._refused(
                408,
                f"body: {self.count:,} bytes came in {self.settings.upload_seconds:g} seconds, and the rest did not; "
                "send less, or over a faster connection",
            ) from error
        self.count += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.count > self.settings.bytes:
            raise self.too_large()
        return message

    async def send(self, message: Message) -> None:
        if not self.whole and message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif not self.whole and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass

    def too_large(self) -> RefusedError:
        return self._refused(
            413, f"body: more than {self.settings.megabytes:g} MB, the maximum allowed size here; send a smaller image"
        )


@contextmanager
def naming(path: Path, name: str) -> Iterator[None]:
    """Let messages on a file that was uploaded speak of the field that it came in."""
    try:
        yield
    except SegmintError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def read_uploaded_image(path: Path, name: str, settings: Settings, depth: int) -> Bytes:
    """Decode an image after its header was found to be harmless.

    Args:
        path: PNG, JPEG, WebP or TIFF.
        name: what messages call it.
        settings: the limits.
        depth: significant bits of 16-bit files.

    Returns:
        uint8 [H, W, C].

    Raises:
        RefusedError: not such a file (415), or too large (413).
        SegmintError: damaged, or too small.
    """
    _vet(path, name, settings, ("PNG", "JPEG", "WebP", "TIFF"))
    with naming(path, name):
        return read_image(path, depth=depth)


def read_uploaded_mask(path: Path, name: str, settings: Settings, classes: Classes) -> Bytes:
    """Decode a mask of class ids or of class colours after its header was found to be harmless.

    Returns:
        uint8 [H, W] of class indices, `IGNORE` where unknown.

    Raises:
        RefusedError: no PNG or TIFF (415), or too large (413).
        SegmintError: damaged, too small, or of other ids or colours than those of the classes.
    """
    _vet(path, name, settings, ("PNG", "TIFF"))
    with naming(path, name):
        try:
            return read_mask(path, classes)
        except SegmintError as error:
            told = str(error).replace("add to classes.yaml or correct the mask's", "correct the mask's")
            raise SegmintError(told) from error


def _vet(path: Path, name: str, settings: Settings, kinds: tuple[str, ...]) -> None:
    """Refuse what decoding could make something huge of, from headers alone."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise RefusedError(422, f"{name}: is empty; send the bytes of a file")
    kind = next((kind for kind in kinds if start.startswith(_KINDS[kind])), None)
    if kind is None or (kind == "WebP" and start[8:12] != b"WEBP"):
        raise RefusedError(415, f"{name}: is no {', '.join(kinds[:-1])} or {kinds[-1]} file; convert it")
    if kind == "TIFF":
        _vet_tiff(path, name, settings)
    if kind == "JPEG" and path.read_bytes().count(b"\xff\xda") > MOST_SCANS:
        raise RefusedError(422, f"{name}: a JPEG of more than {MOST_SCANS} scans; save it again, not progressive")
    with naming(path, name):
        try:
            height, width = read_header(path).size
        except SegmintError as error:
            if "decompression bomb" in str(error) or "at most are read" in str(error):
                raise _too_many(name, None, settings) from error
            raise
    if height * width > settings.pixels:
        raise _too_many(name, (height, width), settings)
    if min(height, width) < LEAST_SIDE:
        raise RefusedError(
            422, f"{name}: is {width} x {height} pixels; give one with {LEAST_SIDE} pixels or more on each side"
        )


def _too_many(name: str, size: tuple[int, int] | None, settings: Settings) -> RefusedError:
    told = "too many pixels" if size is None else f"{size[1]} x {size[0]} pixels"
    return RefusedError(
        413, f"{name}: {told}, but {settings.megapixels:g} million at most are read here; cut it or shrink it"
    )


def _vet_tiff(path: Path, name: str, settings: Settings) -> None:
    """Refuse a TIFF whose parts could be larger than it says."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            _refuse_page(page, name, settings)
    except HTTPException:
        raise
    except Exception as error:  # tifffile raises anything from struct.error to ZeroDivisionError on damaged files
        raise SegmintError(f"{name}: truncated or damaged ({reason(error)}); save it again") from error


def _refuse_page(page: Any, name: str, settings: Settings) -> None:
    if int(page.compression) not in _TIFF_COMPRESSIONS:
        told = ", ".join(dict.fromkeys(_TIFF_COMPRESSIONS.values()))
        raise RefusedError(415, f"{name}: a TIFF with another compression than {told}; save it with one of these")
    if page.bitspersample > 16 or page.samplesperpixel > 4 or page.imagedepth > 1 or page.tiledepth > 1:
        raise RefusedError(
            415, f"{name}: a TIFF of more than 4 channels or 16 bits; save it as 8 or 16 bit grey or RGB"
        )
    rows = page.rowsperstrip if not page.is_tiled else page.tilelength
    columns = page.imagewidth if not page.is_tiled else page.tilewidth
    if max(page.imagewidth * page.imagelength, min(rows, page.imagelength) * columns) > settings.pixels:
        raise _too_many(name, (page.imagelength, page.imagewidth), settings)
    if page.is_tiled and rows * columns > max(settings.pixels, 1 << 20):
        raise _too_many(name, (rows, columns), settings)
