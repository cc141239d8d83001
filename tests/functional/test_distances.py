import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from segmint.functional.distances import (
    copy_limit,
    density_coverage,
    distances,
    diversity,
    frechet_distance,
    kernel_distance,
    mean_distance,
    memorisation,
    nearest,
    nearest_other,
    precision_recall,
)


def points(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Same(torch.nn.Module):
    """Features that are the pixels themselves."""

    num_features = 6

    def forward(self, image):
        return image.flatten(1).float()


def fed(metric, a: torch.Tensor, b: torch.Tensor):
    metric.update(a[:, :, None, None], real=False)
    metric.update(b[:, :, None, None], real=True)
    return metric.compute()


def test_distances_agree_with_scipy_and_are_zero_between_equals():
    a, b = points(7), points(5, 1)
    np.testing.assert_allclose(distances(a, b), cdist(a, b), rtol=1e-6)
    assert (distances(a, a).diagonal() == 0).all()
    assert mean_distance(a) == pytest.approx(pdist(a.double()).mean())
    assert math.isnan(mean_distance(a[:1]))


def test_diversity_is_0_for_one_image_1_for_real_ones_and_scales():
    real = points(20)
    assert diversity(real[:1].expand(8, -1), real) == 0
    assert diversity(real, real) == pytest.approx(1)
    assert diversity(real * 0.5 + 3, real) == pytest.approx(0.5, rel=1e-6)
    assert math.isnan(diversity(real, real[:1].expand(4, -1)))


def test_nearest_by_hand():
    line = torch.tensor([[0.0], [1.0], [5.0]])
    found, place = nearest(torch.tensor([[0.9], [9.0]]), line)
    assert found.tolist() == pytest.approx([0.1, 4])
    assert place.tolist() == [1, 2]
    assert nearest_other(line).tolist() == [1, 1, 4]
    assert nearest_other(line[:1]).tolist() == [math.inf]
    assert copy_limit(line, 0.5) == 1
    assert copy_limit(line[:1]) == math.inf


@pytest.mark.parametrize(("n", "m"), [(50, 40), (4, 5)])
def test_frechet_distance_agrees_with_the_root_of_the_covariances_product(n, m):
    a, b = points(n).double(), 2 * points(m, 1).double() + 0.3
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    one, other = np.cov(a.T), np.cov(b.T)
    shift = 0 if n > 6 else 1e-9 * np.eye(6)
    expected = means + np.trace(one + other - 2 * sqrtm(one @ other + shift).real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-3 if n < 6 else 1e-8)


def test_frechet_distance_agrees_with_torchmetrics_and_moves_as_it_should():
    a, b = points(60), points(50, 1) * 1.5 + 1
    library = fed(FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64), a.double(), b.double())
    assert frechet_distance(a, b) == pytest.approx(float(library), rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kernel_distance_agrees_with_torchmetrics_and_is_unbiased():
    a, b = points(30), points(30, 1) + 0.5
    library = fed(KernelInceptionDistance(feature=Same(), subsets=1, subset_size=30), a, b)
    assert kernel_distance(a, b)[0] == pytest.approx(float(library[0]), rel=1e-4)
    equal = [kernel_distance(points(20, seed), points(15, 500 + seed))[0] for seed in range(200)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / math.sqrt(200)


def test_the_error_of_the_kernel_distance_is_its_spread_and_that_of_leaving_one_out():
    drawn = [kernel_distance(points(40, seed), points(30, 900 + seed) + 1) for seed in range(200)]
    values, errors = np.array(drawn).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    a, b = points(8), points(6, 1) + 1
    without_a = [kernel_distance(torch.cat([a[:i], a[i + 1 :]]), b)[0] for i in range(8)]
    without_b = [kernel_distance(a, torch.cat([b[:i], b[i + 1 :]]))[0] for i in range(6)]
    expected = math.sqrt(7 * np.var(without_a) + 5 * np.var(without_b))
    assert kernel_distance(a, b)[1] == pytest.approx(expected)


def test_precision_and_recall_by_brute_force():
    fake, real = points(25).double(), points(30, 1).double() * 1.3

    def inside(these: np.ndarray, those: np.ndarray, k: int) -> float:
        radii = np.sort(cdist(those, those), 1)[:, k]
        return float(np.mean([(cdist(one[None], those)[0] <= radii).any() for one in these]))

    for k in (1, 3):
        expected = inside(fake.numpy(), real.numpy(), k), inside(real.numpy(), fake.numpy(), k)
        assert precision_recall(fake, real, k) == pytest.approx(expected)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    one_place = precision_recall(real[:1] + 1e-3 * points(10, 2), real)
    assert one_place[0] == 1
    assert one_place[1] < 0.2


def test_density_and_coverage_by_brute_force():
    fake, real = points(25).double(), points(30, 1).double()
    radii = np.sort(cdist(real, real), 1)[:, 5]
    inside = cdist(fake, real) <= radii
    density, coverage = density_coverage(fake, real)
    assert density == pytest.approx(inside.sum() / (5 * 25))
    assert coverage == pytest.approx(inside.any(0).mean())
    assert density_coverage(real + 100, real) == (0, 0)
    many = density_coverage(points(500, 3), points(500, 4))
    assert many[0] == pytest.approx(1, abs=0.15)
    assert many[1] > 0.9


def test_copies_are_found_and_fresh_images_are_not():
    train, fresh = points(400), points(300, 1)
    copied = memorisation(train[:50] + 1e-3 * points(50, 2), train, fresh)
    assert copied["copies"] == 1
    assert copied["nearest_ratio"] < 0.02
    assert copied["nearer_than_fresh"] > 0.99
    honest = memorisation(points(400, 3), train, fresh)
    assert honest["copies"] == pytest.approx(0.01, abs=0.02)
    assert honest["nearest_ratio"] == pytest.approx(1, abs=0.1)
    assert honest["nearer_than_fresh"] == pytest.approx(0.5, abs=0.06)
    assert memorisation(fresh, train)["nearer_than_fresh"] is None
    assert memorisation(fresh, train, fresh)["nearer_than_fresh"] == 0.5
    assert memorisation(points(9) + 50, train, fresh)["nearer_than_fresh"] == 0


@pytest.mark.parametrize(
    ("figure", "count"), [(frechet_distance, 1), (kernel_distance, 2), (precision_recall, 3), (density_coverage, 5)]
)
def test_too_few_images_are_refused(figure, count):
    with pytest.raises(ValueError, match="at least"):
        figure(points(20), points(count))
