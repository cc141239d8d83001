from __future__ import annotations

import csv
import os
import signal
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.data import frames as source
from segmint.data.frames import is_stream, open_frames
from segmint.data.masks import read_mask
from segmint.data.video import write_video
from segmint.functional.sequences import class_change
from segmint.inference.batch import predict_folder
from segmint.inference.draws import Draws, draw
from segmint.inference.predict import fitted, predict_pixels
from segmint.inference.video import Smoother, predict_frames
from segmint.methods.method import Method
from segmint.seeds import Seeds
from segmint.training.run import Run, train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "one", settings=QUICK, **PLAIN)


def film(count: int = 6, size: tuple[int, int] = (48, 64), speed: int = 2) -> list[np.ndarray]:
    """A textured ground on which a bright square moves to the right."""
    ground = np.random.default_rng(0).integers(40, 90, (size[0] // 4, size[1] // 4), np.uint8)
    ground = ground.repeat(4, 0).repeat(4, 1)
    frames = []
    for number in range(count):
        frame = ground[..., None].repeat(3, 2).copy()
        left = 6 + number * speed
        frame[14:34, left : left + 20] = (230, 210, 190)
        frame[18:24, left + 4 : left + 10] = (120, 150, 220)
        frames.append(frame)
    return frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "in" / "clip.mp4", film(), 10)
    return tmp_path / "in" / "clip.mp4"


class Unsteady(Method):
    """Sees what is bright, with errors that come and go."""

    def __init__(self, *, classes=2, in_channels=3, image_size=(48, 64)):
        super().__init__()
        self.numbers = torch.Generator().manual_seed(0)

    def segment(self, image, seeds):
        noise = torch.randn(image.shape[0], 1, *image.shape[2:], generator=self.numbers)
        level = 3 * image.mean(1, keepdim=True) + noise
        return torch.cat([-level, level], 1)


def seen(method: Method, frame: np.ndarray) -> tuple[torch.Tensor, Draws]:
    shown = fitted(torch.from_numpy(frame), (48, 64))
    return shown, draw([method], shown, Seeds([0]), 1)


# Smoothing


def test_smoothing_steadies_masks_and_does_not_smear_what_moves():
    pytest.importorskip("cv2")
    frames, method, smoother = film(12), Unsteady(), Smoother(0.6)
    raw, smooth = [], []
    for frame in frames:
        shown, found = seen(method, frame)
        after = smoother(shown, found)
        raw.append(found.labels[0])
        smooth.append(after.labels[0])
        torch.testing.assert_close(after.probabilities.sum(1), torch.ones(1, 48, 64))
        assert float((after.uncertainty - after.aleatoric).min()) >= 0
    truth = torch.stack([torch.from_numpy((frame.mean(2) > 127).astype(np.uint8)) for frame in frames])
    before, later = torch.stack(raw), torch.stack(smooth)
    assert class_change(later) < 0.7 * class_change(before)
    assert float((later != truth).float().mean()) < 0.8 * float((before != truth).float().mean())


def test_a_scene_that_is_cut_begins_anew():
    pytest.importorskip("cv2")
    method, smoother = Unsteady(), Smoother(0.9)
    smoother(*seen(method, film()[0]))
    other = 255 - np.random.default_rng(5).integers(0, 60, (48, 64, 3), np.uint8)
    shown, found = seen(method, other)
    changed = (smoother(shown, found).probabilities - found.probabilities).abs().amax(1) > 0.01
    assert float(changed.float().mean()) < 0.02


def test_without_memory_or_pixels_frames_stand_alone():
    method = Unsteady()
    shown, found = seen(method, film()[0])
    off = Smoother(0)
    assert off(shown, found) is found
    assert off(shown, found) is found
    small = Smoother(0.5) if "cv2" in sys.modules else off
    assert small(shown[..., :8, :8], found) is found


def test_smoothing_out_of_range_or_without_opencv_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SegmintError, match="below 1"):
        Smoother(1.0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SegmintError, match="--no-smooth"):
        Smoother(0.5)


def test_frames_are_segmented_as_they_come(run: Run):
    pytest.importorskip("cv2")
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield film()[0]

    found = list(islice(predict_frames(run, endless()), 3))
    assert len(taken) == 3
    assert found[0].labels.shape == (48, 64)
    alone = next(predict_frames(run, film(1), memory=0))
    assert torch.equal(alone.labels, predict_pixels([run], film(1)[0]).labels)
    with pytest.raises(SegmintError, match="draws"):
        predict_frames(run, [], draws=0)


