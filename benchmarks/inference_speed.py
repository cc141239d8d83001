"""How fast a trained segmenter segments: PyTorch, ONNX Runtime and OpenVINO, in 32, 16 and 8 bits, and what it costs.

All take turns, in an order that is shuffled every round, so that whatever else the machine does hits all alike. One
turn goes from the bytes of images in memory to a class for each of their pixels; latency is that of one image,
throughput that of a batch. With a data folder the mean IoU of each on its validation images is measured as well, at
the images' own size. README.md here says how to read it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmint.data.folder import open_folder
from segmint.data.masks import read_mask
from segmint.functional.labels import most_likely
from segmint.functional.metrics import confusion, mean_iou
from segmint.inference import export as exporting
from segmint.inference.export import export
from segmint.inference.exported import open_exported
from segmint.inference.parity import read_pixels, segment_pixels, spread
from segmint.inference.predict import predict_pixels
from segmint.seeds import Seeds
from segmint.training.precision import autocast, place
from segmint.training.run import Run
from segmint.types import SegmintError
from training_speed import processor

WARM_UP = 3
TARGET = 3.0
POINTS = 0.5
BASE = "PyTorch float32"
SMP = "segmentation_models_pytorch, MobileNetV2 U-Net"

Segment = Callable[[Tensor], Tensor]
"""Images uint8 [B, H, W, 3] -> classes [B, H, W]."""


def eager(run: Run, precision: str) -> Segment:
    """The loop that one would write by hand around the method, in float32; else with our settings."""
    method = copy.deepcopy(run.method)
    place(method, precision)
    memory = torch.contiguous_format if precision == "float32" else torch.channels_last

    @torch.inference_mode()
    def segment(images: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        shown = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=memory)
        if min(height, width) != min(run.size):
            scale = min(run.size) / min(height, width)
            size = (round(height * scale), round(width * scale))
            shown = torch.nn.functional.interpolate(shown, size=size, mode="bilinear", antialias=True)
        with autocast(precision, shown.device):
            logits = method.segment(shown, Seeds.range(len(shown)))
        if logits.shape[2:] != (height, width):
            logits = torch.nn.functional.interpolate(logits, size=(height, width), mode="bilinear")
        return logits.argmax(1) if precision == "float32" else most_likely(logits)

    return segment


def whole(run: Run) -> Segment:
    """`segmint predict`: with uncertainty, expected Dice and alternatives, image by image."""

    @torch.inference_mode()
    def segment(images: Tensor) -> Tensor:
        return torch.stack([predict_pixels([run], image.numpy(), draws=1).labels for image in images])

    return segment


def exported(path: Path, precision: str = "float32") -> Segment:
    """A model that `segmint export` wrote; of its outputs only the labels."""
    method = open_exported(path, precision).method

    def segment(images: Tensor) -> Tensor:
        return method.compute({"image": images.numpy()}, "labels")[0]  # type: ignore[operator,no-any-return]

    return segment


def contenders(run: Run, data: Path | None, folder: Path, points: float) -> Iterator[tuple[str, Segment]]:
    """Everything that takes part but the other library, exported where it has to be."""
    yield BASE, eager(run, "float32")
    yield "PyTorch channels_last", eager(run, "channels_last")
    yield "PyTorch bfloat16", eager(run, "bfloat16")
    yield "segmint predict, all outputs", whole(run)
    exporting.trace = lru_cache(exporting.trace)  # one graph for all four files: tracing takes half a minute
    for bits in ("", "-int8") if data is not None else ("",):
        for to, suffix, name in (("onnx", ".onnx", "ONNX Runtime"), ("openvino", ".xml", "OpenVINO")):
            path = folder / f"model{bits}{suffix}"
            try:
                made = export(run, to, out=path, int8=bool(bits), calibrate=data, points=points)
            except SegmintError as error:
                print(f"{name} {bits}: {error}", file=sys.stderr)
                continue
            print(f"{name}{bits}: {made.parity}", file=sys.stderr)
            yield f"{name} {made.precision}", exported(path)
            if to == "openvino" and not bits:
                yield f"{name} bfloat16", exported(path, "bfloat16")


@dataclass
class Taken:
    """Seconds of every turn, by the number of images in it: on the wall's clock and of the processor."""

    wall: dict[int, list[float]] = field(default_factory=dict)
    processor: dict[int, list[float]] = field(default_factory=dict)

    def add(self, count: int, wall: float, processor: float) -> None:
        self.wall.setdefault(count, []).append(wall)
        self.processor.setdefault(count, []).append(processor)

    def summary(self, batch: int) -> dict[str, float]:
        """Medians."""
        one, many = statistics.median(self.wall[1]), statistics.median(self.wall[batch])
        low, _, high = statistics.quantiles(self.wall[1], n=4)
        return {
            "latency_ms": round(1000 * one, 2),
            "latency_ms_quartiles": [round(1000 * low, 2), round(1000 * high, 2)],  # type: ignore[dict-item]
            "images_per_second": round(batch / many, 2),
            "processor_ms_per_image": round(1000 * statistics.median(self.processor[batch]) / batch, 2),
            "processor_ms_of_one": round(1000 * statistics.median(self.processor[1]), 2),
        }


