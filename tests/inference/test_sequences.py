from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.data.folder import open_folder
from segmint.inference.generate import generate
from segmint.inference.sequences import Script, frames_of, generate_sequences, pieces, write_videos
from segmint.methods.method import Method
from segmint.training.run import Run, train
from segmint.types import Batch, SegmintError

QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}
CLASSES = "classes:\n- {id: 0, name: ground}\n- {id: 1, name: square}\n- {id: 2, name: disc}\n"


def write_drive(root: Path, lengths: tuple[int, ...] = (7, 4), size: tuple[int, int] = (32, 24)) -> Path:
    """A folder of drives in which a bright square moves right over a rough ground, one pixel a frame."""
    texture = np.random.default_rng(0).integers(20, 120, (*size, 3), dtype=np.uint8)
    for drive, length in enumerate(lengths):
        for frame in range(length):
            mask = np.zeros(size, np.uint8)
            mask[8:18, 3 + frame : 11 + frame] = 1
            image = np.where(mask[..., None] == 1, np.uint8(220), texture)
            for part, pixels in (("images", image), ("masks", mask)):
                path = root / part / f"drive-{drive}" / f"{frame}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.yaml").write_text(CLASSES, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drive(tmp_path_factory.mktemp("drives") / "drive")


@pytest.fixture(scope="module")
def maker(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shapes, method="vae", out=tmp_path_factory.mktemp("vae") / "run", settings=QUICK, width=8, latent=4)


@pytest.fixture(scope="module")
def painter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    quick = {"epochs": 2, "batch_size": 4}
    return train(shapes, method="gmm", out=tmp_path_factory.mktemp("gmm") / "run", settings=quick, components=2)


class Follower(Method):
    """Images are the previous one plus a little noise; remembers what it was given."""

    conditions = frozenset({"mask", "previous"})

    def __init__(self, *, classes: int = 2, in_channels: int = 3, image_size: tuple[int, int] = (4, 5)) -> None:
        super().__init__()
        self.given: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []

    def generate(self, seeds, mask=None, previous=None, image=None):
        self.given.append((mask, previous))
        noise = 0.1 * seeds.randn(3, 4, 5)
        made = torch.zeros(1, 4, 5, dtype=torch.int64) if mask is None else mask
        return Batch(noise if previous is None else previous + noise, made)


def files(folder: Path) -> dict[str, bytes]:
    kinds = ("*.png", "manifest.jsonl", "generate.json", "classes.yaml", "*.tmp")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.rglob(kind)}


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_frames_of_a_method_are_given_the_one_before_and_the_same_noise():
    method, masks = Follower(), torch.arange(3).view(3, 1, 1).expand(3, 4, 5)
    clip = list(frames_of(method, Script(9), 0, masks))
    assert [int(mask[0, 0, 0]) for mask, _ in method.given] == [0, 1, 2]
    assert method.given[0][1] is None
    assert torch.equal(method.given[2][1], clip[1].image)
    assert torch.allclose(clip[2].image, 3 * clip[0].image)


def test_without_masks_the_noise_walks():
    method = Follower()
    clip = Batch.cat(list(frames_of(method, Script(9, speed=0.25), 0)))
    steps = torch.cat([clip.image[:1], clip.image.diff(dim=0)])
    near, far = (steps[1] - steps[0]).norm(), (steps[8] - steps[0]).norm()
    assert 0 < float(near) < 0.5 * float(far)


def test_independent_frames_know_nothing_of_one_another():
    method, masks = Follower(), torch.zeros(4, 4, 5, dtype=torch.int64)
    clip = Batch.cat(list(frames_of(method, Script(4, independent=True), 0, masks)))
    assert all(previous is None for _, previous in method.given)
    flat = clip.image.flatten(1)
    assert float(torch.corrcoef(flat).fill_diagonal_(0).abs().max()) < 0.6


def test_values_that_are_not_finite_are_refused():
    class Broken(Follower):
        def generate(self, seeds, mask=None, previous=None, image=None):
            return Batch(torch.full((1, 3, 4, 5), torch.nan), torch.zeros(1, 4, 5, dtype=torch.int64))

    with pytest.raises(SegmintError, match="not finite"):
        next(frames_of(Broken(), Script(2), 0))


def test_pieces_are_runs_of_labelled_frames(drive: Path, tmp_path: Path):
    data = open_folder(drive)
    assert pieces(data, 3) == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
    assert pieces(data, 5) == [[0, 1, 2, 3, 4], [7, 8, 9, 10]]
    holes = shutil.copytree(drive, tmp_path / "holes")
    (holes / "masks" / "drive-0" / "2.png").unlink()
    (holes / "masks" / "drive-1" / "1.png").unlink()
    (holes / "splits").mkdir()
    (holes / "splits" / "val.txt").write_text("".join(f"drive-1/{k}\n" for k in range(4)))
    data = open_folder(holes)
    assert pieces(data, 9) == [[0, 1], [3, 4, 5, 6], [9, 10]]
    assert pieces(data, 9, "val") == [[9, 10]]
    assert pieces(data, 9, labelled=False) == [list(range(7)), list(range(7, 11))]


