"""How many steps fit into the minutes that somebody has: measured on the method, the data and the machine at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segmint.config import TrainSettings
from segmint.methods.method import Method
from segmint.training.precision import CHOICES, probe
from segmint.training.train import Images, first_batch
from segmint.types import SegmintError

FORWARD = 1 / 3
"""The time of segmenting an image over that of training on it."""

VALIDATIONS = 20
"""How often a training validates, if that takes no more than a quarter of the time."""

FEWEST = 20
"""Steps, without which it is no training."""


@dataclass(frozen=True)
class Pace:
    """How fast a method trains here.

    Attributes:
        method: its name.
        precision: the fastest one, or the one that was asked for.
        step: seconds for a step; `validation`: for looking at all validation images once.
    """

    method: str
    precision: str
    step: float
    validation: float

    def validations(self, minutes: float) -> int:
        """How often to validate, 1 to 20 times."""
        fitting = 60 * minutes / 4 / self.validation if self.validation else math.inf
        return int(max(1, min(VALIDATIONS, fitting)))

    def steps(self, minutes: float) -> int:
        """How many steps fit, validations taken off; 0 if none does."""
        return max(0, int((60 * minutes - self.validations(minutes) * self.validation) / self.step))

    def within(self, minutes: float, settings: TrainSettings) -> tuple[TrainSettings, str]:
        """The settings with the steps that fit, and a sentence that says what was measured.

        Raises:
            SegmintError: not even 20 steps fit.
        """
        steps, often = self.steps(minutes), self.validations(minutes)
        if steps < FEWEST:
            raise SegmintError(
                f"minutes: {minutes:g} is too short: a step of {self.method} takes {self.step:.2g} s here and "
                f"validation about {often * self.validation:.0f} s; give more minutes, a smaller --size or a smaller "
                "training.batch_size"
            )
        every = settings.validate_every or (math.ceil(steps / often) if often < VALIDATIONS else 0)
        chosen = {"steps": steps, "precision": self.precision, "validate_every": every}
        note = (
            f"steps: {steps:,} of {self.method} fit into {minutes:g} minutes; a step takes {1000 * self.step:.0f} ms "
            f"here in {self.precision}"
        )
        return settings.model_copy(update=chosen), note


def measure(method: Method, images: Images, settings: TrainSettings, seed: int) -> Pace:
    """Time some steps of a method.

    Args:
        method: as it would be trained; left as it is.
        images, settings, seed: of the training.

    Raises:
        SegmintError: the method is fitted in whole epochs.
    """
    if settings.epochs is not None or not method.parts():
        raise SegmintError(
            f"minutes: {method.name} is fitted in whole epochs; leave --minutes out, or give training.epochs instead"
        )
    choices = CHOICES if settings.precision == "auto" else (settings.precision,)
    precision, milliseconds = probe(method, first_batch(method, images, settings, seed), settings, choices)
    if settings.precision != "auto":
        precision = settings.precision
    step = milliseconds[precision] / 1000
    shown = len(images.validation) + min(16, len(images.labelled)) if images.validation else 0
    return Pace(method.name, precision, step, shown / settings.batch_size * step * FORWARD)
