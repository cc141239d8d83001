"""One contract for every method: whatever lies in methods/ is found here and held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segmint.config import TrainSettings
from segmint.methods.method import Method, build, find, load, names, save
from segmint.seeds import Seeds
from segmint.training.train import Images, fit
from segmint.types import IGNORE, Batch, SegmintError

SMALL: dict[str, dict[str, Any]] = {
    "supervised": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]},
    "adversarial": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "width": 8, "self_taught_from": 2},
    "denoise": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "gamma": [0.8, 0.95]},
    "consistency": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "views": 2, "feature_dropout": 0.5},
    "flow": {"widths": [16, 16], "alignment": 0.0, "perceptual": 0.0},
    "maskflow": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "widths": [16, 16], "steps": 4},
    "gan": {"image_discriminator": "none", "width": 8, "warm_start": 2},
    "vae": {"width": 8, "latent": 8},
    "stochastic": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "rank": 4, "samples": 4},
    "variational": {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16], "warmup": 2},
    "spade": {"discriminator": "plain", "width": 4, "warm_start": 2},
}
SIZE = (32, 24)


class Toy:
    """Twelve images: the left part of class 0, the right part of class 1; the odd ones are unlabelled."""

    def batch(self, indices, *, raters=None, labelled=None, previous=False) -> Batch:
        image = torch.full((len(indices), 3, *SIZE), -0.6)
        mask = torch.zeros(len(indices), *SIZE, dtype=torch.int64)
        for place, index in enumerate(indices):
            edge = 6 + index
            image[place, :, :, edge:] = 0.5
            image[place] += 0.1 * torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(index))
            mask[place, :, edge:] = 1
            if index % 2 or (labelled is not None and not labelled[place]):
                mask[place] = IGNORE
        return Batch(image.clamp(-1, 1), mask)


def toy_images() -> Images:
    return Images(Toy(), labelled=[0, 2, 4, 6], unlabelled=[1, 3, 5], validation=[8, 10])


def make(name: str) -> Method:
    return build(name, classes=3, in_channels=3, image_size=SIZE, **SMALL.get(name, {}))


def short(name: str) -> TrainSettings:
    values = {**find(name).defaults, "batch_size": 4, "precision": "float32", "validate_every": 2}
    values |= {"epochs": 3} if values.get("epochs") else {"steps": 4}
    return TrainSettings(**values)


@pytest.fixture(scope="module", params=names())
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Method:
    torch.manual_seed(0)
    method = make(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    images = toy_images()
    if not method.uses_unlabelled:
        images = Images(images.source, images.labelled, validation=images.validation)
    outcome = fit(method, images, short(request.param), folder)
    assert outcome.status == "finished"
    return load(folder)


def test_it_offers_something(trained: Method):
    assert trained.capabilities() or trained.prepares
    assert type(trained).__doc__


def test_its_configuration_is_its_constructor(trained: Method):
    stored = json.loads(json.dumps(trained.config))
    stored["image_size"] = tuple(stored["image_size"])
    again = build(trained.name, **stored)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in trained.state_dict().items()}


def test_saved_and_loaded_it_is_the_same(trained: Method, tmp_path: Path):
    save(trained, tmp_path)
    again = load(tmp_path)
    for key, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert not again.training


def test_its_weights_are_finite(trained: Method):
    for key, value in trained.state_dict().items():
        assert bool(torch.isfinite(value.float()).all()), key


@pytest.mark.parametrize("size", [SIZE, (33, 41), (8, 100)])
def test_it_segments_any_size(trained: Method, size: tuple[int, int]):
    if "segment" not in trained.capabilities():
        with pytest.raises(SegmintError, match="does not segment"):
            trained.segment(torch.zeros(1, 3, *size), Seeds([0]))
        return
    image = torch.rand(2, 3, *size) * 2 - 1
    with torch.inference_mode():
        logits = trained.segment(image, Seeds([3, 4]))
        again = trained.segment(image, Seeds([3, 4]))
        alone = trained.segment(image[1:], Seeds([4]))
    assert logits.shape == (2, 3, *size)
    assert bool(torch.isfinite(logits).all())
    assert torch.equal(logits, again)
    assert torch.allclose(logits[1], alone[0], atol=1e-3)


def test_its_draws_are_those_of_their_seeds(trained: Method):
    if "segment" not in trained.capabilities():
        return
    image, seeds = torch.rand(2, 3, *SIZE) * 2 - 1, Seeds([3, 4])
    with torch.inference_mode():
        drawn = list(trained.draws(image, seeds, 3))
        for number, logits in enumerate(drawn):
            again = trained.segment(image, seeds.fork("draw", number))
            assert torch.allclose(logits.softmax(1), again.softmax(1), atol=1e-3)
        errors = trained.errors(image, drawn[0])
    assert len(drawn) == 3
    assert torch.equal(drawn[0], drawn[1]) != trained.draws_differ
    if errors is not None:
        assert errors.shape == (2, *SIZE)
        assert 0 <= float(errors.min()) <= float(errors.max()) <= 1


def test_it_generates_item_by_item(trained: Method):
    if "generate" not in trained.capabilities():
        with pytest.raises(SegmintError, match="does not generate"):
            trained.generate(Seeds([0]))
        return
    masks = Toy().batch([0, 2, 4, 6]).mask if trained.needs_mask else None
    with torch.inference_mode():
        four = trained.generate(Seeds.range(4), mask=masks)
        alone = trained.generate(Seeds([2]), mask=None if masks is None else masks[2:3])
    assert four.image.shape == (4, 3, *SIZE)
    assert four.mask.shape == (4, *SIZE)
    assert four.image.dtype == torch.float32
    assert four.mask.dtype == torch.int64
    assert float(four.image.abs().max()) <= 1
    assert int(four.mask.min()) >= 0
    assert int(four.mask.max()) < 3
    assert torch.allclose(four.image[2], alone.image[0], atol=1e-4)
    assert float((four.mask[2] == alone.mask[0]).float().mean()) > 0.999
    assert not torch.equal(four.image[0], four.image[1])


def test_it_starts_from_what_it_says_and_refuses_the_rest(trained: Method):
    if "generate" not in trained.capabilities():
        return
    batch = Toy().batch([0, 2])
    given = {"mask": batch.mask, "previous": batch.image, "image": batch.image}
    for key, value in given.items():
        wanted = {key: value} | ({"mask": batch.mask} if trained.needs_mask or key == "image" else {})
        if key not in trained.conditions:
            with pytest.raises(SegmintError, match=trained.name):
                trained.generate(Seeds.range(2), **wanted)
            continue
        with torch.inference_mode():
            made = trained.generate(Seeds.range(2), **wanted)
        assert made.image.shape == batch.image.shape
        assert bool(torch.isfinite(made.image).all())
        if key == "mask":
            assert torch.equal(made.mask, batch.mask)


def test_a_batch_without_any_label_does_no_harm(trained: Method):
    terms = trained.train().validate(Toy().batch([1, 3]))
    trained.eval()
    for key, value in terms.items():
        assert bool(torch.isfinite(value)), key


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(SegmintError, match="method: there is no 'nonsense'"):
        build("nonsense")
    with pytest.raises(SegmintError, match=r"gan\.colour: there is no such setting"):
        build("gan", classes=2, colour=3)
    with pytest.raises(SegmintError, match=r"vae: .*missing .*'classes'"):
        build("vae")


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("supervised", "loss", 5, r"supervised\.loss: .*string.* \(given: 5\)"),
        ("supervised", "loss", None, r"supervised\.loss: .* \(given: None\)"),
        ("supervised", "network", 5, r"supervised\.network: Input should be an instance of Module or .*string"),
        ("supervised", "decoder_channels", [8, "wide"], r"decoder_channels: .*integer"),
        (
            "supervised",
            "decoder_channels",
            [-8, 8, 8, 8],
            "negative.*; correct one of .*decoder_channels",
        ),
        ("adversarial", "width", -4, "adversarial: .*negative.*; correct one of .*width"),
        ("flow", "widths", [], "flow: .*correct one of widths"),
        ("vae", "beta", "much", r"vae\.beta: .*number"),
        ("vae", "beta", float("nan"), r"vae\.beta: .*finite"),
    ],
)
def test_wrong_values_are_refused(name: str, key: str, value: Any, words: str):
    with pytest.raises(SegmintError, match=words):
        build(name, classes=3, in_channels=3, image_size=SIZE, **{**SMALL[name], key: value})


def test_too_little_memory_is_no_wrong_value(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("segmint.methods.supervised.build_segmenter", full)
    with pytest.raises(RuntimeError, match="allocate"):
        build("supervised", classes=3)


def test_values_become_what_the_constructor_expects():
    method = build("vae", classes=2, image_size=[32, 24], width="8", latent=np.int64(8))
    assert method.config["image_size"] == (32, 24)
    assert (method.config["width"], method.config["latent"]) == (8, 8)


def test_damaged_runs_are_refused(tmp_path: Path):
    with pytest.raises(SegmintError, match=r"no method\.json"):
        load(tmp_path)
    save(make("vae"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(SegmintError, match=r"model\.safetensors: cannot be read"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SegmintError, match="missing"):
        load(tmp_path)
    (tmp_path / "method.json").write_text("{", encoding="utf-8")
    with pytest.raises(SegmintError, match="not a method description"):
        load(tmp_path)
