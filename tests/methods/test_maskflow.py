"""The flow over masks: its path, its solver against closed forms, its draws, and two masks for one image learnt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segmint.functional import flow
from segmint.methods.maskflow import CHUNK, EVIDENCE, Maskflow, Sight, simplex_codes
from segmint.methods.method import Facts, Method, build, find
from segmint.nets.maskflow import MaskDenoiser
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (24, 16)
SMALL: dict[str, Any] = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8], "widths": [8, 16], "patch": 2}


def make(classes: int = 3, **settings: Any) -> Maskflow:
    torch.manual_seed(0)
    method = build("maskflow", classes=classes, in_channels=1, image_size=SIZE, **{**SMALL, **settings})
    assert isinstance(method, Maskflow)
    nn.init.normal_(method.denoiser.last.weight, std=0.05)
    return method.eval()


def batch(count: int = 2, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(classes, (count, *SIZE), generator=generator)
    return Batch(torch.rand(count, 1, *SIZE, generator=generator) * 2 - 1, mask)


class Told(Maskflow):
    """A flow whose network is replaced by a known posterior of the clean mask."""

    posterior: Any

    def _evaluate(self, state: Tensor, clock: Tensor, sight: Sight) -> Tensor:
        answer: Tensor = self.posterior(state, clock)
        return answer


def told(classes: int, posterior: Any, **settings: Any) -> Told:
    method = Told(classes=classes, in_channels=1, image_size=SIZE, network=nn.Conv2d(1, classes, 1), **settings)
    method.posterior = posterior
    return method.eval()


def test_code_words_are_a_regular_simplex():
    for classes in (2, 3, 5, 11):
        words = simplex_codes(classes)
        assert words.shape == (classes, classes - 1)
        apart = torch.cdist(words, words)[~torch.eye(classes, dtype=torch.bool)]
        assert torch.allclose(apart, torch.full_like(apart, 2.0))
        assert float(words.mean(0).abs().max()) < 1e-6
    assert simplex_codes(2).tolist() == [[-1.0], [1.0]]
    assert simplex_codes(1).shape == (1, 1)


def test_the_path_has_its_marginals_and_velocity():
    codes = simplex_codes(3)
    clean = flow.encode(torch.full((1, 200, 200), 2), codes).double()
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3], dtype=torch.float64)
    state = flow.interpolate(clean, noise, t)
    assert torch.allclose(state.mean((0, 2, 3)), 0.3 * codes[2].double(), atol=0.02)
    assert torch.allclose(state.std((0, 2, 3)), torch.tensor(0.7, dtype=torch.float64), atol=0.02)
    later = flow.interpolate(clean, noise, t + 1e-6)
    assert torch.allclose((later - state) / 1e-6, flow.velocity(clean, state, t), atol=1e-6)
    assert torch.allclose(flow.velocity(clean, state, t), clean - noise)


@pytest.mark.parametrize("sampler", ["multistep", "euler", "heun"])
@pytest.mark.parametrize("steps", [2, 3, 8])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_perfect_network_leads_to_its_mask(classes: int, steps: int, sampler: str, monkeypatch: pytest.MonkeyPatch):
    truth = batch(2, classes).mask
    sure = 60.0 * torch.nn.functional.one_hot(truth, classes).permute(0, 3, 1, 2).float()
    method = told(classes, lambda state, clock: sure, steps=steps, sampler=sampler)
    ends: list[Tensor] = []
    solve = flow.solve

    def kept(*arguments: Any) -> flow.State:
        end = solve(*arguments)
        ends.append(end[0])
        return end

    monkeypatch.setattr(flow, "solve", kept)
    with torch.inference_mode():
        logits = method.segment(batch().image, Seeds.range(2))
    assert torch.equal(logits, sure)
    words = flow.encode(truth, method.codes)
    cells = words.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    assert torch.allclose(ends[0], cells, atol=1e-4)


def whole_or_nothing(share: float) -> Any:
    """The exact posterior where a mask is all of class 1 with this probability, and else all of class 0."""

    def posterior(state: Tensor, clock: Tensor) -> Tensor:
        t = clock.view(-1, 1, 1, 1)
        evidence = 2 * t / (1 - t) ** 2 * state.sum((1, 2, 3), keepdim=True)
        odds = (math.log(share / (1 - share)) + evidence).expand(-1, 1, *SIZE)
        return torch.cat([torch.zeros_like(odds), odds], 1)

    return posterior


@pytest.mark.parametrize(("sampler", "error"), [("multistep", 0.04), ("euler", 0.08)])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_with_the_exact_posterior_whole_masks_come_as_often_as_they_should(share: float, sampler: str, error: float):
    method = told(2, whole_or_nothing(share), sampler=sampler)
    with torch.inference_mode():
        drawn = method.segment(torch.zeros(1000, 1, *SIZE), Seeds.range(1000)).argmax(1).flatten(1).float().mean(1)
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert float(drawn.mean()) == pytest.approx(share, abs=error)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_denoiser_is_told_what_each_cell_says_of_itself(classes: int):
    """The first order of Bayes' rule in single pixels, where K - 1 coordinates do not move each other: K = 2."""
    method, given = make(classes, cell=1), batch(2, classes)
    method.denoiser = Spy(method.denoiser)
    state, t = torch.randn(2, classes - 1, *SIZE), 0.01
    with torch.inference_mode():
        sight = method._look(given.image)
        method._evaluate(state, torch.full((2,), t), sight)
        mean = flow.expected_code(sight.logits, method.codes)
        density = torch.einsum("bdhw,kd->bkhw", state * t / (1 - t) ** 2, method.codes)
        moved = flow.expected_code(sight.logits + density, method.codes) - mean
    shown, told = method.denoiser.shown[0][0].split(classes - 1, 1)
    assert torch.equal(shown, state)
    assert told.shape == state.shape
    if classes == 2:
        assert torch.allclose(told, EVIDENCE * moved, atol=0.01 * float(told.abs().max()))
    method.network.head.bias.data[0] = 60.0
    with torch.inference_mode():
        assert float(method._look(given.image).doubt.abs().max()) < 1e-6


