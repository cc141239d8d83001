"""Weights of one run that another starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from segmint.methods.method import Method, load
from segmint.types import SegmintError


def fitting(method: Method, other: Method) -> dict[str, torch.Tensor]:
    """The other's tensors that have the name and the shape of one of the method's, but for what counts its steps."""
    own = method.state_dict()
    taken = other.starting_weights()
    same = {key: value for key, value in taken.items() if key in own and own[key].shape == value.shape}
    return {key: value for key, value in same.items() if value.is_floating_point()}


def start_from(method: Method, folder: Path) -> int:
    """Take over a run's weights, wherever a tensor has the same name and shape.

    Returns:
        How many tensors were taken.

    Raises:
        SegmintError: none fits, or there is no run.
    """
    taken = fitting(method, load(folder))
    if not taken:
        raise SegmintError(f"init: {folder} and {method.name} have no tensor of the same name and shape in common")
    method.load_state_dict({**method.state_dict(), **taken})
    return len(taken)
