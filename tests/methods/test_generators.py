"""What is particular to the VAE and the GAN, beyond the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segmint.config import TrainSettings
from segmint.methods.method import Method, build
from segmint.seeds import Seeds
from segmint.training.optimizers import PartOptimizers
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (32, 24)


def pairs(count: int = 8, unlabelled: int = 2) -> Batch:
    """A bright square (class 1) whose place differs from item to item; the last items have no mask."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((count, 3, *SIZE), -0.7) + 0.05 * torch.randn(count, 3, *SIZE, generator=generator)
    mask = torch.zeros(count, *SIZE, dtype=torch.int64)
    for item in range(count):
        y, x = 2 + 2 * item, 2 + item
        image[item, :, y : y + 12, x : x + 10] += 1.4
        mask[item, y : y + 12, x : x + 10] = 1
    mask[count - unlabelled :] = IGNORE
    return Batch(image.clamp(-1, 1), mask)


def make(name: str, **settings: Any) -> tuple[Method, PartOptimizers]:
    torch.manual_seed(0)
    method = build(name, classes=2, image_size=SIZE, **{"width": 8, **settings}).train()
    return method, PartOptimizers(method.parts(), TrainSettings(**method.defaults))


@pytest.mark.parametrize("loss", ["bce", "hinge", "relativistic"])
@pytest.mark.parametrize("judge", ["convolutional", "none"])
@pytest.mark.parametrize("warm_start", [0, 1])
def test_every_game_moves_both_sides(loss: str, judge: str, warm_start: int):
    method, optimizers = make("gan", loss=loss, image_discriminator=judge, warm_start=warm_start)
    for _ in range(warm_start):
        method.step(pairs(), optimizers)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    terms = method.step(pairs(), optimizers)
    after = method.state_dict()
    for part in ("generator.", "discriminator.pair."):
        moved = [key for key in before if key.startswith(part) and not torch.equal(before[key], after[key])]
        assert moved, part
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    assert {"generator", "discriminator", "pair_real", "pair_fake"} <= set(terms)


def test_unlabelled_images_alone_still_teach_the_image_discriminator():
    method, optimizers = make("gan", image_discriminator="convolutional", warm_start=0)
    terms = method.step(pairs(4, unlabelled=4), optimizers)
    assert "pair_real" not in terms
    assert "image_real" in terms
    relativistic, optimizers = make("gan", loss="relativistic", image_discriminator="convolutional", warm_start=0)
    assert bool(torch.isfinite(relativistic.step(pairs(4, unlabelled=4), optimizers)["generator"]))


def test_the_projected_discriminator_trains():
    method, optimizers = make("gan", warm_start=0)
    backbone = {key: value.clone() for key, value in method.state_dict().items() if "backbone" in key}
    method.step(pairs(), optimizers)
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in backbone.items())


def test_discriminators_learn_to_tell_real_from_fake():
    method, optimizers = make("gan", image_discriminator="none", warm_start=0, augmentation=0.0)
    optimizers.parameters["generator"] = []
    optimizers.minimize = lambda part, loss: (
        PartOptimizers.minimize(optimizers, part, loss) if part == "discriminator" else None
    )
    for _ in range(30):
        terms = method.step(pairs(8, unlabelled=0), optimizers)
    assert float(terms["pair_real"]) > float(terms["pair_fake"]) + 0.5


def test_the_warm_start_ends_when_it_should():
    method, optimizers = make("gan", image_discriminator="none", warm_start=2)
    kinds = ["warm_kl" in method.step(pairs(), optimizers) for _ in range(4)]
    assert kinds == [True, True, False, False]


def test_a_warm_started_generator_knows_where_things_are():
    method, optimizers = make("gan", image_discriminator="none", warm_start=150, latent=8)
    optimizers.at(1, 2)
    for _ in range(150):
        method.step(pairs(8, unlabelled=0), optimizers)
    with torch.inference_mode():
        made = method.eval().generate(Seeds.range(16))
    inside, outside = made.image.mean(1)[made.mask == 1], made.image.mean(1)[made.mask == 0]
    assert 0.05 < float((made.mask == 1).float().mean()) < 0.5
    assert float(inside.mean()) > float(outside.mean()) + 0.5


@pytest.mark.parametrize("reconstruction", ["mse", "l1"])
def test_the_vae_learns_its_bound(reconstruction: str):
    method, optimizers = make("vae", latent=8, reconstruction=reconstruction, warmup=10, prior="aggregate")
    optimizers.at(1, 2)
    first = method.step(pairs(), optimizers)
    for _ in range(300):
        last = method.step(pairs(), optimizers)
    assert float(last["image_nll"]) < float(first["image_nll"])
    assert float(last["mask_nll"]) < 0.5 * float(first["mask_nll"])
    assert float(last["kl"]) > 0
    with torch.inference_mode():
        made = method.eval().generate(Seeds.range(16))
    inside, outside = made.image.mean(1)[made.mask == 1], made.image.mean(1)[made.mask == 0]
    assert float(inside.mean()) > float(outside.mean()) + 0.5


@torch.no_grad()
def test_the_kl_weight_rises_and_bits_can_be_free():
    method, _ = make("vae", warmup=100, latent=4)
    batch = pairs()
    torch.manual_seed(1)
    start = method.loss(batch)
    method.steps_done.fill_(100)
    torch.manual_seed(1)
    full = method.loss(batch)
    share = batch.mask[0].numel()
    assert float(full["loss"] - start["loss"]) == pytest.approx(float(full["kl"]) / share, rel=1e-3)
    free, _ = make("vae", warmup=0, free_bits=100.0, latent=4, mask_weight=1.0)
    torch.manual_seed(1)
    held = free.loss(batch)
    expected = float(held["image_nll"] + batch.labelled.float().mean() * held["mask_nll"]) + 400
    assert float(held["loss"]) * share == pytest.approx(expected, rel=1e-4)


def test_the_standard_prior_is_the_standard_prior():
    method, _ = make("vae", prior="standard", latent=4)
    method.aggregate.mean.fill_(100.0)
    image, _ = method.decoder(Seeds.range(2).randn(4))
    assert torch.equal(method.generate(Seeds.range(2)).image, image)


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_they_say_what_they_cannot_do(name: str):
    method, _ = make(name)
    with pytest.raises(SegmintError, match="makes its own masks"):
        method.generate(Seeds.range(1), mask=torch.zeros(1, *SIZE, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gan", {"loss": "wasserstein"}, r"gan\.loss"),
        ("gan", {"image_discriminator": "clip"}, r"gan\.image_discriminator: there is no 'clip'"),
        ("vae", {"reconstruction": "ssim"}, r"vae\.reconstruction"),
        ("vae", {"prior": "flow"}, r"vae\.prior: there is no 'flow'"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, str], message: str):
    with pytest.raises(SegmintError, match=message):
        build(name, classes=2, image_size=SIZE, **settings)
