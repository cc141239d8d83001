from __future__ import annotations

import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from PIL import Image
from torch import nn

from segmint.config import TrainSettings
from segmint.data.folder import open_folder
from segmint.evaluation.evaluate import evaluate
from segmint.locks import locked
from segmint.methods.method import build, load, save
from segmint.training import checkpoint
from segmint.training.checkpoint import load_state, read_log
from segmint.training.ema import MovingAverage
from segmint.training.optimizers import PartOptimizers, schedule
from segmint.training.precision import probe
from segmint.training.run import Run, new_folder, train
from segmint.training.sampler import Pool, Sampler
from segmint.types import IGNORE, Batch, SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 6, "validate_every": 2}


def sampler(labelled=(0, 1, 2), unlabelled=(), synthetic=(), **changes) -> Sampler:
    values = {"batch_size": 4, "labelled_fraction": 0.5, "synthetic_fraction": 0.5, "whole_epochs": False, "seed": 0}
    return Sampler(labelled, unlabelled, synthetic, **{**values, **changes})


def test_a_pool_visits_everything_once_a_round_in_changing_order():
    pool = Pool(range(10), seed=0)
    rounds = [pool.slice(10 * turn, 10) for turn in range(4)]
    assert all(sorted(members) == list(range(10)) for members in rounds)
    assert len({tuple(members) for members in rounds}) > 1
    assert Pool(range(10), seed=0).at(27) == rounds[2][7]


def test_batches_mix_labelled_unlabelled_and_generated():
    choice = sampler(unlabelled=range(10, 20), synthetic=range(20, 30), batch_size=8).at(5)
    kinds = ["u" if i in range(10, 20) else "s" if i in range(20, 30) else "l" for i in choice.indices]
    assert sorted(kinds) == ["l"] * 2 + ["s"] * 2 + ["u"] * 4
    assert choice.labelled == [kind != "u" for kind in kinds]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"unlabelled": range(9), "batch_size": 1}, "no place for images without masks, .*labelled_fraction"),
        ({"unlabelled": range(9), "batch_size": 2, "labelled_fraction": 0.8}, "no place for images without masks"),
        ({"synthetic": range(9), "batch_size": 1}, "no place for generated pairs, .*synthetic_fraction"),
        ({"synthetic": range(9), "batch_size": 2, "synthetic_fraction": 0.2}, "no place for generated pairs"),
    ],
)
def test_images_that_would_never_be_seen_are_refused(changes, told):
    with pytest.raises(SegmintError, match=told):
        sampler(**changes)


def test_shares_of_nothing_and_of_all_are_what_they_say():
    assert len(sampler(labelled=(), unlabelled=range(9)).at(0).indices) == 4
    assert sampler(unlabelled=range(9), labelled_fraction=1.0).at(0).labelled == [True] * 4
    assert set(sampler(synthetic=range(10, 20), synthetic_fraction=0.0).at(0).indices) <= {0, 1, 2}


def test_a_step_is_the_same_whenever_it_is_asked_for():
    a, b = sampler(unlabelled=range(5, 9)), sampler(unlabelled=range(5, 9))
    for step in range(9):
        a.at(step)
    assert a.at(4) == b.at(4)


def test_whole_epochs_visit_every_image_once():
    s = sampler(labelled=range(7), unlabelled=range(7, 11), whole_epochs=True)
    assert s.steps_per_epoch == 3
    for epoch in range(2):
        seen = [i for step in range(3) for i in s.at(3 * epoch + step).indices]
        assert sorted(seen) == list(range(11))
    assert [s.ends_epoch(step) for step in range(4)] == [False, False, True, False]


def test_generated_pairs_alone_and_images_as_they_come():
    assert set(sampler(labelled=(), synthetic=range(5)).at(0).indices) <= set(range(5))
    s = sampler(labelled=range(2), unlabelled=range(2, 20), labelled_fraction=0.0)
    seen = [i for step in range(5) for i in s.at(step).indices]
    assert sorted(seen) == list(range(20))


