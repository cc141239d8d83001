"""How many steps fit into the minutes that somebody has: measured on the method, the data and the machine at hand."""

from __future__ import annotations

from segmint.config import TrainSettings
from segmint.methods.method import Method
from segmint.training.precision import probe
from segmint.training.train import Images, first_batch
from segmint.types import SegmintError

FORWARD = 1 / 3
"""The time of segmenting an image over that of training on it."""

VALIDATIONS = 20


def steps_within(
    minutes: float, method: Method, images: Images, settings: TrainSettings, seed: int
) -> tuple[TrainSettings, str]:
    """The settings with as many steps as fit into the time, validations included, and the fastest precision.

    Args:
        minutes: how long the training may take.
        method: as it would be trained; left as it is.
        images, settings, seed: of the training.

    Returns:
        The settings, and a sentence that says what was measured.

    Raises:
        SegmintError: the method is fitted in whole epochs, or not even 20 steps fit.
    """
    if settings.epochs is not None or not method.parts():
        raise SegmintError(
            f"minutes: {method.name} is fitted in whole epochs; leave --minutes out, or give training.epochs instead"
        )
    precision, milliseconds = probe(method, first_batch(method, images, settings, seed), settings)
    if settings.precision != "auto":
        precision = settings.precision
    step = milliseconds[precision] / 1000
    shown = len(images.validation) + min(16, len(images.labelled)) if images.validation else 0
    validating = VALIDATIONS * shown / settings.batch_size * step * FORWARD
    steps = int((60 * minutes - validating) / step)
    if steps < 20:
        raise SegmintError(
            f"minutes: {minutes:g} is too short: a step of {method.name} takes {step:.2g} s here and validation about "
            f"{validating:.0f} s; give more minutes, a smaller --size or a smaller training.batch_size"
        )
    note = f"steps: {steps:,} fit into {minutes:g} minutes; a step takes {1000 * step:.0f} ms here in {precision}"
    return settings.model_copy(update={"steps": steps, "precision": precision}), note
