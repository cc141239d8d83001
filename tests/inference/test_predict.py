from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.data.classes import Classes
from segmint.functional import ambiguity
from segmint.inference.draws import draw, entropy, usual_draws
from segmint.inference.predict import _enlarge_masks, predict, prediction_of
from segmint.methods.method import Method
from segmint.seeds import Seeds
from segmint.training.run import Run, train
from segmint.types import SegmintError

PLAIN = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}
QUICK = {"batch_size": 4, "precision": "float32", "steps": 4}


@pytest.fixture(scope="module")
def ensemble(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("ensemble")
    return [train(shapes, out=folder / f"{seed}", seed=seed, settings=QUICK, **PLAIN) for seed in (0, 1)]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 24, 3), dtype=np.uint8)).save(path)
    return path


class Fixed(Method):
    """The same logits everywhere, whatever the image."""

    def __init__(self, *, classes=2, in_channels=3, image_size=(8, 8), logits=(0.0, 0.0), judge=None):
        super().__init__()
        self.logits, self.judge = torch.tensor(logits), judge

    def segment(self, image, seeds):
        return self.logits.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])

    def errors(self, image, logits):
        return None if self.judge is None else torch.full_like(logits[:, 0], self.judge)


class Undecided(Fixed):
    """Sure of one class in each draw, of another in the next."""

    draws_differ = True

    def segment(self, image, seeds):
        sign = seeds.randn(1).sign().view(-1, 1, 1, 1)
        return torch.cat([50 * sign, -50 * sign], 1).expand(-1, 2, *image.shape[2:])


class Dropping(Fixed):
    """Logits of the image's mean, with dropout."""

    def __init__(self, *, classes=2, in_channels=3, image_size=(8, 8), dropout=0.5):
        super().__init__(classes=2)
        self.norm = torch.nn.BatchNorm2d(3)
        self.drop = torch.nn.Dropout2d(dropout)

    def segment(self, image, seeds):
        level = self.drop(self.norm(image)).mean(1, keepdim=True) * 3
        return torch.cat([level, -level], 1)


IMAGE = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)


def test_entropy_is_that_of_shannon():
    assert float(entropy(torch.full((1, 4, 1, 1), 0.25))) == pytest.approx(np.log(4))
    assert float(entropy(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))) == 0


def test_one_method_that_draws_at_random_does_not_know_what_it_does_not_know():
    found = draw(Undecided(classes=2), IMAGE[:1], Seeds([0]), 64)
    assert 0.3 < float(found.probabilities[0, 0, 0, 0]) < 0.7
    assert found.epistemic is None
    assert torch.equal(found.aleatoric, found.uncertainty)
    assert found.masks.shape == (64, 1, 4, 4)
    assert {float(mask.float().mean()) for mask in found.masks} == {0.0, 1.0}  # each draw is coherent
    share = max(float(found.masks.float().mean()), 1 - float(found.masks.float().mean()))
    assert float(found.expected_dice()) == pytest.approx(share)
    assert usual_draws(Undecided(classes=2)) == 16
    assert len(draw(Undecided(classes=2), IMAGE, Seeds([0, 1]), None).masks) == 16


def test_of_an_ensemble_the_members_differences_are_epistemic():
    members = [Fixed(logits=(0.0, 0.0)), Fixed(logits=(2.0, -1.0)), Fixed(logits=(-1.0, 4.0))]
    found = draw(members, IMAGE, Seeds([0, 1]))
    single = torch.stack([member.logits.softmax(0) for member in members]).double()
    mean = single.mean(0)
    mutual = sum(float(p * (p / m).log()) for row in single for p, m in zip(row, mean, strict=True)) / 3
    assert found.epistemic is not None
    assert torch.allclose(found.epistemic, torch.full((2, 4, 4), mutual), atol=1e-6)
    assert torch.allclose(found.aleatoric + found.epistemic, found.uncertainty)
    assert torch.allclose(found.probabilities[0, :, 0, 0].double(), mean)
    assert found.masks.shape == (3, 2, 4, 4)
    assert found.masks[:, 0, 0, 0].tolist() == [0, 0, 1]
    same = draw([members[1], members[1]], IMAGE, Seeds([0, 1])).epistemic
    assert same is not None
    assert float(same.abs().max()) == 0


def test_members_weigh_the_same_whether_they_draw_or_not():
    found = draw([Undecided(classes=2), Fixed(logits=(0.0, 5.0))], IMAGE, Seeds([0, 1]), 8)
    assert len(found.masks) == 16
    assert int(found.masks[8:].min()) == 1
    assert float(found.probabilities[0, 1].min()) > 0.5
    assert found.epistemic is not None
    assert float(found.epistemic.min()) >= 0


def test_several_members_that_draw_have_draws_of_their_own():
    found = draw([Undecided(classes=2), Undecided(classes=2)], IMAGE[:1], Seeds([0]), 16)
    first, second = found.masks[:16, 0, 0, 0], found.masks[16:, 0, 0, 0]
    assert not torch.equal(first, second)


