"""How near the draws of several runs together come to the raters'.

`python docs/results/ensembles.py A=RUN ... --data DATA --sets A A+B ... --out FILE.json` draws 16 masks of each
validation image from each set of runs: as many from each of its runs, or one more from the first of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.evaluation.ambiguity import raters_of, set_figures
from segmint.evaluation.tables import SETS
from segmint.inference.draws import draw
from segmint.seeds import Seeds
from segmint.training.run import Run

BATCH = 8
KEPT = ("ged", "ged_unbiased", "matched_iou", "diversity_draws", "diversity_raters")


def masks_of(run: Run, member: int, pixels: Pixels, indices: list[int], draws: int) -> Iterator[Tensor]:
    """Image by image: draws of masks, uint8 [S, H, W]."""
    method = run.method.eval()
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        seeds = Seeds(some).fork("member", member) if member else Seeds(some)
        yield from draw([method], pixels.batch(some).image, seeds, draws).masks.unbind(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME+NAME")
    parser.add_argument("--split", default="val")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = {name: Run(Path(folder)) for name, _, folder in (text.partition("=") for text in given.runs)}
    sets = {text: text.split("+") for text in given.sets}
    data = open_folder(given.data)
    pixels = Pixels.open(data, next(iter(runs.values())).size)
    indices = [index for index in data.split(given.split) if data.items[index].masks]
    found: dict[str, list[Tensor]] = {text: [] for text in sets}
    members = [masks_of(run, place, pixels, indices, given.draws) for place, run in enumerate(runs.values())]
    drawn = zip(*members, strict=True)
    for index, masks in zip(indices, drawn, strict=True):
        of = dict(zip(runs, masks, strict=True))
        for text, names in sets.items():
            share, rest = divmod(given.draws, len(names))
            some = torch.cat([of[name][: share + (place < rest)] for place, name in enumerate(names)])
            found[text].append(set_figures(some, raters_of(pixels, index), len(data.classes)))
    result = {
        "command": f"python {shlex.join(sys.argv)}",
        "images": len(indices),
        "draws": given.draws,
        "sets": {
            text: {key: round(float(torch.stack(figures).nanmean(0)[SETS.index(key)]), 4) for key in KEPT}
            for text, figures in found.items()
        },
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["sets"], indent=2))


if __name__ == "__main__":
    main()