@contextmanager
def smp(python: Path | None, threads: int, size: str) -> Iterator[dict[str, Callable[[int], float]]]:
    """`smp_inference.py` under another Python: how to let it segment so many images; and its facts."""
    if python is None:
        yield {}
        return
    script = Path(__file__).with_name("smp_inference.py")
    command = [str(python), str(script), "--paced", "--threads", str(threads), "--size", size]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def line() -> str:
        read = process.stdout.readline() if process.stdout else ""
        if not read:
            raise SystemExit("smp_inference.py has ended; its message is above, README.md here has the recipe")
        return read

    def turn(count: int) -> float:
        assert process.stdin is not None
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        return float(line())

    print(f"smp: {line().strip()}", file=sys.stderr)
    yield {SMP: turn}
    process.stdin.close()
    process.wait(10)


def race(turns: dict[str, Callable[[int], float]], rounds: int, batch: int) -> dict[str, Taken]:
    """Let all take turns with one image and with a batch; the first rounds warm up and are not counted."""
    taken = {name: Taken() for name in turns}
    names, order = list(turns), random.Random(0)
    for number in range(-WARM_UP, rounds):
        for name in order.sample(names, len(names)):
            for count in (1, batch):
                begun = time.perf_counter()
                seconds = turns[name](count)
                if number >= 0:
                    taken[name].add(count, time.perf_counter() - begun, seconds)
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return taken


def turn_of(segment: Segment, images: Tensor) -> Callable[[int], float]:
    def turn(count: int) -> float:
        begun = time.process_time()
        segment(images[:count])
        return time.process_time() - begun

    return turn


def accuracy(run: Run, data: Path, segmenters: dict[str, Segment], most: int) -> dict[str, float]:
    """Mean IoU in points, of each, on the same validation images."""
    folder = open_folder(data)
    items = [folder.items[index] for index in folder.split("val") if folder.items[index].masks]
    tables = {name: torch.zeros(len(run.classes), len(run.classes), dtype=torch.int64) for name in segmenters}
    for place_ in spread(len(items), most):
        image = torch.from_numpy(np.array(read_pixels(run, items[place_].image)))[None]
        truth = torch.from_numpy(read_mask(items[place_].masks[0], folder.classes)).long()[None]
        for name, segment in segmenters.items():
            tables[name] += confusion(segment(image).long(), truth, len(run.classes)).sum(0)
    return {name: 100 * float(mean_iou(table[None])[0]) for name, table in tables.items()}


def verdict(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest whose mean IoU is within tolerance, against the plain loops."""
    usual = rows[BASE]
    able = {
        name: row
        for name, row in rows.items()
        if name != SMP and usual.get("miou", 0.0) - row.get("miou", 0.0) <= POINTS
    }
    best = max(able, key=lambda name: able[name]["images_per_second"])
    found = {"best": best, "target": TARGET, "points": POINTS}
    for other in (BASE, SMP):
        if other in rows:
            throughput = rows[best]["images_per_second"] / rows[other]["images_per_second"]
            found[f"throughput over {other}"] = round(throughput, 2)
            found[f"latency over {other}"] = round(rows[other]["latency_ms"] / rows[best]["latency_ms"], 2)
            work = rows[other]["processor_ms_per_image"] / rows[best]["processor_ms_per_image"]
            found[f"processor time over {other}"] = round(work, 2)
    found["met"] = found[f"throughput over {BASE}"] >= TARGET
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of a segmenter")
    parser.add_argument("--data", type=Path, help="to calibrate 8 bits with, and to measure the mean IoU on")
    parser.add_argument("--image", default="360x480", help="height x width of the images in memory")
    parser.add_argument("--shown", help="height x width that the network sees, else that of the images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--most", type=int, default=101, help="validation images for the mean IoU")
    parser.add_argument("--points", type=float, default=POINTS, help="of mean IoU that int8 may cost at export")
    parser.add_argument("--smp-python", type=Path, help="Python with segmentation_models_pytorch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.image.split("x"))
    shown = tuple(map(int, args.shown.split("x"))) if args.shown else (height, width)
    run = Run(args.run, changes={"image_size": shown})
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (args.batch, height, width, 3), np.uint8))
    check = segment_pixels(run.method, images[:1], run.size, Seeds([0]))[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        smp(args.smp_python, args.threads, f"{height // 32 * 32}x{width}") as other,
    ):
        segmenters = dict(contenders(run, args.data, Path(folder), args.points))
        for name, segment in segmenters.items():
            same = float((segment(images[:1]) == check).float().mean())
            print(f"{name}: same class as PyTorch on {same:.2%} of random pixels", file=sys.stderr)
        turns = {name: turn_of(segment, images) for name, segment in segmenters.items()}
        taken = race({**turns, **other}, args.rounds, args.batch)
        rows: dict[str, dict[str, Any]] = {name: dict(found.summary(args.batch)) for name, found in taken.items()}
        if args.data is not None:
            for name, points in accuracy(run, args.data, segmenters, args.most).items():
                rows[name]["miou"] = round(points, 2)
    result = {
        "images": [height, width],
        "shown": list(shown),
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "processor": processor(),
        "torch": torch.__version__,
        "contenders": rows,
        "verdict": verdict(rows),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