def test_dropout_passes_are_members_and_each_image_has_its_own_noise():
    method = Dropping().eval()
    before = torch.random.get_rng_state()
    found = draw(method, IMAGE, Seeds([5, 6]), 6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(layer.training for layer in method.modules())
    assert found.masks.shape[0] == 6
    assert found.epistemic is not None
    assert float(found.epistemic.max()) > 0.01
    alone = draw(method, IMAGE[1:], Seeds([6]), 6)
    assert torch.allclose(alone.probabilities[0], found.probabilities[1])
    assert torch.equal(draw(method, IMAGE, Seeds([5, 6]), 6).probabilities, found.probabilities)
    assert not torch.equal(draw(method, IMAGE, Seeds([7, 8]), 6).probabilities, found.probabilities)
    once = draw(method, IMAGE, Seeds([5, 6]), 1)
    assert once.epistemic is None
    assert torch.allclose(once.probabilities, method.segment(IMAGE, None).softmax(1))


def test_without_dropout_one_draw_says_it_all():
    for method in (Fixed(logits=(1.0, 0.0)), Dropping(dropout=0.0).eval()):
        found = draw(method, IMAGE, Seeds([0, 1]), 5)
        assert len(found.masks) == 1
        assert found.epistemic is None


def test_judges_of_errors_are_averaged():
    assert draw(Fixed(logits=(0.0, 1.0)), IMAGE, Seeds([0, 1])).errors is None
    found = draw([Fixed(judge=0.2), Fixed(judge=0.4), Fixed()], IMAGE, Seeds([0, 1])).errors
    assert found is not None
    assert torch.allclose(found, torch.full((2, 4, 4), 0.3))


def test_wrong_numbers_of_draws_and_methods_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        draw(Fixed(), IMAGE, Seeds([0, 1]), 0)
    with pytest.raises(ValueError, match="at least one method"):
        draw([], IMAGE, Seeds([0, 1]))


def test_an_ensemble_predicts_and_says_how_sure_it_is(ensemble: list[Run], picture: Path):
    p = predict(ensemble, picture)
    assert p.draws.shape == (2, 32, 24)
    assert p.epistemic is not None
    assert torch.allclose(p.aleatoric + p.epistemic, p.uncertainty, atol=1e-5)
    assert 0 <= p.expected_dice <= 1
    assert p.errors is None
    assert sum(other.weight for other in p.alternatives) == pytest.approx(1)
    assert p.alternatives[0].labels.shape == (32, 24)
    swapped = predict([str(run.folder) for run in reversed(ensemble)], picture)
    assert torch.allclose(swapped.probabilities, p.probabilities, atol=1e-6)


def test_one_run_has_one_mask_unless_it_is_asked_for_dropout(ensemble: list[Run], picture: Path):
    p = predict(ensemble[0], picture)
    assert p.epistemic is None
    assert p.draws.shape == (1, 32, 24)
    assert [other.weight for other in p.alternatives] == [1.0]
    assert torch.equal(p.alternatives[0].labels, p.draws[0])
    several = predict(ensemble[0], picture, draws=4, seed=3)
    assert several.draws.shape == (4, 32, 24)
    assert several.epistemic is not None
    again = predict(ensemble[0], picture, draws=4, seed=3)
    assert torch.equal(again.probabilities, several.probabilities)


def test_alternatives_are_told_apart_and_weighed(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run").mkdir()
    method = Undecided(classes=2)
    monkeypatch.setattr("segmint.training.run.load", lambda *args, **rest: method)
    (tmp_path / "run" / "config.yaml").write_text("method: supervised\ndata: x\n")
    (tmp_path / "run" / "classes.yaml").write_text("classes: [{id: 0, name: tissue}, {id: 1, name: nodule}]\n")
    p = predict(tmp_path / "run", picture)
    assert p.draws.shape == (16, 32, 24)
    likely, other = p.alternatives
    ones = float(p.draws.float().mean())
    assert (likely.weight, other.weight) == pytest.approx((max(ones, 1 - ones), min(ones, 1 - ones)))
    assert {int(likely.labels[0, 0]), int(other.labels[0, 0])} == {0, 1}
    table = ambiguity.dice(p.labels[None], p.draws, (1,))
    assert p.expected_dice == pytest.approx(float(table.mean()))


def test_runs_that_do_not_fit_each_other_are_refused(ensemble: list[Run], shapes: Path, picture: Path, tmp_path: Path):
    other = train(shapes, out=tmp_path / "small", size=(16, 16), settings=QUICK, **PLAIN)
    with pytest.raises(SegmintError, match=r"small: image sizes \(16, 16\) differ"):
        predict([ensemble[0], other], picture)
    with pytest.raises(SegmintError, match="none given"):
        predict([], picture)


@pytest.mark.parametrize("size", [(4, 4), (11, 7), (3, 9)])
def test_draws_are_enlarged_to_the_nearest_pixel_and_held_once(size: tuple[int, int]):
    found = draw(Undecided(classes=2), IMAGE[:1], Seeds([0]), 8)
    found = replace(found, masks=torch.randint(0, 255, found.masks.shape, dtype=torch.uint8))
    run = types.SimpleNamespace(classes=Classes(("a", "b"), ((0, 0, 0), (9, 9, 9)), (0, 1)))
    image = torch.zeros(*size, 3, dtype=torch.uint8)
    whole = prediction_of(run, image, found)
    rows, columns = (torch.arange(side) * 4 // side for side in size)
    assert torch.equal(whole.draws, found.masks[:, 0][:, rows][:, :, columns])
    held = whole.draws.untyped_storage().data_ptr()
    assert all(one.labels.untyped_storage().data_ptr() == held for one in whole.alternatives)
    labels = prediction_of(run, image, found, plausible=False)
    assert torch.equal(labels.labels, whole.labels)
    assert (labels.draws.shape, labels.alternatives) == ((0, *size), ())


def test_enlarging_draws_takes_a_byte_for_each_pixel_and_draw():
    masks = torch.zeros(16, 1, 32, 32, dtype=torch.uint8)
    with torch.profiler.profile(profile_memory=True) as watched:
        _enlarge_masks(masks, (512, 512))
    taken = sum(event.self_cpu_memory_usage for event in watched.key_averages() if event.self_cpu_memory_usage > 0)
    assert taken < 1.1 * 16 * 512 * 512
