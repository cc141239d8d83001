"""Models that need no training, and servers for them on the loopback."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from segmint.config import RunSettings
from segmint.data.classes import Classes, write_classes
from segmint.methods.method import Method
from segmint.serve.app import create_app
from segmint.serve.models import Models
from segmint.serve.settings import Settings
from segmint.training.run import Run
from segmint.types import Batch

SIZE = (32, 24)
CLASSES = Classes(("ground", "square", "disc"), ((0, 0, 0), (230, 159, 0), (0, 114, 178)), (0, 3, 7))


class Plain(Method):
    """Classes by brightness; the same in every draw."""

    def __init__(self, *, classes: int = 3, in_channels: int = 3, image_size: tuple[int, int] = SIZE) -> None:
        super().__init__()
        self.classes, self.channels, self.size = classes, in_channels, image_size

    def segment(self, image, seeds):
        level = image.mean(1, keepdim=True)
        return torch.cat([-8 * (level - place).abs() for place in torch.linspace(-1, 1, self.classes)], 1)


class Everything(Plain):
    """Draws at random, judges itself, makes pairs, and paints masks, over photographs as well."""

    draws_differ = True
    conditions = frozenset({"mask", "image"})

    def segment(self, image, seeds):
        return super().segment(image, seeds) + 2 * seeds.randn(self.classes)[:, :, None, None]

    def errors(self, image, logits):
        return 1 - logits.softmax(1).amax(1)

    def generate(self, seeds, mask=None, previous=None, image=None):
        self.refuse(previous=previous)
        drawn = seeds.integers(self.classes, *self.size)
        mask = drawn if mask is None else torch.where(mask == 255, drawn, mask)
        made = (mask[:, None] - 1.0).expand(-1, self.channels, -1, -1) + 0.1 * seeds.randn(self.channels, *self.size)
        return Batch((made if image is None else (made + image) / 2).clamp(-1, 1), mask)


class Painter(Everything):
    """Only paints."""

    needs_mask = True
    conditions = frozenset({"mask"})
    segment = Method.segment


class Slow(Plain):
    """Takes half a second for each image."""

    def segment(self, image, seeds):
        time.sleep(0.5 * len(image))
        return super().segment(image, seeds)


class Failing(Plain):
    """Cannot bear white images."""

    def segment(self, image, seeds):
        if bool((image.amin((1, 2, 3)) > 0.99).any()):
            raise RuntimeError("white")
        return super().segment(image, seeds)


def run_of(folder: Path, method: Method) -> Run:
    """A run whose method was not trained."""
    write_classes(folder / "classes.yaml", CLASSES)
    run = Run(folder)
    run.__dict__["method"] = method.eval()
    run.__dict__["settings"] = RunSettings(method="toy", method_settings={}, data="", size=SIZE, depth=8)
    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    kinds = {"all": Everything, "plain": Plain, "painter": Painter, "slow": Slow, "failing": Failing}
    folder = tmp_path_factory.mktemp("models")
    return Models({name: run_of(folder / name, kind(classes=3)) for name, kind in kinds.items()})


@pytest.fixture(scope="session")
def several() -> Callable[..., Any]:
    """A server for the time of a `with`: its address, and its application."""
    return serving


@contextmanager
def serving(models: Models, settings: Settings | None = None) -> Iterator[tuple[str, Any]]:
    app = create_app(models, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", http="h11", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


SMALL = Settings(
    key="secret", megabytes=0.2, megapixels=0.02, seconds=20, upload_seconds=2, draws=8, pairs=8, waiting=16, wait=0.02
)


@pytest.fixture(scope="module")
def address(models: Models) -> Iterator[str]:
    with serving(models, SMALL) as (address, _):
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    """Asks a server with a key and small limits."""
    with httpx.Client(base_url=address, headers={"X-API-Key": "secret"}, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def png(pixels: np.ndarray) -> bytes:
    return encoded(pixels)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def decode() -> Callable[[bytes], np.ndarray]:
    return lambda data: np.asarray(Image.open(io.BytesIO(data)))
