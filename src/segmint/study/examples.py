"""The images on which strategies differ most: image, truth and each strategy's mask, as pictures in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmint.config import read_run
from segmint.data.cache import Pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation import pictures as paint
from segmint.evaluation.evaluate import truth_of
from segmint.evaluation.files import read_json, write_json
from segmint.inference.draws import draw, usual_draws
from segmint.methods.method import device_of
from segmint.seeds import Seeds
from segmint.study.figures import Arm
from segmint.study.findings import Findings
from segmint.study.results import Result
from segmint.training.run import Run
from segmint.types import SegmintError

FOLDER, INDEX = "pictures/examples", "examples.json"
COUNT, MOST = 5, 8
"""Images, and strategies at most: the baseline and those that differ most from it."""
SIDE = 168


@dataclass(frozen=True)
class Choice:
    """What is shown.

    Attributes:
        budget, seed: of all the runs.
        runs: by strategy, the baseline first.
        arms: their figures.
        places: of the images among those judged.
    """

    budget: int | None
    seed: int
    runs: dict[str, Result]
    arms: dict[str, Arm]
    places: list[int]


def choose(findings: Findings) -> Choice | None:
    """The images whose scores, mean over seeds, vary most over strategies; None with fewer than two to compare.

    At the largest budget that the baseline and another strategy have finished, with the first seed that most share.
    """
    baseline = findings.study.baseline
    for budget in reversed(findings.budgets):
        arms = {name: arm for (name, at), arm in findings.figures.arms.items() if at == budget}
        if baseline not in arms or len(arms) < 2:
            continue
        seed = max(arms[baseline].seeds, key=lambda one: (sum(one in arm.seeds for arm in arms.values()), -one))
        able = {name: arm for name, arm in arms.items() if seed in arm.seeds}
        if len(able) < 2:
            continue
        means = {name: _mean(arm) for name, arm in able.items()}
        others = sorted((name for name in able if name != baseline), key=lambda name: -_distance(means, baseline, name))
        names = [baseline, *(name for name in findings.study.strategies if name in others[: MOST - 1])]
        spread = np.stack([means[name] for name in names]).std(0)
        spread[np.isnan(spread)] = -1
        places = [int(place) for place in np.argsort(-spread, kind="stable")[:COUNT] if spread[place] > 0]
        runs = {name: able[name].results[able[name].seeds.index(seed)] for name in names}
        return Choice(budget, seed, runs, {name: able[name] for name in names}, places)
    return None


def _mean(arm: Arm) -> Any:
    return arm.images.mean(0)


def _distance(means: dict[str, Any], baseline: str, name: str) -> float:
    change = np.abs(means[name] - means[baseline])
    return float(np.nanmean(change)) if np.isfinite(change).any() else 0.0


def write_examples(folder: Path, findings: Findings) -> dict[str, Any]:
    """Paint the examples into the study's folder, unless they are there already.

    Args:
        folder: the study's.
        findings: of it.

    Returns:
        What examples.json holds: "budget", "seed", "classes" (name and colour of each), and "images", each with its
        "name", "image" and "truth" (files in the folder) and "masks" (by strategy a file and the image's score); or
        "missing", a sentence that says why there are none.
    """
    choice = choose(findings)
    if choice is None or not choice.places:
        return {"missing": "No two strategies can be compared image by image yet."}
    key = [choice.budget, choice.seed, *choice.places, *([name, one.key, one.run] for name, one in choice.runs.items())]
    index = folder / FOLDER / INDEX
    if index.is_file():
        found = read_json(index, "remove it and write the report again")
        if found.get("key") == key and all((folder / path).is_file() for path in _files(found)):
            return found
    try:
        return _paint(folder, findings, choice, key)
    except (SegmintError, OSError) as error:
        return {"missing": f"There are no pictures: {error}."}


def _files(found: dict[str, Any]) -> list[str]:
    return [
        path for one in found["images"] for path in (one["image"], one["truth"], *(m["file"] for m in one["masks"]))
    ]


def _paint(folder: Path, findings: Findings, choice: Choice, key: list[Any]) -> dict[str, Any]:
    data = open_folder(Path(findings.study.data))
    first = folder / choice.runs[findings.study.baseline].run
    size = read_run(first).size or Run(first).method.config["image_size"]
    pixels = Pixels.open(data, (int(size[0]), int(size[1])))
    colors = data.classes.colors
    indices = _indices(data, [findings.figures.names[place] for place in choice.places])
    images: list[dict[str, Any]] = []
    for number, (place, index) in enumerate(zip(choice.places, indices, strict=True)):
        image = paint.tile(paint.to_rgb(np.asarray(pixels.images[index])), SIDE)
        truth = paint.tile(paint.colorize(truth_of(pixels, index).numpy(), colors), SIDE, smooth=False)
        files = {kind: f"{FOLDER}/{number}-{kind}.png" for kind in ("image", "truth")}
        paint.save(image, folder / files["image"])
        paint.save(truth, folder / files["truth"])
        images.append({"name": findings.figures.names[place], **files, "masks": []})
    for column, (name, result) in enumerate(choice.runs.items()):
        for number, mask in enumerate(_masks(folder / result.run, pixels, indices, findings.study.draws)):
            file = f"{FOLDER}/{number}-{column}.png"
            paint.save(paint.tile(paint.colorize(mask, colors), SIDE, smooth=False), folder / file)
            arm = choice.arms[name]
            score = float(arm.images[arm.seeds.index(choice.seed), choice.places[number]])
            images[number]["masks"].append({"strategy": name, "file": file, "score": score})
    classes = [[name, list(color)] for name, color in zip(data.classes.names, colors, strict=True)]
    found = {"key": key, "budget": choice.budget, "seed": choice.seed, "classes": classes, "images": images}
    write_json(folder / FOLDER / INDEX, found)
    return found


def _indices(data: Data, names: Sequence[str]) -> list[int]:
    known = {item.name: index for index, item in enumerate(data.items)}
    lost = [name for name in names if name not in known]
    if lost:
        raise SegmintError(f"{data.root}: has no image {lost[0]} any more; put it back")
    return [known[name] for name in names]


def _masks(run: Path, pixels: Pixels, indices: Sequence[int], draws: int | None) -> list[Any]:
    """What a run says of each image: integers [H, W]. The draws are those of `segmint evaluate`."""
    method = Run(run).method.to("cuda" if torch.cuda.is_available() else "cpu")
    image = pixels.batch(list(indices)).image.to(device_of(method))
    draws = draws if draws and method.draws_differ else usual_draws(method)
    return list(draw(method, image, Seeds(list(indices)), draws).labels.cpu().numpy())
