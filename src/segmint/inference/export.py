"""Write a trained method as one file that runs without torch: ONNX, or OpenVINO's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from segmint.data.folder import Data, open_folder
from segmint.data.io import replacing
from segmint.inference.engines import core, ports_of, require
from segmint.inference.exported import ExportedRun, classes_facts, kind_of
from segmint.inference.parity import POINTS, Parity, compare, read_pixels, spread, with_scores
from segmint.inference.predict import fitted
from segmint.inference.quantise import FLOATING, quantise
from segmint.inference.tracing import SEGMENT, Traced, able, judges, trace
from segmint.inference.wrapping import FORMAT, KEY, describe, wrap
from segmint.seeds import Seeds
from segmint.training.run import Run
from segmint.types import SegmintError

if TYPE_CHECKING:
    import onnx

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
CALIBRATING = 48
"""Images that set the ranges of 8-bit maps; a few dozen are usual, and more changed nothing."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the model; OpenVINO's weights lie beside it in a .bin.
        job: "segment", "generate" or "paint".
        precision: "float32" or "int8".
        parity: how far it is from the run.
        megabytes: of all its files.
    """

    path: Path
    job: str
    precision: str
    parity: Parity
    megabytes: float


def export(
    run: Run | str | Path,
    to: str = "onnx",
    *,
    out: str | Path | None = None,
    job: str | None = None,
    int8: bool = False,
    calibrate: Data | str | Path | None = None,
    points: float = POINTS,
) -> Exported:
    """Write a trained method as a model file, after comparing the two.

    A segmenter takes `image`, uint8 [N, H, W, C] of any size, and gives `labels`, uint8 [N, H, W], and `probabilities`,
    float32 [N, K, H, W]: what one draw of `predict` gives. Generators give `image` and `mask`. Random numbers are
    inputs too, `noise_0` and so on. Classes, colours and whatever else `predict` needs are in its metadata.

    Args:
        run: a run folder.
        to: "onnx" or "openvino".
        out: the file to write, *.onnx or *.xml; None: model.onnx (or generator, or -int8) in the run folder.
        job: "segment", "generate" or "paint"; None: the first of these that the method can.
        int8: 8-bit integers instead of float32, for segmenters.
        calibrate: the data whose training images set the ranges of the 8-bit maps, and on whose validation images the
            mean IoU of both is compared; None: the run's own.
        points: of mean IoU, of 100, that int8 may cost.

    Raises:
        SegmintError: the method cannot be exported, a package is missing, there are no images to calibrate with, or the
            model differs from the run by more than is tolerated; nothing is written then.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    job = _job(run, to, job, int8)
    path = _path(run, to, job, int8, out)
    require("onnx", "onnxscript", "onnxruntime", *(["openvino"] if to == "openvino" else []))
    data = _data(run, calibrate, needed=int8)
    traced = trace(run.method, job)
    if not int8:
        parity = _write(run, traced, job, path, data, points)
        return _told(path, job, "float32", parity)
    feeds = _feeds(run, traced, data)
    for floating in FLOATING:
        whole = Traced(quantise(traced.model, feeds, floating), traced.noise)
        try:
            parity = _write(run, whole, job, path, data, points, precision="int8")
            break
        except SegmintError:
            if floating == FLOATING[-1]:
                raise
    return _told(path, job, "int8", parity)


def description(run: Run, traced: Traced, job: str, precision: str) -> dict[str, Any]:
    """All that using an exported model needs to know, as JSON holds it; nothing of where it was trained."""
    method = run.method
    config = {key: None if isinstance(value, nn.Module) else value for key, value in method.config.items()}
    return {
        "format": FORMAT,
        "segmint": version("segmint"),
        "job": job,
        "kind": kind_of(job, method),
        "method": method.name,
        "config": config,
        "classes": classes_facts(run.classes),
        "size": list(run.size),
        "depth": run.settings.depth,
        "noise": [entry.facts() for entry in traced.noise],
        "judges": job == SEGMENT and judges(method),
        "precision": precision,
    }


def _job(run: Run, to: str, job: str | None, int8: bool) -> str:
    if to not in SUFFIX:
        raise SegmintError(f"--to {to}: there is no such format; choose {' or '.join(SUFFIX)}")
    jobs = able(run.method)
    if not jobs:
        raise SegmintError(f"{run.folder}: {run.method.name} prepares others and does nothing by itself to be exported")
    if job is not None and job not in jobs:
        raise SegmintError(f"--job {job}: {run.method.name} cannot; choose {' or '.join(jobs)}")
    job = job or jobs[0]
    if int8 and job != SEGMENT:
        raise SegmintError("--int8: is for segmenters; leave it out")
    return job


