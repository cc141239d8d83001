"""How fast `supervised` trains, beside a bare hand-written loop and beside segmentation_models_pytorch.

All take turns, one step each, in an order that is shuffled every round, so that whatever else the machine does hits all
alike, and so does whoever went before. The time is that on the wall; the processor's own is given too, which is
steadier on a busy machine. A step of Segmint is timed from one request of its real loop (`segmint.training.train.fit`)
for a batch to the next: it includes the conversion of the pixels, augmentation, the moving average of the weights,
clipping, the log and checkpoints; not validation, which a bare loop would need as well. The bare loop has the same
network, precision, memory layout, AdamW and loss, finds its data in memory as floats, and calls the same `augment` or
none at all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from segmint.config import TrainSettings
from segmint.data.augment import augment, resolve
from segmint.data.cache import Pixels
from segmint.data.classes import Classes
from segmint.data.folder import Data
from segmint.functional.losses import compose
from segmint.methods.method import Method, build
from segmint.training.precision import autocast, layout, place
from segmint.training.train import Images, fit
from segmint.types import Batch

COUNT = 64
WARM_UP = 3
TURNS = 7
"""How many take turns: so much rarer by the clock are checkpoints, as often by the step as in a training alone."""
LIKE_USERS = "balanced_cross_entropy+lovasz"
"""What `loss: auto` chooses wherever a class is rare."""


class Contender(Protocol):
    def step(self) -> float:
        """Take one training step; returns the processor's seconds in it."""
        ...


def random_data(classes: int, size: tuple[int, int]) -> Pixels:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (COUNT, *size, 3), dtype=np.uint8)
    masks = draw.integers(0, classes, (COUNT, *size), dtype=np.uint8)
    data = Data(Path(), (), Classes.named(map(str, range(classes))), 3, 8)
    return Pixels(data, images, masks, [(row,) for row in range(COUNT)], size)


def method(pixels: Pixels, loss: str) -> Method:
    torch.manual_seed(0)
    classes = len(pixels.data.classes)
    shares = [1 / classes] * classes
    config = {"classes": classes, "image_size": pixels.size, "encoder_weights": None, "loss": loss, "shares": shares}
    return build("supervised", **config)


class Turns:
    """A training loop in a thread of its own, which calls `wait` before each step."""

    def __init__(self, train: Callable[[Callable[[], None]], Any]) -> None:
        self.go, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None
        threading.Thread(target=self._run, args=(train,), daemon=True).start()
        self.waiting.acquire()

    def _run(self, train: Callable[[Callable[[], None]], Any]) -> None:
        try:
            train(self._wait)
        except Exception as error:
            self.error = error
            self.waiting.release()

    def _wait(self) -> None:
        self.waiting.release()
        self.go.acquire()

    def step(self) -> float:
        begun = time.process_time()
        self.go.release()
        self.waiting.acquire()
        if self.error is not None:
            raise self.error
        return time.process_time() - begun


@dataclass
class Waiting:
    """A source of batches that waits for its turn whenever it is asked for one."""

    pixels: Pixels
    wait: Callable[[], None]

    def batch(self, indices: Sequence[int], **options: Any) -> Batch:
        self.wait()
        return self.pixels.batch(indices, **options)


def segmint(pixels: Pixels, settings: TrainSettings, loss: str, folder: Path, wait: Callable[[], None]) -> None:
    folder.mkdir()
    fit(method(pixels, loss), Images(Waiting(pixels, wait), labelled=range(COUNT)), settings, folder)


