from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.functional import ambiguity
from segmint.types import IGNORE


def masks(count: int, classes: int = 2, seed: int = 0, size: tuple[int, int] = (4, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (count, *size), generator=generator)


def slow(a: torch.Tensor, b: torch.Tensor, classes: tuple[int, ...], *, dice: bool = False) -> float:
    """IoU or Dice of two masks, pixel by pixel."""
    scores = []
    pixels = [(int(x), int(y)) for x, y in zip(a.flatten(), b.flatten(), strict=True)]
    pixels = [(x, y) for x, y in pixels if IGNORE not in (x, y)]
    for k in classes:
        both, either = sum(x == k == y for x, y in pixels), sum(k in (x, y) for x, y in pixels)
        if either:
            scores.append(2 * both / (both + either) if dice else both / either)
    return sum(scores) / len(scores) if scores else 1.0


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("ignored", [False, True])
def test_overlaps_of_all_pairs_are_those_of_pixels(classes, ignored):
    first, second = masks(3, classes), masks(4, classes, seed=1)
    if ignored:
        first[1, :2], second[2, 1:3] = IGNORE, IGNORE
    first[0] = 0
    second[0] = 0
    chosen = ambiguity.foreground(classes)
    for function, dice in ((ambiguity.iou, False), (ambiguity.dice, True)):
        table = function(first, second, chosen)
        for (i, a), (j, b) in product(enumerate(first), enumerate(second)):
            assert float(table[i, j]) == pytest.approx(slow(a, b, chosen, dice=dice))
    batched = ambiguity.iou(torch.stack([first, first]), torch.stack([second, second]), chosen)
    assert torch.equal(batched[1], ambiguity.iou(first, second, chosen))
    assert torch.equal(ambiguity.iou(first.to(torch.uint8), second.to(torch.uint8), chosen), batched[0])


def test_two_empty_masks_agree_and_an_empty_one_disagrees_with_any_other():
    empty = torch.zeros(1, 3, 3, dtype=torch.long)
    dot = empty.clone()
    dot[0, 1, 1] = 1
    table = ambiguity.distances(torch.cat([empty, dot]), torch.cat([empty, dot]), (1,))
    assert table.tolist() == [[0, 1], [1, 0]]
    assert ambiguity.foreground(2) == (1,)
    assert ambiguity.foreground(3) == (0, 1, 2)


def tables(draws: torch.Tensor, raters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = ((draws, raters), (draws, draws), (raters, raters))
    across, own, among = (ambiguity.distances(*pair, (1,)) for pair in pairs)
    return across, own, among


def test_ged_is_that_of_loops_over_pairs():
    draws, raters = masks(3), masks(4, seed=1)
    d = [[1 - slow(a, b, (1,)) for b in (*draws, *raters)] for a in (*draws, *raters)]
    across = sum(d[s][3 + r] for s, r in product(range(3), range(4))) / 12
    own = sum(d[s][t] for s, t in product(range(3), repeat=2))
    among = sum(d[3 + s][3 + t] for s, t in product(range(4), repeat=2))
    found = tables(draws, raters)
    assert float(ambiguity.ged(*found)) == pytest.approx(2 * across - own / 9 - among / 16)
    assert float(ambiguity.ged(*found, unbiased=True)) == pytest.approx(2 * across - own / 6 - among / 12)
    assert float(ambiguity.diversity(found[1])) == pytest.approx(own / 6)
    quality = sum(1 - min(d[s][3:]) for s in range(3)) / 3
    coverage = sum(1 - min(d[s][3 + r] for s in range(3)) for r in range(4)) / 4
    assert float(ambiguity.draw_quality(found[0])) == pytest.approx(quality)
    assert float(ambiguity.rater_coverage(found[0])) == pytest.approx(coverage)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_ged_is_never_below_zero_and_zero_for_the_same_masks(seed, count, raters):
    draws, others = masks(count, seed=seed), masks(raters, seed=seed + 1)
    assert float(ambiguity.ged(*tables(draws, others))) > -1e-12
    assert float(ambiguity.ged(*tables(others, others.flip(0)))) == pytest.approx(0, abs=1e-12)


def test_one_mask_alone_has_no_unbiased_ged():
    found = tables(masks(1), masks(3, seed=1))
    assert math.isnan(float(ambiguity.ged(*found, unbiased=True)))
    assert math.isfinite(float(ambiguity.ged(*found)))


def test_unbiased_ged_does_not_depend_on_the_number_of_draws():
    """Over all samples of 2 or 3 from a population of draws, with replacement."""
    population, raters = masks(3), masks(3, seed=1)
    across, own, among = tables(population, raters)
    means = {}
    for unbiased, count in product((False, True), (2, 3)):
        figures = [
            float(ambiguity.ged(across[list(some)], own[list(some)][:, list(some)], among, unbiased=unbiased))
            for some in product(range(3), repeat=count)
        ]
        means[unbiased, count] = sum(figures) / len(figures)
    assert means[True, 2] == pytest.approx(means[True, 3])
    assert means[False, 2] > means[False, 3] + 0.01


def slow_matching(table: torch.Tensor) -> float:
    size = math.lcm(*table.shape)
    full = table.repeat_interleave(size // table.shape[0], 0).repeat_interleave(size // table.shape[1], 1).tolist()
    best = min(sum(full[i][j] for i, j in enumerate(order)) for order in permutations(range(size)))
    return 1 - best / size


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (2, 3), (1, 5), (6, 1)])
def test_matched_iou_is_the_best_of_all_pairings(shape):
    table = ambiguity.distances(masks(shape[0]), masks(shape[1], seed=1), (1,))
    assert ambiguity.matched_iou(table) == pytest.approx(slow_matching(table))


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_raters_own_ged_is_the_mean_over_all_samples_of_them(draws):
    raters = masks(3)
    across = ambiguity.distances(raters, raters, (1,))
    figures = [
        float(ambiguity.ged(across[list(some)], across[list(some)][:, list(some)], across))
        for some in product(range(3), repeat=draws)
    ]
    assert float(ambiguity.ged_of_raters(across, draws)) == pytest.approx(sum(figures) / len(figures))


def test_single_masks_and_their_ged():
    raters = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 1, 1]], [[0, 0, 0, 1]]])
    found = ambiguity.single_masks(raters, 2)[:, 0].tolist()
    assert found[0] == [0, 0, 1, 1]  # the majority
    assert found[1] == [0, 0, 0, 0]
    assert found[2:5] == raters[:, 0].tolist()
    assert found[5:] == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]  # the union, two of three, the intersection
    singles = ambiguity.single_masks(raters, 2)
    across, among = ambiguity.distances(singles, raters, (1,)), ambiguity.distances(raters, raters, (1,))
    for mask, figure in zip(singles, ambiguity.ged_of_single(across, among), strict=True):
        assert float(ambiguity.ged(*tables(mask[None], raters))) == pytest.approx(float(figure))
    classes = torch.tensor([[[0, 1, 2, 2]], [[1, 2, 2, 0]]])
    assert ambiguity.single_masks(classes, 3)[4:, 0].tolist() == [[1, 1, 2, 2], [0, 1, 2, 0]]


