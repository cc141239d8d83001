"""Segmenting an image and its mirror image together: twice the work, and a little more accurate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from segmint.methods.method import Method
from segmint.seeds import Seeds
from segmint.training.run import Run


class Mirrored(Method):
    """A method that is shown the image mirrored left to right; what it says is mirrored back.

    Args:
        method: that segments.
    """

    def __init__(self, *, method: Method) -> None:
        super().__init__()
        self.method = method
        self.config = method.config

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W] of the images as they are, told from their mirror images."""
        return self.method.segment(image.flip(-1), seeds).flip(-1)

    def draws(self, image: Tensor, seeds: Seeds, count: int) -> Iterator[Tensor]:
        """Draws of the mirror images, mirrored back."""
        return (logits.flip(-1) for logits in self.method.draws(image.flip(-1), seeds, count))

    def errors(self, image: Tensor, logits: Tensor) -> Tensor | None:
        """What the method expects of the mirror images, mirrored back."""
        found = self.method.errors(image.flip(-1), logits.flip(-1))
        return None if found is None else found.flip(-1)


def methods_of(members: Sequence[Run], mirror: bool = False) -> list[Method]:
    """The methods of the runs, and where asked each of them once more for the mirror image, as further members."""
    methods = [run.method for run in members]
    return [*methods, *(Mirrored(method=method) for method in methods)] if mirror else methods
