"""Folders of pairs: painted from masks of every kind, killed and resumed bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.inference.generate import BLOCK, claim, generate
from segmint.inference.masks import FolderMasks, MaskMix, MixedMasks
from segmint.methods.method import Method
from segmint.training.run import Run, train
from segmint.types import IGNORE, Batch, SegmintError

QUICK = {"batch_size": 4, "precision": "float32"}
PLAIN = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}


@pytest.fixture(scope="module")
def painter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A mixture: it paints masks, or makes its own. Four of five masks are its own to see."""
    out = tmp_path_factory.mktemp("painter") / "run"
    return train(shapes, method="gmm", budget=4, out=out, settings={**QUICK, "epochs": 3}, components=2)


@pytest.fixture(scope="module")
def drawer(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Its pairs are of another size than the painter's."""
    out = tmp_path_factory.mktemp("drawer") / "run"
    return train(shapes, method="vae", size=(24, 20), out=out, settings={**QUICK, "steps": 2}, width=8, latent=4)


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("segmenter") / "run"
    return train(shapes, budget=4, out=out, settings={**QUICK, "steps": 2}, **PLAIN)


class Repainter(Method):
    """Darkens the photograph and keeps the mask."""

    conditions: ClassVar = frozenset({"mask", "image"})
    needs_mask = True

    def __init__(self, *, classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 24)) -> None:
        super().__init__()

    def generate(self, seeds, mask=None, previous=None, image=None) -> Batch:
        self.refuse(previous=previous)
        image = torch.zeros(len(seeds), 3, *mask.shape[1:]) if image is None else image / 2
        return Batch(image, mask)


@pytest.fixture
def repainter(painter: Run) -> Run:
    run = Run(painter.folder)
    run.__dict__["method"] = Repainter(classes=3)
    return run


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def mask_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / f"{name}.png"))


def test_the_masks_of_a_folder_are_painted_in_turn(painter: Run, shapes: Path, tmp_path: Path):
    out = generate(painter, count=13, out=tmp_path / "pairs", masks=shapes).root
    names = [entry["mask"] for entry in manifest(out)]
    assert names[:11] == [f"{number:02d}" for number in range(11)]
    assert names[11:] == names[:2]
    for entry in manifest(out):
        assert np.array_equal(mask_of(out, entry["name"]), mask_of(shapes, entry["mask"]))
    assert not np.array_equal(
        np.asarray(Image.open(out / "images/00000.png")), np.asarray(Image.open(out / "images/00011.png"))
    )


def test_masks_of_another_size_are_resized_to_the_runs(painter: Run, shapes: Path, tmp_path: Path):
    large = tmp_path / "large"
    for part in ("images", "masks"):
        (large / part).mkdir(parents=True)
        Image.open(shapes / part / "03.png").resize((48, 64), Image.Resampling.NEAREST).convert("L").save(
            large / part / "a.png"
        )
    (large / "classes.yaml").write_text((shapes / "classes.yaml").read_text())
    out = generate(painter, count=1, out=tmp_path / "pairs", masks=large).root
    assert np.array_equal(mask_of(out, "00000"), mask_of(shapes, "03"))
    grey = FolderMasks(painter, large).take([0], [0])
    assert grey.images.shape == (1, 32, 24, 3)


def test_kinds_come_as_often_as_they_should(painter: Run, segmenter: Run, drawer: Run, shapes: Path):
    mixed = MixedMasks(painter, MaskMix(1, 1, 1, 1), segmenter=segmenter.folder, mask_generator=drawer.folder)
    taken = mixed.take(range(200), range(200))
    kinds = [name.partition(":")[0] for name in taken.names]
    for kind in ("real", "predicted", "varied", "drawn"):
        assert 30 < kinds.count(kind) < 70
    assert taken.masks.shape == (200, 32, 24)
    assert taken.images.shape == (200, 32, 24, 3)
    data = open_folder(shapes)
    pixels, budget = Pixels.open(data), {data.items[item].name for item in data.labelled(4, 0)}
    rows = {item.name: row for row, item in enumerate(data.items)}
    for mask, image, name in zip(taken.masks, taken.images, taken.names, strict=True):
        kind, _, item = name.partition(":")
        if kind in ("real", "predicted"):
            assert (item in budget) == (kind == "real")
            assert np.array_equal(image, pixels.images[rows[item]])
        if kind == "real":
            assert np.array_equal(mask, pixels.masks[pixels.rows[rows[item]][0]])
        assert int(mask.max()) < 3


