"""One optimiser per part of a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segmint.config import TrainSettings
from segmint.training.parallel import average_gradients
from segmint.types import SegmintError


def schedule(settings: TrainSettings, step: int, steps: int) -> float:
    """The factor on the learning rate at a step, 0..1: linear warm-up, then cosine, polynomial or constant."""
    rise = round(settings.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "poly":
        return float((1 - progress) ** 0.9)
    return 1.0


class PartOptimizers:
    """AdamW (Loshchilov & Hutter 2019) for each part, with gradient clipping and L1 and L2 penalties.

    Weight decay and penalties apply to weight matrices and kernels, not to biases and normalisation. Where several
    processes train together, gradients are first averaged over them.

    Args:
        parts: the modules that are optimised separately, by name.
        settings: learning rates, betas, penalties, clipping, schedule.

    Raises:
        SegmintError: a part has no parameters, or `lr_of` names a part that the method does not have.
    """

    def __init__(self, parts: Mapping[str, nn.Module], settings: TrainSettings) -> None:
        self.settings = settings
        for name in settings.lr_of:
            if name not in parts:
                raise SegmintError(f"training.lr_of.{name}: the method's parts are {', '.join(parts) or 'none'}")
        self.parameters = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        for name, parameters in self.parameters.items():
            if not parameters:
                raise SegmintError(f"{name}: this network has no parameters to train; give another")
        self.optimizers = {
            name: torch.optim.AdamW(
                [
                    {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                    {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=settings.lr_of.get(name, settings.lr),
                betas=settings.betas,
                fused=True,
            )
            for name, parameters in self.parameters.items()
        }
        self.norms: dict[str, Tensor] = {}

    def at(self, step: int, steps: int) -> float:
        """Set the learning rates for a step; returns the schedule's factor."""
        factor = schedule(self.settings, step, steps)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self.settings.lr_of.get(name, self.settings.lr)
        return factor

    def minimize(self, part: str, loss: Tensor) -> None:
        """Move the parameters of `part`, and no others, down the gradient of the scalar `loss`."""
        parameters = self.parameters[part]
        optimizer = self.optimizers[part]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            average_gradients(parameters)
            self._penalize(parameters)
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if self.settings.clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip, norm)
        self.norms[f"gradient_norm_{part}"] = norm.detach()
        optimizer.step()

    def _penalize(self, parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            if p.grad is None or p.ndim <= 1:
                continue
            if self.settings.l1:
                p.grad.add_(p.sign(), alpha=self.settings.l1)
            if self.settings.l2:
                p.grad.add_(p, alpha=self.settings.l2)

    def weight_norms(self) -> dict[str, float]:
        """The sum of |w| and the root of the sum of w^2 over all weight matrices and kernels."""
        weights = [p.detach() for ps in self.parameters.values() for p in ps if p.ndim > 1]
        if not weights:
            return {}
        l1 = sum(float(w.abs().sum()) for w in weights)
        return {"l1_norm": l1, "l2_norm": math.sqrt(sum(float(w.square().sum()) for w in weights))}

    def state_dict(self) -> dict[str, Any]:
        """The state of every optimiser."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
