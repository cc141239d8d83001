"""How long 16 drawn masks of an image take, beside one forward pass of `supervised`, for all methods that draw.

    python benchmarks/draw_speed.py --out docs/results/draw-speed.json

Networks are as `segmint train` builds them and untrained, as what they have learnt does not change the speed; the image
is random. All take turns in an order shuffled every round; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from segmint.functional.labels import most_likely
from segmint.methods.method import Method, build
from segmint.seeds import Seeds

METHODS = ("stochastic", "variational", "maskflow")


def time_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def drawn(method: Method, image: torch.Tensor, count: int) -> Callable[[], object]:
    return lambda: [most_likely(logits) for logits in method.draws(image, Seeds([0]), count)]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = (args.side, args.side)
    image = torch.randn(1, args.channels, *size)
    work: dict[str, Callable[[], object]] = {}
    for name in ("supervised", *METHODS):
        method = build(name, classes=args.classes, in_channels=args.channels, image_size=size).eval()
        work[f"{name}, 1"] = drawn(method, image, 1)
        if method.draws_differ:
            work[f"{name}, {args.draws}"] = drawn(method, image, args.draws)
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(args.rounds + 1):
        for name in random.Random(number).sample(list(work), len(work)):
            taken = time_of(work[name])
            if number:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    one = medians["supervised, 1"]
    facts = {
        "size": size,
        "threads": args.threads,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "times one forward pass of supervised": {name: round(value / one, 2) for name, value in medians.items()},
        "draws beside one draw of the same": {
            name: round(medians[f"{name}, {args.draws}"] / medians[f"{name}, 1"], 2) for name in METHODS
        },
    }
    print(json.dumps(facts, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
