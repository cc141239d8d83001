from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from segmint.config import TrainSettings
from segmint.functional.adversarial import smoothed_truth
from segmint.methods.adversarial import Adversarial
from segmint.methods.method import Facts, build
from segmint.nets.discriminators import LinearDiscriminant, MaskDiscriminator
from segmint.seeds import Seeds
from segmint.training.optimizers import PartOptimizers
from segmint.types import IGNORE, Batch, SegmintError

SMALL = {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8], "width": 8, "self_taught_from": 0}


def make(**changes) -> Adversarial:
    torch.manual_seed(0)
    return build("adversarial", classes=3, in_channels=3, image_size=(16, 24), **{**SMALL, **changes})


def batch(count: int = 4, labelled: int = 2) -> Batch:
    """Stripes of three classes in three colours; the last images have no mask."""
    torch.manual_seed(1)
    mask = (torch.arange(24) // 8).expand(count, 16, 24).clone()
    mask = mask.roll(3, 2)
    image = torch.stack([mask == k for k in range(3)], 1).float() * 1.6 - 0.8 + 0.1 * torch.randn(count, 3, 16, 24)
    mask[labelled:] = IGNORE
    return Batch(image.clamp(-1, 1), mask)


class Recorder:
    """Optimisers that keep the losses and their gradients, and move nothing."""

    def __init__(self, method: Adversarial) -> None:
        self.method, self.losses, self.touched = method, {}, {}

    def minimize(self, part: str, loss: torch.Tensor) -> None:
        before = [None if p.grad is None else p.grad.clone() for p in self.method.parameters()]
        assert all(gradient is None for gradient in before)
        loss.backward(inputs=list(self.method.parts()[part].parameters()))
        self.losses[part] = loss.detach()
        self.touched[part] = {name for name, p in self.method.named_parameters() if p.grad is not None}
        self.method.zero_grad()


# --- the discriminator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24), (33, 41), (5, 3)])
def test_the_discriminators_map_is_as_large_as_the_mask(size: tuple[int, int]):
    assert MaskDiscriminator(4, 8)(torch.rand(2, 4, *size)).shape == (2, *size)


def test_the_discriminator_is_local_and_convolutional():
    judge = MaskDiscriminator(2, 4, depth=2)
    x = torch.rand(1, 2, 64, 64)
    changed = x.clone()
    changed[..., :8] = 0
    assert torch.equal(judge(x)[..., 40:], judge(changed)[..., 40:])
    shifted = judge(x.roll(16, 3))
    assert torch.allclose(shifted[..., 36:44], judge(x)[..., 20:28], atol=1e-5)


def test_smoothed_truth_follows_the_formula_and_sums_to_one():
    probabilities = torch.rand(2, 4, 3, 5).double().log_softmax(1).exp()
    mask = torch.randint(4, (2, 3, 5))
    mask[0, 0, :2] = IGNORE
    found = smoothed_truth(mask, probabilities, 0.6)
    for b, y, x in np.ndindex(2, 3, 5):
        s, label = probabilities[b, :, y, x], int(mask[b, y, x])
        expected = torch.zeros(4, dtype=torch.float64)
        if label != IGNORE:
            raised = max(0.6, float(s[label]))
            expected = s * (1 - raised) / (1 - s[label])
            expected[label] = raised
        assert torch.allclose(found[b, :, y, x], expected)
    assert torch.allclose(found.sum(1), (mask != IGNORE).double())


def test_what_is_predicted_right_and_surely_is_its_own_truth():
    sure = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    fairly = torch.tensor([0.95, 0.04, 0.01]).view(1, 3, 1, 1)
    for probabilities in (sure, fairly):
        found = smoothed_truth(torch.zeros(1, 1, 1, dtype=torch.int64), probabilities)
        assert torch.allclose(found, probabilities)


def test_the_linear_discriminant_is_scikit_learns():
    numbers = np.random.default_rng(0)
    answers = numbers.random(500) < 0.3
    values = numbers.normal(0, 2, 500) + 3 * answers
    found = LinearDiscriminant()
    for _ in range(3):
        found.follow(torch.tensor(values), torch.tensor(answers))
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(values[:, None], answers).predict_proba(values[:, None])
    assert np.allclose(found(torch.tensor(values)).sigmoid(), expected[:, 1], atol=1e-4)


def test_the_linear_discriminant_of_one_answer_alone_knows_only_how_frequent_it_is():
    assert torch.equal(LinearDiscriminant()(torch.tensor([-3.0, 3.0])), torch.zeros(2))
    found = LinearDiscriminant()
    found.follow(torch.tensor([4.0, 5.0]), torch.tensor([False, False]))
    assert bool((found(torch.tensor([-9.0, 9.0])).sigmoid() < 1e-3).all())


# --- the game ------------------------------------------------------------------------------------------------------


def test_each_loss_moves_only_its_own_part():
    method = make()
    recorder = Recorder(method)
    method.step(batch(), recorder)
    assert list(recorder.losses) == ["discriminator", "network"]
    for part, touched in recorder.touched.items():
        assert touched == {f"{part}.{name}" for name, _ in method.parts()[part].named_parameters()}


@pytest.mark.parametrize("sees_image", [False, True])
def test_the_game_is_blind_where_the_mask_is_unknown(sees_image: bool):
    method = make(sees_image=sees_image, dropout=0.0).eval()
    seen = batch(2, 2)
    seen.mask[:, :, :9] = IGNORE
    logits = torch.randn(2, 3, 16, 24)
    other, image = logits.clone(), seen.image.clone()
    other[..., :9] = torch.randn(2, 3, 16, 9)
    image[..., :9] = 0.3
    first, second = Recorder(method), Recorder(method)
    assert torch.equal(
        method._teach(seen, logits, first)["discriminator"],
        method._teach(Batch(image, seen.mask), other, second)["discriminator"],
    )
    ours, theirs = method._fool(seen, logits, True), method._fool(Batch(image, seen.mask), other, True)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_adversarial_terms_are_weighted_and_separate():
    method = make(adversarial_weight=2.0, unlabelled_weight=3.0, self_taught_weight=5.0, threshold=0.0)
    terms = method._fool(batch(), torch.randn(4, 3, 16, 24), True)
    expected = terms["cross_entropy"] + 2 * terms["adversarial"] + 3 * terms["unlabelled"] + 5 * terms["self_taught"]
    assert torch.allclose(terms["loss"], expected)
    assert all(bool(terms[key] > 0) for key in ("adversarial", "unlabelled", "self_taught"))
    alone = method._fool(batch(2, 2), torch.randn(2, 3, 16, 24), True)
    assert all(bool(alone[key] == 0) for key in ("unlabelled", "self_taught", "confident"))


def test_pixels_teach_themselves_only_where_the_discriminator_is_confident():
    method = make(adversarial_weight=0.0, unlabelled_weight=0.0, threshold=0.4)
    left = torch.full((2, 16, 24), -2.0)
    left[..., :12] = 2.0
    method._judge = lambda *_: left
    logits = torch.randn(2, 3, 16, 24, requires_grad=True)
    terms = method._fool(batch(2, 0), logits, True)
    terms["loss"].backward()
    assert bool((logits.grad[..., :12].abs().sum(1) > 0).all())
    assert bool((logits.grad[..., 12:] == 0).all())
    expected = -logits[..., :12].log_softmax(1).amax(1).mean()
    assert torch.allclose(terms["self_taught"], expected)
    assert float(terms["confident"]) == 0.5


def test_pixels_begin_to_teach_themselves_at_their_step_even_after_resuming():
    method = make(self_taught_from=2, threshold=0.0)
    told = [float(method.step(batch(), Recorder(method))["self_taught"]) for _ in range(2)]
    again = make(self_taught_from=2, threshold=0.0)
    again.load_state_dict(method.state_dict())
    assert told == [0.0, 0.0]
    assert float(again.step(batch(), Recorder(again))["self_taught"]) > 0


@pytest.mark.parametrize("labelled", [0, 4])
def test_batches_of_one_kind_work(labelled: int):
    method = make()
    optimizers = PartOptimizers(method.parts(), TrainSettings())
    judge = [p.clone() for p in method.discriminator.parameters()]
    terms = method.step(batch(4, labelled), optimizers)
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    same = all(torch.equal(a, b) for a, b in zip(judge, method.discriminator.parameters(), strict=True))
    assert same == (labelled == 0)


# --- what comes of it ----------------------------------------------------------------------------------------------


def test_it_learns():
    method = make()
    optimizers = PartOptimizers(method.parts(), TrainSettings(lr=5e-3))
    losses = [float(method.train().step(batch(), optimizers)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    seen = batch(2, 2)
    with torch.inference_mode():
        logits = method.eval().segment(seen.image, Seeds([0, 1]))
    assert float((logits.argmax(1) == seen.mask).float().mean()) > 0.9


def spoilt(seed: int) -> tuple[Batch, torch.Tensor]:
    """Stripes, and sure predictions of them of which one rectangle is of the next class."""
    seen = batch(2, 2)
    y, x = torch.randint(0, 10, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    said = seen.mask.clone()
    said[:, y : y + 6, x : x + 8] = (said[:, y : y + 6, x : x + 8] + 1) % 3
    return seen, 6.0 * torch.stack([said == k for k in range(3)], 1).float()


def test_its_discriminator_finds_errors_of_the_kind_that_it_has_seen():
    method = make(depth=2)
    optimizers = PartOptimizers(method.parts(), TrainSettings(lr=3e-3))
    for step in range(130):
        method._teach(*spoilt(step), optimizers)
    scores, wrong = [], []
    for step in range(300, 310):
        seen, logits = spoilt(step)
        with torch.inference_mode():
            scores.append(method.errors(seen.image, logits).flatten())
        wrong.append((logits.argmax(1) != seen.mask).flatten())
    assert roc_auc_score(torch.cat(wrong), torch.cat(scores)) > 0.7
    assert float(torch.cat(scores).mean()) == pytest.approx(float(torch.cat(wrong).float().mean()), abs=0.1)


def facts(labelled: int = 5, unlabelled: int = 20) -> Facts:
    shares = (0.5, 0.3, 0.2) if labelled else (0.0, 0.0, 0.0)
    return Facts(3, 3, (16, 24), shares, labelled, unlabelled, steps=1000)


def test_adapt_starts_self_teaching_after_a_quarter():
    settled, notes = Adversarial.adapt({}, facts())
    assert settled["self_taught_from"] == 250
    assert any("self_taught_from" in note for note in notes)
    assert Adversarial.adapt({"self_taught_from": 7}, facts())[0]["self_taught_from"] == 7


def test_adapt_says_what_it_does_without_unlabelled_images_and_refuses_to_learn_from_nothing():
    assert any("no unlabelled images" in note for note in Adversarial.adapt({}, facts(unlabelled=0))[1])
    with pytest.raises(SegmintError, match="adversarial: no image has a mask"):
        Adversarial.adapt({}, facts(labelled=0))


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"tau": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]):
    with pytest.raises(SegmintError, match=f"adversarial.{next(iter(wrong))}: must be from 0 to 1"):
        make(**wrong)
