"""What requests ask and answers say, for the service and its OpenAPI description alike."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})]
"""A PNG file in base64."""

_CLASSES = [
    {"id": 0, "name": "background", "color": [0, 0, 0]},
    {"id": 1, "name": "jacket", "color": [230, 159, 0]},
]
_SEEN = {"pixels": 9216, "share": 0.75, "confidence": 0.97}, {"pixels": 3072, "share": 0.25, "confidence": 0.91}
_PNG = "iVBORw0KGgo="


def _example(**values: Any) -> ConfigDict:
    """An example for the description of a model."""
    return ConfigDict(json_schema_extra={"examples": [values]})


SegmentForm = Literal["json", "mask", "overlay", "uncertainty", "probabilities"]
GenerateForm = Literal["json", "zip"]
PaintForm = Literal["json", "image"]
Extra = Literal["mask", "overlay", "uncertainty", "alternatives"]

PNG, JSON, ZIP, NPZ = "image/png", "application/json", "application/zip", "application/x-npz"


class Asked(BaseModel):
    """What all requests may ask. Other words are refused."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model; may be left out where only one can do it.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of everything random: the same gives the same answer.")


class SegmentAsked(Asked):
    """How to segment an image."""

    answer: SegmentForm | None = Field(
        None,
        description="`json`; `mask`: PNG of class ids with the classes' colours as palette; `overlay`: PNG of the "
        "image under the classes' colours; `uncertainty`: 8-bit PNG, 255 is log K nats; `probabilities`: npz of "
        "float16 [H, W, K]. Left out: as `Accept` says, else json.",
        examples=["mask"],
    )
    draws: int | None = Field(
        None, ge=1, description="How many masks to draw; for models that can. Left out: 16 where draws differ, else 1."
    )
    include: list[Extra] = Field(
        ["mask"], max_length=8, description="Pictures that the JSON holds, as PNG in base64; may be repeated."
    )
    opacity: float = Field(0.5, ge=0, le=1, description="Of the colours in an overlay.")


class GenerateAsked(Asked):
    """How to make pairs."""

    count: int = Field(1, ge=1, description="How many pairs.")
    answer: GenerateForm | None = Field(
        None,
        description="`json`, with PNGs in base64; `zip`: a data folder. Left out: as `Accept` says, else json.",
        examples=["zip"],
    )


class PaintAsked(Asked):
    """How to paint a mask."""

    answer: PaintForm | None = Field(
        None,
        description="`json`; `image`: PNG. Left out: as `Accept` says, else json.",
        examples=["image"],
    )


class Problem(BaseModel):
    """Why a request was refused, and what to do about it."""

    model_config = _example(error="model: there is no 'cloths'; there are clothes, faces")

    error: str


class ClassOf(BaseModel):
    """One of a model's classes."""

    id: int = Field(ge=0, le=65535, description="Its value in masks.")
    name: str
    color: tuple[int, int, int] = Field(description="Red, green, blue; 0 to 255.")


class Segmented(ClassOf):
    """A class in a segmented image."""

    pixels: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    confidence: float | None = Field(description="Mean probability where it was chosen; null where it was nowhere.")


class Plausible(BaseModel):
    """One of the distinct masks that an image allows."""

    weight: float = Field(gt=0, le=1, description="The share of draws that resemble it.")
    mask: Base64


class Uncertainty(BaseModel):
    """How sure the classes are: entropy in nats, from 0 to `most`."""

    mean: float = Field(ge=0)
    most: float = Field(ge=0, description="log K, which 255 stands for in `map`.")
    map: Base64 | None = Field(None, description="With include=uncertainty.")


class SegmentAnswer(BaseModel):
    """What is in an image."""

    model_config = _example(
        model="clothes",
        height=96,
        width=128,
        seed=0,
        draws=1,
        confidence=0.955,
        expected_dice=0.93,
        uncertainty={"mean": 0.08, "most": 0.6931},
        classes=[{**known, **seen} for known, seen in zip(_CLASSES, _SEEN, strict=True)],
        mask=_PNG,
    )

    model: str
    height: int
    width: int
    seed: int
    draws: int
    confidence: float = Field(ge=0, le=1, description="Mean probability of the chosen classes.")
    expected_dice: float = Field(ge=0, le=1, description="Dice that the mask may expect, by the model's own doubt.")
    uncertainty: Uncertainty
    classes: list[Segmented]
    mask: Base64 | None = Field(None, description="PNG of class ids, with include=mask.")
    overlay: Base64 | None = Field(None, description="With include=overlay.")
    alternatives: list[Plausible] | None = Field(None, description="The heaviest first, with include=alternatives.")


class PairAnswer(BaseModel):
    """A generated image and its mask."""

    seed: int
    image: Base64
    mask: Base64


class GenerateAnswer(BaseModel):
    """Generated pairs."""

    model_config = _example(
        model="clothes",
        height=96,
        width=128,
        seed=1,
        classes=_CLASSES,
        pairs=[{"seed": 1_000_000, "image": _PNG, "mask": _PNG}],
    )

    model: str
    height: int
    width: int
    seed: int
    classes: list[ClassOf]
    pairs: list[PairAnswer]


class PaintAnswer(BaseModel):
    """A painted mask, of the model's size."""

    model_config = _example(model="clothes", height=96, width=128, seed=0, image=_PNG, mask=_PNG)

    model: str
    height: int
    width: int
    seed: int
    image: Base64
    mask: Base64 = Field(description="The mask as it was painted, at the same size.")


class ModelAnswer(BaseModel):
    """What is known of a model."""

    name: str
    method: str
    jobs: list[str] = Field(description="Of segment, draws, generate, paint, repaint (over a photograph).")
    height: int = Field(description="Of the images that it was trained on, and of those that it makes.")
    width: int
    channels: int = Field(description="1: grey, 3: colour. Images are converted.")
    usual_draws: int | None = Field(description="How many masks it draws where nobody says; null: it segments nothing.")
    sha256: str = Field(description="The first 16 digits, of its files.")
    ignore: int = Field(description="The value in masks of pixels of no known class; painters choose for these.")
    classes: list[ClassOf]


class ModelsAnswer(BaseModel):
    """All models, and the limits."""

    model_config = _example(
        models=[
            {
                "name": "clothes",
                "method": "supervised",
                "jobs": ["segment", "draws"],
                "height": 96,
                "width": 128,
                "channels": 3,
                "usual_draws": 1,
                "sha256": "0123456789abcdef",
                "ignore": 255,
                "classes": _CLASSES,
            }
        ],
        limits={"megabytes": 32.0, "megapixels": 16.0, "seconds": 60.0},
    )

    models: list[ModelAnswer]
    limits: dict[str, float] = Field(description="megabytes, megapixels, seconds, upload_seconds, draws and pairs.")


class Health(BaseModel):
    """The server's state."""

    status: Literal["ok", "closing", "busy"]
