"""The joint flow: what its clocks, conditions and samplers must do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from segmint.functional.flow import time_grid
from segmint.methods.method import Facts, Method, build, find
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (32, 24)
TINY = {"widths": [16, 16], "patch": 2, "alignment": 0.0, "perceptual": 0.0}


@pytest.fixture
def flow() -> Method:
    torch.manual_seed(0)
    method = build("flow", classes=3, image_size=SIZE, **TINY)
    with torch.no_grad():
        for parameter in method.parameters():  # its last layers start at zero, which would hide everything
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method.eval()


def batch(labelled: bool = True) -> Batch:
    mask = torch.zeros(2, *SIZE, dtype=torch.int64)
    mask[:, :, 12:] = 2
    mask[0, :5] = IGNORE
    return Batch(torch.rand(2, 3, *SIZE) * 2 - 1, mask if labelled else torch.full_like(mask, IGNORE))


def test_unlabelled_images_teach_the_image_side_alone(flow: Method):
    torch.manual_seed(1)
    terms = flow.train().loss(batch(labelled=False))
    assert float(terms["mask_loss"].detach()) == 0
    assert float(terms["image_loss"].detach()) > 0


def test_the_perceptual_distance_is_of_noisy_images_alone_and_falls_where_the_prediction_is_true():
    method = build("flow", classes=3, image_size=SIZE, **{**TINY, "perceptual": 1.0}).train()
    image = batch().image
    features = method._features(image)
    wrong = image.flip(-1).requires_grad_()
    shown = torch.tensor([True, False])
    apart = method._perceptual(wrong, features, shown)
    assert float(method._perceptual(image, features, shown)) == pytest.approx(0, abs=1e-5)
    assert 0 < float(apart.detach()) <= 2
    apart.backward()
    assert float(wrong.grad[0].abs().max()) > 0
    assert float(wrong.grad[1].abs().max()) == 0
    assert float(method._perceptual(wrong, features, ~shown & shown).detach()) == 0
    assert "perceptual" in method.loss(batch())


def test_painting_depends_on_the_mask_and_on_nothing_where_it_is_unknown(flow: Method):
    mask = batch().mask
    other = mask.clone()
    other[:, :, :12] = 1
    seeds = Seeds.range(2)
    first, second = flow.generate(seeds, mask=mask), flow.generate(Seeds.range(2), mask=other)
    assert torch.equal(first.mask, mask)
    assert not torch.equal(first.image, second.image)


def test_the_frame_before_is_looked_at(flow: Method):
    mask = batch().mask
    alone = flow.generate(Seeds.range(2), mask=mask).image
    dark = flow.generate(Seeds.range(2), mask=mask, previous=torch.full((2, 3, *SIZE), -1.0)).image
    bright = flow.generate(Seeds.range(2), mask=mask, previous=torch.full((2, 3, *SIZE), 1.0)).image
    assert not torch.equal(alone, dark)
    assert not torch.equal(dark, bright)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_painting_over_keeps_what_its_strength_leaves(strength: float):
    torch.manual_seed(0)
    method = build("flow", classes=3, image_size=SIZE, strength=strength, **TINY).eval()
    given = batch()
    made = method.generate(Seeds.range(2), mask=given.mask, image=given.image)
    if strength == 0:
        assert torch.allclose(made.image, given.image, atol=1e-5)
    else:
        assert not torch.allclose(made.image, given.image, atol=1e-2)


def test_a_photograph_needs_its_mask(flow: Method):
    with pytest.raises(SegmintError, match="needs its mask"):
        flow.generate(Seeds.range(2), image=batch().image)


@pytest.mark.parametrize("wrong", [{"sampler": "nonsense"}, {"steps": 0}, {"segment_steps": -1}, {"patch": "large"}])
def test_settings_of_the_sampler_are_checked(wrong):
    with pytest.raises(SegmintError, match=f"flow.*{next(iter(wrong))}"):
        build("flow", classes=3, image_size=(16, 16), widths=[8, 8], alignment=0.0, **wrong)


def test_asked_shares_are_those_of_training_masks_and_rare_ones_more_often():
    torch.manual_seed(0)
    counts = {}
    for rare in (0.0, 1.0):
        method = build("flow", classes=3, image_size=SIZE, rare=rare, **TINY)
        method.bank[:9, 0], method.bank[9] = 700, torch.tensor([350, 350, 0])
        method.banked.fill_(10)
        asked = method._asked(Seeds.range(400))
        assert torch.allclose(asked.sum(1), torch.ones(400))
        counts[rare] = int((asked[:, 1] > 0).sum())
    assert 20 <= counts[0.0] <= 60
    assert counts[1.0] > 2 * counts[0.0]


def test_before_training_it_asks_for_no_shares(flow: Method):
    assert flow._asked(Seeds.range(2)) is None
    assert flow.generate(Seeds.range(2)).image.shape == (2, 3, *SIZE)


class Still:
    def minimize(self, part, loss) -> None:
        assert part == "model"


def test_the_bank_keeps_class_counts_of_labelled_images(flow: Method):
    flow.train().step(batch(), Still())
    flow.step(batch(labelled=False), Still())
    assert int(flow.banked) == 2
    assert flow.bank[1].tolist() == [32 * 12, 0, 32 * 12]


@pytest.mark.parametrize(("lead", "first"), [(0.0, 0.5), (1.0, 0.0)])
def test_the_masks_clock_leads(lead: float, first: float):
    from segmint.methods.flow import _Painter

    method = build("flow", classes=3, image_size=SIZE, lead=lead, **TINY)
    painter = _Painter(method, None, None, torch.zeros(1, 2, *SIZE), None)
    image, _, mask, _ = painter.clocks(0.5)
    assert image == pytest.approx(first)
    assert mask == pytest.approx(0.5 * (1 + lead))
    image, _, mask, speed = painter.clocks(1.0)
    assert (image, mask, speed) == (1, 1, 0)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("parametrization", ["clean", "velocity", "edm"])
def test_every_choice_learns_and_makes_pairs(parametrization: str, sampler: str):
    torch.manual_seed(0)
    method = build("flow", classes=3, image_size=SIZE, parametrization=parametrization, sampler=sampler, **TINY)
    loss = method.loss(batch())["loss"]
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in method.parameters() if p.grad is not None)
    assert bool(torch.isfinite(method.eval().generate(Seeds.range(1)).image).all())


def test_alignment_pulls_the_coarsest_map_towards_imagenet_features():
    torch.manual_seed(0)
    method = build("flow", classes=3, image_size=SIZE, widths=[16, 16], patch=4, alignment=1.0)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    terms = []
    for _ in range(12):
        loss = method.loss(batch())
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        terms.append(float(loss["alignment"].detach()))
    assert terms[-1] < terms[0]
    assert not any("teacher" in key for key in method.state_dict())


def test_the_patch_follows_the_size():
    facts = {"classes": 3, "channels": 3, "shares": (0.5, 0.5, 0), "labelled": 4, "unlabelled": 0, "steps": 10}
    large, _ = find("flow").adapt({}, Facts(size=(96, 128), **facts))
    small, _ = find("flow").adapt({}, Facts(size=(32, 48), **facts))
    chosen, _ = find("flow").adapt({"patch": 8}, Facts(size=(96, 128), **facts))
    assert (large["patch"], small["patch"], chosen["patch"]) == (4, 2, 8)


@pytest.mark.parametrize(("lead", "steps"), [(1.0, 7), (1.0, 5), (0.5, 6)])
def test_no_step_straddles_where_a_clock_stops(lead: float, steps: int):
    from segmint.methods.flow import _Painter

    method = build("flow", classes=3, image_size=SIZE, lead=lead, **TINY)
    painter = _Painter(method, None, None, torch.zeros(1, 2, *SIZE), None)
    times = painter.turning(time_grid(steps))
    assert len(times) == steps + 1
    moved = [0.0, 0.0]
    for here, there in pairwise(times):
        image, image_speed, mask, mask_speed = painter.clocks(here)
        assert moved == pytest.approx([image, mask]), "each has gone as far as its clock says"
        moved = [moved[0] + image_speed * (there - here), moved[1] + mask_speed * (there - here)]
    assert moved == pytest.approx([1, 1])