def test_an_items_mask_depends_on_its_seed_alone(painter: Run):
    mixed = MixedMasks(painter, MaskMix(real=1, varied=2))
    many, few = mixed.take(range(8), range(8)), mixed.take([0, 0], [5, 2])
    assert few.names == (many.names[5], many.names[2])
    assert np.array_equal(few.masks, many.masks[[5, 2]])
    assert np.array_equal(few.images, many.images[[5, 2]])


def test_only_predicted_masks_can_be_varied_too(painter: Run, segmenter: Run):
    mixed = MixedMasks(painter, MaskMix(predicted=1, varied=1), segmenter=segmenter.folder)
    names = mixed.take(range(40), range(40)).names
    assert {name.partition(":")[0] for name in names} == {"predicted", "varied"}
    real = {mixed.run.folder.name, *(open_folder(mixed.run.settings.data).items[i].name for i in mixed._labelled)}
    assert not {name.partition(":")[2] for name in names} & real


def test_mixtures_do_not_depend_on_workers_and_counts(painter: Run, segmenter: Run, drawer: Run, tmp_path: Path):
    how = {"mix": "real=1,predicted=1,varied=1,drawn=1", "segmenter": segmenter, "mask_generator": drawer.folder}
    few = files(generate(painter, count=5, out=tmp_path / "few", seed=3, **how).root)
    many = files(generate(painter, count=2 * BLOCK + 3, out=tmp_path / "many", seed=3, workers=2, **how).root)
    assert many["manifest.jsonl"].startswith(few["manifest.jsonl"])
    for name, content in few.items():
        assert name == "manifest.jsonl" or many[name] == content


def test_killed_and_resumed_it_is_the_same_folder(painter: Run, tmp_path: Path):
    whole = generate(painter, count=120, out=tmp_path / "whole", mix="real=1,varied=1").root
    out = tmp_path / "killed"
    command = ["-m", "segmint", "generate", str(painter.folder), "--count", "120", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, *command, "--mix", "real=1,varied=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    path = out / "manifest.jsonl"
    while process.poll() is None and not (path.exists() and len(path.read_bytes().splitlines()) >= 20):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list((out / "masks").glob("*.png"))) < 120
    (out / "images" / ".00119.png.1-1.tmp").write_bytes(b"half")
    generate(painter, count=120, out=out, mix="real=1,varied=1", workers=2)
    assert files(out) == files(whole)


def test_a_folder_is_completed_only_with_the_settings_it_was_begun_with(
    painter: Run, drawer: Run, shapes: Path, tmp_path: Path
):
    out = tmp_path / "pairs"
    generate(painter, count=2, out=out, mix="real=1")
    for wrong, told in (
        ({}, "mix real=1, now it is none"),
        ({"mix": "real=1,varied=1"}, "mix real=1, now it is real=1,varied=1"),
        ({"mix": "real=1", "seed": 1}, "seed 0, now it is 1"),
        ({"masks": shapes}, "mix real=1, now it is none"),
        ({"mix": "drawn=1", "mask_generator": drawer}, "mix real=1, now it is drawn=1"),
    ):
        with pytest.raises(SegmintError, match=told):
            generate(painter, count=4, out=out, **wrong)
    assert len(generate(painter, count=4, out=out, mix=MaskMix(real=1.0))) == 4
    with pytest.raises(SegmintError, match="was begun with run"):
        generate(drawer, count=4, out=out)