def _path(run: Run, to: str, job: str, int8: bool, out: str | Path | None) -> Path:
    stem = ("model" if job == SEGMENT else "generator") + ("-int8" if int8 else "")
    path = Path(out) if out is not None else run.folder / f"{stem}{SUFFIX[to]}"
    if path.suffix != SUFFIX[to]:
        raise SegmintError(f"--out {path}: must end in {SUFFIX[to]} for {to}")
    return path


def _data(run: Run, given: Data | str | Path | None, needed: bool) -> Data | None:
    """The data to compare and calibrate with."""
    if isinstance(given, Data):
        return given
    if given is not None:
        return open_folder(Path(given))
    if Path(run.settings.data).is_dir():
        return open_folder(run.settings.data)
    if needed:
        raise SegmintError(f"--int8: {run.settings.data} is gone; name images to calibrate with: --calibrate DATA")
    return None


def _feeds(run: Run, traced: Traced, data: Data | None) -> list[dict[str, Any]]:
    """Training images (all, where there is no such split) as the network is shown them, with their noise."""
    assert data is not None
    indices = data.split("train") or list(range(len(data)))
    feeds = []
    for number, place in enumerate(spread(len(indices), CALIBRATING)):
        pixels = torch.from_numpy(np.array(read_pixels(run, data.items[indices[place]].image)))
        shown = fitted(pixels, run.size)
        size = (int(shown.shape[2]), int(shown.shape[3]))
        seeds = Seeds([number])
        noise = {entry.name: entry.draw(seeds, size).numpy() for entry in traced.noise}
        feeds.append({"shown": shown.numpy(), **noise})
    return feeds


def _write(
    run: Run, traced: Traced, job: str, path: Path, data: Data | None, points: float, precision: str = "float32"
) -> Parity:
    """Write the model under another name, compare, then rename or remove it."""
    config = run.method.config
    side = min(run.size)
    model = wrap(traced, job, channels=int(config["in_channels"]), classes=int(config["classes"]), side=side)
    facts = description(run, traced, job, precision)
    describe(model, facts)
    with replacing(path) as temporary:
        hidden = temporary.with_suffix(path.suffix)
        weights = hidden.with_suffix(".bin")
        try:
            _save(model, facts, hidden)
            twin = ExportedRun(hidden)
            parity = compare(run, twin, data)
            if precision == "int8" and data is not None:
                parity = with_scores(parity, run, twin, data)
            broken = parity.broken(precision, points)
            if broken:
                raise SegmintError(_refusal(run, precision, broken))
            if weights.is_file():
                weights.replace(path.with_suffix(".bin"))
            hidden.replace(temporary)
        finally:
            hidden.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
    return parity


def _refusal(run: Run, precision: str, broken: str) -> str:
    mend = "export it without --int8, or calibrate with images that are more like those to come"
    if precision == "float32":
        mend = "use the run folder itself; nothing was written"
    return f"{run.folder}: the exported model {broken}; {mend}"


def _save(model: onnx.ModelProto, facts: Mapping[str, Any], path: Path) -> None:
    if path.suffix == ".onnx":
        path.write_bytes(model.SerializeToString())
        return
    import openvino

    converted = core().read_model(model.SerializeToString())
    _antialias(converted)
    converted.set_rt_info(next(entry.value for entry in model.metadata_props if entry.key == KEY), [KEY])
    openvino.save_model(converted, str(path), compress_to_fp16=False)


def _antialias(model: Any) -> None:
    """Let an `openvino.Model` shrink images as the ONNX file says: its reader leaves the antialiasing out."""
    from openvino import opset13 as ops

    ports = ports_of(model)
    fitted = ports.get(f"{KEY}_before_fitted")
    if fitted is None:
        return
    planes, size = fitted.get_node().input_value(0), ports[f"{KEY}_before_size"]
    resized = ops.interpolate(planes, size, "bilinear_pillow", "sizes", [0], [0], axes=np.array([2, 3]))
    for target in list(fitted.get_target_inputs()):
        target.replace_source_output(resized.output(0))


def _told(path: Path, job: str, precision: str, parity: Parity) -> Exported:
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    return Exported(path, job, precision, parity, sum(file.stat().st_size for file in files) / 1e6)
