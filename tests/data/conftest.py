"""A small data folder, made anew for each test that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Maker = Callable[..., Path]

CLASSES = "classes: [{id: 0, name: sky}, {id: 1, name: road}, {id: 2, name: car}]\n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SEGMINT_CACHE", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Maker:
    """make_folder(name, groups=.., frames=..) -> a folder of RGB images 12 x 10 with masks of ids 0, 1, 2."""

    def make(
        name: str = "data",
        groups: int = 6,
        frames: int = 2,
        unlabelled: Iterable[str] = (),
        classes: str | None = CLASSES,
        flat: bool = False,
    ) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(0)
        hidden = set(unlabelled)
        for group in range(groups):
            for frame in range(frames):
                stem = f"g{group}-{frame}" if flat else f"g{group}/f{frame}"
                image = root / "images" / f"{stem}.png"
                mask = root / "masks" / f"{stem}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(image)
                if stem not in hidden:
                    ids = random.integers(0, 3, (12, 10), dtype=np.uint8)
                    ids[0, :3] = 0, 1, 2
                    Image.fromarray(ids).save(mask)
        if classes is not None:
            (root / "classes.yaml").write_text(classes)
        return root

    return make
