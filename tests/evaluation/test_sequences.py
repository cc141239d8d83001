from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.cli import app, main
from segmint.evaluation.report import write_report
from segmint.evaluation.sequences import MEASURES, figures, measure_sequences, optical_flow, summary
from segmint.training.run import train
from segmint.types import Batch, SegmintError

SIZE = (48, 64)
CLASSES = "classes:\n- {id: 0, name: ground}\n- {id: 1, name: square}\n"


def texture(seed: int = 0) -> np.ndarray:
    """A smooth random texture, uint8 [96, 128, 3]."""
    rough = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, (96, 128), mode="bicubic").clamp(0, 1)
    return (smooth[0].permute(1, 2, 0) * 255).byte().numpy()


def moving(count: int = 6, step: int = 2, seed: int = 0) -> list[np.ndarray]:
    """What a camera sees that pans over the texture, uint8 [48, 64, 3] each."""
    return [texture(seed)[20:68, k * step : k * step + 64] for k in range(count)]


def write(root: Path, drives: list[list[np.ndarray]], entries: list[dict] | None = None, **facts) -> Path:
    """A folder of sequences whose masks are a square that moves right, one pixel a frame."""
    for number, frames in enumerate(drives):
        for place, image in enumerate(frames):
            mask = np.zeros(SIZE, np.uint8)
            mask[10:30, 10 + place : 30 + place] = 1
            for part, pixels in (("images", image), ("masks", mask)):
                path = root / part / f"sequence-{number:04d}" / f"{place:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.yaml").write_text(CLASSES)
    if entries is not None:
        (root / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        (root / "generate.json").write_text(json.dumps(facts))
    return root


def noise(count: int = 6) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (count, *SIZE, 3), dtype=np.uint8))


def painted(root: Path, drives: list[list[np.ndarray]], real: Path) -> Path:
    entries = [
        {"name": f"sequence-{n:04d}/{k:03d}", "mask": f"sequence-{n:04d}/{k:03d}", "method": "gmm"}
        for n, frames in enumerate(drives)
        for k in range(len(frames))
    ]
    return write(root, drives, entries, method="gmm", masks=str(real))


def clip(frames: list[np.ndarray]) -> Batch:
    image = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Batch(image, torch.zeros(len(frames), *SIZE, dtype=torch.int64))


def test_a_panning_texture_flickers_but_warps_onto_itself():
    pytest.importorskip("cv2")
    panned = clip(moving())
    flows = optical_flow(panned.image)
    assert flows is not None
    assert flows[0].shape == (5, 2, *SIZE)
    inner = flows[0][:, :, 8:-8, 8:-8]
    assert float((inner - torch.tensor([-2.0, 0]).view(1, 2, 1, 1)).abs().mean()) < 0.05
    found = figures(panned, flows)
    assert found["flicker"] == found["steady_flicker"] > 0.03
    assert found["warping_error"] < 0.15 * found["flicker"]
    assert 0 < found["lost"] < 0.15
    assert found["class_change"] == 0


def test_a_still_picture_has_no_flicker_and_no_error():
    pytest.importorskip("cv2")
    still = clip(moving(1) * 4)
    found = figures(still, optical_flow(still.image))
    assert found == {key: pytest.approx(0, abs=1e-6) for key in MEASURES}


def test_flow_is_not_known_without_opencv_or_for_tiny_images(monkeypatch: pytest.MonkeyPatch):
    assert optical_flow(torch.zeros(3, 3, 8, 20)) is None
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert optical_flow(torch.zeros(3, 3, 32, 32)) is None
    found = figures(clip(moving()), None)
    assert found["flicker"] > 0
    assert np.isnan([found["warping_error"], found["lost"]]).all()


