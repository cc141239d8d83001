import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import jaccard_index
from torchmetrics.functional.segmentation import dice_score

from segmint.functional import losses
from segmint.methods.method import Facts, find
from segmint.types import IGNORE, SegmintError

SHARES = (0.6, 0.3, 0.1)


def every(name: str) -> losses.Loss:
    return lambda logits, target: losses.compose(name, SHARES)(logits, target)["loss"]


def example(seed: int = 0, ignored: float = 0.3, shape: tuple[int, ...] = (2, 3, 5, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    return logits, target


def sure(target: Tensor, classes: int = 3) -> Tensor:
    return 200.0 * losses.one_hot(target.where(target != IGNORE, 0), classes).float()


def test_cross_entropy_is_torchs() -> None:
    logits, target = example()
    weight = torch.tensor([1.0, 2.0, 5.0])
    plain = F.cross_entropy(logits, target, ignore_index=IGNORE)
    weighted = F.cross_entropy(logits, target, weight, ignore_index=IGNORE, label_smoothing=0.2)
    torch.testing.assert_close(losses.cross_entropy(logits, target), plain)
    torch.testing.assert_close(losses.cross_entropy(logits, target, weight, 0.2), weighted)


def test_class_weights_expect_one_and_are_capped() -> None:
    share = torch.tensor([0.9, 0.09, 0.009, 0.001, 0.0])
    weight = losses.class_weights(share.tolist())
    assert float((share * weight).sum()) == pytest.approx(1)
    assert float(weight[1] / weight[0]) == pytest.approx(math.sqrt(10))
    assert float(weight[3] / weight[0]) == pytest.approx(10) == float(weight[4] / weight[0])
    torch.testing.assert_close(losses.class_weights([1, 1, 1]), torch.ones(3))
    torch.testing.assert_close(losses.class_weights([3, 1], power=1), torch.tensor([2 / 3, 2.0]))


@pytest.mark.parametrize("shares", [[0.0, 0.0], [0.5, -0.5], [math.nan, 1.0]])
def test_class_weights_refuse_nonsense(shares: list[float]) -> None:
    with pytest.raises(SegmintError, match="class shares"):
        losses.class_weights(shares)


def test_balanced_cross_entropy_weights_pixels() -> None:
    logits, target = example()
    expected = F.cross_entropy(logits, target, losses.class_weights(SHARES), ignore_index=IGNORE)
    torch.testing.assert_close(losses.balanced_cross_entropy(logits, target, SHARES), expected)
    torch.testing.assert_close(every("balanced_cross_entropy")(logits, target), expected)


def test_focal_in_closed_form() -> None:
    logits, target = example()
    torch.testing.assert_close(losses.focal(logits, target, 0.0), losses.cross_entropy(logits, target))
    coin = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1)
    assert float(losses.focal(coin, torch.zeros(1, 1, 1, dtype=torch.int64))) == pytest.approx(
        0.25**2 * -math.log(0.75)
    )


def test_dice_and_tversky_in_closed_form() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).T.reshape(1, 2, 1, 2)
    target = torch.tensor([[[0, 1]]])
    # class 0: TP 3/4, FP 1/2, FN 1/4; class 1: TP 1/2, FP 1/4, FN 1/2
    assert float(losses.dice(logits, target)) == pytest.approx(1 - (1.5 / 2.25 + 1 / 1.75) / 2)
    expected = 1 - (0.75 / (0.75 + 0.15 + 0.175) + 0.5 / (0.5 + 0.075 + 0.35)) / 2
    assert float(losses.tversky(logits, target)) == pytest.approx(expected)


def test_hard_predictions_give_dice_and_jaccard_of_torchmetrics() -> None:
    logits, target = example(ignored=0.0, shape=(3, 3, 6, 5))
    guess = logits.argmax(1)
    one = [losses.one_hot(x, 3).transpose(0, 1).reshape(1, 3, -1, 1) for x in (guess, target)]
    expected = 1 - dice_score(*one, 3, average="macro", input_format="one-hot").mean()
    torch.testing.assert_close(losses.dice(sure(guess), target), expected)
    expected = 1 - jaccard_index(guess, target, "multiclass", num_classes=3)
    torch.testing.assert_close(losses.lovasz(sure(guess), target), expected)


def test_absent_classes_are_left_out() -> None:
    logits, target = torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 0]]])
    assert float(losses.dice(logits, target)) == pytest.approx(1 - (4 / 3) / (4 / 3 + 4 / 3))
    assert float(losses.lovasz(logits, target)) == pytest.approx(2 / 3)


