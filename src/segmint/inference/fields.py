"""Random numbers for the tiles of an image: each tile's pixels get a window of one field of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segmint.data.windows import Window
from segmint.seeds import Seeds, mix
from segmint.types import SegmintError

BLOCK = 128
"""Sides of the squares that the field is made of, in pixels; each has a seed of its own."""


class FieldSeeds(Seeds):
    """Seeds for one tile of an image.

    Numbers for pixels, asked for as `randn(..., height, width)` of the tile (or of its cells of c x c pixels), are cut
    out of a field without end that depends on the seed alone: tiles that overlap get the same numbers where they do.
    The field is made block by block, so it never has to be in memory. All other numbers, such as a latent code
    `randn(6)`, are the same for every tile.

    Args:
        values: one integer seed per item.
        window: where the tile lies in its image; top and left are 0 or more.
    """

    def __init__(self, values: Sequence[int], window: Window) -> None:
        super().__init__(values)
        self.window, self._fields = window, 0

    def __getitem__(self, index: slice) -> FieldSeeds:
        """Fresh streams for some of the items."""
        return FieldSeeds(self.values[index], self.window)

    def fork(self, *name: int | str) -> FieldSeeds:
        """Fresh streams, and other fields, for the same items and the same window."""
        return FieldSeeds([mix(value, *name) for value in self.values], self.window)

    def randn(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        if len(shape) < 2:
            return super().randn(*shape, device=device)
        return self._cut(shape, lambda block, stream: torch.randn(block, generator=stream)).to(device)

    def rand(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape]."""
        if len(shape) < 2:
            return super().rand(*shape, device=device)
        return self._cut(shape, lambda block, stream: torch.rand(block, generator=stream)).to(device)

    def integers(self, high: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Integers in 0..high-1, int64 [B, *shape]."""
        if len(shape) < 2:
            return super().integers(high, *shape, device=device)
        return self._cut(shape, lambda block, stream: torch.randint(high, block, generator=stream)).to(device)

    def _cut(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Tensor:
        """The window of the next field, [B, *shape]."""
        cell, (height, width) = self._cell(shape[-2:]), shape[-2:]
        top, left = self.window.top // cell, self.window.left // cell
        self._fields += 1
        rows = range(top // BLOCK, -(-(top + height) // BLOCK))
        columns = range(left // BLOCK, -(-(left + width) // BLOCK))
        block = (*shape[:-2], BLOCK, BLOCK)

        def blocks(value: int, row: int) -> list[Tensor]:
            seeds = [mix(value, "field", self._fields, row, column) for column in columns]
            return [draw(block, torch.Generator().manual_seed(seed)) for seed in seeds]

        y, x = top - rows[0] * BLOCK, left - columns[0] * BLOCK
        fields = [torch.cat([torch.cat(blocks(value, row), -1) for row in rows], -2) for value in self.values]
        return torch.stack(fields)[..., y : y + height, x : x + width].contiguous()

    def _cell(self, size: tuple[int, ...]) -> int:
        """How many pixels high and wide is what gets one number: 1, unless the method works on larger cells."""
        _, _, height, width = self.window
        cell = round(height / max(1, size[0]))
        if cell < 1 or size != (-(-height // cell), -(-width // cell)):
            raise SegmintError(
                f"--tile: the method asks for noise of {size[0]} x {size[1]} for a tile of {height} x {width} "
                "pixels, which cannot be cut out of a whole; leave --tile out"
            )
        return cell
