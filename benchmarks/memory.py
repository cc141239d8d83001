"""Whether generating needs more memory the longer it goes on: the resident set of the process at the start, after each
quarter and at the end of many small pairs.

The data (pictures of discs), the run and the pairs lie in a temporary folder, which is removed.

    python benchmarks/memory.py --count 10000 --method gmm --mix real=1,varied=1
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segmint.inference.generate import generate
from segmint.training.run import Run, train

SIZE = (32, 24)
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"width": 8, "latent": 8},
    "gan": {"width": 8, "image_discriminator": "none", "warm_start": 2},
}


def write_discs(root: Path, count: int = 24) -> None:
    """A data folder of dark grounds with a bright disc of one of two classes."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        y, x = random.integers(6, SIZE[0] - 6), random.integers(6, SIZE[1] - 6)
        mask = np.where((rows - y) ** 2 + (columns - x) ** 2 < 25, 1 + number % 2, 0).astype(np.uint8)
        colours = np.array([(30, 30, 60), (230, 220, 210), (200, 40, 60)])[mask]
        image = (colours + random.normal(0, 8, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:02d}.png")
    names = "classes: [{id: 0, name: ground}, {id: 1, name: white disc}, {id: 2, name: red disc}]\n"
    (root / "classes.yaml").write_text(names, encoding="utf-8")


def resident() -> float:
    """The resident set of this process in MiB (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()  # statm is only approximate
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def measure(run: Run, count: int, out: Path, mix: str | None) -> dict[str, object]:
    """Generate, and look at the resident set after every block."""
    begun = time.perf_counter()
    sizes: list[tuple[int, float]] = []

    def look(done: int, _: int) -> None:
        sizes.append((done, resident()))

    generate(run, count=count, out=out, mix=mix, progress=look)
    seconds = time.perf_counter() - begun
    quarters = [sizes[round(place * (len(sizes) - 1) / 4)] for place in range(5)]
    return {
        "method": run.method.name,
        "mix": mix,
        "pairs": count,
        "MiB after so many pairs": {str(done): round(size, 1) for done, size in quarters},
        "pairs per second": round(count / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--method", default="gmm")
    parser.add_argument("--mix", default=None, help="kinds of masks to paint, e.g. real=1,varied=1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_discs(folder / "data")
        settings = {"precision": "float32"} | ({} if args.method in ("gmm", "cutpaste") else {"steps": 4})
        small = SMALL.get(args.method, {})
        run = train(folder / "data", method=args.method, out=folder / "run", settings=settings, **small)
        print(json.dumps(measure(run, args.count, folder / "pairs", args.mix), indent=2))


if __name__ == "__main__":
    main()
