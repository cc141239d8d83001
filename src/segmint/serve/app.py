"""The HTTP service: what is at which address, and how mistakes are told."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from segmint.serve.answers import model_answer
from segmint.serve.limits import BodyLimit
from segmint.serve.metrics import Counting
from segmint.serve.models import Models, UnknownModelError
from segmint.serve.openapi import GENERATE, PAINT, READY, SEGMENT, TEXT, describe, problems
from segmint.serve.schemas import (
    GenerateAsked,
    Health,
    ModelsAnswer,
    PaintAsked,
    SegmentAsked,
)
from segmint.serve.service import Answer, Service
from segmint.serve.settings import Settings
from segmint.types import SegmintError

_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="key")
_BEARER = HTTPBearer(auto_error=False, scheme_name="bearer")


def create_app(models: Models, settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application; `app.state.service` is what it works with.

    Args:
        models: what it serves.
        settings: key, limits and batching; None: the usual ones, and no key.
    """
    settings = settings or Settings()
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="Segmint",
        version=version("segmint"),
        description="Semantic segmentation: masks for images, images for masks, and pairs of both.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Counting, metrics=service.metrics)
    _add_jobs(app, service)
    _add_health(app, service)
    _add_handlers(app)
    describe(app, models, settings)
    return app


def _add_jobs(app: FastAPI, service: Service) -> None:
    """What needs the key, under /v1/."""
    keyed = [Security(_key_check(service.settings.key))] if service.settings.key is not None else []

    @app.post("/v1/segment", tags=["models"], dependencies=keyed, **SEGMENT)
    async def segment(request: Request, asked: Annotated[SegmentAsked, Query()]) -> Response:
        """Give each pixel of an image a class. The body is the image: PNG, JPEG, WebP or TIFF."""
        return _response(await service.segment(request, asked))

    @app.post("/v1/generate", tags=["models"], dependencies=keyed, **GENERATE)
    async def generate(request: Request, asked: Annotated[GenerateAsked, Query()]) -> Response:
        """Make images with their masks: those that `segmint generate` makes with this seed."""
        return _response(await service.generate(request, asked))

    @app.post("/v1/paint", tags=["models"], dependencies=keyed, **PAINT)
    async def paint(request: Request, asked: Annotated[PaintAsked, Query()]) -> Response:
        """Paint a mask. The body is the mask (PNG or TIFF, of class ids or class colours); with a photograph that it
        belongs to, as a form, this is painted over. The picture has the model's size."""
        return _response(await service.paint(request, asked))

    @app.get("/v1/models", tags=["models"], dependencies=keyed, responses=problems(401))
    async def models() -> ModelsAnswer:
        """What the models are called and what they can do."""
        names = ("megabytes", "megapixels", "seconds", "upload_seconds", "draws", "pairs")
        limits = {name: float(getattr(service.settings, name)) for name in names}
        return ModelsAnswer(models=[model_answer(model) for model in service.models], limits=limits)


def _add_health(app: FastAPI, service: Service) -> None:
    """What watches the server needs, without a key."""

    @app.get("/health", tags=["server"])
    async def health() -> Health:
        """Whether it lives."""
        return Health(status="ok")

    @app.get("/ready", tags=["server"], response_model=Health, responses=READY)
    async def ready() -> Response:
        """Whether it takes requests now: 503 where a queue is full, or it is closing."""
        state = service.state()
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics", tags=["server"], response_class=Response, responses=TEXT)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _key_check(key: str) -> Any:
    """What refuses requests without the key."""
    expected = key.encode()

    async def check(
        header: Annotated[str | None, Depends(_HEADER)],
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        given = [header, None if bearer is None else bearer.credentials]
        matches = [secrets.compare_digest((value or "").encode(), expected) for value in given]
        if not any(matches):
            told = "wrong API key" if any(given) else "there is no API key"
            raise HTTPException(
                401,
                f"{told}; send the server's as header, X-API-Key: KEY or Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


def _response(answer: Answer) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{answer.name}"'} if answer.name else None
    return Response(answer.content, media_type=answer.media, headers=headers)


def _add_handlers(app: FastAPI) -> None:
    """Every mistake is told as {"error": what is wrong and how to mend it}."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        told, path = str(error.detail), request.url.path[:80]
        if told == "Not Found":
            told = f"there is nothing at {path!r}; /openapi.json tells what there is"
        elif told == "Method Not Allowed":
            allowed = (error.headers or {}).get("Allow", "another method")
            told = f"{request.method[:20]} is not for {path!r}; use {allowed}"
        return _problem(error.status_code, told, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _problem(422, "; ".join(map(_told, error.errors())))

    @app.exception_handler(UnknownModelError)
    async def unknown(_: Request, error: UnknownModelError) -> Response:
        return _problem(404, str(error))

    @app.exception_handler(SegmintError)
    async def unfit(_: Request, error: SegmintError) -> Response:
        return _problem(422, str(error))

    @app.exception_handler(MemoryError)
    async def full(_: Request, error: MemoryError) -> Response:
        return _problem(503, "not enough memory for this now; send a smaller image, or again later")

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return _problem(499, "the connection was cut off")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _problem(500, "the server failed at this; its log says why")


def _problem(status: int, told: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": told}, status, dict(headers or {}))


def _told(error: Mapping[str, Any]) -> str:
    """A mistake in the settings of a request, as a sentence."""
    name = ".".join(str(part) for part in error["loc"][1:]) or "request"
    if error["type"] == "extra_forbidden":
        return f"{name[:80]}: there is no such setting; /openapi.json tells which there are"
    return f"{name[:80]}: {error['msg']}, not {str(error.get('input'))[:80]!r}"
