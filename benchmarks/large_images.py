"""How much memory a large TIFF takes: the peak resident set of `segmint predict --tile` on an image of N x N pixels.

A segmenter is trained for a few steps on pictures of discs, with a network of two small convolutions, as memory is what
counts here, or with `--usual` that of `supervised`; the TIFFs are random pixels, repeated: one in strips
without compression, one in tiles with deflate. The segmenting is done by a process of its own, whose peak is measured
(Linux). All lies in a temporary folder, which is removed.

    python benchmarks/large_images.py --side 20000 --out docs/results/large-images.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import nn

from memory import write_discs
from segmint.training.run import train

PIECE = 512


def tiny() -> nn.Module:
    """A network of two small convolutions."""
    return nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(), nn.Conv2d(4, 3, 1))


def write_tiff(path: Path, side: int, kind: str) -> None:
    """An RGB TIFF of random pixels, written piece by piece."""
    pattern = np.random.default_rng(0).integers(0, 255, (PIECE, PIECE, 3), np.uint8)
    if kind == "tiles":
        across = -(-side // PIECE)
        options: dict[str, object] = {"tile": (PIECE, PIECE), "compression": "deflate"}
        pieces: Iterator[np.ndarray] = (pattern for _ in range(across * across))
    else:
        options = {"rowsperstrip": PIECE}
        row = np.tile(pattern, (1, -(-side // PIECE), 1))[:, :side]
        pieces = (row[: min(PIECE, side - top)] for top in range(0, side, PIECE))
    tifffile.imwrite(path, pieces, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", **options)


def measure(run: Path, image: Path, out: Path, tile: int, draws: int | None) -> dict[str, object]:
    """Segment one image in a process of its own."""
    command = [sys.executable, "-m", "segmint", "predict", str(run), str(image), "--out", str(out)]
    command += ["--tile", str(tile), "--save", "masks,uncertainty"]
    command += [] if draws is None else ["--draws", str(draws)]
    begun = time.perf_counter()
    beside = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path(__file__).parent)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(beside)})
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return {
        "peak MiB": round(used.ru_maxrss / 1024),
        "processor seconds": round(used.ru_utime + used.ru_stime),
        "seconds": round(time.perf_counter() - begun),
        "image MiB on disk": round(image.stat().st_size / 2**20),
        "mask MiB on disk": round((out / "masks" / f"{image.stem}.tif").stat().st_size / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--usual", action="store_true", help="the usual network, which takes much longer")
    parser.add_argument("--draws", type=int, default=None, help="with --usual, passes with dropout")
    parser.add_argument("--kinds", default="strips,tiles")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[str, object] = {"side": args.side, "tile": args.tile, "usual network": args.usual, "draws": args.draws}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_discs(folder / "data")
        settings = {"precision": "float32", "steps": 4, "batch_size": 4}
        network = {} if args.usual else {"network": "large_images:tiny"}
        train(folder / "data", out=folder / "run", settings=settings, **network)
        for kind in args.kinds.split(","):
            image = folder / f"{kind}.tif"
            write_tiff(image, args.side, kind)
            facts[kind] = measure(folder / "run", image, folder / "results" / kind, args.tile, args.draws)
            image.unlink()
            print(json.dumps({kind: facts[kind]}), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
