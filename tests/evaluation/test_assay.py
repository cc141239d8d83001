import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import segmint
from segmint import cli
from segmint.data.cache import Pixels
from segmint.data.folder import open_folder
from segmint.evaluation.assay import assay, sentence
from segmint.evaluation.evaluate import evaluate
from segmint.evaluation.sorting import Pairs
from segmint.evaluation.usefulness import Usefulness
from segmint.functional.losses import cross_entropy
from segmint.inference.generate import generate
from segmint.locks import LOCK
from segmint.methods.method import Method
from segmint.training.run import train
from segmint.types import IGNORE, Batch, SegmintError

COPY, REPEAT, WRONG, SPOTTED = "00007", "00008", "00009", "00003"
"""Pairs of the folder `made`: a copy of the real 06, one like 00000, one whose classes are exchanged, and one with a
square's corner called a disc. All others are right."""


def embed(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)


BARE = {"embed": embed, "pictures": False}


def shape(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A square or a disc of its own on a ground of its own: image uint8 [32, 24, 3], mask [32, 24]."""
    numbers = np.random.default_rng(100 + number)
    rows, columns = np.mgrid[:32, :24]
    y, x, mask = numbers.integers(8, 24), numbers.integers(8, 16), np.zeros((32, 24), np.uint8)
    if number % 2:
        mask[(abs(rows - y) < 6) & (abs(columns - x) < 6)] = 1
    else:
        mask[(rows - y) ** 2 + (columns - x) ** 2 < 40] = 2
    colors = np.array([(30, 30, 60), (230, 220, 210), (200, 40, 60)])[mask]
    return (colors + numbers.normal(0, 12, colors.shape)).clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def made(tmp_path, shapes):
    folder = tmp_path / "made"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        image, mask = shape(0 if f"{number:05d}" == REPEAT else number)
        name = f"{number:05d}"
        if name == COPY:
            image = np.asarray(Image.open(shapes / "images" / "06.png"))
            mask = np.asarray(Image.open(shapes / "masks" / "06.png"))
        if name == WRONG:
            mask = np.array([2, 0, 1], np.uint8)[mask]
        if name == SPOTTED:
            y, x = np.argwhere(mask == 1)[0]
            mask[y : y + 4, x : x + 4] = 2
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    lines = [
        json.dumps({"name": f"{number:05d}", "seed": number, "method": "vae", "kept": True}) for number in range(10)
    ]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(shapes / "classes.yaml", folder)
    return folder


def entries(folder) -> dict:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def kept(folder) -> set[str]:
    return {path.stem for path in (folder / "images").iterdir()}


def state(folder) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("assay.json", LOCK)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_copies_repeats_and_wrong_masks_fall_and_the_manifest_says_why(made, make_run):
    data = assay(made, segmenter=make_run("judge"), keep=7, embed=embed)
    found = entries(made)
    assert isinstance(data, segmint.Data)
    assert {item.name for item in data.items} == kept(made) == {name for name in found if found[name]["kept"]}
    assert found[COPY]["why"].startswith("copy: feature distance 0 to the real 06;")
    repeats = [found[name] for name in ("00000", REPEAT) if found[name]["why"].startswith("repeat:")]
    assert len(repeats) == 1
    assert found[WRONG]["why"].startswith("rank: 10 of 10 by agreement, 7 are kept; mIoU 0.0")
    assert not found[WRONG]["kept"]
    assert all(found[name]["kept"] for name in ("00001", "00002", "00004", "00005", "00006"))
    for name in (COPY, WRONG):
        for part in ("images", "masks"):
            assert (made / "dropped" / part / f"{name}.png").is_file()
            assert not (made / part / f"{name}.png").exists()
    scores = found["00001"]["scores"]
    assert scores["miou"] > 0.95
    assert scores["accuracy"] > 0.95
    assert scores["usefulness"] is None
    assert 0 < scores["closeness"] <= 1
    facts = json.loads((made / "assay.json").read_text())
    assert facts["counts"] == {"pairs": 10, "kept": 7, "copy": 1, "repeat": 1, "rank": 1}
    assert "kept 7 of 10 pairs (" in sentence(facts)
    assert "1 suspected copies" in sentence(facts)
    assert np.asarray(Image.open(made / "pictures" / "assay.png")).std() > 20


def test_pixels_on_which_the_segmenter_surely_disagrees_are_ignored(made, make_run):
    drawn = np.asarray(Image.open(made / "masks" / f"{SPOTTED}.png"))
    assay(made, segmenter=make_run("judge"), keep=None, **BARE)
    now = np.asarray(Image.open(made / "masks" / f"{SPOTTED}.png"))
    assert (now[drawn == 2] == IGNORE).mean() > 0.9
    assert (now == IGNORE).mean() == pytest.approx(entries(made)[SPOTTED]["scores"]["ignored"], abs=1e-6)
    np.testing.assert_array_equal(now[now != IGNORE], drawn[now != IGNORE])
    np.testing.assert_array_equal(np.asarray(Image.open(made / "drawn" / f"{SPOTTED}.png")), drawn)
    before = state(made)
    assay(made, segmenter=make_run("judge"), keep=None, **BARE)
    assert state(made) == before
    assay(made, segmenter=make_run("judge"), keep=None, **BARE, confident=1.1)
    np.testing.assert_array_equal(np.asarray(Image.open(made / "masks" / f"{SPOTTED}.png")), drawn)
    assert not (made / "drawn" / f"{SPOTTED}.png").exists()


def test_the_last_assay_alone_decides(made, make_run, tmp_path):
    before = state(made)
    other = tmp_path / "other"
    shutil.copytree(made, other)
    run = make_run("judge")
    assay(made, segmenter=run, keep=3, **BARE)
    assay(made, segmenter=run, keep=0.5, **BARE, confident=0.6)
    assay(made, segmenter=run, keep=6, **BARE)
    assay(other, segmenter=run, keep=6, **BARE)
    assert state(made) == state(other)
    assay(made, segmenter=run, keep=None, by="none", **BARE)
    after = state(made)
    assert {name: after[name] for name in before if name.endswith(".png")} == {
        name: content for name, content in before.items() if name.endswith(".png")
    }
    assert set(after) == set(before)


@pytest.mark.parametrize("at", [0, 7, 17])
@pytest.mark.parametrize("first", [None, 4])
def test_killed_midway_and_called_again_it_gives_the_same(made, make_run, tmp_path, monkeypatch, at, first):
    run, whole = make_run("judge"), tmp_path / "whole"
    shutil.copytree(made, whole)
    assay(whole, segmenter=run, keep=6, **BARE)
    if first:
        assay(made, segmenter=run, keep=first, **BARE, confident=0.6)
    moves, move = [], Pairs._move

    def killed(source, target):
        moves.append(source)
        if len(moves) > at:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(Pairs, "_move", staticmethod(killed))
    with pytest.raises(KeyboardInterrupt):
        assay(made, segmenter=run, keep=6, **BARE)
    monkeypatch.setattr(Pairs, "_move", staticmethod(move))
    read = open_folder(made)
    assert {item.name for item in read.items if item.masks} <= set(entries(made))
    assay(made, segmenter=run, keep=6, **BARE)
    assert state(made) == state(whole)


def test_without_ranking_the_first_are_kept_as_they_are(made, make_run):
    before = state(made)
    assay(made, segmenter=make_run("judge"), keep=0.4, by="none", **BARE)
    assert kept(made) == {"00000", "00001", "00002", "00003"}
    assert (made / "masks" / f"{SPOTTED}.png").read_bytes() == before[f"masks/{SPOTTED}.png"]
    assert entries(made)["00005"]["why"].startswith("rank: 6 of 10 by none, 4 are kept;")


def test_copies_may_pass(made, make_run):
    assay(made, segmenter=make_run("judge"), keep=None, copies=True, **BARE)
    assert entries(made)[COPY]["kept"]
    assert not entries(made)[REPEAT]["kept"] or not entries(made)["00000"]["kept"]


def test_rare_classes_count(made, make_run):
    run = make_run("judge")
    assay(made, segmenter=run, keep=3, **BARE, weights={"rarity": 1.0})
    found = entries(made)
    rarest = sorted((entry["scores"]["rarity"] for entry in found.values()), reverse=True)
    assert found[SPOTTED]["scores"]["rarity"] == pytest.approx(found["00001"]["scores"]["rarity"])
    assert max(entry["scores"]["rarity"] for entry in found.values() if entry["kept"]) == rarest[0]


def test_pairs_of_another_size_than_the_segmenters_are_judged_too(made, make_run):
    for path in made.glob("*/*.png"):
        picture = Image.open(path)
        picture.resize((48, 64), Image.Resampling.NEAREST).save(path)
    assay(made, segmenter=make_run("judge"), keep=None, **BARE)
    found = entries(made)
    assert found["00001"]["scores"]["miou"] > 0.9
    assert found[WRONG]["scores"]["miou"] < 0.2
    assert Image.open(made / "masks" / f"{SPOTTED}.png").size == (48, 64)
    Image.new("RGB", (20, 20)).save(made / "images" / "00002.png")
    with pytest.raises(SegmintError, match="another size"):
        assay(made, segmenter=make_run("judge"), **BARE)


class Linear(Method):
    """Logits that are linear in the colours: trained by gradients, with a loss of its own or without."""

    def __init__(self, *, classes=3, in_channels=3, image_size=(32, 24)):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.unused = torch.nn.Parameter(torch.zeros(2))

    def segment(self, image, seeds):
        return self.layer(image)


class LinearWithLoss(Linear):
    def loss(self, batch):
        return {"loss": cross_entropy(self.layer(batch.image), batch.mask)}


@pytest.mark.parametrize("learner", [Linear, LinearWithLoss])
def test_useful_pairs_are_kept_and_harmful_ones_dropped(made, make_run, learner):
    run = make_run("judge", learner=learner(classes=3))
    assay(made, segmenter=run, keep=None, by="usefulness", validation="val", **BARE, confident=1.1)
    found = entries(made)
    useful = {name: entry["scores"]["usefulness"] for name, entry in found.items()}
    assert useful[WRONG] < 0 < min(useful[name] for name in ("00001", "00002", "00004", "00005"))
    assert found[WRONG]["why"].startswith("useless: a step on it would not lower the validation loss (cosine -0")
    assert found["00001"]["kept"]
    assert json.loads((made / "assay.json").read_text())["validation"] == "val"


def test_usefulness_foretells_what_a_small_step_does_to_the_validation_loss(data):
    method, pixels = LinearWithLoss(classes=3).eval(), Pixels.open(data, (32, 24))
    chosen = [index for index in data.split("val") if pixels.rows[index]]
    useful, held = Usefulness(method, pixels, chosen, batch_size=2), pixels.batch(chosen)
    image, mask = shape(1)
    pair = Batch(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, torch.from_numpy(mask)[None].long())
    step = useful.gradient(pair)
    expected = float(useful(pair)[0])
    length, before = 1e-3, method.loss(held)["loss"].item()
    slope = torch.zeros(())
    for start in range(0, len(chosen), 2):
        slope = slope + len(chosen[start : start + 2]) * useful.gradient(pixels.batch(chosen[start : start + 2]))
    moved, place = step / step.norm() * length, 0
    with torch.no_grad():
        for parameter in method.parameters():
            count = parameter.numel()
            parameter -= moved[place : place + count].view_as(parameter)
            place += count
    gained = before - method.loss(held)["loss"].item()
    assert gained == pytest.approx(expected * length * float((slope / len(chosen)).norm()), rel=0.05)
    unknown = Batch(pair.image, torch.full_like(pair.mask, IGNORE))
    assert useful(unknown).tolist() == [0]


def test_validation_may_be_a_file_or_a_half(made, make_run, tmp_path):
    run = make_run("judge", learner=Linear(classes=3))
    names = tmp_path / "names.txt"
    names.write_text("00\n02\n")
    for validation in (str(names), "val-half0", "val-half1"):
        assay(made, segmenter=run, by="usefulness", validation=validation, **BARE)
    names.write_text("00.png\n")
    with pytest.raises(SegmintError, match=r"no image '00\.png'"):
        assay(made, segmenter=run, by="usefulness", validation=str(names), **BARE)
    names.write_text("13\n")
    with pytest.raises(SegmintError, match="no image in it has a mask"):
        assay(made, segmenter=run, by="usefulness", validation=str(names), **BARE)


def test_halves_of_a_split_part_it_by_group(data, make_run):
    halves = [data.split(f"val-half{half}") for half in (0, 1)]
    assert sorted(halves[0] + halves[1]) == data.split("val")
    assert [len(half) for half in halves] == [2, 1]
    run = make_run("judge")
    assert evaluate(run, data, "val-half1", pictures=False, resamples=10)["images"] == 1
    assert list(json.loads((run / "metrics.json").read_text())) == ["val-half1"]
    with pytest.raises(SegmintError, match="no split 'val-half2'"):
        data.split("val-half2")


def test_what_cannot_be_is_refused_and_nothing_changed(made, make_run, shapes, tmp_path):
    run, before = make_run("judge"), state(made)
    for wrong in (0, 1.5, 0.0, -3):
        with pytest.raises(SegmintError, match="--keep: must be a share"):
            assay(made, segmenter=run, keep=wrong, **BARE)
    with pytest.raises(SegmintError, match="--by: must be one of"):
        assay(made, segmenter=run, by="beauty", **BARE)
    with pytest.raises(SegmintError, match="not trained by gradients"):
        assay(made, segmenter=run, by="usefulness", **BARE)
    with pytest.raises(SegmintError, match=r"manifest\.jsonl: missing; an assay needs"):
        assay(shapes, segmenter=run, **BARE)
    assert state(made) == before
    (made / "manifest.jsonl").write_text("")
    with pytest.raises(SegmintError, match="names no pairs"):
        assay(made, segmenter=run, **BARE)
    (made / "classes.yaml").write_text("classes: [{id: 0, name: a}, {id: 1, name: b}, {id: 2, name: c}]")
    (made / "manifest.jsonl").write_text('{"name": "00000"}\n')
    with pytest.raises(SegmintError, match="its classes are not those"):
        assay(made, segmenter=run, **BARE)


def test_where_nothing_passes_nothing_is_changed(made, make_run, shapes):
    for path in made.glob("*/*.png"):
        source = shapes / path.parent.name / "06.png"
        shutil.copy(source, path)
    before = state(made)
    with pytest.raises(SegmintError, match=r"no pair passes \(copy: feature distance 0 to the real 06"):
        assay(made, segmenter=make_run("judge"), **BARE)
    assert state(made) == before


QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


def call(*arguments: object) -> str:
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return " ".join(done.output.split())


def test_the_commands_and_generation_that_goes_on_after_an_assay(shapes, tmp_path):
    maker = train(shapes, method="vae", out=tmp_path / "vae", settings=QUICK, width=8, latent=4)
    judge = train(
        shapes, out=tmp_path / "judge", settings=QUICK, encoder_name="plain", decoder_channels=[8, 8, 8, 8]
    ).folder
    folder = tmp_path / "pairs"
    with pytest.raises(SegmintError, match="--keep: needs --segmenter"):
        call("generate", maker.folder, "--count", 9, "--out", folder, "--keep", "0.5")
    told = call(
        "generate", maker.folder, "--count", 9, "--out", folder, "--keep", "4", "--by", "none", "--segmenter", judge
    )
    assert "9 pairs in" in told
    assert "kept 4 of 9 pairs (5 ranked too low)" in told
    assert len(kept(folder)) == 4
    generate(maker, count=17, out=folder)
    whole = generate(maker, count=17, out=tmp_path / "whole").root
    assert len(entries(folder)) == 17
    assert "kept 17 of 17 pairs;" in call("assay", folder, "--segmenter", judge, "--keep", "all", "--by", "none")
    images = {name: content for name, content in state(whole).items() if name.startswith(("images", "masks"))}
    assert {name: state(folder)[name] for name in images} == images
    told = call("measure", folder, "--segmenter", judge)
    assert "Frechet distance" in told
    with pytest.raises(SegmintError, match="--keep: must be a share"):
        call("assay", folder, "--segmenter", judge, "--keep", "half")
