"""Small exports of other programs, and a look at what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.data.convert import Converted, Reading, convert
from segmint.data.folder import open_folder
from segmint.data.masks import read_mask
from segmint.types import IGNORE

Words = list[list[str]]


class Export:
    """A foreign export under construction, and what it becomes."""

    def __init__(self, root: Path) -> None:
        self.root = root / "export"
        self.out = root / "ours"

    def photo(self, name: str, height: int = 4, width: int = 5, mode: str = "RGB") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        pixels = np.random.default_rng(len(name)).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def mask(self, name: str, values: Any, palette: list[int] | None = None) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.array(values, np.uint8))
        if palette is not None:
            picture.putpalette(palette)
        picture.save(path)
        return path

    def text(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def json(self, name: str, content: Any) -> Path:
        return self.text(name, json.dumps(content))

    def read(self, name: str = "auto", source: Path | None = None, **reading: Any) -> Converted:
        return convert(source or self.root, self.out, source_format=name, reading=Reading(**reading))

    def words(self, name: str, rater: int = 0) -> Words:
        """A mask of what was written, as names of classes; "?" where unknown."""
        return words(self.out)[name][rater]


def words(folder: Path) -> dict[str, list[Words]]:
    """The masks of a data folder as names of classes, by the image's name."""
    data = open_folder(folder)
    names = [*data.classes.names, *["?"] * (IGNORE + 1 - len(data.classes))]
    return {
        item.name: [[[names[value] for value in row] for row in read_mask(path, data.classes)] for path in item.masks]
        for item in data.items
    }


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def words_of() -> Callable[[Path], dict[str, list[Words]]]:
    return words
