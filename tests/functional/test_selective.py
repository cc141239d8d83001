from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, roc_auc_score

from segmint.functional import metrics, selective
from segmint.types import IGNORE


def figures(count: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = np.random.default_rng(seed)
    risk = numbers.random(count)
    return torch.from_numpy(1 - risk + numbers.normal(0, 0.3, count)), torch.from_numpy(risk)


def slow_aurc(confidence: torch.Tensor, risk: torch.Tensor) -> float:
    ordered = [r for _, r in sorted(zip(confidence.tolist(), risk.tolist(), strict=True), reverse=True)]
    return float(np.mean([np.mean(ordered[: n + 1]) for n in range(len(ordered))]))


def test_aurc_is_the_mean_risk_over_all_coverages():
    confidence, risk = figures()
    table = selective.curve_table(confidence, risk).sum(0)
    assert float(selective.aurc(table)) == pytest.approx(slow_aurc(confidence, risk))
    best = slow_aurc(-risk, risk)
    assert float(selective.excess_aurc(table)) == pytest.approx(slow_aurc(confidence, risk) - best)
    perfect = selective.curve_table(-risk, risk).sum(0)
    assert float(selective.excess_aurc(perfect)) == pytest.approx(0, abs=1e-12)


def test_the_curve_goes_from_the_surest_image_to_all():
    confidence, risk = figures()
    coverage, curve = selective.risk_coverage(selective.curve_table(confidence, risk).sum(0))
    assert float(curve[0]) == pytest.approx(float(risk[confidence.argmax()]))
    assert float(curve[-1]) == pytest.approx(float(risk.mean()))
    assert coverage.tolist() == pytest.approx([(n + 1) / 40 for n in range(40)])
    assert float(curve.mean()) == pytest.approx(slow_aurc(confidence, risk))
    assert abs(auc(coverage, curve) - float(curve.mean())) < 0.02


def test_what_is_kept_at_some_coverage():
    confidence, risk = figures()
    table = selective.curve_table(confidence, risk).sum(0)
    ordered = risk[confidence.argsort(descending=True)]
    for coverage in (0.5, 0.8, 0.9, 1.0):
        expected = 1 - float(ordered[: round(40 * coverage)].mean())
        assert float(selective.kept(coverage)(table)) == pytest.approx(expected)
    part = 1 - (ordered[0] + ordered[1] / 2) / 1.5
    assert float(selective.kept(1.5 / 40)(table)) == pytest.approx(float(part))


def test_resampled_tables_give_the_figure_of_resampled_images():
    confidence, risk = figures(12)
    groups = metrics.units([""] * 12)
    found = metrics.resample(selective.curve_table(confidence, risk), selective.aurc, groups, 20, seed=3)
    for row, counts in zip(found[1:], metrics.weights(12, 20, seed=3).long(), strict=True):
        again = [repeated.repeat_interleave(counts) for repeated in (confidence, risk)]
        assert float(row) == pytest.approx(slow_aurc(*again))


def test_images_of_the_same_confidence_come_in_any_order():
    confidence, risk = torch.tensor([0.5, 0.5, 0.9]), torch.tensor([0.0, 1.0, 0.3])
    table = selective.curve_table(confidence, risk).sum(0)
    either = [slow_aurc(torch.tensor([0.5 + e, 0.5, 0.9]), risk) for e in (0.01, -0.01)]
    assert float(selective.aurc(table)) == pytest.approx(sum(either) / 2)


def test_images_without_truth_are_left_out_and_many_images_are_binned():
    confidence, risk = figures(5)
    with_gap = selective.curve_table(
        torch.cat([confidence, torch.ones(1)]), torch.cat([risk, torch.tensor([torch.nan])])
    )
    assert float(selective.aurc(with_gap.sum(0))) == pytest.approx(slow_aurc(confidence, risk))
    assert float(with_gap[5].abs().sum()) == 0
    confidence, risk = figures(1500)
    table = selective.curve_table(confidence, risk)
    assert table.shape == (1500, 2, selective.BINS, 2)
    assert float(selective.aurc(table.sum(0))) == pytest.approx(slow_aurc(confidence, risk), abs=2e-3)


def test_auroc_of_errors_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    doubt = torch.randint(0, selective.PIXEL_BINS, (3, 20, 20), generator=generator)
    doubt = ((doubt + 0.5) / selective.PIXEL_BINS) ** 4  # in the middle of the bins: nothing is lost
    wrong = torch.rand(3, 20, 20, generator=generator) < doubt.sqrt() * 0.5
    truth = torch.randint(0, 4, (3, 20, 20), generator=generator)
    called = torch.where(wrong, (truth + 1) % 4, truth)
    truth[:, :3] = IGNORE
    table = selective.detection_table(doubt, called, truth)
    known = truth != IGNORE
    assert int(table.sum()) == int(known.sum())
    expected = roc_auc_score(wrong[known].numpy(), doubt[known].numpy())
    assert float(selective.auroc(table.sum(0))) == pytest.approx(expected)
    one = roc_auc_score(wrong[1][known[1]].numpy(), doubt[1][known[1]].numpy())
    assert float(selective.auroc(table)[1]) == pytest.approx(one)


def test_auroc_in_bins_is_close_for_entropies_as_they_are():
    numbers = np.random.default_rng(0)
    chance = numbers.beta(0.1, 2, 20_000)
    wrong = numbers.random(20_000) < chance / 2
    doubt = torch.from_numpy(-chance * np.log(chance + 1e-12)).clamp(0, 1).view(1, 100, 200)
    called = torch.from_numpy(wrong).long().view(1, 100, 200)
    table = selective.detection_table(doubt, called, torch.zeros_like(called))
    assert float(selective.auroc(table.sum(0))) == pytest.approx(roc_auc_score(wrong, doubt.flatten()), abs=2e-3)


def test_without_errors_there_is_no_auroc():
    none = torch.zeros(1, 4, 4, dtype=torch.long)
    table = selective.detection_table(torch.rand(1, 4, 4), none, none)
    assert math.isnan(float(selective.auroc(table.sum(0))))
