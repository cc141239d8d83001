"""Segment the frames of a video, each in the light of those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmint.data.classes import Classes
from segmint.data.frames import Frames, open_frames
from segmint.data.io import Bytes
from segmint.data.masks import write_mask
from segmint.data.video import write_video
from segmint.functional.sequences import visible, warp
from segmint.inference.draws import Draws, entropy
from segmint.inference.inputs import FRAME
from segmint.inference.outputs import blend, writing
from segmint.inference.predict import Runs, check_draws, open_runs, predict_pixels
from segmint.inference.tally import Row, row_of, write_csv
from segmint.training.run import Run
from segmint.types import Prediction, SegmintError

MEMORY = 0.5
"""The weight of the frames before, beside that of the frame itself."""

LEAST = 16
"""Frames with a shorter side (as shown to the method) below this are not followed; optical flow needs some pixels."""

FINE = 160
"""Where the shorter side is below this, flow is refined down to single pixels, which larger frames have no need of."""

VIDEO_KINDS = ("masks", "overlays")


def results_of(out: Path, name: str, kinds: Sequence[str]) -> list[Path]:
    """What is there when `predict_video` came to its end: the table, the overlay, and at least the first mask."""
    of_kind = {"masks": out / "masks" / name / "000000.png", "overlays": out / "overlays" / f"{name}.mp4"}
    return [out / "frames" / f"{name}.csv", *(of_kind[kind] for kind in VIDEO_KINDS if kind in kinds)]


class Smoother:
    """Averages class probabilities along the motion: p_t + m (warped p_(t-1) - p_t), where a pixel can be followed.

    Motion is optical flow between frames by dense inverse search (Kroeger et al., ECCV 2016; OpenCV), at the size at
    which the method sees them. Pixels whose flows there and back do not cancel out (`sequences.visible`), or whose
    brightness has changed much, begin anew.

    Args:
        memory: m, 0 (none) to below 1.

    Raises:
        SegmintError: `memory` is out of its range, or OpenCV is not installed.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        if not 0 <= memory < 1:
            raise SegmintError(f"--smooth: must be 0 or more and below 1, not {memory}")
        self.memory = memory
        self._before: tuple[Bytes, Tensor] | None = None
        self._search: Any = _search() if memory else None

    def __call__(self, shown: Tensor, found: Draws) -> Draws:
        """The draws of the next frame, smoothed.

        Args:
            shown: the frame, float32 [1, C, h, w] in [-1, 1]; `found`: what was drawn of it.
        """
        if self._search is None or min(shown.shape[-2:]) < LEAST:
            return found
        grey = ((shown.mean(1)[0] + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        likely = found.probabilities
        self._search.setFinestScale(0 if min(grey.shape) < FINE else 1)
        if self._before is not None and self._before[0].shape == grey.shape:
            likely = self._blend(grey, likely, *self._before)
        self._before = (grey, likely)
        uncertainty = entropy(likely)
        aleatoric = found.aleatoric.minimum(uncertainty)
        epistemic = None if found.epistemic is None else uncertainty - aleatoric
        return replace(found, probabilities=likely, uncertainty=uncertainty, aleatoric=aleatoric, epistemic=epistemic)

    def _blend(self, grey: Bytes, likely: Tensor, last: Bytes, before: Tensor) -> Tensor:
        back, there = self._flow(grey, last), self._flow(last, grey)
        frames = torch.from_numpy(np.stack([last, grey]))[:, None].float()
        alike = (warp(frames[:1], back)[:, 0] - frames[1:, 0]).abs() < 32
        followed = (visible(back, there) & alike).to(likely)[:, None]
        return likely + self.memory * followed * (warp(before, back.to(likely)) - likely)

    def _flow(self, one: Bytes, other: Bytes) -> Tensor:
        """Where each pixel of one frame is in another, [1, 2, h, w]."""
        return torch.from_numpy(self._search.calc(one, other, None)).permute(2, 0, 1)[None]


def _search() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SegmintError('--smooth: needs OpenCV: pip install "segmint[video]"; or give --no-smooth') from error
    cv2.setNumThreads(1)  # its result depends on how many there are
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


def predict_frames(
    runs: Runs,
    frames: Iterable[Bytes],
    *,
    draws: int | None = None,
    seed: int = 0,
    mirror: bool = False,
    memory: float = MEMORY,
) -> Iterator[Prediction]:
    """Segment frames as they come, e.g. from a camera.

    Args:
        runs: as in `segmint.predict`.
        frames: uint8 [H, W, 3] each, or [H, W, 1] if the runs were trained on grey images.
        draws, seed, mirror: as in `segmint.predict`; all frames get the same noise.
        memory: how far frames before count, 0 (not at all) to below 1; see `Smoother`.

    Yields:
        A prediction for each frame, before the next frame is asked for.

    Raises:
        SegmintError: the runs do not fit each other, a setting is out of its range, or OpenCV is not installed.
    """
    members = open_runs(runs)
    check_draws(draws, members, mirror)
    return _predicted(members, frames, Smoother(memory), draws, seed, mirror)


def _predicted(
    members: Sequence[Run],
    frames: Iterable[Bytes],
    smoother: Smoother,
    draws: int | None,
    seed: int,
    mirror: bool,
    plausible: bool = True,
) -> Iterator[Prediction]:
    grey = members[0].method.config["in_channels"] == 1
    for frame in frames:
        if grey and frame.shape[2] == 3:
            frame = np.rint(frame @ np.array([[0.299], [0.587], [0.114]], np.float32)).astype(np.uint8)
        yield predict_pixels(
            members, frame, draws=draws, seed=seed, mirror=mirror, revise=smoother, plausible=plausible
        )


def predict_video(
    members: Sequence[Run],
    source: str,
    out: Path,
    name: str,
    *,
    kinds: Sequence[str] = VIDEO_KINDS,
    draws: int | None = None,
    seed: int = 0,
    mirror: bool = False,
    memory: float = MEMORY,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Segment a video, stream or camera.

    Writes overlays/NAME.mp4, masks/NAME/000000.png, 000001.png, ..., and, when all frames are done, frames/NAME.csv
    with a row for each. The table and the masks of an earlier call are removed first.

    Args:
        members: from `open_runs`.
        source: see `segmint.data.frames.open_frames`; `most`: leave off after so many frames.
        out, name: where results go, and what they are called.
        kinds: "masks", "overlays" or both; other kinds are left out.
        draws, seed, mirror, memory: as in `predict_frames`.
        progress: told how many frames are done, of how many (0: not known).

    Returns:
        The path of the table.

    Raises:
        SegmintError: the video cannot be read, or its overlay not be written.
        WriteError: masks or table cannot be written.
    """
    table = out / "frames" / f"{name}.csv"
    rows: list[Row] = []
    with open_frames(source, most) as frames:
        seen = _predicted(members, frames.pixels, Smoother(memory), draws, seed, mirror, plausible=False)
        folder = out / "masks" / name if "masks" in kinds else None
        table.unlink(missing_ok=True)
        if folder is not None:
            _clear(folder)
        overlays = _kept(seen, members[0].classes, frames, folder, rows, progress)
        if "overlays" in kinds:
            write_video(out / "overlays" / f"{name}.mp4", overlays, fps=max(1, round(frames.fps)))
        else:
            for _ in overlays:
                pass
    with writing():
        write_csv(table, rows)
    return table


def _clear(folder: Path) -> None:
    """Remove masks of frames: the video may have had more of them before."""
    for path in folder.glob("*.png"):
        if FRAME.fullmatch(path.stem):
            path.unlink()


def _kept(
    seen: Iterator[Prediction],
    classes: Classes,
    frames: Frames,
    folder: Path | None,
    rows: list[Row],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Bytes]:
    """The overlay of each frame; its mask is written, and its row added, on the way."""
    for number, prediction in enumerate(seen):
        labels = prediction.labels.numpy()
        if folder is not None:
            with writing():
                write_mask(folder / f"{number:06d}.png", labels, classes)
        moment = {"frame": str(number), "seconds": f"{number / frames.fps:.3f}"}
        rows.append(moment | row_of(prediction, classes))
        yield blend(prediction.image.numpy(), labels, classes)
        if progress:
            progress(number + 1, frames.count)
