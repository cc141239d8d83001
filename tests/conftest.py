"""Fixtures for all tests: a tiny data folder, and a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["SEGMINT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OMP_NUM_THREADS"] = "1"


def write_shapes(root: Path, count: int = 14, size: tuple[int, int] = (32, 24), unlabelled: int = 3) -> Path:
    """Dark grounds (0) with a bright square (1) or a coloured disc (2); the last images have no mask."""
    numbers = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index in range(count):
        mask = np.zeros(size, np.uint8)
        y, x = numbers.integers(8, size[0] - 8), numbers.integers(8, size[1] - 8)
        if index % 2:
            mask[(abs(rows - y) < 6) & (abs(columns - x) < 6)] = 1
        else:
            mask[(rows - y) ** 2 + (columns - x) ** 2 < 40] = 2
        colors = np.array([(30, 30, 60), (230, 220, 210), (200, 40, 60)])[mask]
        image = (colors + numbers.normal(0, 8, (*size, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index:02d}.png")
        if index < count - unlabelled:
            Image.fromarray(mask).save(root / "masks" / f"{index:02d}.png")
    (root / "classes.yaml").write_text(
        "classes:\n- {id: 0, name: ground}\n- {id: 1, name: square}\n- {id: 2, name: disc}\n", encoding="utf-8"
    )
    splits = {"val": range(0, 3), "test": range(3, 6), "train": range(6, count)}
    (root / "splits").mkdir()
    for name, members in splits.items():
        text = "".join(f"{index:02d}\n" for index in members)
        (root / "splits" / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 14 images 32 x 24: 3 to validate, 3 to test, 5 labelled and 3 unlabelled to train on."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud what had to be left out for want of a program."""
    for told in sorted({str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])}):
        if "NOT TESTED" in told:
            terminalreporter.write_line(told[told.index("NOT TESTED") :].rstrip("')"), yellow=True, bold=True)
