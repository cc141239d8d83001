from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from segmint.data.video import write_video
from segmint.types import SegmintError


def shades(size: tuple[int, int] = (33, 41)) -> list[np.ndarray]:
    return [np.full((*size, 3), 60 * number, np.uint8) for number in range(4)]


def test_a_video_holds_the_frames(tmp_path: Path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "a" / "film.mp4", shades(), fps=10)
    with av.open(str(tmp_path / "a" / "film.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert [frame.shape for frame in frames] == [(32, 40, 3)] * 4
    for frame, truth in zip(frames, shades(), strict=True):
        assert abs(float(frame.mean()) - float(truth.mean())) < 3
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["film.mp4"]


def test_wrong_uses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("av")
    with pytest.raises(SegmintError, match="--fps: must be at least 1"):
        write_video(tmp_path / "film.mp4", shades(), fps=0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SegmintError, match=r'pip install "segmint\[video\]"'):
        write_video(tmp_path / "film.mp4", shades())
