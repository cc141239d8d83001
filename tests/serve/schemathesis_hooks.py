"""Files that are fit to be sent, for what schemathesis sends on purpose as it should be."""

from __future__ import annotations

import io

import numpy as np
import schemathesis
from hypothesis import strategies
from PIL import Image


def png(value: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(file, "PNG")
    return file.getvalue()


FILES = strategies.sampled_from([png(0, (32, 24)), png(3, (20, 40))])
schemathesis.openapi.format("binary", FILES)
for media in ("image/png", "image/jpeg", "image/tiff", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(media, FILES)
