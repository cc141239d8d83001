"""Write video files; needs PyAV, which the `video` extra brings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segmint.data.io import Bytes, replacing
from segmint.types import SegmintError


def require_video() -> Any:
    """PyAV.

    Raises:
        SegmintError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise SegmintError('--video: writing MP4 needs PyAV; pip install "segmint[video]"') from error
    return av


def write_video(path: Path, frames: Iterable[Bytes], fps: int = 12) -> None:
    """Write an MP4 (H.264) that browsers and presentation programs play, by way of a temporary name.

    Args:
        path: ends in .mp4.
        frames: uint8 [H, W, 3] each, all of one size; odd sizes lose their last row or column, as the format has
            one colour value for 2 x 2 pixels.
        fps: frames a second, 1 or more.

    Raises:
        SegmintError: PyAV is not installed, `fps` is below 1, or the place cannot be written.
    """
    av = require_video()
    if fps < 1:
        raise SegmintError(f"--fps: must be at least 1, not {fps}")
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16", "preset": "medium", "threads": "1"})
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames):
            height, width = (side - side % 2 for side in pixels.shape[:2])
            if number == 0:
                stream.height, stream.width = height, width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