# Files


def test_a_video_becomes_an_overlay_masks_and_a_table(run: Run, clip: Path, tmp_path: Path):
    pytest.importorskip("cv2")
    out, told = tmp_path / "out", []
    found = predict_folder(run, clip.parent, out, progress=lambda *counts: told.append(counts))
    assert (found.done, found.failed) == (1, ())
    assert ("frames", 6, 6) in told
    with open_frames(str(out / "overlays" / "clip.mp4")) as frames:
        assert frames.fps == 10
        overlays = list(frames.pixels)
    assert [overlay.shape for overlay in overlays] == [(48, 64, 3)] * 6
    masks = sorted((out / "masks" / "clip").iterdir())
    assert [path.name for path in masks] == [f"{number:06d}.png" for number in range(6)]
    rows = list(csv.DictReader((out / "frames" / "clip.csv").open(encoding="utf-8")))
    assert [row["seconds"] for row in rows] == ["0.000", "0.100", "0.200", "0.300", "0.400", "0.500"]
    labels = read_mask(masks[3], run.classes)
    assert int(rows[3]["pixels ground"]) == int((labels == 0).sum())
    assert predict_folder(run, clip.parent, out).skipped == 1
    with pytest.raises(SegmintError, match=r"smooth 0\.5 instead of 0"):
        predict_folder(run, clip, out, memory=0)


def test_some_frames_and_no_overlay_where_these_are_asked_for(run: Run, clip: Path, tmp_path: Path):
    found = predict_folder(run, clip, tmp_path / "out", save=["masks"], memory=0, most=2)
    assert found.done == 1
    assert len(list((tmp_path / "out" / "masks" / "clip").iterdir())) == 2
    assert not (tmp_path / "out" / "overlays").exists()


def test_what_is_asked_for_later_is_made_later(run: Run, clip: Path, tmp_path: Path):
    out = tmp_path / "out"
    for kinds, done in ((["masks"], 1), (["overlays"], 1), (["masks", "overlays"], 0)):
        assert predict_folder(run, clip, out, save=kinds, memory=0).done == done
    assert (out / "overlays" / "clip.mp4").is_file()
    assert len(list((out / "masks" / "clip").iterdir())) == 6


def test_a_call_that_was_killed_is_not_taken_for_done(run: Run, clip: Path, tmp_path: Path):
    def kill(what: str, done: int, _: int) -> None:
        if (what, done) == ("frames", 3):
            raise KeyboardInterrupt

    predict_folder(run, clip, tmp_path / "out", save=["overlays"], memory=0)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(run, clip, tmp_path / "out", save=["masks"], memory=0, progress=kill)
    assert predict_folder(run, clip, tmp_path / "out", save=["masks"], memory=0).done == 1


def test_of_a_video_that_became_shorter_no_old_masks_stay(run: Run, clip: Path, tmp_path: Path):
    out = tmp_path / "out"
    predict_folder(run, clip, out, save=["masks"], memory=0)
    (out / "masks" / "clip" / "mine.png").touch()
    write_video(clip, film(2), 10)
    later = (out / "frames" / "clip.csv").stat().st_mtime + 5
    os.utime(clip, (later, later))
    assert predict_folder(run, clip, out, save=["masks"], memory=0).done == 1
    assert sorted(path.name for path in (out / "masks" / "clip").iterdir()) == ["000000.png", "000001.png", "mine.png"]


def test_frames_beside_their_video_are_not_mixed_with_it(run: Run, clip: Path, tmp_path: Path):
    from PIL import Image

    (clip.parent / "clip").mkdir()
    Image.fromarray(film(1)[0]).save(clip.parent / "clip" / "000004.png")
    with pytest.raises(SegmintError, match=r"000004\.png: its results .* like those of .*clip\.mp4"):
        predict_folder(run, clip.parent, tmp_path / "out")


