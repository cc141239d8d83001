"""Stochastic segmentation networks: the likelihood they learn from, their draws, and hard cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import segmint
from segmint.config import TrainSettings
from segmint.functional.losses import cross_entropy
from segmint.methods.method import Facts, Method, build, find
from segmint.seeds import Seeds
from segmint.training.optimizers import PartOptimizers
from segmint.types import IGNORE, Batch, SegmintError

SMALL: dict[str, Any] = {"encoder_name": "plain", "encoder_weights": None, "decoder_channels": [8, 8, 8, 8]}


def make(**settings: Any) -> Method:
    torch.manual_seed(0)
    return build("stochastic", **{"classes": 2, "in_channels": 1, "image_size": (16, 16), **SMALL, **settings})


def doubtful(count: int = 8, size: int = 16) -> Batch:
    """A bright square; half of the raters see the left half of it, half of them all of it."""
    image = torch.full((count, 1, size, size), -0.5)
    mask = torch.zeros(count, size, size, dtype=torch.int64)
    for item in range(count):
        image[item, :, 4:12, 4:12] += 1.0
        mask[item, 4:12, 4 : 12 if item % 2 else 8] = 1
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


def test_one_sample_without_covariance_is_cross_entropy():
    method = make(samples=1, dropout=0.0).eval()
    with torch.no_grad():
        for tensor in (method.factor.weight, method.factor.bias, method.diagonal.weight):
            tensor.zero_()
        method.diagonal.bias.fill_(-1e9)
    batch = doubtful(3)
    batch.mask[0, :5] = IGNORE
    batch.mask[2] = IGNORE
    with torch.no_grad():
        logits = method.segment(batch.image, Seeds.range(3))
        expected = float(cross_entropy(logits, batch.mask))
        assert float(method.loss(batch)["loss"]) == pytest.approx(expected, abs=2e-3)


def test_the_loss_is_minus_the_log_of_the_mean_probability_of_masks_and_pixels():
    method = make(samples=3, marginal=0.5, dropout=0.0).eval()
    batch = doubtful(2)
    with torch.no_grad():
        torch.manual_seed(5)
        loss = float(method.loss(batch)["loss"])
        torch.manual_seed(5)
        shared, own = torch.randn(2, 3, 10), torch.randn(2, 3, 2, 16, 16)
        normal = method._normal(batch.image)
        samples = [normal.mean + torch.einsum("br,brkhw->bkhw", p, normal.factor) + q * normal.deviation
                   for p, q in zip(shared.unbind(1), own.unbind(1), strict=True)]  # fmt: skip
    chosen = torch.stack([x.double().log_softmax(1).gather(1, batch.mask[:, None])[:, 0] for x in samples])
    joint = -(chosen.sum((2, 3)).logsumexp(0) - torch.tensor(3.0).log()).sum() / batch.mask.numel()
    pixelwise = -(chosen.exp().mean(0).log()).mean()
    assert loss == pytest.approx(float(joint + 0.5 * pixelwise) / 1.5, rel=1e-4)


def test_draws_vary_with_the_seed_alone():
    method = make().eval()
    image = doubtful(3).image
    with torch.no_grad():
        together = list(method.draws(image, Seeds([7, 8, 9]), 2))
        alone = method.segment(image[1:2], Seeds([8]).fork("draw", 1))
    assert torch.allclose(together[1][1], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_draws_run_the_network_once(monkeypatch: pytest.MonkeyPatch):
    method = make().eval()
    calls = []
    method.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert len(list(method.draws(doubtful(1).image, Seeds([0]), 5))) == 5
    assert len(calls) == 1


def test_it_learns_both_readings_and_draws_them_whole():
    method = make(samples=10, dropout=0.0)
    batch = doubtful()
    taught(method, batch, 60)
    with torch.no_grad():
        image = batch.image + 0.2 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))
        masks = torch.stack([x.argmax(1) for x in method.draws(image, Seeds.range(8), 8)]).flatten(0, 1)
    sure, doubt = masks[:, 5:11, 5:7].float().mean((1, 2)), masks[:, 5:11, 9:11].float().mean((1, 2))
    assert float(sure.min()) > 0.7
    assert 0.1 < float(doubt.mean()) < 0.9
    assert float(((doubt < 0.2) | (doubt > 0.8)).float().mean()) > 0.6
    assert float(masks[:, :3].float().mean()) < 0.05


def test_empty_masks_and_raters_who_all_disagree_train():
    batch = doubtful()
    empty = Batch(batch.image, torch.zeros_like(batch.mask))
    method = make(dropout=0.0)
    assert taught(method, empty, 40)["loss"] < 0.2
    with torch.no_grad():
        method.train()  # forty steps are too few for the running statistics
        image = batch.image + 0.2 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(1))
        mean = torch.stack([x.softmax(1) for x in method.draws(image, Seeds.range(8), 8)]).mean(0)
        assert float(mean.argmax(1).float().mean()) < 0.05
    noise = Batch(batch.image, torch.randint(2, batch.mask.shape, generator=torch.Generator().manual_seed(0)))
    terms = taught(make(), noise, 10)
    assert all(torch.isfinite(torch.tensor(value)) for value in terms.values())


def test_where_the_picture_is_empty_there_is_no_covariance():
    method = make(empty=-1.0).eval()
    image = doubtful(1).image
    image[..., :4] = -1
    with torch.no_grad():
        one, other = method.draws(image, Seeds([0]), 2)
    assert torch.equal(one[..., :4], other[..., :4])
    assert not torch.equal(one[..., 4:], other[..., 4:])


def test_ignored_pixels_and_unlabelled_images_do_not_count():
    method = make(samples=2, dropout=0.0)
    batch = doubtful(2)
    batch.mask[:] = IGNORE
    method.loss(batch)["loss"].backward()
    assert all(float(p.grad.abs().max()) == 0 for p in method.parameters() if p.grad is not None)


def test_it_computes_the_distribution_in_float32_under_autocast():
    method = make()
    batch = doubtful(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.loss(batch)["loss"].dtype == torch.float32
        assert method.segment(batch.image, Seeds([0, 1])).dtype == torch.float32


def test_validation_says_how_draws_do():
    method = make().eval()
    with torch.no_grad():
        figures, same = method.validate(doubtful(4)), method.validate(doubtful(4))
    assert {"energy", "nll", "spread"} == set(figures)
    assert figures == same


@pytest.mark.parametrize("size", [(5, 9), (1, 1)])
def test_images_smaller_than_the_stride(size: tuple[int, int]):
    method = make().eval()
    with torch.no_grad():
        assert method.segment(torch.zeros(1, 1, *size), Seeds([0])).shape == (1, 2, *size)


def test_wrong_settings_are_refused_and_right_ones_settled():
    with pytest.raises(SegmintError, match=r"stochastic\.rank: must be 1 or more"):
        make(rank=0)
    with pytest.raises(SegmintError, match=r"stochastic\.samples: must be 1 or more"):
        make(samples=0)
    with pytest.raises(SegmintError, match=r"stochastic\.marginal: must be 0 or more"):
        make(marginal=-1.0)
    facts = Facts(2, 1, (32, 32), (0.9, 0.1), 4, 0, 100)
    assert find("stochastic").adapt({"encoder_name": "plain"}, facts)[0]["encoder_weights"] is None
    assert find("stochastic").adapt({}, facts) == ({"shares": [0.9, 0.1]}, [])


def test_it_starts_from_a_supervised_run(shapes: Path, tmp_path: Path):
    settings = {"steps": 2, "batch_size": 2, "precision": "float32"}
    base = segmint.train(shapes, method="supervised", out=tmp_path / "base", settings=settings, **SMALL)
    run = segmint.train(
        shapes, method="stochastic", init=base, out=tmp_path / "run", settings={**settings, "steps": 0}, **SMALL
    )
    own, old = run.method.state_dict(), base.method.state_dict()
    learnt = {key: value for key, value in old.items() if key.startswith("network.") and value.is_floating_point()}
    assert all(torch.equal(own[key], value) for key, value in learnt.items())
    assert len(own) > len(old)
