"""From arrays to the bytes of answers: PNG, JSON, npz and ZIP."""

from __future__ import annotations

import base64
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmint.data.classes import Classes, write_classes
from segmint.data.io import Array, Bytes
from segmint.data.masks import mask_picture
from segmint.inference.generate import write_pair
from segmint.inference.outputs import blend
from segmint.serve.models import Model, Pair
from segmint.serve.schemas import (
    ClassOf,
    GenerateAnswer,
    ModelAnswer,
    PaintAnswer,
    PairAnswer,
    Plausible,
    SegmentAnswer,
    SegmentAsked,
    Segmented,
    Uncertainty,
)
from segmint.types import Prediction


def picture_png(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=4)
    return file.getvalue()


def image_png(pixels: Array) -> bytes:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] as PNG."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return picture_png(Image.fromarray(np.ascontiguousarray(flat, np.uint8)))


def mask_png(labels: Array, classes: Classes) -> bytes:
    """Class indices [H, W] as a PNG of class ids with the classes' colours as palette."""
    return picture_png(mask_picture(labels, classes))


def overlay_png(image: Bytes, labels: Array, classes: Classes, opacity: float) -> bytes:
    """An image, uint8 [H, W, C], under the colours of its classes."""
    return image_png(blend(image, labels, classes, opacity))


def uncertainty_png(found: Prediction) -> bytes:
    """The total uncertainty in 8 bits, of which 255 is log K nats."""
    scale = 255 / most_uncertain(len(found.names))
    return image_png((found.uncertainty * scale).round().clamp(0, 255).to(torch.uint8).numpy())


def probabilities_npz(probabilities: Tensor, names: Sequence[str]) -> bytes:
    """ "probabilities", float16 [H, W, K], and "names", like the files of `segmint predict`."""
    file = io.BytesIO()
    arrays = {"probabilities": probabilities.permute(1, 2, 0).to(torch.float16).numpy(), "names": np.array(names)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
        for name, array in arrays.items():
            with pack.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array))
    return file.getvalue()


def most_uncertain(classes: int) -> float:
    """log K, the entropy of K classes that are all as probable; that of two where there is only one."""
    return math.log(max(classes, 2))


def segment_answer(model: Model, found: Prediction, draws: int, asked: SegmentAsked) -> SegmentAnswer:
    """All there is to say of an image, segmented by so many draws; pictures only where they are asked for."""
    height, width = found.labels.shape
    likely = found.probabilities.amax(0)
    wanted = set(asked.include)
    uncertainty = Uncertainty(mean=max(0.0, float(found.uncertainty.mean())), most=most_uncertain(len(model.classes)))
    if "uncertainty" in wanted:
        uncertainty.map = _base64(uncertainty_png(found))
    answer = SegmentAnswer(
        model=model.name,
        height=height,
        width=width,
        seed=asked.seed,
        draws=draws,
        confidence=_share(float(likely.double().mean())),
        expected_dice=_share(found.expected_dice),
        uncertainty=uncertainty,
        classes=_segmented(model.classes, found.labels, likely),
    )
    if "mask" in wanted:
        answer.mask = _base64(mask_png(found.labels.numpy(), model.classes))
    if "overlay" in wanted:
        answer.overlay = _base64(overlay_png(found.image.numpy(), found.labels.numpy(), model.classes, asked.opacity))
    if "alternatives" in wanted:
        answer.alternatives = [
            Plausible(weight=_share(one.weight), mask=_base64(mask_png(one.labels.numpy(), model.classes)))
            for one in found.alternatives
        ]
    return answer


def generate_answer(model: Model, seed: int, seeds: Sequence[int], pairs: Sequence[Pair]) -> GenerateAnswer:
    """Pairs as JSON holds them."""
    height, width = pairs[0].mask.shape
    made = [
        PairAnswer(seed=own, image=_base64(image_png(pair.image)), mask=_base64(mask_png(pair.mask, model.classes)))
        for own, pair in zip(seeds, pairs, strict=True)
    ]
    return GenerateAnswer(
        model=model.name, height=height, width=width, seed=seed, classes=classes_answer(model.classes), pairs=made
    )


def pairs_zip(model: Model, seeds: Sequence[int], pairs: Sequence[Pair]) -> bytes:
    """Pairs as a data folder in a ZIP file: images/, masks/, classes.yaml, manifest.jsonl."""
    file, lines = io.BytesIO(), []
    with tempfile.TemporaryDirectory(prefix="segmint-") as temporary, zipfile.ZipFile(file, "w") as pack:
        folder = Path(temporary)
        for number, (seed, pair) in enumerate(zip(seeds, pairs, strict=True)):
            name = f"{number:05d}"
            write_pair(folder, name, pair.image, pair.mask, model.classes)
            entry = {"name": name, "seed": seed, "run": model.name, "method": model.run.method.name, "kept": True}
            lines.append(json.dumps(entry) + "\n")
        write_classes(folder / "classes.yaml", model.classes)
        (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                pack.write(path, str(path.relative_to(folder)))
    return file.getvalue()


def paint_answer(model: Model, seed: int, image: Bytes, mask: Bytes) -> PaintAnswer:
    """A painted mask as JSON holds it."""
    height, width = mask.shape
    return PaintAnswer(
        model=model.name,
        height=height,
        width=width,
        seed=seed,
        image=_base64(image_png(image)),
        mask=_base64(mask_png(mask, model.classes)),
    )


def classes_answer(classes: Classes) -> list[ClassOf]:
    """The classes, as JSON holds them."""
    return [
        ClassOf(id=number, name=name, color=color)
        for number, name, color in zip(classes.ids, classes.names, classes.colors, strict=True)
    ]


def model_answer(model: Model) -> ModelAnswer:
    """What is known of a model, without where it lies."""
    return ModelAnswer(
        name=model.name,
        method=model.run.method.name,
        jobs=list(model.jobs),
        height=model.size[0],
        width=model.size[1],
        channels=model.channels,
        usual_draws=model.usual_draws if "segment" in model.jobs else None,
        sha256=model.digest,
        ignore=model.classes.ignore,
        classes=classes_answer(model.classes),
    )


def _segmented(classes: Classes, labels: Tensor, likely: Tensor) -> list[Segmented]:
    flat, total = labels.flatten().long(), labels.numel()
    areas = torch.bincount(flat, minlength=len(classes))
    sums = torch.bincount(flat, likely.flatten().double(), minlength=len(classes))
    return [
        Segmented(
            **known.model_dump(),
            pixels=area,
            share=area / total,
            confidence=_share(certain / area) if area else None,
        )
        for known, area, certain in zip(classes_answer(classes), areas.tolist(), sums.tolist(), strict=True)
    ]


def _share(value: float) -> float:
    """Within 0..1, of which rounding may take it out."""
    return min(1.0, max(0.0, value))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