def test_one_step_works():
    method = make(steps=1)
    with torch.inference_mode():
        assert method.segment(batch().image, Seeds.range(2)).shape == (2, 3, *SIZE)
        assert bool(torch.isfinite(method.validate(batch())["loss"]))


@pytest.mark.parametrize("classes", [2, 5])
def test_draws_are_those_of_their_seeds_whatever_the_batch(classes: int):
    method, given = make(classes), batch(3, classes)
    with torch.inference_mode():
        drawn = torch.stack(list(method.draws(given.image, Seeds([5, 6, 7]), 7)))
        alone = torch.stack(list(method.draws(given.image[1:2], Seeds([6]), 7)))
        single = method.segment(given.image, Seeds([5, 6, 7]).fork("draw", 6))
    assert drawn.shape == (7, 3, classes, *SIZE)
    assert torch.allclose(drawn[:, 1:2], alone, atol=1e-4)
    assert torch.allclose(drawn[6], single, atol=1e-4)
    assert float((drawn[0] - drawn[1]).abs().max()) > 1e-3


def test_the_image_is_seen_once_for_all_draws_and_copies():
    method = make(copies=3)
    looks, evaluations = [], []
    method.network.encoder.register_forward_hook(lambda *_: looks.append(1))
    method.denoiser.register_forward_hook(lambda *_: evaluations.append(1))
    with torch.inference_mode():
        list(method.draws(batch().image, Seeds.range(2), CHUNK + 1))
        assert len(looks) == 1
        assert len(evaluations) == 3 * method.steps
        method.train().loss(batch())
    assert len(looks) == 2


