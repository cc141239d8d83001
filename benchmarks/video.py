"""What smoothing along the motion does to a segmented video, and how many frames a second there are.

    python benchmarks/video.py RUN --data DATA --split val --out docs/results/video.json

The split is taken for one sequence, in the order of its names. Masks are predicted for its frames as they are, with and
without smoothing, and compared with the labels: mean IoU; the share of pixels whose class changes from a frame to the
next, all of them and those that can be followed by optical flow (between the frames at their own size, dense inverse
search), for the labels as well. Then frames are segmented as fast as they go, of 480 x 360 pixels unless told
otherwise, on `--threads` threads: in memory, and as `segmint predict VIDEO` does, with decoding and writing an MP4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segmint.data.folder import Data, open_folder
from segmint.data.io import Bytes, read_image
from segmint.data.masks import read_mask
from segmint.data.video import write_video
from segmint.evaluation.sequences import optical_flow
from segmint.functional.sequences import class_change, visible
from segmint.inference.batch import predict_folder
from segmint.inference.predict import open_runs
from segmint.inference.video import MEMORY, predict_frames
from segmint.training.run import Run
from segmint.types import IGNORE


def mean_iou(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Over the classes that the labels have; integers [N, H, W] each."""
    known = truth != IGNORE
    table = torch.bincount(truth[known].long() * classes + predicted[known].long(), minlength=classes**2)
    table = table.view(classes, classes).double()
    shared, union = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    return float((shared / union)[table.sum(1) > 0].mean())


def change_along(masks: Tensor, flows: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of pixels that can be followed to the next frame and have another class there."""
    changed = count = 0
    for one, other, (there, back) in zip(masks[:-1], masks[1:], flows, strict=True):
        rows, columns = one.shape
        flow = there[0].round()
        y = (torch.arange(rows)[:, None] + flow[1]).clamp(0, rows - 1).long()
        x = (torch.arange(columns)[None] + flow[0]).clamp(0, columns - 1).long()
        moved = other[y, x]
        good = visible(there, back)[0] & (one != IGNORE) & (moved != IGNORE)
        changed += int((moved != one)[good].sum())
        count += int(good.sum())
    return changed / count


def quality(members: Sequence[Run], data: Data, indices: Sequence[int], memories: Sequence[float]) -> dict[str, object]:
    """Accuracy and flicker for each weight of the frames before."""
    frames = [read_image(data.items[index].image, channels=3) for index in indices]
    truth = torch.stack([torch.from_numpy(read_mask(data.items[index].masks[0], data.classes)) for index in indices])
    pictures = [torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 127.5 - 1 for frame in frames]
    flows = [optical_flow(torch.stack(pair)) for pair in pairwise(pictures)]
    known = [flow for flow in flows if flow is not None]
    found: dict[str, object] = {"frames": len(frames), "labels": _flicker(truth, known)}
    for memory in memories:
        masks = torch.stack([seen.labels for seen in predict_frames(members, frames, memory=memory)])
        figures = {"mean IoU": round(100 * mean_iou(masks, truth, len(data.classes)), 2), **_flicker(masks, known)}
        found[f"memory {memory}"] = figures
        print(json.dumps({f"memory {memory}": figures}), flush=True)
    return found


def _flicker(masks: Tensor, flows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    return {
        "class change %": round(100 * class_change(masks), 3),
        "class change along the motion %": round(100 * change_along(masks, flows), 3),
    }


def speed(members: Sequence[Run], frames: Sequence[Bytes], rounds: int) -> dict[str, float]:
    """Frames a second, the median over rounds."""
    times: dict[str, list[float]] = {
        "in memory, not smoothed": [],
        "in memory, smoothed": [],
        "MP4 to MP4, smoothed": [],
    }
    for _ in range(rounds):
        for name, memory in (("in memory, not smoothed", 0.0), ("in memory, smoothed", MEMORY)):
            seen = predict_frames(members, frames, memory=memory)
            next(seen)
            begun = time.perf_counter()
            done = sum(1 for _ in seen)
            times[name].append(done / (time.perf_counter() - begun))
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            write_video(clip, frames, 25)
            begun = time.perf_counter()
            predict_folder(members, clip, Path(folder) / "out", save=["overlays"])
            times["MP4 to MP4, smoothed"].append(len(frames) / (time.perf_counter() - begun))
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


def resized(frames: Sequence[Bytes], size: tuple[int, int]) -> list[Bytes]:
    return [np.asarray(Image.fromarray(frame).resize(size)) for frame in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run folders, or exported models: several are an ensemble")
    parser.add_argument("--data", type=Path, default=None, help="else the run's own")
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", type=int, default=None, help="at most so many")
    parser.add_argument("--memory", default=f"0,{MEMORY}", help="weights of the frames before to compare")
    parser.add_argument("--size", default="480x360", help="width x height of the frames that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    members = open_runs(args.run)
    data = open_folder(args.data or members[0].settings.data)
    indices = list(islice(data.split(args.split), args.frames))
    facts: dict[str, object] = {"runs": [path.name for path in args.run], "threads": args.threads, "size": args.size}
    facts["quality"] = quality(members, data, indices, [float(memory) for memory in args.memory.split(",")])
    width, _, height = args.size.partition("x")
    frames = [read_image(data.items[index].image, channels=3) for index in indices[:50]]
    facts["frames a second"] = speed(members, resized(frames, (int(width), int(height))), args.rounds)
    print(json.dumps(facts["frames a second"]))
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
