from __future__ import annotations

from typing import Any

import pytest

from segmint.config import TrainSettings, parse
from segmint.types import SegmintError


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"betas": [0.9, 1.5]}, r"betas\.1"),
        ({"betas": [-0.1, 0.9]}, r"betas\.0"),
        ({"betas": 0.9}, "betas"),
        ({"lr_of": {"model": -1}}, r"lr_of\.model"),
        ({"lr_of": {"model": "fast"}}, r"lr_of\.model"),
        ({"lr_of": 3}, "lr_of"),
        ({"lr": float("inf")}, "lr"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({1: 2}, "1"),
    ],
)
def test_training_settings_that_mean_nothing_are_named(values: dict[str, Any], key: str):
    with pytest.raises(SegmintError, match=f"^settings: {key}: "):
        parse(TrainSettings, values, "settings")