def bare(pixels: Pixels, settings: TrainSettings, loss: str, wait: Callable[[], None]) -> None:
    """The loop that one would write by hand for this network."""
    everything = pixels.batch(range(COUNT))
    images, masks = everything.image, everything.mask
    built = method(pixels, loss).train()
    place(built, settings.precision)
    network: torch.nn.Module = built.network  # type: ignore[assignment]
    criterion = compose(loss, built.config["shares"])
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    augmentation, generator = resolve(settings.augment), torch.Generator().manual_seed(0)
    for _ in range(settings.steps):
        wait()
        index = torch.randint(COUNT, (settings.batch_size,))
        batch = Batch(images[index], masks[index])
        if settings.augment != "none":
            batch = augment(batch, augmentation, generator)
        batch = layout(batch, settings.precision)
        with autocast(settings.precision, torch.device("cpu")):
            logits = network(batch.image)
        optimizer.zero_grad(set_to_none=True)
        criterion(logits.float(), batch.mask)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class Smp:
    """`smp_loop.py` under another Python."""

    def __init__(self, python: Path, arguments: Sequence[str]) -> None:
        script = Path(__file__).with_name("smp_loop.py")
        self.process = subprocess.Popen(
            [str(python), str(script), "--paced", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("smp_loop.py has ended; its message is above, README.md here has the recipe")
        return line

    def step(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())


@dataclass
class Taken:
    """Seconds of every step of one contender: by the clock on the wall, and of the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def race(contenders: dict[str, Contender], rounds: int) -> dict[str, Taken]:
    """Let all take turns; the first rounds warm up and are not counted."""
    taken = {name: Taken() for name in contenders}
    names, order = list(contenders), random.Random(0)
    for number in range(-WARM_UP, rounds):
        for name in order.sample(names, len(names)):
            begun = time.perf_counter()
            processor = contenders[name].step()
            if number >= 0:
                taken[name].wall.append(time.perf_counter() - begun)
                taken[name].processor.append(processor)
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return taken


def compare(taken: dict[str, Taken], fast: str, slow: str, target: float) -> dict[str, Any]:
    """How many times the images/s of `slow` those of `fast` are."""
    own, other = taken[fast], taken[slow]
    ratio = statistics.median(other.wall) / statistics.median(own.wall)
    return {
        "of": fast,
        "to": slow,
        "ratio": round(ratio, 3),
        "ratio_by_totals": round(sum(other.wall) / sum(own.wall), 3),
        "ratio_by_processor_time": round(statistics.median(other.processor) / statistics.median(own.processor), 3),
        "target": target,
        "met": ratio >= target,
    }


def summary(taken: Taken, batch: int) -> dict[str, float]:
    low, middle, high = statistics.quantiles(taken.wall, n=4)
    return {
        "images_per_second": round(batch / middle, 2),
        "milliseconds_per_step": round(1000 * middle, 1),
        "lower_quartile": round(1000 * low, 1),
        "upper_quartile": round(1000 * high, 1),
        "processor_milliseconds_per_step": round(1000 * statistics.median(taken.processor), 1),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "channels_last", "bfloat16"), default="bfloat16")
    parser.add_argument("--loss", default="cross_entropy", help="of Segmint and the bare loop")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="144x96", help="height x width")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--smp-python", type=Path, help="a Python that has segmentation_models_pytorch")
    parser.add_argument("--smp-encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    pixels = random_data(args.classes, (height, width))

    def settings(strength: str) -> TrainSettings:
        return TrainSettings(
            steps=100_000,
            validate_every=100_000,
            batch_size=args.batch,
            augment=strength,
            precision=args.precision,
            save_every=60 * TURNS,
            device="cpu",
        )

    with tempfile.TemporaryDirectory() as scratch:
        contenders: dict[str, Contender] = {}
        losses = {"": args.loss, f", {LIKE_USERS}": LIKE_USERS}
        for (note, loss), strength in itertools.product(losses.items(), ("strong", "none")):
            if note and strength == "none":
                continue
            folder, how = Path(scratch, str(len(contenders))), settings(strength)
            contenders[f"segmint, {strength}{note}"] = Turns(partial(segmint, pixels, how, loss, folder))
            contenders[f"bare, {strength}{note}"] = Turns(partial(bare, pixels, how, loss))
        pairs = [(name, name.replace("segmint", "bare"), 0.95) for name in contenders if name.startswith("segmint")]
        software: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
        if args.smp_python:
            shape = ["--batch", str(args.batch), "--size", args.size, "--classes", str(args.classes)]
            smp = Smp(args.smp_python, [*shape, "--threads", str(args.threads), "--encoder", args.smp_encoder])
            contenders["smp"] = smp
            software["smp"] = smp.facts
            pairs += [(name, "smp", 2.0) for name in contenders if name.startswith("segmint")]
        taken = race(contenders, args.rounds)
        if args.smp_python:
            smp.process.terminate()
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"processor": processor(), "threads": args.threads, **software},
        "settings": {key: getattr(args, key) for key in ("precision", "loss", "batch", "size", "classes", "rounds")},
        "speed": {name: summary(steps, args.batch) for name, steps in taken.items()},
        "ratios": [compare(taken, *pair) for pair in pairs],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