def test_a_run_for_grey_images_sees_videos_in_grey(tmp_path: Path):
    from PIL import Image

    for number in range(6):
        for part in ("images", "masks"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
        frame = film(6)[number].mean(2).astype(np.uint8)
        Image.fromarray(frame).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray((frame > 127).astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{number}.png")
    run = train(tmp_path / "data", out=tmp_path / "run", settings=QUICK, **PLAIN)
    found = next(predict_frames(run, film(1), memory=0))
    assert found.image.shape == (48, 64, 1)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.mp4", b"", "cannot be opened|holds no"),
        ("text.mp4", b"no video at all", "cannot be opened"),
        ("missing.mp4", None, "no such file"),
    ],
)
def test_what_is_no_video_is_told(tmp_path: Path, name: str, data: bytes | None, words: str):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SegmintError, match=words), open_frames(str(tmp_path / name)):
        pass


def test_a_video_without_pictures_is_told(tmp_path: Path):
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SegmintError, match="no pictures"), open_frames(str(tmp_path / "sound.mkv")):
        pass
    with av.open(str(tmp_path / "nothing.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        container.start_encoding()
    with pytest.raises(SegmintError, match="cannot be opened"), open_frames(str(tmp_path / "nothing.mkv")):
        pass


def test_a_truncated_video_is_left_out_and_leaves_no_half_overlay(run: Run, tmp_path: Path):
    import av

    path = tmp_path / "in" / "cut.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for pixels in film(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) - 200, 7):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    found = predict_folder(run, path, tmp_path / "out", memory=0)
    if found.failed:
        assert "cut.mkv" in found.failed[0][1]
        assert not (tmp_path / "out" / "overlays" / "cut.mp4").exists()
        assert not (tmp_path / "out" / "frames").exists()


# Cameras


class Camera:
    """What OpenCV gives for a camera: frames in BGR."""

    def __init__(self, count: int = 10**6, opened: bool = True, sizes: tuple[int, ...] = (48,)) -> None:
        self.left, self.opened, self.sizes, self.released = count, opened, sizes, False

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def get(self, _: int) -> float:
        return 0.0

    def read(self):
        self.left -= 1
        frame = np.zeros((self.sizes[self.left % len(self.sizes)], 64, 3), np.uint8)
        frame[..., 0] = 200
        return self.left >= 0, frame

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch):
    cv2 = pytest.importorskip("cv2")

    def plug(device: Camera) -> Camera:
        monkeypatch.setattr(cv2, "VideoCapture", lambda _: device)
        return device

    return plug


def test_a_camera_gives_frames_until_there_are_no_more(camera):
    device = camera(Camera(3))
    with open_frames("camera:0") as frames:
        assert (frames.fps, frames.count) == (25.0, 0)
        pixels = list(frames.pixels)
    assert len(pixels) == 3
    assert pixels[0][0, 0].tolist() == [0, 0, 200]
    assert device.released


def test_ctrl_c_ends_a_camera_and_its_results_are_whole(run: Run, camera, tmp_path: Path):
    camera(Camera())
    before = signal.getsignal(signal.SIGINT)

    def stop(what: str, done: int, _: int) -> None:
        if what == "frames" and done == 3:
            signal.raise_signal(signal.SIGINT)

    found = predict_folder(run, "camera:0", tmp_path / "out", progress=stop)
    assert found.done == 1
    with open_frames(str(tmp_path / "out" / "overlays" / "camera-0.mp4")) as frames:
        assert len(list(frames.pixels)) == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_no_camera_and_frames_of_several_sizes_are_told(camera):
    camera(Camera(opened=False))
    with pytest.raises(SegmintError, match="no such camera"), open_frames("camera:1"):
        pass
    camera(Camera(0))
    with pytest.raises(SegmintError, match="holds no frame"), open_frames("camera:0"):
        pass
    camera(Camera(sizes=(48, 50)))
    with pytest.raises(SegmintError, match="change size"), open_frames("camera:0") as frames:
        list(frames.pixels)


def test_a_camera_can_be_used_from_another_thread(camera):
    camera(Camera(2))
    counts: list[int] = []

    def use() -> None:
        with open_frames("camera:0") as frames:
            counts.append(len(list(frames.pixels)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert counts == [2]


def test_streams_are_told_from_files(monkeypatch: pytest.MonkeyPatch, clip: Path):
    assert [is_stream(name) for name in ("camera:0", "rtsp://a/b", "camera:x", "clip.mp4")] == [
        True,
        True,
        False,
        False,
    ]
    for package, name in (("av", str(clip)), ("cv2", "camera:0")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SegmintError, match=r"segmint\[video\]"), open_frames(name):
            pass
    assert source.VIDEO_SUFFIXES[0] == ".mp4"
