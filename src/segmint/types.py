"""The values that travel between the floors of the house."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

IGNORE = 255
"""The mask value of a pixel whose class is unknown. An unlabelled image has nothing else in its mask."""


_FULL = re.compile(r"out of memory|not enough memory|alloc\w* .*memory|bad[_ ]alloc|ALLOC_FAILED", re.IGNORECASE)
"""What PyTorch, CUDA and ONNX Runtime say where memory does not suffice; they speak of memory in other errors too."""


class SegmintError(Exception):
    """A mistake that the user can mend: the message names the file or key, what is wrong, and the remedy."""


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_memory(error: BaseException) -> bool:
    """Whether something did not fit into memory; PyTorch says so by a RuntimeError."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_FULL.search(str(error))))


@dataclass(frozen=True)
class Batch:
    """Images with their masks.

    Attributes:
        image: float32 [B, C, H, W], values in [-1, 1].
        mask: int64 [B, H, W], class indices 0..K-1, or `IGNORE` where unknown.
        previous: the frame before each image, shaped like `image`, or None where there is no sequence.
    """

    image: Tensor
    mask: Tensor
    previous: Tensor | None = None

    def __len__(self) -> int:
        return int(self.image.shape[0])

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Batch:
        """The batch of the chosen items: `index` is a slice, a list of positions, or a bool/int tensor [B]."""
        previous = None if self.previous is None else self.previous[index]
        return Batch(self.image[index], self.mask[index], previous)

    @property
    def labelled(self) -> Tensor:
        """bool [B]: which items have at least one pixel of known class."""
        return (self.mask != IGNORE).flatten(1).any(1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        previous = None if self.previous is None else self.previous.to(device)
        return Batch(self.image.to(device), self.mask.to(device), previous)

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """One batch after another. Frames before are kept only if every batch has them."""
        import torch

        previous = [batch.previous for batch in batches]
        known = [frame for frame in previous if frame is not None]
        return Batch(
            torch.cat([batch.image for batch in batches]),
            torch.cat([batch.mask for batch in batches]),
            torch.cat(known) if len(known) == len(batches) else None,
        )


@dataclass(frozen=True)
class Alternative:
    """One of the distinct masks that an image allows.

    Attributes:
        labels: uint8 [H, W], the class index of each pixel: the draw in the middle of those that resemble it.
        weight: the share of draws that resemble it, above 0 and at most 1.
    """

    labels: Tensor
    weight: float


@dataclass(frozen=True)
class Prediction:
    """What a segmenter, or several, say of one image.

    Attributes:
        labels: uint8 [H, W], the most probable class index of each pixel.
        probabilities: float32 [K, H, W], the mean over runs and draws, summing to one over K.
        uncertainty: float32 [H, W], the entropy of `probabilities` in nats, 0..log K (total uncertainty).
        aleatoric: float32 [H, W], the part of `uncertainty` that the image leaves open, as far as the runs know.
        epistemic: float32 [H, W], the rest: on what the runs differ, or the passes with dropout, or the views of an
            image that is shown mirrored as well (mutual information); None where one run alone cannot know it.
        errors: float32 [H, W] in 0..1, where the run's own judge expects `labels` to be wrong; None without one.
        expected_dice: 0..1, the Dice that `labels` may expect, by the run's own draws or probabilities: whether this
            one is good enough, or a person should look.
        draws: uint8 [S, H, W], the mask of each draw; none, like `alternatives`, where only the mask was asked for.
        alternatives: the distinct ones among the draws with their weights, which sum to one, largest first. Draws
            belong together where their 1 - IoU is below 0.3 on average.
        image: uint8 [H, W, C], the image as it was read.
        names: the K class names; `colors`: one (red, green, blue) in 0..255 each.
    """

    labels: Tensor
    probabilities: Tensor
    uncertainty: Tensor
    aleatoric: Tensor
    epistemic: Tensor | None
    errors: Tensor | None
    expected_dice: float
    draws: Tensor
    alternatives: tuple[Alternative, ...]
    image: Tensor
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def overlay(self, opacity: float = 0.5) -> Image:
        """The image with the classes' colours over it (a Pillow image); `opacity` in 0..1."""
        import torch
        from PIL import Image

        palette = torch.tensor(self.colors, dtype=torch.float32)
        image = self.image.float().expand(-1, -1, 3)
        mixed = image * (1 - opacity) + palette[self.labels.long()] * opacity
        return Image.fromarray(mixed.round().to(torch.uint8).numpy())

    def show(self) -> None:
        """Open the overlay in the system's picture viewer."""
        self.overlay().show()