def test_painted_sequences_are_measured_along_the_motion_of_the_real_ones(tmp_path: Path):
    pytest.importorskip("cv2")
    real = write(tmp_path / "real", [moving(), moving(seed=1)])
    stuck = moving(1, seed=5) * 6  # a texture that does not move with the scene
    made = painted(tmp_path / "made", [stuck, moving(seed=7)], real)
    write(made / "independent", [noise(), noise()], [])
    facts = measure_sequences(made)
    assert (facts["method"], facts["sequences"], facts["frames"], facts["paired"]) == ("gmm", 2, 12, True)
    one, two = facts["per_sequence"].values()
    assert one["generated"]["flicker"] == 0
    assert one["generated"]["warping_error"] > 5 * two["generated"]["warping_error"]
    assert facts["real"]["warping_error"] < 0.01 < facts["independent"]["warping_error"]
    assert facts["to_independent"]["flicker"] < 0.5
    expected = facts["generated"]["flicker"] / facts["real"]["flicker"]
    assert facts["to_real"]["flicker"] == pytest.approx(expected)
    moved = 2 * 20 / (SIZE[0] * SIZE[1])  # one column of the square to either side
    assert facts["generated"]["class_change"] == facts["real"]["class_change"] == pytest.approx(moved)
    assert json.loads((made / "sequences.json").read_text())["paired"] is True
    picture = Image.open(made / "pictures" / "strip.png")
    assert picture.width > 7 * 64
    lines = summary(facts)
    assert lines[0] == "12 frames in 2 sequences by gmm"
    assert any(line.startswith("warping error: generated") and "real" in line for line in lines)


def test_other_sequences_are_compared_with_what_is_real(tmp_path: Path):
    pytest.importorskip("cv2")
    real = write(tmp_path / "real", [moving(4), moving(9), moving(3)])
    made = write(tmp_path / "made", [moving(5, 1), moving(5, 3)])
    alone = measure_sequences(made)
    assert alone["real"] is None
    assert alone["to_real"] is None
    assert alone["method"] == ""
    facts = measure_sequences(made, real)
    assert not facts["paired"]
    assert [set(row) for row in facts["per_sequence"].values()] == [{"generated", "real"}, {"generated"}]
    assert facts["notes"] == []
    singles = write(tmp_path / "singles", [moving(1), moving(1)])
    assert "holds no sequences" in measure_sequences(made, singles)["notes"][0]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = painted(tmp_path / "made", [moving()], tmp_path / "gone")
    monkeypatch.setitem(sys.modules, "cv2", None)
    facts = measure_sequences(made)
    assert "nothing real to compare with" in facts["notes"][0]
    assert "segmint[video]" in facts["notes"][1]
    assert summary(facts)[-1].startswith("note: the warping error is not known")
    with pytest.raises(SegmintError, match="no such folder"):
        measure_sequences(made, tmp_path / "gone")
    with pytest.raises(SegmintError, match="holds no sequence; make some"):
        measure_sequences(write(tmp_path / "singles", [moving(1)]))


def test_the_report_shows_the_strip_and_leaves_out_the_comparison(tmp_path: Path):
    pytest.importorskip("cv2")
    real = write(tmp_path / "data" / "real", [moving()])
    made = painted(tmp_path / "runs" / "films", [moving()], real)
    write(made / "independent", [noise()], [])
    measure_sequences(made)
    page = write_report(tmp_path / "runs").read_text()
    assert "6 frames in 1 sequence." in page
    assert "warping error" in page
    assert "pairs.json is missing" not in page
    assert page.count("<h3>gmm") == 1
    (made / "pictures" / "strip.png").unlink()
    assert "strip.png is missing" in write_report(made).read_text()


def test_the_command_makes_measures_and_films(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("av")
    pytest.importorskip("cv2")
    quick = {"epochs": 2, "batch_size": 4}
    run = train(shapes, method="gmm", out=tmp_path / "run", settings=quick, components=2).folder

    def type_in(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["segmint", "generate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return " ".join((said.out + said.err + str(ended.value.code)).split())

    said = type_in(run, "--count", 2, "--frames", 3, "--independent", "--video")
    assert "6 frames in 2 sequences by gmm" in said
    assert "independent" in said.partition("flicker: generated")[2]
    assert len(list((run / "sequences" / "videos").glob("*.mp4"))) == 2
    assert (run / "sequences" / "pictures" / "strip.png").is_file()
    assert "give --frames N as well" in type_in(run, "--independent")
    assert "leave --mix" in type_in(run, "--frames", 3, "--mix", "real=1")
    monkeypatch.setitem(sys.modules, "av", None)
    out = tmp_path / "unmade"
    assert "segmint[video]" in type_in(run, "--frames", 3, "--video", "--out", out)
    assert not out.exists()
    assert app.info.name == "segmint"


@pytest.fixture
def shapes(shapes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shapes, tmp_path / "shapes")
