"""How much a step on a generated pair would lower a segmenter's loss on validation images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segmint.data.cache import Pixels
from segmint.functional.losses import cross_entropy
from segmint.methods.method import Method, device_of
from segmint.seeds import Seeds
from segmint.types import Batch, SegmintError


class Usefulness:
    """The cosine between a pair's loss gradient and the mean gradient over real validation images.

    A small step down a pair's gradient g changes the validation loss by -lr <g, v> (TracIn, Pruthi et al. 2020;
    learning to reweight, Ren et al. 2018). The cosine leaves out the length of g, by which pairs that the segmenter
    gets very wrong, and so the poisonous ones, would otherwise come first. Gradients are those of all trainable
    parameters in evaluation mode, of the method's own loss or, where it has none, of the cross-entropy of its logits.

    Args:
        method: a segmenter with trainable parameters.
        pixels: the real data, at the size that the segmenter was trained at.
        indices: labelled validation items.
        batch_size: validation images at a time.

    Raises:
        SegmintError: the method is not trained by gradients.
    """

    def __init__(self, method: Method, pixels: Pixels, indices: Sequence[int], batch_size: int = 8) -> None:
        self.method = method
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise SegmintError(f"--by usefulness: {method.name} is not trained by gradients; choose --by agreement")
        total = torch.zeros((), device=device_of(method))
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            total = total + len(some) * self.gradient(pixels.batch(some))
        self.target = total / total.norm()

    def __call__(self, batch: Batch) -> Tensor:
        """float32 [B] in -1..1 for a batch of pairs; 0 for a pair with no known pixel."""
        found = []
        for place in range(len(batch)):
            gradient = self.gradient(batch[place : place + 1])
            found.append((gradient @ self.target / gradient.norm().clamp_min(1e-20)).cpu())
        return torch.stack(found)

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of a batch's mean loss by all trainable parameters, float32 [P]."""
        batch = batch.to(device_of(self.method))
        with torch.enable_grad():
            if type(self.method).loss is not Method.loss:
                loss = self.method.loss(batch)["loss"]
            else:
                loss = cross_entropy(self.method.segment(batch.image, Seeds.range(len(batch))), batch.mask)
            parts = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])
