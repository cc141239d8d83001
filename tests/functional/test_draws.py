"""What several draws are worth: against brute force, and against what the measures are defined to be."""

from __future__ import annotations

import torch
from torch.distributions import Categorical

from segmint.functional.ambiguity import distances, diversity, ged
from segmint.functional.draws import energy_score, judge, log_likelihood, mixture_nll
from segmint.types import IGNORE


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_likelihood_is_that_of_known_pixels():
    logits = torch.randn(2, 3, 4, 5, generator=numbers())
    target = torch.randint(3, (2, 4, 5), generator=numbers())
    expected = Categorical(logits=logits.movedim(1, -1)).log_prob(target)
    assert torch.allclose(log_likelihood(logits, target), expected, atol=1e-5)
    target[1, :2], expected[1, :2] = IGNORE, 0
    target[0], expected[0] = IGNORE, 0
    assert torch.allclose(log_likelihood(logits, target), expected, atol=1e-5)


def test_the_mixture_is_the_mean_of_probabilities_and_does_not_underflow():
    single = -torch.rand(5, 3, generator=numbers()) * 4
    assert torch.allclose(mixture_nll(single), -single.exp().mean(0).log(), atol=1e-6)
    assert torch.allclose(mixture_nll(single - 5000), -single.exp().mean(0).log() + 5000)
    assert torch.allclose(mixture_nll(single[:1]), -single[0])


def test_the_energy_score_averaged_over_raters_is_half_the_energy_distance():
    raters = torch.randint(3, (2, 4, 6, 6), generator=numbers(1))
    drawn = torch.randint(3, (2, 5, 6, 6), generator=numbers(2))
    across, among, between = (distances(a, b, (1, 2)) for a, b in ((drawn, raters), (drawn, drawn), (raters, raters)))
    scores = torch.stack([energy_score(across[..., [r]], among) for r in range(4)]).mean(0)
    assert torch.allclose(2 * scores - diversity(between), ged(across, among, between, unbiased=True))


def certain(masks: torch.Tensor) -> torch.Tensor:
    return 20.0 * torch.nn.functional.one_hot(masks, 2).movedim(-1, 1).float()


def test_draws_that_say_how_raters_differ_are_judged_best():
    target = torch.zeros(100, 4, 4, dtype=torch.int64)
    target[:50, :2] = 1

    def score(*chances: float) -> float:
        draws = []
        for number, chance in enumerate(chances):
            mask = torch.zeros_like(target)
            mask[torch.rand(100, generator=numbers(number)) < chance, :2] = 1
            draws.append(certain(mask))
        return float(judge(draws, target)["energy"])

    honest = score(*[0.5] * 8)
    assert honest < score(*[1.0] * 8)
    assert honest < score(*[0.0] * 8)


def test_unlabelled_items_and_pixels_do_not_count():
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[0, 0, 0] = 1
    draws = [torch.randn(2, 2, 4, 4, generator=numbers(s)) for s in range(3)]
    one = judge([logits[:1] for logits in draws], target[:1])
    target[1] = IGNORE
    both = judge(draws, target)
    for key in one:
        assert torch.allclose(one[key], both[key]), key
    nothing = judge(draws, torch.full_like(target, IGNORE))
    assert all(float(value) == 0 for value in nothing.values())


def test_masks_are_compared_exactly_under_autocast():
    masks = torch.rand(4, 3, 64, 64, generator=numbers()) < 0.4
    exact = distances(masks.long(), masks.long(), (1,))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distances(masks.long(), masks.long(), (1,)), exact)
