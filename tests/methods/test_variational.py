"""The Probabilistic U-Net: its bound, its multiplier, its draws, and hard cases."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import segmint
import segmint.training.train as loop
from segmint.config import TrainSettings
from segmint.methods.method import Facts, Method, build, find
from segmint.seeds import Seeds
from segmint.training.checkpoint import load_state
from segmint.training.optimizers import PartOptimizers
from segmint.types import IGNORE, Batch, SegmintError

SMALL: dict[str, Any] = {"encoder_name": "plain", "encoder_weights": None, "decoder_channels": [8, 8, 8, 8]}


def make(**settings: Any) -> Method:
    torch.manual_seed(0)
    return build("variational", **{"classes": 2, "in_channels": 1, "image_size": (16, 16), **SMALL, **settings})


def doubtful(count: int = 8, size: int = 16) -> Batch:
    """A bright square; half of the raters see it, half of them see nothing."""
    image = torch.full((count, 1, size, size), -0.5)
    mask = torch.zeros(count, size, size, dtype=torch.int64)
    image[..., 4:12, 4:12] += 1.0
    mask[::2, 4:12, 4:12] = 1
    return Batch(image.clamp(-1, 1), mask)


def taught(method: Method, batch: Batch, steps: int, lr: float = 1e-2) -> dict[str, float]:
    """Train on the same squares, in new noise at each step: nothing gives the rater away."""
    optimizers = PartOptimizers(method.parts(), TrainSettings(lr=lr, schedule="constant", warmup=0.0))
    optimizers.at(0, steps)
    method.train()
    terms: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        noisy = batch.image + 0.2 * torch.randn_like(batch.image)
        terms = method.step(Batch(noisy, batch.mask), optimizers)
    method.eval()
    return {key: float(value) for key, value in terms.items()}


def test_the_loss_is_the_bound_per_known_pixel():
    method = make(dropout=0.0, warmup=0, anchor=0.0, beta=2.0).eval()
    batch = doubtful(3)
    batch.mask[0, :5], batch.mask[2] = IGNORE, IGNORE
    with torch.no_grad():
        terms = method.loss(batch)
        q, p = method.posterior(batch), method._shared(batch.image).prior
        kl = kl_divergence(Normal(q[0], (0.5 * q[1]).exp()), Normal(p[0], (0.5 * p[1]).exp())).sum(1)
    pixels = int((batch.mask != IGNORE).sum())
    assert float(terms["kl"]) == pytest.approx(float(kl[:2].mean()), rel=1e-4)
    expected = float(terms["cross_entropy"]) + 2.0 * float(kl[:2].sum()) / pixels
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_draw_is_a_code_from_the_prior_in_the_last_layers():
    method = make().eval()
    image, seeds = doubtful(2).image, Seeds([3, 4])
    with torch.no_grad():
        maps = method.network.encoder(image)
        features = method.network.decode(maps)
        mean, log_variance = method.prior(maps[-1])
        z = mean + (0.5 * log_variance).exp() * seeds.randn(6)
        combination = method.combination
        joined = torch.cat([features, z[:, :, None, None].expand(-1, -1, *features.shape[-2:])], 1)
        weight = torch.cat([combination.of_features.weight, combination.of_code.weight[:, :, None, None]], 1)
        x = torch.nn.functional.conv2d(joined, weight, combination.of_features.bias).relu()
        expected = method.network.head(features) + combination.last(combination.middle(x).relu())
        assert torch.allclose(method.segment(image, Seeds([3, 4])), expected, atol=1e-4)


def test_draws_vary_with_the_seed_alone():
    method = make().eval()
    image = doubtful(3).image
    with torch.no_grad():
        together = list(method.draws(image, Seeds([7, 8, 9]), 2))
        alone = method.segment(image[1:2], Seeds([8]).fork("draw", 1))
    assert torch.allclose(together[1][1], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_draws_run_the_network_once():
    method = make().eval()
    calls: list[int] = []
    method.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert len(list(method.draws(doubtful(1).image, Seeds([0]), 5))) == 5
    assert len(calls) == 1


@pytest.mark.parametrize("balance", ["ramp", "geco"])
def test_it_learns_that_half_of_the_raters_see_nothing(balance: str):
    method = make(balance=balance, warmup=30, dropout=0.0, kappa=0.05)
    batch = doubtful()
    terms = taught(method, batch, 120, lr=5e-3)
    assert terms["cross_entropy"] < 0.2
    assert terms["kl"] > 0.1
    with torch.no_grad():
        image = batch.image + 0.2 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))
        masks = torch.stack([x.argmax(1) for x in method.draws(image, Seeds.range(8), 8)]).flatten(0, 1)
    shares = masks[:, 5:11, 5:11].float().mean((1, 2))
    assert 0.1 < float(shares.mean()) < 0.9
    assert float(((shares < 0.2) | (shares > 0.8)).float().mean()) > 0.6


def test_the_ramp_rises_to_beta_and_stays():
    method = make(beta=3.0, warmup=4)
    betas = [taught(method, doubtful(2), 1)["beta"] for _ in range(6)]
    assert betas == pytest.approx([0, 0.75, 1.5, 2.25, 3, 3])
    assert taught(make(warmup=0), doubtful(2), 1)["beta"] == 1


def test_the_multiplier_rises_above_the_aim_and_falls_below_it():
    def beta(kappa: float) -> list[float]:
        method = make(balance="geco", kappa=kappa)
        return [taught(method, doubtful(2), 1, lr=0.0)["beta"] for _ in range(5)]

    demanding, lax = beta(1e-3), beta(10.0)
    assert demanding[0] == lax[0] == 1
    assert demanding == sorted(demanding, reverse=True)
    assert lax == sorted(lax)
    assert demanding[-1] < 1 < lax[-1]


def test_a_step_leaves_the_multiplier_within_bounds():
    method = make(balance="geco", kappa=1e-4)
    method.log_multiplier.fill_(4.999)
    assert taught(method, doubtful(2), 3)["beta"] == pytest.approx(math.exp(-5))


def test_its_state_is_saved():
    method = make(balance="geco", kappa=0.1)
    taught(method, doubtful(2), 3)
    other = make(balance="geco", kappa=0.1)
    other.load_state_dict(method.state_dict())
    for key in ("steps_done", "log_multiplier", "excess"):
        assert torch.equal(getattr(method, key), getattr(other, key)), key
    assert int(other.steps_done) == 3


def test_empty_masks_and_raters_who_all_disagree_train():
    batch = doubtful()
    empty = Batch(batch.image, torch.zeros_like(batch.mask))
    method = make(dropout=0.0)
    taught(method, empty, 30)
    with torch.no_grad():
        method.train()  # thirty steps are too few for the running statistics
        image = batch.image + 0.2 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))
        assert float(method.segment(image, Seeds.range(8)).argmax(1).float().mean()) < 0.05
    noise = Batch(batch.image, torch.randint(2, batch.mask.shape, generator=torch.Generator().manual_seed(0)))
    assert all(math.isfinite(value) for value in taught(make(), noise, 10).values())


def test_divergences_stay_finite_whatever_the_networks_say():
    method = make()
    with torch.no_grad():
        method.prior.statistics.weight.mul_(1e4)
        method.posterior.gaussian.statistics.weight.mul_(1e4)
        terms = method.loss(doubtful(4))
    assert all(math.isfinite(float(value)) for value in terms.values())


def test_ignored_pixels_and_unlabelled_images_do_not_count():
    method = make(dropout=0.0, warmup=0)
    batch = doubtful(2)
    batch.mask[:] = IGNORE
    method.loss(batch)["loss"].backward()
    assert all(float(p.grad.abs().max()) == 0 for p in method.parameters() if p.grad is not None)


def test_it_computes_the_divergence_in_float32_under_autocast():
    method = make()
    batch = doubtful(2)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.loss(batch)
        assert method.segment(batch.image, Seeds([0, 1])).dtype == torch.float32
    assert {terms[key].dtype for key in ("loss", "kl", "cross_entropy")} == {torch.float32}


def test_validation_says_how_draws_do():
    method = make().eval()
    batch = doubtful(4)
    with torch.no_grad():
        figures = method.validate(batch)
        same = method.validate(batch)
    assert {"bound", "cross_entropy", "kl", "energy", "nll", "spread"} == set(figures)
    assert figures["energy"] == same["energy"]
    expected = float(figures["cross_entropy"]) + float(figures["kl"]) / 256
    assert float(figures["bound"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(5, 9), (1, 1)])
def test_images_smaller_than_the_stride(size: tuple[int, int]):
    method = make().eval()
    with torch.no_grad():
        assert method.segment(torch.zeros(1, 1, *size), Seeds([0])).shape == (1, 2, *size)
        mask = torch.zeros(1, *size, dtype=torch.int64)
        assert math.isfinite(float(method.loss(Batch(torch.zeros(1, 1, *size), mask))["loss"]))


def test_wrong_settings_are_refused_and_right_ones_settled():
    with pytest.raises(SegmintError, match=r"variational\.balance: there is no 'nonsense'"):
        make(balance="nonsense")
    with pytest.raises(SegmintError, match=r"variational\.kappa: balance=geco aims at"):
        make(balance="geco")
    with pytest.raises(SegmintError, match=r"variational\.latent: must be above 0"):
        make(latent=0)
    facts = Facts(2, 1, (32, 32), (0.9, 0.1), 4, 0, 100)
    settled, notes = find("variational").adapt({"encoder_name": "plain"}, facts)
    assert settled == {"encoder_name": "plain", "encoder_weights": None, "shares": [0.9, 0.1], "warmup": 25}
    assert "25 steps" in notes[0]
    assert find("variational").adapt({"balance": "geco"}, facts)[0] == {"balance": "geco", "shares": list(facts.shares)}
    assert find("variational").adapt({"warmup": 3, "shares": None}, facts) == ({"warmup": 3, "shares": None}, [])


def test_it_starts_from_a_supervised_run(shapes: Path, tmp_path: Path):
    settings = {"steps": 2, "batch_size": 2, "precision": "float32"}
    base = segmint.train(shapes, method="supervised", out=tmp_path / "base", settings=settings, **SMALL)
    run = segmint.train(
        shapes, method="variational", init=base, out=tmp_path / "run", settings={**settings, "steps": 0}, **SMALL
    )
    own, old = run.method.state_dict(), base.method.state_dict()
    learnt = {key: value for key, value in old.items() if key.startswith("network.") and value.is_floating_point()}
    assert all(torch.equal(own[key], value) for key, value in learnt.items())


class Interrupt:
    """Asks the training to stop when a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_ends_with_the_same_weights_and_multiplier(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop._Training, "REPORT", 1)
    settings = {"steps": 4, "batch_size": 2, "precision": "float32"}
    common: dict[str, Any] = {"method": "variational", "balance": "geco", "kappa": 0.1, "settings": settings, **SMALL}
    segmint.train(shapes, out=tmp_path / "whole", **common)
    segmint.train(shapes, out=tmp_path / "parts", watcher=Interrupt(2), **common)
    assert load_state(tmp_path / "parts")["step"] == 2
    segmint.resume(tmp_path / "parts")
    whole, parts = load_state(tmp_path / "whole"), load_state(tmp_path / "parts")
    assert parts["step"] == 4
    assert float(whole["method"]["log_multiplier"]) != 0
    for key, value in whole["method"].items():
        assert torch.equal(value, parts["method"][key]), key