def test_clusters_find_the_distinct_masks():
    far = torch.ones(5, 5)
    far[:3, :3] = 0.1  # three alike, one a little further from the others
    far[2, :2] = far[:2, 2] = 0.2
    far[3:, 3:] = 0.1
    far.fill_diagonal_(0)
    assert ambiguity.clusters(far) == [(0, 0.6), (3, 0.4)]
    assert ambiguity.clusters(far, threshold=1.0) == [(0, 1.0)]
    assert len(ambiguity.clusters(far, threshold=0.05)) == 5
    assert ambiguity.clusters(torch.zeros(1, 1)) == [(0, 1.0)]
    assert ambiguity.clusters(torch.zeros(4, 4)) == [(0, 1.0)]


def test_expected_dice_is_the_mean_over_coherent_masks():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 3, 4, 4, generator=generator).softmax(1)
    labels = masks(2, 3, size=(4, 4))
    found = ambiguity.expected_dice(labels, probabilities, (1, 2), levels=8)
    for b in range(2):
        total = 0.0
        for level in range(8):
            scores = []
            for k in (1, 2):
                truth, chosen = probabilities[b, k] > (level + 0.5) / 8, labels[b] == k
                if truth.any() or chosen.any():
                    scores.append(float(2 * (truth & chosen).sum() / (truth.sum() + chosen.sum())))
            total += sum(scores) / len(scores) if scores else 1.0
        assert float(found[b]) == pytest.approx(total / 8)


def test_expected_dice_of_certainty_is_one_and_of_an_empty_mask_the_chance_of_emptiness():
    labels = masks(1)
    certain = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    assert float(ambiguity.expected_dice(labels, certain, (1,))) == pytest.approx(1)
    assert float(ambiguity.expected_dice(1 - labels, certain, (1,))) == pytest.approx(0)
    faint = torch.zeros(1, 2, 4, 4)
    faint[0, 1, 1, 1] = 0.25
    assert float(ambiguity.expected_dice(torch.zeros(1, 4, 4), faint, (1,))) == pytest.approx(0.75)
