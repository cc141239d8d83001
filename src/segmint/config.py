"""Settings of a run. Errors name the key's path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, TypeAdapter, ValidationError, field_validator

from segmint.types import SegmintError

SMALLEST = 8
"""Height and width that training images have at least, in pixels."""

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(BaseModel):
    """How a method is trained. Lengths are in optimisation steps, learning rates per step.

    Attributes:
        steps: number of optimisation steps; `epochs`, where given, sets it to whole passes over the training images.
        batch_size: images a step, of each process where torchrun starts several.
        lr: peak learning rate; `lr_of` overrides it by part, e.g. {"discriminator": 4e-4}.
        betas: Adam's two decay rates.
        weight_decay: decoupled decay (AdamW) of weight matrices and kernels.
        l1, l2: penalties l1 * sum|w| and l2/2 * sum w^2 on weight matrices and kernels, added to the gradient.
        clip: largest norm of a part's gradient; 0 for no clipping.
        schedule: learning rate over time: "cosine" to zero, "poly" (power 0.9) to zero, or "constant".
        warmup: share of the steps over which the learning rate rises from zero, 0..1.
        ema: decay of the moving average of the weights that is validated and saved; 0 for none.
        augment: "none", "flip", "weak", "strong", or a mapping of `segmint.data.augment.Augmentation`'s fields.
        labelled_fraction: share of each batch that has masks, where unlabelled images are used too; 0 for as they come.
        synthetic_fraction: share of each batch's labelled images drawn from generated pairs, where there are any.
        validate_every: steps between validations; 0 chooses 20 validations a run, at least 50 steps apart.
        patience: validations without improvement before training stops early; 0 for never.
        precision: "float32", "channels_last" (float32 in that layout), "bfloat16" (autocast, channels last), or "auto":
            the fastest of them in a two-second probe.
        save_every: seconds between checkpoints.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(2000, ge=0)
    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(1e-3, ge=0)
    lr_of: dict[str, NonNegativeFloat] = {}
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, le=1)
    ema: float = Field(0.99, ge=0, lt=1)
    augment: str | dict[str, Any] = "strong"
    labelled_fraction: float = Field(0.5, ge=0, le=1)
    synthetic_fraction: float = Field(0.5, ge=0, le=1)
    validate_every: int = Field(0, ge=0)
    patience: int = Field(0, ge=0)
    precision: Literal["auto", "float32", "channels_last", "bfloat16"] = "auto"
    save_every: float = Field(60.0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class RunSettings(BaseModel):
    """A training run: what `config.yaml` in a run folder holds.

    Attributes:
        method: name of the method; `method_settings`: its constructor's arguments, resolved.
        given: those of them that the user gave.
        data: the data folder; `synthetic`: folders of generated pairs to train on as well.
        budget: how many training images keep their masks (None: all; 0: only generated pairs have masks); `seed`:
            chooses them and everything random.
        masks_from: a run folder whose segmenter predicts masks for the images without; None: they stay without.
        masks_confidence: its predictions count where they give a class this probability or more, 0..1.
        init: a run folder whose weights training starts from, wherever a tensor has the same name and shape.
        size: height and width of the training images in pixels; None: that of the data.
        depth: significant bits of the images' values (8; more for 16-bit files).
        minutes: how long it was to take, so that its steps were measured; None: they were given.
        training: see `TrainSettings`.
        notes: what was decided and why, in sentences.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    method_settings: dict[str, Any] = {}
    given: dict[str, Any] = {}
    data: str
    synthetic: list[str] = []
    budget: int | None = Field(None, ge=0)
    masks_from: str | None = None
    masks_confidence: float = Field(0.7, ge=0, le=1)
    init: str | None = None
    seed: int = Field(0, ge=0)
    size: tuple[int, int] | None = None
    depth: int = Field(8, ge=1, le=16)
    minutes: float | None = None
    training: TrainSettings = TrainSettings()
    notes: list[str] = []

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < SMALLEST:
            raise ValueError(f"height and width must be at least {SMALLEST} pixels")
        return value


def parse(model: type[BaseModel], values: Mapping[str, Any], source: str) -> Any:
    """Validate settings.

    Args:
        model: `RunSettings` or `TrainSettings`.
        values: as read from YAML or the command line.
        source: where they came from, for the message.

    Raises:
        SegmintError: each wrong key by its path, with what is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"]) or "(whole)"
            if problem["type"] == "extra_forbidden":
                known = ", ".join(model.model_fields)
                lines.append(f"{path}: there is no such setting; choose from {known}")
            else:
                lines.append(f"{path}: {problem['msg']} (given: {problem['input']!r})")
        raise SegmintError(f"{source}: " + "; ".join(lines)) from error


def typed(hints: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Values that have the types of some arguments.

    Args:
        hints: the type of each argument; one without may be anything.
        values: by argument.
        source: whose arguments they are, for the message.

    Returns:
        The values as these types: "3" as 3, and a list as a tuple.

    Raises:
        SegmintError: one is of another type, or not finite.
    """
    found = dict(values)
    rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    for key in values.keys() & hints.keys():
        try:
            found[key] = TypeAdapter(hints[key], config=rules).validate_python(values[key])
        except ValidationError as error:
            told = " or ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise SegmintError(f"{source}.{key}: {told} (given: {values[key]!r})") from error
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file holding a mapping.

    Raises:
        SegmintError: missing, unreadable, or not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SegmintError(f"{path}: no such file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SegmintError(f"{path}: cannot be read as YAML ({reason}); mend or restore it") from error
    if not isinstance(value, dict):
        raise SegmintError(f"{path}: should hold settings as `key: value` lines, not {type(value).__name__}")
    return value


def write_atomic(path: Path, text: str) -> None:
    """Write a text file to a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_run(settings: RunSettings, folder: Path) -> None:
    """Write `config.yaml` into a run folder."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(folder / "config.yaml", text)


def read_run(folder: Path) -> RunSettings:
    """Read `config.yaml` of a run folder.

    Raises:
        SegmintError: missing or damaged.
    """
    path = folder / "config.yaml"
    settings: RunSettings = parse(RunSettings, read_yaml(path), str(path))
    return settings
