"""How many pairs a second the methods generate, beside Hugging Face diffusers' DDPM pipeline.

Every run folder makes blocks of eight pairs, as `segmint generate` does, in the precision that it was trained in, with
`--threads` threads. Methods that can paint are also given real training masks (those that must be, only these), the
drawing of which is timed as well. Methods with a setting `steps` have a side for each of `--steps`. Files are not
written. The pipeline (`ddpm_loop.py` under another Python) makes images without masks, of the first run's size, with a
network of about ten million untrained parameters, on which the speed does not depend.

All take turns in an order that is shuffled every round, so that a busy machine slows all alike; what is given is the
median over the rounds. The time on the wall stands beside the processor's own, by which the ratios are taken as it
is steadier on a busy machine. The pipeline's calls for one image are made in full, in equal parts in all rounds; those
for eight images are extrapolated from some evaluations of the network in each round, as they are all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Protocol

import torch

from segmint.config import write_atomic
from segmint.inference.generate import BLOCK, make_block
from segmint.inference.masks import MaskMix, MixedMasks
from segmint.methods.method import Method, build
from segmint.training.run import Run
from segmint.types import SegmintError

REFERENCE = "ddpm, 1000 steps, batch 1, float32"
EXTRAPOLATED_FROM = 4
"""Evaluations of the network a round, where the pipeline makes eight images."""

LEAST = 0.5
"""A turn of a fast method is as many blocks as take this many seconds of the processor."""


class Maker(Protocol):
    facts: dict[str, Any]

    def turn(self) -> tuple[float, float]:
        """Make some; returns the seconds for one pair: on the wall, and of the processor."""
        ...


class Ours:
    """A run that makes blocks of pairs each turn.

    Args:
        run: one whose method generates.
        masks: where the masks that it is to paint come from; None: it makes its own.
        steps: of its sampler; None: it has none.
    """

    def __init__(self, run: Run, masks: MixedMasks | None, steps: int | None) -> None:
        self.run = run if steps is None else with_steps(run, steps)
        self.masks, self.blocks = masks, itertools.count()
        self.facts: dict[str, Any] = {
            "run": str(run.folder),
            "masks": "own" if masks is None else "real",
            "steps": steps,
            "evaluations": None,
            "batch": BLOCK,
            "precision": run.precision,
            "parameters": sum(p.numel() for p in run.method.parameters()),
        }
        if steps is not None:
            largest = max(self.run.method.children(), key=lambda m: sum(p.numel() for p in m.parameters()))
            largest.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.facts["evaluations"] += 1

    def _block(self) -> None:
        if self.facts["steps"] is not None:
            self.facts["evaluations"] = 0
        first = next(self.blocks) * BLOCK
        numbers = range(first, first + BLOCK)
        make_block(self.run, numbers, None if self.masks is None else self.masks.take(numbers, numbers))

    def turn(self) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        pairs = 0
        while not pairs or time.process_time() - processor < LEAST:
            self._block()
            pairs += BLOCK
        return (time.perf_counter() - wall) / pairs, (time.process_time() - processor) / pairs


def with_steps(run: Run, steps: int) -> Run:
    """The same run with another number of its sampler's steps."""
    trained = run.method
    method: Method = build(trained.name, **{**trained.config, "steps": steps})
    method.load_state_dict(trained.state_dict())
    changed = Run(run.folder)
    vars(changed)["method"] = method.eval()  # where its cached property looks first
    return changed


