"""Generated sequences beside independent frames and real sequences: do they flicker?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling, fromarray, new
from torch import Tensor

from segmint.config import read_run
from segmint.data.cache import Pixels, to_pixels
from segmint.data.folder import Data, open_folder
from segmint.evaluation import pictures as paint
from segmint.evaluation.files import read_json, read_lines, write_json
from segmint.functional.sequences import class_change, flicker, steady, visible, warping_error
from segmint.inference.sequences import pieces
from segmint.types import Batch, SegmintError

MEASURES = {
    "flicker": "mean absolute difference of consecutive frames, of the value range",
    "steady_flicker": "the same over pixels whose class stays",
    "class_change": "share of pixels whose class changes from frame to frame",
    "warping_error": "mean absolute difference once the motion is undone, over pixels that can be followed",
    "lost": "share of pixels that cannot be followed to the next frame: covered, or with no counterpart there",
}
INDEPENDENT = "independent"
"""The folder within a folder of sequences that holds the same with fresh noise for each frame, for comparison."""

NO_FLOW = (
    "the warping error is not known: optical flow needs OpenCV and images of at least 12 x 12 pixels; "
    'pip install "segmint[video]"'
)

Flows = tuple[Tensor, Tensor]

SIDES = ("generated", "independent", "real")
_CAPTIONS = {("real", True): "real, of these masks", ("real", False): "real, other scenes"}


def optical_flow(images: Tensor) -> Flows | None:
    """Optical flow between consecutive frames by dense inverse search (Kroeger et al., ECCV 2016; OpenCV).

    Args:
        images: [N, C, H, W] with values in [-1, 1], N >= 2.

    Returns:
        (forward, backward), float32 [N - 1, 2, H, W] each: displacements (x, y) in pixels from each frame to the
        next, and from the next back. None where OpenCV is not installed, or a side is below 12 pixels.
    """
    try:
        import cv2
    except ImportError:
        return None
    if min(images.shape[2:]) < 12:
        return None
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)
    grey = ((images.float().mean(1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # its result depends on how many there are
    try:
        there = [search.calc(a, b, None) for a, b in pairwise(grey)]
        back = [search.calc(b, a, None) for a, b in pairwise(grey)]
    finally:
        cv2.setNumThreads(threads)
    forward, backward = (torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2) for flows in (there, back))
    return forward, backward


def figures(clip: Batch, motion: Flows | None) -> dict[str, float]:
    """The `MEASURES` of one sequence.

    Args:
        clip: N consecutive frames with their masks.
        motion: optical flow forward and backward, [N - 1, 2, H, W]; None where it is not known (nan).
    """
    nan = float("nan")
    return {
        "flicker": flicker(clip.image),
        "steady_flicker": flicker(clip.image, steady(clip.mask)),
        "class_change": class_change(clip.mask),
        "warping_error": nan if motion is None else warping_error(clip.image, *motion),
        "lost": nan if motion is None else 1 - float(visible(*motion).float().mean()),
    }


@dataclass(frozen=True)
class Reel:
    """Sequences of one kind.

    Attributes:
        pixels: a data folder, decoded.
        sequences: item indices, one list a sequence.
    """

    pixels: Pixels
    sequences: list[list[int]]

    def clip(self, number: int) -> Batch:
        """The frames of a sequence with their masks, on the CPU."""
        return self.pixels.batch(self.sequences[number])

    def name(self, number: int) -> str:
        """The group of its items."""
        return self.pixels.data.items[self.sequences[number][0]].group


@dataclass(frozen=True)
class Footage:
    """Sequences side by side.

    Attributes:
        generated: what is to be measured; `independent`: the same with fresh noise for each frame; `real`: real ones.
        paired: whether the real ones are, frame by frame, those whose masks were painted.
        method: which made them; "" where it is not known.
    """

    generated: Reel
    independent: Reel | None
    real: Reel | None
    paired: bool
    method: str

    def clips(self, number: int) -> dict[str, Batch]:
        """The sequence of this number of every kind that has so many."""
        sides = {"generated": self.generated, "independent": self.independent, "real": self.real}
        return {key: reel.clip(number) for key, reel in sides.items() if reel and number < len(reel.sequences)}


def measure_sequences(folder: str | Path, reference: str | Path | Data | None = None) -> dict[str, Any]:
    """Measure a folder of generated sequences; writes sequences.json and pictures/strip.png into it.

    Sequences painted from given masks are compared, frame by frame, with the real ones that the masks belong to, and
    optical flow is that of the real frames. Otherwise they are compared with other real sequences, and flow is
    estimated on each sequence itself. Where `folder`/independent holds the same sequences with fresh noise for each
    frame, they are measured too.

    Args:
        folder: a folder of `generate_sequences`, or any data folder whose groups are sequences.
        reference: a data folder with real sequences; None: the one that the masks are from, or else the one that the
            run was trained on, as generate.json says.

    Returns:
        What sequences.json holds: "method"; "sequences", how many; "frames", of all of them; "paired", whether the real
        sequences are those of the masks; for each of "generated", "independent" and "real" (None where there is
        none) the means over sequences of `MEASURES`; "to_independent" and "to_real", the generated's over theirs;
        "per_sequence", "notes" and "seconds".

    Raises:
        SegmintError: the folder holds no sequence, or is damaged.
    """
    started = time.perf_counter()
    root, notes = Path(folder), list[str]()
    footage = open_footage(root, reference, notes)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for number in range(len(footage.generated.sequences)):
        clips = footage.clips(number)
        shared = optical_flow(clips["real"].image) if footage.paired else None
        table[footage.generated.name(number)] = {
            side: figures(clip, shared if footage.paired else optical_flow(clip.image)) for side, clip in clips.items()
        }
    means = {side: _means([row[side] for row in table.values() if side in row]) for side in SIDES}
    if optical_flow(footage.clips(0)["generated"].image[:2]) is None:
        notes.append(NO_FLOW)
    paint.save(strip(footage), root / "pictures" / "strip.png")
    facts = {
        "method": footage.method,
        "sequences": len(table),
        "frames": sum(map(len, footage.generated.sequences)),
        "paired": footage.paired,
        **means,
        **{f"to_{side}": _ratios(means["generated"], means[side]) for side in SIDES[1:]},
        "per_sequence": table,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    write_json(root / "sequences.json", facts)
    return facts


def summary(facts: Mapping[str, Any]) -> list[str]:
    """What `measure_sequences` found, in a few lines: each measure beside its reference, then the notes."""
    words = {
        "flicker": "flicker",
        "class_change": "pixels that change class",
        "warping_error": "warping error",
        "lost": "pixels lost",
    }
    plural = "s" if facts["sequences"] > 1 else ""
    lines = [
        f"{facts['frames']} frames in {facts['sequences']} sequence{plural} by {facts['method'] or 'no known method'}"
    ]
    for key, name in words.items():
        told = {side: (facts[side] or {}).get(key) for side in SIDES}
        known = [f"{side} {100 * value:.2f}%" for side, value in told.items() if value is not None and value == value]
        if known:
            lines.append(f"{name}: {', '.join(known)}")
    return lines + [f"note: {note}" for note in facts["notes"]]


def open_footage(root: Path, reference: str | Path | Data | None, notes: list[str]) -> Footage:
    """The sequences of a folder, and what they are compared with; adds to `notes` what is missing.

    Raises:
        SegmintError: the folder holds no sequence, or is damaged.
    """
    generated = _reel(root, None)
    if not generated.sequences:
        raise SegmintError(f"{root}: holds no sequence; make some with `segmint generate RUN --frames N --out {root}`")
    manifest = root / "manifest.jsonl"
    entries = read_lines(manifest, "generate again") if manifest.is_file() else []
    maker = read_json(root / "generate.json") if (root / "generate.json").is_file() else {}
    independent = None
    if (root / INDEPENDENT / "manifest.jsonl").is_file():
        independent = _reel(root / INDEPENDENT, generated.pixels.size)
    data = _reference(maker, reference, notes)
    real, paired = None, False
    if data is not None:
        masks = {entry["name"]: entry.get("mask") for entry in entries}
        real, paired = _real(generated, data, masks, notes)
    return Footage(generated, independent, real, paired, str(maker.get("method", "")))


def _reel(root: Path, size: tuple[int, int] | None) -> Reel:
    data = open_folder(root)
    return Reel(Pixels.open(data, size), [sequence for sequence in data.sequences() if len(sequence) > 1])


def _reference(maker: Mapping[str, Any], reference: str | Path | Data | None, notes: list[str]) -> Data | None:
    """The folder of real sequences; what `reference` leaves open, generate.json says."""
    if isinstance(reference, Data):
        return reference
    if reference is None and not maker:
        return None
    try:
        place = reference or maker.get("masks") or read_run(Path(str(maker.get("run", "")))).data
        return open_folder(place)
    except SegmintError as error:
        if reference is not None:
            raise
        notes.append(f"there was nothing real to compare with: {error}")
        return None


def _real(generated: Reel, data: Data, masks: Mapping[str, str | None], notes: list[str]) -> tuple[Reel | None, bool]:
    """The real sequences that the masks belong to, and True; or others as long, and False."""
    numbers: dict[str | None, int] = {item.name: index for index, item in enumerate(data.items)}
    names = [[masks.get(generated.pixels.data.items[index].name) for index in run] for run in generated.sequences]
    if all(name in numbers for run in names for name in run):
        found = [[numbers[name] for name in run] for run in names]
        return Reel(Pixels.open(data, generated.pixels.size), found), True
    others = pieces(data, max(map(len, names)), labelled=False)
    if not others:
        notes.append(f"there was nothing real to compare with: {data.root} holds no sequences")
        return None, False
    longest = max(map(len, others))
    others = [other for other in others if len(other) == longest]
    count = min(len(others), len(names))
    some = [others[place * len(others) // count] for place in range(count)]
    return Reel(Pixels.open(data, generated.pixels.size), some), False


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """The mean of each measure over the sequences in which it is known."""
    if not rows:
        return None
    found = {}
    for key in MEASURES:
        known = [row[key] for row in rows if row[key] == row[key]]
        found[key] = sum(known) / len(known) if known else float("nan")
    return found


def _ratios(ours: Mapping[str, float] | None, theirs: Mapping[str, float] | None) -> dict[str, float] | None:
    if not ours or not theirs:
        return None
    return {key: ours[key] / theirs[key] if theirs[key] > 0 else float("nan") for key in MEASURES}


def strip(footage: Footage, sequences: int = 2, frames: int = 7, side: int = 128) -> Image:
    """The first frames of a few sequences, one row for each kind; to the right, the middle row of pixels over time.

    In that last column time runs downwards: what stands still draws straight lines, what flickers draws noise.
    """
    parts, classes = [], footage.generated.pixels.data.classes
    for number in range(min(sequences, len(footage.generated.sequences))):
        clips = footage.clips(number)
        length = min(frames, len(clips["generated"]))
        rows, captions = [], []
        for kind, clip in clips.items():
            images = to_pixels(clip.image).numpy()
            rows.append(_row([paint.to_rgb(image) for image in images], length, side, smooth=True))
            captions.append(_CAPTIONS.get((kind, footage.paired), kind))
            if kind == "generated":
                masks = [paint.colorize(mask.numpy(), classes.colors) for mask in clip.mask]
                rows.append(_row(masks, length, side, smooth=False))
                captions.append("its masks")
        heads = [f"frame {frame}" for frame in range(length)] + ["over time"]
        parts += [paint.text(footage.generated.name(number), bold=True), paint.table_of_tiles(rows, heads, captions)]
    sheet = paint.beneath(parts, 12)
    return paint.framed(paint.beneath([sheet, paint.legend(classes.names, classes.colors, sheet.width)], 14))


def _row(frames: Sequence[paint.Array], count: int, side: int, *, smooth: bool) -> list[Image]:
    """Tiles of the first frames, uint8 [H, W, 3] each, and of their middle row of pixels over time."""
    tiles = [paint.tile(frame, side, smooth=smooth) for frame in frames[:count]]
    tiles += [new("RGB", tiles[0].size, paint.PAPER)] * (count - len(tiles))
    middle = np.stack([frame[frame.shape[0] // 2] for frame in frames])
    return [*tiles, fromarray(middle).resize(tiles[0].size, Resampling.NEAREST)]
