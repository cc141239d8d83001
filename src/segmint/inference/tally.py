"""What a table says of each image: areas of the classes, and how good its mask may be expected to be."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from segmint.data.classes import Classes
from segmint.data.io import replacing
from segmint.data.windows import Window
from segmint.functional import ambiguity
from segmint.inference.tiles import Cell
from segmint.types import Prediction, SegmintError

Row = dict[str, str]


class Tally:
    """Sums over the parts of an image.

    Args:
        classes: K classes.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.areas = torch.zeros(len(classes), dtype=torch.int64)
        self.confidence = 0.0
        self.counts = torch.zeros(())
        self.expected_dice: float | None = None

    def add(self, cell: Cell) -> None:
        """Count a finished part."""
        self.areas += torch.bincount(cell.labels.flatten().long(), minlength=len(self.classes))
        self.confidence += float(cell.probabilities.amax(0).double().sum())
        self.expected_dice = cell.expected_dice
        if cell.expected_dice is not None:
            return
        present = ambiguity.foreground(len(self.classes))
        self.counts = self.counts + ambiguity.dice_counts(cell.labels[None], cell.probabilities[None], present)

    def row(self) -> Row:
        """What there is to say of the image, as text.

        Returns:
            "expected_dice" (of a tiled image, from its probabilities); "confidence", the mean probability of the chosen
            classes; for each class "pixels NAME", its area, and "share NAME", 0..1.
        """
        total, dice = int(self.areas.sum()), self.expected_dice
        dice = float(ambiguity.dice_of(self.counts)[0]) if dice is None else dice
        row = {"expected_dice": f"{dice:.4f}", "confidence": f"{self.confidence / total:.4f}"}
        for name, area in zip(self.classes.names, self.areas.tolist(), strict=True):
            row |= {f"pixels {name}": str(area), f"share {name}": f"{area / total:.6f}"}
        return row


def cell_of(prediction: Prediction) -> Cell:
    """A whole image as one part."""
    height, width = prediction.labels.shape
    maps = {kind: getattr(prediction, kind) for kind in ("uncertainty", "aleatoric", "epistemic", "errors")}
    known = {kind: values for kind, values in maps.items() if values is not None}
    return Cell(
        Window(0, 0, height, width), prediction.probabilities, known, prediction.labels, prediction.expected_dice
    )


def row_of(prediction: Prediction, classes: Classes) -> Row:
    """The row of an image that was segmented whole."""
    tally = Tally(classes)
    tally.add(cell_of(prediction))
    return tally.row()


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows of the same columns, under a temporary name first.

    Raises:
        SegmintError: the place cannot be written.
    """
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def read_csv(path: Path) -> list[Row]:
    """The rows of a table; none where there is no file.

    Raises:
        SegmintError: it is damaged.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if any(None in row or None in row.values() for row in rows):
        raise SegmintError(f"{path}: a row has too few or too many cells; remove the file, and predict again")
    return rows