class Pipeline:
    """`ddpm_loop.py` under another Python; each turn is some evaluations of its network."""

    def __init__(self, python: Path, arguments: Sequence[str], steps: int, batch: int, turn: int, facts: Any) -> None:
        script = Path(__file__).with_name("ddpm_loop.py")
        amount = ["--steps", str(steps), "--batch", str(batch), "--evaluations", str(turn)]
        self.process = subprocess.Popen(
            [str(python), str(script), "--paced", *arguments, *amount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.every, self.factor = turn, steps / turn / batch
        self.facts = {
            "steps": steps,
            "evaluations_made": 0,
            "evaluations": steps,
            "batch": batch,
            **facts,
            **self._answer(),
        }

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("ddpm_loop.py has ended; its message is above, README.md here has the recipe")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.facts["evaluations_made"] += self.every
        return answer["wall"] * self.factor, answer["processor"] * self.factor


def our_sides(run: Run, counts: Sequence[int]) -> dict[str, Maker]:
    """All the ways in which a run makes pairs, warmed up."""
    method = run.method
    if "generate" not in method.capabilities():
        raise SegmintError(f"{run.folder}: {method.name} does not generate; `segmint methods` lists those that do")
    sources: dict[str, MixedMasks | None] = {} if method.needs_mask else {"": None}
    if "mask" in method.conditions:
        sources[", real masks"] = MixedMasks(run, MaskMix(real=1))
    stepped = "steps" in method.config
    sides: dict[str, Maker] = {}
    for what, masks in sources.items():
        for steps in counts if stepped else [None]:
            name = f"{method.name}{what}" + (f", {steps} steps" if stepped else "")
            sides[name] = Ours(run, masks, steps)
        Ours(run, masks, min(counts) if stepped else None).turn()
    return sides


def pipeline_sides(python: Path, size: tuple[int, int], channels: int, threads: int, rounds: int) -> dict[str, Maker]:
    """One image in 1000 and in 50 steps, each in full; and eight images in 1000, as ours make eight."""
    sides: dict[str, Maker] = {}
    for steps, batch, precision in (
        (1000, 1, "float32"),
        (50, 1, "float32"),
        (1000, 8, "float32"),
        (1000, 8, "bfloat16"),
    ):
        turn = -(-steps // rounds) if batch == 1 else EXTRAPOLATED_FROM
        shape = ["--size", f"{size[0]}x{size[1]}", "--channels", str(channels)]
        arguments = [*shape, "--threads", str(threads), "--precision", precision]
        name = f"ddpm, {steps} steps, batch {batch}, {precision}"
        sides[name] = Pipeline(python, arguments, steps, batch, turn, {"precision": precision})
    return sides


@dataclass
class Taken:
    """Seconds for one pair, of every turn."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def race(sides: dict[str, Maker], rounds: int) -> Iterator[dict[str, Taken]]:
    """Let all take turns; yields after each round what they have taken so far."""
    taken = {name: Taken() for name in sides}
    names, order = list(sides), random.Random(0)
    for number in range(rounds):
        for name in order.sample(names, len(names)):
            wall, processor = sides[name].turn()
            taken[name].wall.append(wall)
            taken[name].processor.append(processor)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        yield taken


def summary(taken: Taken, reference: Taken | None) -> dict[str, float]:
    wall, processor = statistics.median(taken.wall), statistics.median(taken.processor)
    told = {
        "pairs_per_second": 1 / wall,
        "processor_seconds_per_pair": processor,
        "least_processor_seconds": min(taken.processor),
        "most_processor_seconds": max(taken.processor),
    }
    if reference is not None:
        told["times_ddpm_1000"] = statistics.median(reference.processor) / processor
        told["times_ddpm_1000_on_the_wall"] = statistics.median(reference.wall) / wall
    return {key: float(f"{value:.4g}") for key, value in told.items()}


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(sides: dict[str, dict[str, Any]]) -> str:
    """In Markdown, the fastest first."""
    lines = [
        "| | evaluations | batch | precision | pairs/s | processor s/pair | times DDPM at 1000 steps |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, side in sorted(sides.items(), key=lambda pair: float(pair[1]["processor_seconds_per_pair"])):
        label = name.split(", batch")[0] + (
            " (extrapolated)" if side.get("evaluations_made", inf) < (side["evaluations"] or 0) else ""
        )
        ratio = rounded(side["times_ddpm_1000"]) if "times_ddpm_1000" in side else "-"
        lines.append(
            f"| {label} | {side['evaluations'] or '-'} | {side['batch']} | {side['precision']} "
            f"| {side['pairs_per_second']:.3g} | {side['processor_seconds_per_pair']:.3g} | {ratio} |"
        )
    return "\n".join(lines)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def all_sides(args: argparse.Namespace) -> dict[str, Maker]:
    """Those of the runs and, if asked for, of the pipeline."""
    runs = [Run(folder) for folder in args.runs]
    shapes = {(run.size, int(run.method.config["in_channels"])) for run in runs}
    if len(shapes) > 1:
        raise SegmintError(f"the runs make images of different shapes, {sorted(shapes)}; compare those of one shape")
    sides: dict[str, Maker] = {}
    for run in runs:
        for name, side in our_sides(run, args.steps).items():
            if name in sides:
                raise SegmintError(
                    f"{run.folder}: a run of {run.method.name} was named before; name one of each method"
                )
            sides[name] = side
    size, channels = shapes.pop()
    if args.pipeline:
        sides |= pipeline_sides(args.pipeline, size, channels, args.threads, args.rounds)
    return sides


def result(args: argparse.Namespace, sides: dict[str, Maker], taken: dict[str, Taken]) -> dict[str, Any]:
    """Everything measured so far, and on what."""
    reference = taken.get(REFERENCE)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {
            "processor": processor(),
            "threads": args.threads,
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "size": Run(args.runs[0]).size,
        "rounds": len(next(iter(taken.values())).wall),
        "sides": {name: {**side.facts, **summary(taken[name], reference)} for name, side in sides.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders, one of each method")
    parser.add_argument("--pipeline", type=Path, help="a Python that has diffusers; left out: without that comparison")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 50], help="of methods that have them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures, written after every round")
    args = parser.parse_args()
    if min(args.rounds, args.threads, *args.steps) < 1:
        parser.error("--rounds, --threads and --steps must be at least 1")
    if args.pipeline and not args.pipeline.is_file():
        parser.error(f"--pipeline {args.pipeline}: there is no such Python; README.md here has the recipe")
    torch.set_num_threads(args.threads)
    try:
        sides = all_sides(args)
    except SegmintError as error:
        parser.error(str(error))
    for taken in race(sides, args.rounds):
        told = result(args, sides, taken)
        if args.out:
            write_atomic(args.out, json.dumps(told, indent=2) + "\n")
    print(table(told["sides"]))


if __name__ == "__main__":
    main()
