"""Frames of videos, cameras and streams, one after the other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from segmint.data.io import Bytes
from segmint.types import SegmintError, reason

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

_MISSING = 'reading videos needs PyAV and OpenCV: pip install "segmint[video]"'


@dataclass(frozen=True)
class Frames:
    """A video, opened.

    Attributes:
        pixels: uint8 [H, W, 3], upright, at least one, all of one size. Can be gone through once.
        fps: frames a second; 25 where the source does not say.
        count: how many, as far as is known; 0 where it is not.
    """

    pixels: Iterator[Bytes]
    fps: float
    count: int


def is_stream(source: str) -> bool:
    """Whether it names a camera or an address, not a file."""
    return "://" in source or (source.startswith("camera:") and source[7:].isdigit())


@contextmanager
def open_frames(source: str, most: int | None = None) -> Iterator[Frames]:
    """The frames of a video file, a stream ("rtsp://...", "https://...") or a camera ("camera:0").

    Ctrl-C ends a camera or a stream as if it had no more frames, so that what is made of them can be completed.

    Args:
        source: which.
        most: leave off after so many frames.

    Raises:
        SegmintError: it cannot be opened, holds no frame, or is damaged; or a package for it is not installed.
    """
    opened = _camera(int(source[7:])) if source.startswith("camera:") and is_stream(source) else _video(source)
    with opened as (frames, fps, count), _stoppable(is_stream(source)) as stopped:
        pixels = _one_size(source, islice(_until(stopped, frames), most))
        first = next(pixels, None)
        if first is None:
            raise SegmintError(f"{source}: holds no frame that can be read; copy it again, or name another")
        known = min(count, most or count)
        yield Frames(chain([first], pixels), fps if fps > 0 else 25.0, known)


@contextmanager
def _video(source: str) -> Iterator[tuple[Iterator[Bytes], float, int]]:
    try:
        import av
    except ImportError as error:
        raise SegmintError(f"{source}: {_MISSING}") from error
    if not is_stream(source) and not Path(source).is_file():
        raise SegmintError(f"{source}: no such file; correct the name")
    try:
        container = av.open(source)
    except (av.FFmpegError, OSError) as error:
        raise SegmintError(f"{source}: cannot be opened as a video ({reason(error)}); name another") from error
    with container:
        if not container.streams.video:
            raise SegmintError(f"{source}: holds no pictures, only sound or text; name another")
        stream = container.streams.video[0]
        yield _decoded(source, container, stream), float(stream.average_rate or 0), int(stream.frames)


def _decoded(source: str, container: Any, stream: Any) -> Iterator[Bytes]:
    import av

    try:
        for frame in container.decode(stream):
            turns = round(getattr(frame, "rotation", 0) / 90)
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    except av.FFmpegError as error:
        raise SegmintError(f"{source}: truncated or damaged ({reason(error)}); copy it again") from error


@contextmanager
def _camera(number: int) -> Iterator[tuple[Iterator[Bytes], float, int]]:
    try:
        import cv2
    except ImportError as error:
        raise SegmintError(f"camera:{number}: {_MISSING}") from error
    device = cv2.VideoCapture(number)
    try:
        if not device.isOpened():
            raise SegmintError(f"camera:{number}: there is no such camera, or it is in use; try camera:0")
        yield _shot(device), float(device.get(cv2.CAP_PROP_FPS)), 0
    finally:
        device.release()


def _shot(device: Any) -> Iterator[Bytes]:
    while True:
        there, frame = device.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def _one_size(source: str, frames: Iterator[Bytes]) -> Iterator[Bytes]:
    size = None
    for frame in frames:
        size = size or frame.shape
        if frame.shape != size:
            raise SegmintError(f"{source}: its frames change size, from {size[:2]} to {frame.shape[:2]}; cut it there")
        yield frame


def _until(stopped: threading.Event, frames: Iterator[Bytes]) -> Iterator[Bytes]:
    while not stopped.is_set():
        try:
            yield next(frames)
        except StopIteration:
            return


@contextmanager
def _stoppable(wanted: bool) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; the second time it stops everything, as usual."""
    stopped = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)