def brute_lovasz(error: Tensor, truth: Tensor) -> float:
    """The Lovász extension of a submodular function is the largest of its linear forms, one per order."""

    def jaccard(wrong: frozenset[int]) -> float:
        right = {i for i in range(len(truth)) if truth[i]}
        return len(wrong) / len(right | wrong) if right | wrong else 0.0

    best = -math.inf
    for order in itertools.permutations(range(len(error))):
        values = [jaccard(frozenset(order[:i])) for i in range(len(order) + 1)]
        steps = [after - before for before, after in itertools.pairwise(values)]
        best = max(best, sum(float(error[i]) * step for i, step in zip(order, steps, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_the_largest_over_all_orders(seed: int) -> None:
    logits, target = example(seed, ignored=0.0, shape=(1, 3, 1, 5))
    probability, labels = logits.softmax(1).flatten(2)[0], target.flatten()
    present = labels.unique().tolist()
    values = [brute_lovasz(((labels == k).float() - probability[k]).abs(), labels == k) for k in present]
    assert float(losses.lovasz(logits, target)) == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_mse_is_the_brier_score() -> None:
    logits, target = example(ignored=0.0)
    expected = (logits.softmax(1) - F.one_hot(target, 3).movedim(3, 1)).square().sum(1).mean()
    torch.testing.assert_close(losses.mse(logits, target), expected)


@pytest.mark.parametrize("name", losses.NAMES)
def test_gradients(name: str) -> None:
    logits, target = example(shape=(1, 3, 2, 3))
    assert torch.autograd.gradcheck(lambda x: every(name)(x, target), logits.double().requires_grad_())


@pytest.mark.parametrize("name", losses.NAMES)
def test_nothing_labelled_is_exactly_zero(name: str) -> None:
    logits = example()[0].requires_grad_()
    loss = every(name)(logits, torch.full((2, 5, 4), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())


@pytest.mark.parametrize("name", losses.NAMES)
def test_extreme_logits_and_low_precision(name: str) -> None:
    logits, target = example()
    wild = (1e4 * logits).requires_grad_()
    every(name)(wild, target).backward()
    assert wild.grad is not None
    assert bool(wild.grad.isfinite().all())
    with torch.autocast("cpu", torch.bfloat16):
        low = every(name)(logits.bfloat16(), target)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, every(name)(logits.bfloat16().float(), target))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), ignored=st.floats(0, 0.9), name=st.sampled_from(losses.NAMES))
def test_invariances(seed: int, ignored: float, name: str) -> None:
    logits, target = example(seed, ignored)
    loss = every(name)
    value = loss(logits, target)
    assert float(value) >= 0
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    changed = logits.where((target != IGNORE).unsqueeze(1), logits + 3 * noise)
    torch.testing.assert_close(loss(changed, target), value)
    torch.testing.assert_close(loss(logits + 5, target), value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss(logits.flip(3), target.flip(2)), value)
    assert float(loss(sure(target), target)) == pytest.approx(0, abs=1e-5)


def test_compose_weights_and_names_terms() -> None:
    logits, target = example()
    terms = losses.compose(" 0.5*focal + lovasz ")(logits, target)
    assert list(terms) == ["focal", "lovasz", "loss"]
    torch.testing.assert_close(terms["focal"], losses.focal(logits, target))
    torch.testing.assert_close(terms["loss"], 0.5 * terms["focal"] + terms["lovasz"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entropy", "no 'entropy'.*cross_entropy, focal, dice"),
        ("dice+", "no ''"),
        ("", "no ''"),
        ("x*dice", "'x' is not a weight"),
        ("-1*dice", "'-1' is not a weight"),
        ("0*dice", "above 0"),
        ("inf*dice", "above 0"),
        ("dice+2*dice", "twice"),
        ("balanced_cross_entropy", "needs the class shares"),
        (5, "must be a name or a sum .*, not 5"),
        (None, "must be a name or a sum .*, not None"),
    ],
)
def test_compose_explains_mistakes(spec: Any, message: str) -> None:
    with pytest.raises(SegmintError, match=f"loss: .*{message}"):
        losses.compose(spec)


@pytest.mark.parametrize(
    ("shares", "spec"),
    [
        ((0.5, 0.4, 0.1), "cross_entropy"),
        ((0.5, 0.5, 0.0), "cross_entropy"),
        ((0.5, 0.48, 0.02), "balanced_cross_entropy+lovasz"),
        ((0.98, 0.02), "cross_entropy+lovasz"),
        ((0.6, 0.4), "cross_entropy"),
        ((0.5, 0.499, 0.001), "balanced_cross_entropy+lovasz"),
        ((0.0, 0.0), "cross_entropy"),
    ],
)
def test_choose_says_why(shares: tuple[float, ...], spec: str) -> None:
    chosen, reason = losses.choose(shares)
    assert chosen == spec
    assert reason.startswith(spec + ",")
    assert reason.endswith(".")
    if sum(shares):
        losses.compose(chosen, shares)


def test_where_raters_disagree_probabilities_stay_as_they_are() -> None:
    chosen, reason = losses.choose((0.5, 0.499, 0.001), agreed=False)
    assert (chosen, reason) == ("cross_entropy", "cross_entropy, which says how likely a class is, as raters disagree.")
    assert losses.settle({"loss": "dice"}, (0.5, 0.5), agreed=False)[0]["loss"] == "dice"


@pytest.mark.parametrize("name", ["supervised", "adversarial", "consistency", "maskflow"])
def test_methods_tell_whether_raters_disagree(name: str) -> None:
    shares = {"classes": 2, "channels": 1, "size": (32, 32), "shares": (0.99, 0.01), "labelled": 9, "unlabelled": 9}
    chosen = [
        find(name).adapt({"loss": "auto"}, Facts(**shares, steps=100, raters=4, disagreement=distance))[0]["loss"]
        for distance in (0.4, 0.05)
    ]
    assert chosen == ["cross_entropy", "cross_entropy+lovasz"]
