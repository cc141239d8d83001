import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from segmint.functional import metrics
from segmint.types import IGNORE

K = 5


def masks(seed: int = 0, batch: int = 4, size: tuple[int, int] = (18, 23), share: float = 0.1):
    """Blocky predictions and truths, with some pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(K, (2, batch, 5, 6), generator=generator)
    prediction, truth = torch.nn.functional.interpolate(small.float(), size=size).long()
    truth = torch.where(torch.rand(truth.shape, generator=generator) < share, IGNORE, truth)
    return prediction, truth


def probabilities(seed: int = 0, batch: int = 3):
    generator = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(batch, K, 11, 13, generator=generator)).softmax(1)
    truth = torch.randint(K, (batch, 11, 13), generator=generator)
    return p, truth


def test_confusion_agrees_with_scikit_learn_image_by_image():
    prediction, truth = masks()
    table = metrics.confusion(prediction, truth, K)
    assert table.dtype == torch.int64
    for b in range(len(truth)):
        known = truth[b] != IGNORE
        expected = confusion_matrix(truth[b][known], prediction[b][known], labels=range(K))
        assert (table[b].numpy() == expected).all()


def test_confusion_takes_bytes_and_an_unlabelled_image():
    prediction, truth = masks()
    truth[1] = IGNORE
    as_bytes = metrics.confusion(prediction.to(torch.uint8), truth.to(torch.uint8), K)
    assert torch.equal(as_bytes, metrics.confusion(prediction, truth, K))
    assert as_bytes[1].sum() == 0
    assert metrics.confusion(prediction[1:2], truth[1:2], K).sum() == 0


def test_confusion_refuses_what_cannot_be_counted():
    prediction, truth = masks()
    with pytest.raises(ValueError, match="not below 3"):
        metrics.confusion(prediction, truth, 3)
    with pytest.raises(ValueError, match="prediction is"):
        metrics.confusion(prediction[:1], truth, K)


def test_iou_dice_and_accuracy_agree_with_scikit_learn():
    prediction, truth = masks(1)
    table = metrics.confusion(prediction, truth, K).sum(0)
    known = truth != IGNORE
    true, called = truth[known], prediction[known]
    np.testing.assert_allclose(metrics.class_iou(table), jaccard_score(true, called, average=None))
    np.testing.assert_allclose(metrics.mean_iou(table), jaccard_score(true, called, average="macro"))
    np.testing.assert_allclose(metrics.class_dice(table), f1_score(true, called, average=None))
    np.testing.assert_allclose(metrics.mean_dice(table), f1_score(true, called, average="macro"))
    assert float(metrics.pixel_accuracy(table)) == pytest.approx(float((true == called).double().mean()))


def test_a_class_in_neither_mask_is_left_out_of_the_mean_but_a_missed_one_is_not():
    truth = torch.tensor([[[0, 0, 1, 1]]])
    prediction = torch.tensor([[[0, 0, 0, 2]]])
    table = metrics.confusion(prediction, truth, 4)[0]
    iou = metrics.class_iou(table)
    np.testing.assert_allclose(iou, [2 / 3, 0, 0, np.nan])
    assert float(metrics.mean_iou(table)) == pytest.approx(2 / 9)
    assert float(metrics.mean_dice(table)) == pytest.approx(0.8 / 3)


def brute_boundary(mask: np.ndarray, k: int) -> np.ndarray:
    edge = np.zeros(mask.shape, bool)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                v, u = y + dy, x + dx
                if 0 <= v < height and 0 <= u < width and mask[y, x] == k:
                    edge[y, x] |= mask[v, u] not in (k, IGNORE)
    return edge


@pytest.mark.parametrize("tolerance", [0.0075, 0.05, 0.11])
def test_boundary_f1_agrees_with_distance_transforms(tolerance):
    prediction, truth = masks(2, batch=3)
    radius = tolerance * np.hypot(*truth.shape[1:])
    found = metrics.boundary_f1(prediction, truth, K, tolerance)
    assert found.shape == (3, K)
    for b in range(3):
        true = truth[b].numpy()
        called = np.where(true == IGNORE, IGNORE, prediction[b].numpy())
        for k in range(K):
            ours, theirs = brute_boundary(called, k), brute_boundary(true, k)
            if not ours.any() and not theirs.any():
                assert found[b, k].isnan()
                continue
            precision = (distance_transform_edt(~theirs)[ours] <= radius).mean() if ours.any() else 0
            recall = (distance_transform_edt(~ours)[theirs] <= radius).mean() if theirs.any() else 0
            if not ours.any() or not theirs.any():
                precision = recall = 0
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
            assert float(found[b, k]) == pytest.approx(expected)


def test_boundary_f1_in_plain_cases():
    truth = torch.zeros(1, 40, 40, dtype=torch.long)
    truth[:, :, 20:] = 1
    shifted = torch.zeros_like(truth)
    shifted[:, :, 22:] = 1
    assert metrics.boundary_f1(truth, truth, 3).tolist()[0][:2] == [1, 1]
    assert metrics.boundary_f1(truth, truth, 3)[0, 2].isnan()
    assert metrics.boundary_f1(shifted, truth, 2, tolerance=1.9 / np.hypot(40, 40)).tolist() == [[0, 0]]
    assert metrics.boundary_f1(shifted, truth, 2, tolerance=2.01 / np.hypot(40, 40)).tolist() == [[1, 1]]
    assert metrics.boundary_f1(torch.zeros_like(truth), truth, 2).tolist() == [[0, 0]]


def test_boundary_means_are_over_the_images_that_have_one():
    scores = torch.tensor([[1.0, torch.nan, torch.nan], [0.5, 0.25, torch.nan]])
    table = metrics.boundary_table(scores).sum(0)
    np.testing.assert_allclose(metrics.class_boundary_f1(table), [0.75, 0.25, np.nan])
    assert float(metrics.mean_boundary_f1(table)) == pytest.approx(0.5)


def test_calibration_error_agrees_with_torchmetrics_and_streams():
    p, truth = probabilities()
    expected = MulticlassCalibrationError(K, n_bins=15)(p, truth)
    table = metrics.calibration_table(p, truth)
    assert table.shape == (3, 15, 3)
    assert float(metrics.calibration_error(table.sum(0))) == pytest.approx(float(expected), rel=1e-5)
    parts = metrics.calibration_table(p[:1], truth[:1]).sum(0) + metrics.calibration_table(p[1:], truth[1:]).sum(0)
    torch.testing.assert_close(parts, table.sum(0))


def test_calibration_of_certainty():
    p = torch.zeros(1, 2, 1, 4)
    p[:, 0] = 1
    truth = torch.tensor([[[0, 0, 0, 1]]])
    assert float(metrics.calibration_error(metrics.calibration_table(p, truth).sum(0))) == pytest.approx(0.25)
    ignored = torch.tensor([[[0, 0, 0, IGNORE]]])
    assert float(metrics.calibration_error(metrics.calibration_table(p, ignored).sum(0))) == 0


def test_brier_and_nll_agree_with_scikit_learn():
    p, truth = probabilities(3)
    rows = p.permute(0, 2, 3, 1).reshape(-1, K).double()
    one_hot = torch.nn.functional.one_hot(truth.flatten(), K)
    brier = float((rows - one_hot).square().sum(1).mean())
    assert float(metrics.ratio(metrics.brier_table(p, truth).sum(0))) == pytest.approx(brier)
    nll = log_loss(truth.flatten(), rows / rows.sum(1, keepdim=True), labels=range(K))
    assert float(metrics.ratio(metrics.nll_table(p, truth).sum(0))) == pytest.approx(nll, rel=1e-5)


def test_brier_and_nll_do_not_count_ignored_pixels():
    p, truth = probabilities(4, batch=1)
    half = truth.clone()
    half[:, :, 6:] = IGNORE
    for table in (metrics.brier_table, metrics.nll_table):
        torch.testing.assert_close(table(p, half), table(p[..., :6], truth[..., :6]))
    certain = torch.tensor([[[[1.0]], [[0.0]]]])
    assert metrics.nll_table(certain, torch.ones(1, 1, 1, dtype=torch.long))[0, 0].isfinite()


def test_majority_takes_the_lowest_class_of_a_tie_and_counts_no_unknown_votes():
    raters = torch.tensor([[[0, 1, 2, IGNORE]], [[1, 1, 0, IGNORE]], [[1, 2, IGNORE, IGNORE]]])
    assert metrics.majority(raters, 3).tolist() == [[1, 1, 0, IGNORE]]


def test_units_are_groups_where_there_are_five():
    few = metrics.units(["a"] * 6 + ["b"] * 3)
    assert (few.kind, few.count) == ("images", 9)
    assert "only 2 groups" in few.note
    assert "one group" in metrics.units(["a", "a"]).note
    five = metrics.units([*"abcde", "a", ""])
    assert (five.kind, five.count) == ("groups", 6)
    assert five.index.tolist() == [0, 1, 2, 3, 4, 0, 5]
    assert metrics.units(["", "", ""]).kind == "images"
    assert metrics.units([*"abcdefg"]).note == "Intervals resample the 7 images."


def test_resampling_groups_adds_up_whole_groups():
    tables = torch.arange(12.0).view(6, 2)
    groups = metrics.Units(torch.tensor([0, 0, 1, 1, 2, 2]), 3, "groups", "")
    drawn = metrics.resample(tables, lambda t: t, groups, resamples=50, seed=3)
    sums = torch.stack([tables[:2].sum(0), tables[2:4].sum(0), tables[4:].sum(0)]).double()
    assert torch.equal(drawn[0], tables.sum(0).double())
    torch.testing.assert_close(drawn[1:], metrics.weights(3, 50, 3) @ sums)
    assert (metrics.weights(3, 50, 3).sum(1) == 3).all()


def test_the_interval_of_a_mean_is_that_of_theory_and_repeats_with_its_seed():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, generator=generator)
    tables = torch.stack([values, torch.ones(200)], 1)
    units = metrics.units([""] * 200)
    value, low, high = metrics.bootstrap(tables, metrics.ratio, units, resamples=4000)
    error = float(values.std() / 200**0.5)
    assert float(value) == pytest.approx(float(values.mean()), abs=1e-6)
    assert float(low) == pytest.approx(float(value) - 1.96 * error, abs=0.12 * error)
    assert float(high) == pytest.approx(float(value) + 1.96 * error, abs=0.12 * error)
    again = metrics.bootstrap(tables, metrics.ratio, units, resamples=4000)
    assert torch.equal(again, torch.stack([value, low, high]))
    assert not torch.equal(again, metrics.bootstrap(tables, metrics.ratio, units, resamples=4000, seed=1))


def test_confusion_matrices_bootstrap_like_a_loop():
    prediction, truth = masks(5, batch=6)
    tables = metrics.confusion(prediction, truth, K)
    drawn = metrics.resample(tables, metrics.mean_iou, metrics.units([""] * 6), resamples=20, seed=1)
    for row, counts in enumerate(metrics.weights(6, 20, 1), 1):
        chosen = torch.repeat_interleave(torch.arange(6), counts.long())
        assert float(drawn[row]) == pytest.approx(float(metrics.mean_iou(tables[chosen].sum(0))))


def test_pairing_sees_a_difference_that_is_smaller_than_the_spread_of_images():
    generator = torch.Generator().manual_seed(0)
    hard = torch.randn(80, generator=generator)
    better = hard + 0.1 + 0.05 * torch.randn(80, generator=generator)
    one = torch.ones(80)
    units = metrics.units([""] * 80)
    a, b = torch.stack([hard, one], 1), torch.stack([better, one], 1)
    (value, low, high), p = metrics.bootstrap_difference(a, b, metrics.ratio, units)
    assert 0 < low < value < high
    assert float(value) == pytest.approx(float((better - hard).mean()), abs=1e-6)
    assert float(p) == pytest.approx(2 / 2001)
    _, same = metrics.bootstrap_difference(a, a, metrics.ratio, units)
    assert float(same) == 1


def test_p_values_are_uniform_where_there_is_no_difference():
    generator = torch.Generator().manual_seed(1)
    units = metrics.units([""] * 60)
    found = []
    for _ in range(200):
        noise = torch.stack([torch.randn(60, generator=generator), torch.ones(60)], 1)
        _, p = metrics.bootstrap_difference(
            noise * 0 + noise.new_tensor([0, 1]), noise, metrics.ratio, units, resamples=300
        )
        found.append(float(p))
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.11


def test_a_class_that_some_resamples_miss_has_an_interval_all_the_same():
    tables = torch.zeros(3, 2, 2)
    tables[:, 0, 0] = 4
    tables[0, 1, 1] = 4
    bounds = metrics.bootstrap(tables, metrics.class_iou, metrics.units(["", "", ""]), resamples=200)
    assert bounds.shape == (3, 2)
    assert bounds.tolist() == [[1, 1], [1, 1], [1, 1]]


def test_holm_by_hand():
    assert metrics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert metrics.holm([]) == []