class Spy(nn.Module):
    """Keeps what the denoiser is shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.cell, self.shown = inner, inner.cell, []

    def look(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return self.inner.look(features, size)

    def forward(self, state: Tensor, clock: Tensor, seen: Tensor) -> Tensor:
        self.shown.append((state, clock))
        return self.inner(state, clock, seen)


def test_unknown_pixels_are_shown_as_the_image_alone_has_them_and_do_not_count():
    method, given = make(copies=4).train(), batch()
    mask = given.mask.clone()
    mask[:, :8] = IGNORE
    method.denoiser = Spy(method.denoiser)
    clock = torch.tensor([0.5, 0.9])
    noise = torch.randn(2, 2, 12, 8)
    method.eval()._loss(Batch(given.image, mask), clock, noise)
    state = method.denoiser.shown[0][0][:, :2]
    t = clock.view(-1, 1, 1, 1)
    mean = flow.expected_code(method.network(given.image), method.codes)
    words = flow.encode(given.mask, method.codes)
    mean, words = (nn.functional.avg_pool2d(x, 2) for x in (mean, words))
    assert torch.allclose(state[:, :, :4], (t * mean + (1 - t) * noise)[:, :, :4], atol=1e-5)
    assert torch.allclose(state[:, :, 4:], (t * words + (1 - t) * noise)[:, :, 4:], atol=1e-5)
    nothing = method._loss(Batch(given.image, torch.full_like(mask, IGNORE)), clock, noise)
    assert float(nothing["loss"].detach()) == 0


def test_training_times_are_spread_evenly_over_the_samplers():
    method = make(copies=32, shift=8.0, cell=1).train()
    method.denoiser = Spy(method.denoiser)
    with torch.no_grad():
        method.loss(batch())
    t = method.denoiser.shown[0][1]
    even = (8 * t / (1 - t + 8 * t)).sort().values
    assert torch.allclose(even.diff(), torch.full((63,), 1 / 64), atol=1e-4)


def test_validation_is_the_same_each_time():
    method, given = make(), batch()
    with torch.inference_mode():
        first, again = method.validate(given), method.validate(given)
    assert {"loss", "flow_loss", "image_loss"} == set(first)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert method.monitor[0] in first


def test_all_background_and_one_class_work():
    method, given = make(), batch()
    loss = method.train().loss(Batch(given.image, torch.zeros_like(given.mask)))["loss"]
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in method.parameters() if p.grad is not None)
    single = make(classes=1)
    with torch.inference_mode():
        assert single.segment(given.image, Seeds.range(2)).shape == (2, 1, *SIZE)


@pytest.mark.parametrize("encoder", ["plain", "efficientnet_lite0"])
@pytest.mark.parametrize("size", [(5, 7), (33, 41), (8, 100)])
def test_images_of_any_size(size: tuple[int, int], encoder: str):
    method = make(patch=4, encoder_name=encoder, encoder_weights=None)
    with torch.inference_mode():
        logits = method.segment(torch.zeros(2, 1, *size), Seeds.range(2))
    assert logits.shape == (2, 3, *size)
    assert bool(torch.isfinite(logits).all())


def test_the_denoiser_sees_each_place_where_it_is():
    """A feature in one corner must reach the same corner, whatever the padding."""
    torch.manual_seed(0)
    net = MaskDenoiser(1, 2, 4, widths=[8, 8], patch=4, cell=2)
    for size, place in (((16, 24), (0, 0)), ((19, 27), (4, 6))):
        features = torch.zeros(1, 4, -(-size[0] // 2), -(-size[1] // 2))
        changed = features.clone()
        changed[:, :, 2 * place[0], 2 * place[1]] = 1
        moved = (net.look(changed, size) - net.look(features, size)).abs().sum(1)[0]
        rows, columns = moved.nonzero().T
        assert int((rows - place[0]).abs().max()) <= 1
        assert int((columns - place[1]).abs().max()) <= 1


def test_cells_at_the_rim_may_be_partly_outside():
    words = torch.rand(1, 2, 5, 3)
    cells = make(cell=2)._pool(words)
    assert cells.shape[1:] == make(cell=2)._shape(words)
    assert torch.allclose(cells[0, :, 2, 1], words[0, :, 4, 2])
    assert torch.allclose(cells[0, :, 2, 0], words[0, :, 4, :2].mean(1))


def test_a_network_of_ones_own_is_seen_by_its_logits():
    method = make(network=nn.Conv2d(1, 3, 1))
    with torch.inference_mode():
        assert method.segment(batch().image, Seeds.range(2)).shape == (2, 3, *SIZE)


def test_wrong_settings_are_refused():
    with pytest.raises(SegmintError, match="no sampler 'magic'"):
        make(sampler="magic")
    with pytest.raises(SegmintError, match="steps"):
        make(steps=0)
    with pytest.raises(SegmintError, match="even number"):
        make(patch=3)
    with pytest.raises(SegmintError, match="cell divides"):
        make(cell=3)
    with pytest.raises(SegmintError, match=r"maskflow\.patch"):
        make(patch="large")


def test_what_depends_on_the_data_is_settled():
    facts = {"classes": 2, "channels": 1, "shares": (0.99, 0.01), "labelled": 4, "unlabelled": 0, "steps": 10}
    large, notes = find("maskflow").adapt({}, Facts(size=(128, 128), **facts))
    assert (large["patch"], large["loss"], notes) == (4, "cross_entropy", [])
    small, notes = find("maskflow").adapt({"loss": "auto", "encoder_name": "plain"}, Facts(size=(32, 48), **facts))
    assert (small["patch"], small["encoder_weights"]) == (2, None)
    assert "lovasz" in small["loss"]
    assert notes


def toy(count: int) -> Batch:
    """The same image each time; its mask is a square, or nothing."""
    mask = torch.zeros(count, 16, 16, dtype=torch.int64)
    mask[::2, 4:12, 4:12] = 1
    return Batch(torch.zeros(count, 1, 16, 16), mask)


@pytest.fixture(scope="module")
def taught() -> Method:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    method = build("maskflow", classes=2, in_channels=1, image_size=(16, 16), network=network, widths=[16, 16], patch=2)
    optimizer = torch.optim.Adam(method.parameters(), 5e-3)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, 2 * (1 - step / 150))
        loss = method.loss(toy(8))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method.eval()


def test_two_masks_for_one_image_are_drawn_whole_and_half_the_time_each(taught: Method):
    with torch.inference_mode():
        drawn = torch.cat(list(taught.draws(toy(1).image, Seeds([0]), 128))).argmax(1)
    inside = drawn[:, 4:12, 4:12].flatten(1).float().mean(1)
    outside = (drawn.sum((1, 2)) - drawn[:, 4:12, 4:12].sum((1, 2))).float()
    assert float(((inside < 0.1) | (inside > 0.9)).float().mean()) > 0.95
    assert float(outside.mean()) < 2
    assert 0.3 < float((inside > 0.5).float().mean()) < 0.7


def test_its_mean_probability_is_that_of_the_raters(taught: Method):
    with torch.inference_mode():
        mean = torch.cat(list(taught.draws(toy(1).image, Seeds([1]), 128))).softmax(1)[:, 1].mean(0)
    assert float(mean[4:12, 4:12].mean()) == pytest.approx(0.5, abs=0.15)
    assert float(mean[:3].mean()) < 0.05
