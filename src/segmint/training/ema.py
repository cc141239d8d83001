"""A moving average of a method's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of every floating-point tensor of a module's state, buffers included.

    The decay rises with the step as min(decay, (1 + step) / (10 + step)), so that the start is soon forgotten.

    Args:
        module: whose weights to follow.
        decay: share of the old average that stays at each step, 0 <= decay < 1; at 0 nothing is averaged.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self._owners = _owners(module)
        self.average = {key: value.clone() for key, value in self._followed().items()} if decay else {}

    def _followed(self) -> dict[str, Tensor]:
        state = self.module.state_dict(keep_vars=False)
        return {key: state[key] for key in state if key in self._owners and state[key].dtype == torch.float32}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the current weights into the average."""
        if not self.decay:
            return
        keep = min(self.decay, (1 + step) / (10 + step))
        current = [self._owners[key][key.rpartition(".")[2]] for key in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module holds the averaged weights; afterwards its own again."""
        if not self.decay:
            yield
            return
        own = {key: value.clone() for key, value in self._followed().items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for key, value in self._followed().items():
            value.copy_(values[key])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors."""
        return self.average

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        for key, value in self.average.items():
            value.copy_(state[key])


def _owners(module: nn.Module) -> dict[str, dict[str, Any]]:
    """For each key of the state, the dictionary that holds it: to look there is far quicker than `state_dict()`."""
    owners: dict[str, dict[str, Any]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for held in (part._parameters, part._buffers):
            owners |= {f"{prefix}.{name}" if prefix else name: held for name in held}
    return owners
