"""Runs that need no training: a segmenter by colour, good or blind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.config import RunSettings, write_run
from segmint.data.folder import open_folder
from segmint.methods.method import Method

COLORS = torch.tensor([(30, 30, 60), (230, 220, 210), (200, 40, 60)]) / 127.5 - 1


class ByColor(Method):
    """Calls each pixel by the nearest of the three colours; a blind one takes everything for ground."""

    def __init__(self, *, classes=3, in_channels=3, image_size=(32, 24), blind=False):
        super().__init__()
        self.blind = blind

    def segment(self, image, seeds):
        logits = -4 * (image[:, None] - COLORS[None, :, :, None, None]).norm(dim=2)
        if self.blind:
            logits[:, 1:] = -50
        return logits


@pytest.fixture
def make_run(tmp_path, shapes, monkeypatch):
    """make_run(name, blind=False, seed=0, ...) -> a run folder that `evaluate` accepts."""
    methods = {}
    monkeypatch.setattr("segmint.training.run.load", lambda run, changes, **modules: methods[run.name])

    def make(name: str, *, learner: Method | None = None, blind: bool = False, **settings) -> Path:
        folder = tmp_path / name
        methods[name] = (learner or ByColor(classes=3, blind=blind)).eval()
        values = {"method": "supervised", "data": str(shapes), "size": (32, 24), **settings}
        write_run(RunSettings(**values), folder)
        shutil.copy(Path(values["data"]) / "classes.yaml", folder)
        return folder

    return make


@pytest.fixture
def pairs(tmp_path, shapes) -> Path:
    """Six generated pairs, of which the last was not kept: real ones turned over, with some noise."""
    folder = tmp_path / "pairs-vae"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    numbers = np.random.default_rng(0)
    lines = []
    for index in range(6):
        image = np.asarray(Image.open(shapes / "images" / f"{index + 5:02d}.png")).astype(float)[::-1]
        noisy = (image + numbers.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "images" / f"{index}.png")
        mask = np.asarray(Image.open(shapes / "masks" / f"{index + 5:02d}.png"))[::-1]
        Image.fromarray(np.ascontiguousarray(mask)).save(folder / "masks" / f"{index}.png")
        lines.append(json.dumps({"name": str(index), "seed": index, "method": "vae", "kept": index < 5}))
    (folder / "classes.yaml").write_text((shapes / "classes.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def data(shapes):
    return open_folder(shapes)
