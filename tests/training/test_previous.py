from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segmint.config import TrainSettings
from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.methods.method import Method
from segmint.training.train import Images, fit
from segmint.types import Batch


class Follower(Method):
    """Remembers the batches that it was shown."""

    conditions = frozenset({"previous"})

    def __init__(self, *, classes: int = 2, in_channels: int = 3, image_size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shown: list[Batch] = []

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.shown.append(batch)
        return {"loss": (self.scale * batch.image).square().mean()}

    def validate(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.shown.append(batch)
        return {}


class Loner(Follower):
    """The same, and does not ask for the previous frame."""

    conditions = frozenset()


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Five frames, each left half of one brightness and right half of another; frame k is 20 k brighter."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part / "drive").mkdir(parents=True)
    for frame in range(5):
        pixels = np.full((16, 16, 3), 20 * frame, np.uint8)
        pixels[:, 8:] += 100
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / "drive" / f"{frame}.png")
        Image.fromarray(np.full((16, 16), frame % 2, np.uint8)).save(
            tmp_path / "data" / "masks" / "drive" / f"{frame}.png"
        )
    pixels = Pixels.open(open_folder(tmp_path / "data"))
    return Images(pixels, labelled=[1, 2, 3, 4], validation=[0, 1, 2])


def settings(**more) -> TrainSettings:
    return TrainSettings(steps=4, batch_size=4, precision="float32", validate_every=4, **more)


def test_a_method_that_follows_is_shown_the_previous_frames(images: Images, tmp_path: Path):
    method = Follower(classes=2)
    fit(method, images, settings(augment="none"), tmp_path)
    *trained, validated = method.shown
    assert len(trained) == 4
    for batch in trained:
        assert batch.previous is not None
        assert torch.allclose(batch.image - batch.previous, torch.tensor(20 / 127.5), atol=1e-5)
    assert validated.previous is not None
    steps = (validated.image - validated.previous).mean((1, 2, 3)) * 127.5
    assert torch.allclose(steps, torch.tensor([0.0, 20.0, 20.0]), atol=1e-3)


def test_the_previous_frame_is_mirrored_with_its_image(images: Images, tmp_path: Path):
    method = Follower(classes=2)
    fit(method, images, settings(augment={"flip": 0.5}), tmp_path)
    batch = Batch.cat(method.shown[:4])
    assert batch.previous is not None
    left = batch.image[:, :, :, 0].mean((1, 2)) > batch.image[:, :, :, -1].mean((1, 2))
    assert 0 < int(left.sum()) < len(batch)
    assert torch.allclose(batch.image - batch.previous, torch.tensor(20 / 127.5), atol=1e-5)


def test_other_methods_are_not(images: Images, tmp_path: Path):
    method = Loner(classes=2)
    fit(method, images, settings(), tmp_path)
    assert all(batch.previous is None for batch in method.shown)
