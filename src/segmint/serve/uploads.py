"""From the body of a request to files of its own, under names of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.datastructures import UploadFile
from starlette.requests import Request

from segmint.serve.limits import RefusedError

RAW = ("image/png", "image/jpeg", "image/tiff", "image/webp", "application/octet-stream")
"""Types of bodies that are the first file and nothing else."""

_REMEDY = (
    "send the file as it is with its type (curl --data-binary @photo.png -H 'Content-Type: image/png'), or as a form "
    "(curl -F {field}=@photo.png)"
)


async def receive_files(request: Request, folder: Path, fields: tuple[str, ...]) -> dict[str, Path]:
    """Stream the files of a body into a folder. Names that clients give their files are not used.

    Args:
        request: with a body of one of the types `RAW`, or multipart/form-data.
        folder: an empty folder.
        fields: the names of files that there may be; the first there must be, and it is all that a raw body holds.

    Returns:
        The paths of the files that came, by field.

    Raises:
        RefusedError: another type of body, no file, or other fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _receive_form(request, folder, fields)
    if kind not in RAW:
        told = f"Content-Type {kind[:80]!r} is not understood" if kind else "there is no Content-Type"
        raise RefusedError(415, f"body: {told}; {_REMEDY.format(field=fields[0])}")
    path = folder / fields[0]
    with path.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
    return {fields[0]: path}


async def _receive_form(request: Request, folder: Path, fields: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    async with request.form(max_files=len(fields) + 1, max_fields=16) as form:
        for name, value in form.multi_items():
            if name not in fields:
                raise RefusedError(
                    422,
                    f"form: there is no field {name[:80]!r}; there {'are' if len(fields) > 1 else 'is'} "
                    f"{' and '.join(fields)}, and settings go into the address, e.g. ?model=NAME",
                )
            if not isinstance(value, UploadFile):
                raise RefusedError(422, f"{name}: is text, not a file; with curl, -F {name}=@photo.png")
            if name in found:
                raise RefusedError(422, f"{name}: is there twice; send one file a request")
            found[name] = folder / name
            with found[name].open("wb") as file:
                await run_sync(shutil.copyfileobj, value.file, file)
    if fields[0] not in found:
        raise RefusedError(
            422, f"form: has no file {fields[0]!r}, or was cut off before its end; {_REMEDY.format(field=fields[0])}"
        )
    return found
