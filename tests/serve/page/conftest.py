"""A small house for the page: data, a run that segments and paints, generated pairs with scores, and a report."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from segmint.config import RunSettings
from segmint.data.classes import write_classes
from segmint.inference.generate import generate
from segmint.methods.method import Method
from segmint.seeds import Seeds
from segmint.serve.models import Models
from segmint.serve.settings import Settings
from segmint.training.run import Run, train
from segmint.types import Batch

SCORES = ({"miou": 0.9, "ignored": 0.0}, {"miou": 0.4, "ignored": None}, {"miou": 0.7, "ignored": 0.1})


@dataclass
class House:
    """What a page is made of."""

    data: Path
    pairs: Path
    reports: Path
    models: Models
    settings: Settings


def score(pairs: Path) -> None:
    """Give the pairs of a generated folder scores, as an assay would."""
    lines = (pairs / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [{**json.loads(line), "scores": SCORES[k % 3], "why": f"rank: {k}"} for k, line in enumerate(lines)]
    (pairs / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "mixture"
    settings = {"epochs": 3, "batch_size": 4, "precision": "float32", "device": "cpu"}
    train(shapes, method="gmm", out=folder, settings=settings, components=2)
    return folder


class Sketch(Method):
    """Each draw sees one class more often than the others; paints flat, over photographs as well."""

    draws_differ = True
    conditions = frozenset({"mask", "image"})

    def __init__(self, *, classes: int = 3, in_channels: int = 3, image_size: tuple[int, int] = (32, 24)) -> None:
        super().__init__()
        self.classes, self.channels, self.size = classes, in_channels, image_size

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        flat = image.mean(1, keepdim=True).expand(-1, self.classes, -1, -1)
        return flat + 9 * seeds.randn(self.classes)[:, :, None, None]

    def generate(
        self, seeds: Seeds, mask: Tensor | None = None, previous: Tensor | None = None, image: Tensor | None = None
    ) -> Batch:
        mask = seeds.integers(self.classes, *self.size) if mask is None else mask
        made = (mask[:, None] / self.classes - 0.5).expand(-1, self.channels, -1, -1)
        return Batch((made + seeds.rand(1, 1, 1) / 9 if image is None else image).clamp(-1, 1), mask)


@pytest.fixture(scope="session")
def sketch(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A second model with the classes of the first."""
    folder = tmp_path_factory.mktemp("page") / "sketch"
    write_classes(folder / "classes.yaml", Run(run).classes)
    made = Run(folder)
    made.__dict__["method"] = Sketch(classes=3).eval()
    made.__dict__["settings"] = RunSettings(method="toy", method_settings={}, data="", size=(32, 24), depth=8)
    return made


@pytest.fixture(scope="session")
def models(run: Path, sketch: Run) -> Models:
    return Models([run, sketch])


def made_pairs(run: Path, masks: Path, folder: Path) -> Path:
    generate(run, count=4, out=folder, masks=masks)
    score(folder)
    return folder


@pytest.fixture
def pairs(run: Path, shapes: Path, tmp_path: Path) -> Path:
    return made_pairs(run, shapes, tmp_path / "pairs")


@pytest.fixture(scope="session")
def house(shapes: Path, run: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> House:
    """The tiny one; or that in $SEGMINT_PAGE_DEMO, which has data, runs/*, pairs and reports, for fine pictures."""
    settings = Settings(megabytes=2.0, megapixels=1.0)
    demo = os.environ.get("SEGMINT_PAGE_DEMO")
    if demo:
        root = Path(demo)
        runs = Models(sorted(path.parent for path in (root / "runs").glob("*/method.json")))
        return House(root / "data", root / "pairs", root / "reports", runs, settings)
    root = tmp_path_factory.mktemp("house")
    (root / "reports" / "deep").mkdir(parents=True)
    text = '<!doctype html><html><head></head><body><a href="#far">go</a><h1 id="far">{}</h1></body></html>'
    (root / "reports" / "report.html").write_text(text.format("First report"), encoding="utf-8")
    (root / "reports" / "deep" / "other.html").write_text(text.format("Another report"), encoding="utf-8")
    return House(shapes, made_pairs(run, shapes, root / "pairs"), root / "reports", models, settings)