def test_schedules_rise_and_fall():
    settings = TrainSettings(warmup=0.1, schedule="cosine")
    factors = [schedule(settings, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[-1] < 0.001
    assert schedule(TrainSettings(warmup=0, schedule="constant"), 50, 100) == 1
    assert schedule(TrainSettings(warmup=0, schedule="poly"), 50, 100) == pytest.approx(0.5**0.9)


def optimizers(module: nn.Module, **settings) -> PartOptimizers:
    return PartOptimizers({"a": module}, TrainSettings(**{"clip": 0, "weight_decay": 0, **settings}))


def test_minimize_moves_one_part_only():
    parts = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    both = PartOptimizers(dict(parts.items()), TrainSettings(lr=0.1))
    before = {key: value.clone() for key, value in parts.state_dict().items()}
    both.minimize("a", parts["b"](parts["a"](torch.ones(1, 2))).square().sum())
    assert not torch.equal(parts["a"].weight, before["a.weight"])
    assert torch.equal(parts["b"].weight, before["b.weight"])
    assert parts["b"].weight.grad is None


def test_penalties_and_clipping_change_the_gradient_as_said():
    layer = nn.Linear(3, 1, bias=True)
    weight = layer.weight.detach().clone()
    opt = optimizers(layer, l1=0.3, l2=0.2, lr=0.0)
    opt.minimize("a", layer(torch.ones(1, 3)).sum())
    assert torch.allclose(layer.weight.grad, 1 + 0.3 * weight.sign() + 0.2 * weight)
    assert torch.equal(layer.bias.grad, torch.ones(1))
    clipped = optimizers(layer, clip=0.5, lr=0.0)
    clipped.minimize("a", 10 * layer(torch.ones(1, 3)).sum())
    assert float(torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(clipped.norms["gradient_norm_a"]) == pytest.approx(20, rel=1e-4)
    assert opt.weight_norms()["l1_norm"] == pytest.approx(float(weight.abs().sum()), rel=1e-5)


def test_l1_makes_sparse_what_l2_makes_small():
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = x[:, :1]
    near_zero = {}
    for name in ("l1", "l2"):
        layer = nn.Linear(8, 1)
        opt = optimizers(layer, lr=0.02, **{name: 0.3})
        for _ in range(400):
            opt.minimize("a", (layer(x) - y).square().mean())
        near_zero[name] = int((layer.weight.abs() < 0.02).sum())
        assert float(layer.weight.detach()[0, 0]) < 0.95
    assert near_zero["l1"] == 7


def test_unknown_parts_in_lr_of_are_refused():
    with pytest.raises(SegmintError, match=r"lr_of\.discriminator"):
        PartOptimizers({"model": nn.Linear(1, 1)}, TrainSettings(lr_of={"discriminator": 1e-4}))


def test_the_moving_average_is_an_average_and_gives_the_weights_back():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    ema = MovingAverage(layer, 0.9)
    nn.init.constant_(layer.weight, 1.0)
    ema.update(10**6)
    with ema.applied():
        assert float(layer.weight.detach()) == pytest.approx(0.1)
    assert float(layer.weight.detach()) == 1.0
    ema.update(0)
    assert float(ema.average["weight"]) == pytest.approx(0.1 + 0.9 * 0.9)


def test_the_probe_times_every_choice_and_leaves_the_method_alone(shapes: Path):
    torch.manual_seed(0)
    method = build("supervised", classes=3, image_size=(16, 16), **PLAIN)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    batch = Batch(torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int64))
    state = torch.random.get_rng_state()
    choice, times = probe(method, batch, TrainSettings(), seconds=0.01)
    assert set(times) == {"float32", "channels_last", "bfloat16"}
    assert times[choice] == min(times.values())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("precision", ["channels_last", "bfloat16", "auto"])
def test_every_precision_trains_and_resumes_in_its_own(shapes: Path, tmp_path: Path, precision: str):
    settings = {**QUICK, "steps": 2, "precision": precision}
    run = train(shapes, out=tmp_path / "run", settings=settings, **PLAIN)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["precision"] == (summary["precision"] if precision == "auto" else precision)
    assert load_state(run.folder)["precision"] == summary["precision"]


def test_training_learns_and_logs(shapes: Path, tmp_path: Path):
    settings = {**QUICK, "steps": 60, "validate_every": 20, "lr": 3e-3, "augment": "flip"}
    run = train(shapes, out=tmp_path / "run", settings=settings, **PLAIN)
    log = read_log(run.folder)
    losses = [line["loss"] for line in log if line["split"] == "train"]
    val = [line for line in log if line["split"] == "val"]
    assert losses[-1] < 0.5 * losses[0]
    assert val[-1]["miou"] > 0.5
    assert {"miou_train", "loss", "loss_train", "l1_norm", "l2_norm"} <= set(val[-1])
    assert run.settings.method_settings["loss"] != "auto"
    assert any("loss" in note for note in run.settings.notes)
    assert run.classes.names == ("ground", "square", "disc")
    assert run.size == (32, 24)


class Worsening:
    """Counts validations."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def progress(self, step, steps, figures) -> None:
        if "miou" in figures:
            self.steps.append(step)


def test_early_stopping_keeps_the_best_weights(shapes: Path, tmp_path: Path):
    watcher = Worsening()
    settings = {
        **QUICK,
        "steps": 200,
        "validate_every": 1,
        "patience": 3,
        "lr": 0.0,
        "ema": 0.0,
        "schedule": "constant",
    }
    run = train(shapes, out=tmp_path / "run", settings=settings, watcher=watcher, **PLAIN)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["status"] == "stopped early"
    assert summary["steps"] == summary["best_step"] + 3 == watcher.steps[-1]
    best = max(line["miou"] for line in read_log(run.folder) if line["split"] == "val")
    assert summary["best"] == pytest.approx(best, rel=1e-5)


def test_passes_over_the_images_are_the_steps_that_a_method_plans_with(shapes: Path, tmp_path: Path):
    settings = {"batch_size": 4, "precision": "float32", "epochs": 8}
    run = train(shapes, method="variational", out=tmp_path / "run", settings=settings, **PLAIN)
    assert run.method.warmup == 16 // 4


@pytest.mark.parametrize("key", ["classes", "in_channels", "image_size"])
def test_what_follows_from_the_data_is_not_given(shapes: Path, tmp_path: Path, key: str):
    with pytest.raises(SegmintError, match=f"^{key}: follows from the data"):
        train(shapes, out=tmp_path / "run", settings=QUICK, **PLAIN, **{key: 2})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "key"), [("cutpaste", "bank"), ("flow", "patch"), ("supervised", "dropout")])
def test_settings_of_a_wrong_type_are_named(shapes: Path, tmp_path: Path, method: str, key: str):
    with pytest.raises(SegmintError, match=f"{method}.{key}: .*given: 'nonsense'"):
        train(shapes, method=method, out=tmp_path / "run", settings={}, **{key: "nonsense"})
    assert not (tmp_path / "run").exists()


def test_validation_masks_that_say_nothing_choose_no_weights(shapes: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for name in (data / "splits/val.txt").read_text(encoding="utf-8").split():
        path = next((data / "masks").glob(f"{Path(name).stem}*.png"))
        with Image.open(path) as mask:
            Image.new(mask.mode, mask.size, IGNORE).save(path)
    run = train(data, out=tmp_path / "run", settings={**QUICK, "validate_every": 2}, **PLAIN)
    assert json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))["best_step"] is None
    with pytest.raises(SegmintError, match=r"batch_size: 1 is too few at 16 x 16 pixels"):
        train(shapes, out=tmp_path / "small", size=(16, 16), settings={**QUICK, "batch_size": 1}, **PLAIN)


def test_a_loss_that_is_not_finite_stops_with_advice(shapes: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match=r"no longer finite near step .*smaller training\.lr"):
        train(
            shapes, out=tmp_path / "run", settings={**QUICK, "steps": 40, "lr": 1e30, "clip": 0, "warmup": 0}, **PLAIN
        )
    for value in load(tmp_path / "run").state_dict().values() if (tmp_path / "run/method.json").exists() else ():
        assert bool(torch.isfinite(value.float()).all())


def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(shapes: Path, tmp_path: Path):
    run = train(shapes, method="vae", out=tmp_path / "run", settings=QUICK, width=8, latent=4)
    before = (run.folder / "state.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SegmintError, match=r"File too large.*make room"):
            checkpoint.save_state(run.folder, {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run.folder / "state.pt").read_bytes() == before
    assert not list(run.folder.glob("*.tmp"))


def test_a_model_that_cannot_be_written_is_said(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = train(shapes, method="vae", out=tmp_path / "run", settings=QUICK, width=8, latent=4)
    before = (run.folder / "model.safetensors").read_bytes()

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SegmintError, match=r"model cannot be written .*No space left on device"):
        save(run.method, run.folder)
    assert (run.folder / "model.safetensors").read_bytes() == before
    assert not list(run.folder.glob("*.tmp"))


class Half(nn.Module):
    """A user's own network: half resolution, logits in an object, as `transformers` gives them."""

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> Half.Output:
        return Half.Output(self.conv(x))


def test_any_module_can_be_the_network(shapes: Path, tmp_path: Path):
    run = train(shapes, out=tmp_path / "run", settings=QUICK, network=Half())
    assert isinstance(run.method.network, Half)
    with pytest.raises(SegmintError, match=r"pass load\(\.\.\., network=module\)"):
        load(run.folder)
    assert load(run.folder, network=Half()).network.conv.weight.shape == (3, 3, 3, 3)
    with pytest.raises(SegmintError, match=r"must give logits \[B, 3, h, w\]"):
        train(shapes, out=tmp_path / "wrong", settings=QUICK, network=Half(5))


def test_a_network_can_be_named_by_its_path(shapes: Path, tmp_path: Path):
    path = "torch.nn:Identity"
    with pytest.raises(SegmintError, match="no parameters to train"):
        train(shapes, out=tmp_path / "a", settings=QUICK, network=path)
    with pytest.raises(SegmintError, match="cannot be called"):
        train(shapes, out=tmp_path / "b", settings=QUICK, network="torch.nn:Nonsense")
    with pytest.raises(SegmintError, match=r"not a torch\.nn\.Module"):
        train(shapes, out=tmp_path / "c", settings=QUICK, network="time:time")


def test_wrong_settings_are_named_by_their_path(shapes: Path, tmp_path: Path):
    with pytest.raises(SegmintError, match=r"training\.lr_rate: there is no such setting"):
        train(shapes, out=tmp_path / "run", settings={"lr_rate": 1})
    with pytest.raises(SegmintError, match=r"training\.steps"):
        train(shapes, out=tmp_path / "run", settings={"steps": -1})
    with pytest.raises(SegmintError, match=r"training\.augment: there is no 'wild'"):
        train(shapes, out=tmp_path / "run2", settings={"augment": "wild"}, **PLAIN)
    with pytest.raises(SegmintError, match="at least 8 pixels"):
        train(shapes, out=tmp_path / "run", size=(4, 4))
    assert not (tmp_path / "run").exists()


def test_budgets_hide_masks_and_pairs_are_added(shapes: Path, tmp_path: Path):
    run = train(shapes, out=tmp_path / "a", budget=2, settings=QUICK, **PLAIN)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"], summary["synthetic"]) == (2, 0, 0)
    gan = train(shapes, method="gmm", out=tmp_path / "b", budget=2, settings={"epochs": 2})
    summary = json.loads((gan.folder / "summary.json").read_text())
    assert (summary["labelled"], summary["unlabelled"]) == (2, 6)


def test_run_folders_are_numbered(tmp_path: Path):
    assert new_folder("vae", tmp_path / "runs").name == "1-vae"
    (tmp_path / "runs" / "9-gan").mkdir()
    (tmp_path / "runs" / "demo-x").mkdir()
    assert new_folder("vae", tmp_path / "runs").name == "10-vae"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(SegmintError, match=r"config\.yaml: no such file"):
        _ = Run(tmp_path).settings


def test_unlabelled_pixels_count_for_nothing():
    torch.manual_seed(0)
    method = build("supervised", classes=3, image_size=(16, 16), **PLAIN).eval()
    batch = Batch(torch.rand(1, 3, 16, 16), torch.full((1, 16, 16), IGNORE))
    assert float(method.loss(batch)["loss"].detach()) == 0
    assert math.isfinite(float(method.validate(batch)["loss"].detach()))


def test_of_many_validation_images_some_are_watched(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = open_folder(shapes).split("val")
    monkeypatch.setattr("segmint.training.setup.WATCHED", len(whole) - 1)
    settings = {"steps": 1, "batch_size": 2, "precision": "float32"}
    run = train(shapes, out=tmp_path / "run", settings=settings, encoder_name="plain")
    told = [note for note in run.settings.notes if note.startswith("while it trains, ")]
    assert len(told) == 1
    assert f"of the {len(whole)} validation images, evenly spread" in told[0]
    assert evaluate(run, shapes, pictures=False, resamples=10)["images"] == len(whole)


def test_two_trainings_never_share_a_folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    with locked(folder), pytest.raises(SegmintError, match="run: another process is writing there"):
        train(shapes, out=folder, seed=1, settings=QUICK, **PLAIN)
    assert not (folder / "config.yaml").exists(), "nothing of the second is written beside the first"
    monkeypatch.chdir(tmp_path)
    assert [new_folder("vae") for _ in range(3)] == [Path(f"runs/{number}-vae") for number in (1, 2, 3)]
    told: list[Path] = []
    run = train(shapes, method="supervised", settings=QUICK, begins=lambda place, _: told.append(place), **PLAIN)
    assert told == [run.folder] == [Path("runs/4-supervised")]


def test_images_alone_do_not_tell_what_the_classes_are(shapes: Path, tmp_path: Path):
    shutil.copytree(shapes / "images", tmp_path / "data" / "images")
    with pytest.raises(
        SegmintError, match=r"classes\.yaml: missing, and there are no masks to tell the classes; write"
    ):
        train(tmp_path / "data", method="vae", budget=0, out=tmp_path / "run", settings=QUICK)
    assert not (tmp_path / "run").exists()