def test_sequences_are_groups_of_a_data_folder(maker: Run, tmp_path: Path):
    data = generate_sequences(maker, count=2, frames=4, out=tmp_path / "film", seed=3)
    assert data.sequences() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.items[0].name == "sequence-0000/000"
    told = entries(tmp_path / "film")
    assert [(entry["sequence"], entry["frame"]) for entry in told] == [(s, f) for s in range(2) for f in range(4)]
    assert {entry["seed"] for entry in told} == {3_000_000, 3_000_001}
    assert all(entry["frames"] == 4 and entry["method"] == "vae" and entry["kept"] for entry in told)
    quicker = generate_sequences(maker, count=1, frames=4, speed=0.5, out=tmp_path / "quicker", seed=3).root
    first, second = (files(root)["images/sequence-0000/000.png"] for root in (data.root, quicker))
    assert first == second
    assert files(data.root)["images/sequence-0000/003.png"] != files(quicker)["images/sequence-0000/003.png"]


def test_given_masks_are_painted_frame_by_frame(painter: Run, drive: Path, tmp_path: Path):
    data = generate_sequences(painter, count=4, frames=3, masks=drive, out=tmp_path / "film")
    told = entries(data.root)
    assert [entry["mask"] for entry in told[3:6]] == ["drive-0/3", "drive-0/4", "drive-0/5"]
    assert [entry["mask"] for entry in told[9:]] == [entry["mask"] for entry in told[:3]]
    for entry in told:
        mask = np.asarray(Image.open(data.root / "masks" / f"{entry['name']}.png"))
        assert np.array_equal(mask, np.asarray(Image.open(drive / "masks" / f"{entry['mask']}.png")))
    content = files(data.root)
    first, again = (np.asarray(Image.open(data.root / f"images/sequence-000{n}/000.png")) for n in (0, 3))
    assert not np.array_equal(first, again)
    assert len(content) == 2 * 12 + 3


@pytest.mark.parametrize("given", [True, False])
def test_a_killed_generation_goes_on_to_the_same_folder(painter: Run, drive: Path, tmp_path: Path, given: bool):
    asked = {"frames": 3, "masks": drive if given else None, "seed": 2}
    whole = generate_sequences(painter, count=4, out=tmp_path / "whole", workers=1 + given, **asked).root
    part = generate_sequences(painter, count=3, out=tmp_path / "part", **asked).root
    manifest = part / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:7]) + lines[7][:20])
    (part / "masks/sequence-0002/001.png").unlink()
    (part / "images/sequence-0002/.002.png.1-2.tmp").write_bytes(b"half")
    told: list[tuple[int, int]] = []
    generate_sequences(painter, count=4, out=part, progress=lambda *done: told.append(done), **asked)
    assert told == [(3, 4), (4, 4)]
    assert files(part) == files(whole)
    generate_sequences(painter, count=2, out=part, **asked)
    assert files(part) == files(whole)


def test_wrong_uses_are_refused(maker: Run, painter: Run, drive: Path, shapes: Path, tmp_path: Path):
    out = tmp_path / "film"
    for wrong, message in (
        ({"count": 0, "frames": 3}, "--count: must be at least 1"),
        ({"count": 1, "frames": 1}, "--frames: must be at least 2"),
        ({"count": 1, "frames": 3, "speed": 0.0}, "--speed: must be above 0"),
        ({"count": 1, "frames": 3, "masks": drive}, "vae: makes its own masks"),
    ):
        with pytest.raises(SegmintError, match=message):
            generate_sequences(maker, out=out, **wrong)
    with pytest.raises(SegmintError, match="no sequence of masks in its split val"):
        generate_sequences(painter, count=1, frames=3, masks=shapes, split="val", out=out)
    other = shutil.copytree(drive, tmp_path / "other")
    (other / "classes.yaml").write_text("classes:\n- {id: 0, name: a}\n- {id: 1, name: b}\n")
    with pytest.raises(SegmintError, match="its classes are not those of"):
        generate_sequences(painter, count=1, frames=3, masks=other, out=out)
    generate_sequences(painter, count=1, frames=3, out=out)
    with pytest.raises(SegmintError, match="was begun with frames 3, now it is 4"):
        generate_sequences(painter, count=1, frames=4, out=out)
    with pytest.raises(SegmintError, match="was begun with frames none"):
        generate_sequences(painter, count=1, frames=3, out=generate(painter, count=1, out=tmp_path / "pairs").root)


def test_methods_that_cannot_are_refused(shapes: Path, painter: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quick = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]}
    segmenter = train(shapes, out=tmp_path / "run", settings={**QUICK, "steps": 0}, **quick)
    with pytest.raises(SegmintError, match="supervised does not generate"):
        generate_sequences(segmenter, count=1, frames=2)
    monkeypatch.setattr(type(painter.method), "needs_mask", True)
    with pytest.raises(SegmintError, match="only paints masks"):
        generate_sequences(painter, count=1, frames=2)


def test_videos_lie_beside_the_frames(painter: Run, tmp_path: Path):
    av = pytest.importorskip("av")
    folder = generate_sequences(painter, count=2, frames=3, out=tmp_path / "film").root
    paths = write_videos(folder, fps=6)
    assert [path.name for path in paths] == ["sequence-0000.mp4", "sequence-0001.mp4"]
    with av.open(str(paths[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(288, 432, 3)] * 3
    before = paths[0].stat().st_mtime_ns
    told: list[tuple[int, int]] = []
    write_videos(folder, progress=lambda *done: told.append(done))
    assert paths[0].stat().st_mtime_ns == before
    assert told == [(1, 2), (2, 2)]
    assert len(open_folder(folder)) == 6
