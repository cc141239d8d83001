"""The service's description of itself: bodies, answers, examples and limits, in OpenAPI's words."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from segmint.serve.models import Models
from segmint.serve.schemas import NPZ, PNG, ZIP, GenerateAnswer, Health, PaintAnswer, Problem, SegmentAnswer
from segmint.serve.settings import Settings
from segmint.serve.uploads import RAW

_FILE = {"type": "string", "format": "binary"}

_PROBLEMS = {
    400: "The form cannot be parsed.",
    401: "No API key, or a wrong one.",
    404: "There is no such model.",
    406: "None of the accepted media types is offered.",
    408: "The body came too slowly.",
    413: "Too many bytes or pixels.",
    415: "No type of file that can be read.",
    422: "Something asked for is not possible, or the file is damaged.",
    503: "Too much to do now, or it takes too long.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that there may be, as `responses` of a route."""
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in statuses}


def _answers(model: type, description: str, media: dict[str, str]) -> dict[str, Any]:
    """What there is to say of a route that gives JSON or files."""
    content = {kind: {"schema": {**_FILE, "description": told}} for kind, told in media.items()}
    return {"model": model, "description": description, "content": content}


def _body(first: str, *others: str, raw: tuple[str, ...] = RAW) -> dict[str, Any]:
    """A body that is a file, or a form of files."""
    form = {
        "type": "object",
        "properties": dict.fromkeys((first, *others), _FILE),
        "required": [first],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form}, **{kind: {"schema": _FILE} for kind in raw}}
    return {"requestBody": {"required": True, "content": content}}


SEGMENT: dict[str, Any] = {
    "openapi_extra": _body("image"),
    "responses": {
        200: _answers(
            SegmentAnswer,
            "What is in the image.",
            {PNG: "With answer=mask, overlay or uncertainty.", NPZ: "With answer=probabilities."},
        ),
        **problems(*_PROBLEMS),
    },
}
GENERATE: dict[str, Any] = {
    "responses": {
        200: _answers(GenerateAnswer, "The pairs, as JSON or as a data folder.", {ZIP: "With answer=zip."}),
        **problems(401, 404, 406, 422, 503),
    },
}
PAINT: dict[str, Any] = {
    "openapi_extra": _body("mask", "image", raw=("image/png", "image/tiff", "application/octet-stream")),
    "responses": {200: _answers(PaintAnswer, "The picture.", {PNG: "With answer=image."}), **problems(*_PROBLEMS)},
}
READY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "It is busy or closing."}}
TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}

_JOBS = {"/v1/segment": "segment", "/v1/generate": "generate", "/v1/paint": "paint"}


def describe(app: FastAPI, models: Models, settings: Settings) -> None:
    """Let /openapi.json name the models and the limits of this server."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
            )
            most = {"draws": settings.draws, "count": settings.pairs}
            for path, job in _JOBS.items():
                for parameter in made["paths"][path]["post"]["parameters"]:
                    _narrow(parameter, models.able(job), most)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def _narrow(parameter: dict[str, Any], able: tuple[str, ...], most: dict[str, int]) -> None:
    """Say what this server takes of what the code can."""
    found = parameter["schema"]
    for choice in found.pop("anyOf", []):
        if choice != {"type": "null"}:
            found |= choice
    if parameter["name"] == "model" and able:
        found["enum"], parameter["required"] = list(able), len(able) > 1
    if parameter["name"] in most:
        found["maximum"] = most[parameter["name"]]


_TAGS = [
    {"name": "models", "description": "With the key, where the server has one."},
    {"name": "server", "description": "For what watches the server; without a key."},
]