def test_retrained_weights_are_noticed(drawer: Run, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    for name, content in files(drawer.folder).items():
        (run / name).write_bytes(content)
    generate(run, count=2, out=tmp_path / "pairs")
    method = Run(run).method
    with torch.no_grad():
        next(method.parameters()).add_(1.0)
    from segmint.methods.method import save

    save(method, run)
    with pytest.raises(SegmintError, match="was begun with weights"):
        generate(run, count=4, out=tmp_path / "pairs")


def test_a_damaged_description_is_named(tmp_path: Path):
    claim(tmp_path / "a", {"seed": 1})
    assert claim(tmp_path / "a", {"seed": 1}) == set()
    (tmp_path / "a" / "generate.json").write_text("{")
    with pytest.raises(SegmintError, match=r"generate\.json: damaged"):
        claim(tmp_path / "a", {"seed": 1})


def test_photographs_are_painted_over(repainter: Run, shapes: Path, tmp_path: Path):
    out = generate(repainter, count=3, out=tmp_path / "pairs", masks=shapes, repaint=True).root
    real = np.asarray(Image.open(shapes / "images/01.png")).astype(int)
    made = np.asarray(Image.open(out / "images/00001.png")).astype(int)
    assert np.abs(made - (real + 127.5) / 2).max() <= 1
    plain = generate(repainter, count=3, out=tmp_path / "plain", masks=shapes).root
    assert (np.asarray(Image.open(plain / "images/00001.png")) == 128).all()


def test_methods_that_need_masks_get_real_and_varied_ones(repainter: Run, tmp_path: Path):
    out = generate(repainter, count=16, out=tmp_path / "pairs").root
    assert {entry["mask"].partition(":")[0] for entry in manifest(out)} == {"real", "varied"}
    assert json.loads((out / "generate.json").read_text())["mix"] == "real=1,varied=1"


def test_unknown_pixels_stay_unknown(repainter: Run, shapes: Path, tmp_path: Path):
    folder = tmp_path / "data"
    (folder / "masks").mkdir(parents=True)
    mask = mask_of(shapes, "03").copy()
    mask[:5] = IGNORE
    Image.fromarray(mask).save(folder / "masks" / "03.png")
    (folder / "images").mkdir()
    (folder / "images" / "03.png").write_bytes((shapes / "images/03.png").read_bytes())
    (folder / "classes.yaml").write_text((shapes / "classes.yaml").read_text())
    out = generate(repainter, count=1, out=tmp_path / "pairs", masks=folder).root
    assert np.array_equal(mask_of(out, "00000"), mask)


def test_what_a_mixture_lacks_is_named(painter: Run, segmenter: Run, drawer: Run, shapes: Path, tmp_path: Path):
    def refused(told: str, run: Run = painter, **how: object) -> None:
        with pytest.raises(SegmintError, match=told):
            generate(run, count=1, out=tmp_path / "none", **how)
        assert not (tmp_path / "none").exists()

    refused("predicted masks need a run that makes them; name it with --segmenter RUN", mix="predicted=1")
    refused("drawn masks need a run that makes them; name it with --mask-generator RUN", mix="real=1,drawn=1")
    refused("--segmenter: nothing in --mix real=1 asks for it", mix="real=1", segmenter=segmenter)
    refused("say how often, e.g. --mix", segmenter=segmenter)
    refused("--masks: takes the place of --mix", masks=shapes, mix="real=1")
    refused("vae: makes its own masks and cannot paint given ones", drawer, mix="real=1")
    refused("vae: makes its own masks and cannot paint given ones", drawer, masks=shapes)
    refused("gmm: makes new images and cannot paint over a photograph", repaint=True)
    refused("supervised does not generate", segmenter)
    refused("supervised makes no masks of its own", mix="drawn=1", mask_generator=segmenter)
    refused("vae, which does not segment", mix="predicted=1", segmenter=drawer)
    refused(r"--mix 'real': real needs a number", mix="real")
    refused(r"--mix 'photos=1': 'photos=1' is not one of real, predicted, varied, drawn", mix="photos=1")
    refused("weights must be 0 or more", mix="real=-1,varied=2")
    refused("weights must be 0 or more", mix="real=0")
    refused(r"no such folder", masks=tmp_path / "nowhere")
    other = tmp_path / "other"
    for part in ("images", "masks"):
        (other / part).mkdir(parents=True)
    Image.new("RGB", (24, 32)).save(other / "images" / "a.png")
    (other / "classes.yaml").write_text("classes: [{id: 0, name: sea}]\n")
    refused("its classes are not those of", masks=other)
    (other / "classes.yaml").write_text((shapes / "classes.yaml").read_text())
    refused("none of its images has a mask", masks=other)


def test_data_that_is_gone_is_named(painter: Run, tmp_path: Path):
    run = Run(painter.folder)
    run.__dict__["settings"] = painter.settings.model_copy(update={"data": str(tmp_path / "gone")})
    with pytest.raises(SegmintError, match=r"its data folder .*gone is gone, and with it the masks to paint"):
        generate(run, count=1, out=tmp_path / "pairs", mix="real=1")


def test_a_run_without_real_masks_has_none_to_paint(painter: Run, tmp_path: Path):
    run = Run(painter.folder)
    run.__dict__["settings"] = painter.settings.model_copy(update={"budget": 0})
    with pytest.raises(SegmintError, match="was trained without real masks"):
        generate(run, count=1, out=tmp_path / "pairs", mix="real=1")


def test_mixtures_are_written_as_they_are_read():
    assert MaskMix.parse(" real=1, varied=0.5") == MaskMix(real=1, varied=0.5)
    assert str(MaskMix(real=1, drawn=0.25)) == "real=1,drawn=0.25"
    with pytest.raises(SegmintError, match="once each"):
        MaskMix.parse("real=1,real=2")
