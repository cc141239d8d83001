"""Distances between two sets of images, computed from their features: how real, how diverse, how much copied.

Features are float [N, D], one row per image. Everything is computed in float64 and is exact, without sampling; the
tables of pairwise distances need 8 N M bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between features, [N, D] and [M, D] -> float64 [N, M]; exactly 0 between equals."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def mean_distance(features: Tensor) -> float:
    """Mean distance between two different images of a set, [N, D]; nan for fewer than two."""
    count = len(features)
    return float(distances(features, features).sum() / (count * (count - 1))) if count > 1 else float("nan")


def diversity(generated: Tensor, real: Tensor) -> float:
    """Mean pairwise feature distance among generated images over that among real ones.

    1: as diverse as the real images; 0: one image again and again; nan if the real ones do not differ.
    """
    among_real = mean_distance(real)
    return mean_distance(generated) / among_real if among_real > 0 else float("nan")


def nearest(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """For each of [N, D] the nearest of [M, D]: (distance float64 [N], its position int64 [N])."""
    found = distances(features, others).min(1)
    return found.values, found.indices


def nearest_other(features: Tensor) -> Tensor:
    """For each of [N, D] the distance to the nearest of the others, float64 [N]; inf where there is none."""
    return _radii(features, 1) if len(features) > 1 else torch.full((len(features),), torch.inf).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between the normal distributions fitted to two sets, [N, D] and [M, D], N, M >= 2.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with sample covariances A and B (Dowson & Landau 1982; Heusel et
    al. 2017). The trace of the root is the sum of the singular values of X Y^T, where X and Y are the centred features
    over sqrt(N - 1) and sqrt(M - 1): exact also with fewer images than features, where A and B are singular.
    It is biased upwards for few images, so compare sets of one size only.

    Raises:
        ValueError: fewer than two images in a set.
    """
    _require(a, b, 2)
    x, y = _centred(a), _centred(b)
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    root = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, float(shift + x.square().sum() + y.square().sum() - 2 * root))


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    Args:
        a: [N, D]; `b`: [M, D]; N, M >= 3.

    Returns:
        The unbiased estimate, which may be below 0, and its standard error by the two-sample jackknife
        (leave one image out, Arvesen 1969).

    Raises:
        ValueError: fewer than three images in a set.
    """
    _require(a, b, 3)
    n, m = len(a), len(b)
    within_a, within_b, across = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    rows_a = within_a.sum(1) - within_a.diagonal()
    rows_b = within_b.sum(1) - within_b.diagonal()
    sum_a, sum_b, sum_ab = rows_a.sum(), rows_b.sum(), across.sum()
    mean_a, mean_b, mean_ab = sum_a / (n * (n - 1)), sum_b / (m * (m - 1)), sum_ab / (n * m)
    without_a = (sum_a - 2 * rows_a) / ((n - 1) * (n - 2)) + mean_b - 2 * (sum_ab - across.sum(1)) / ((n - 1) * m)
    without_b = mean_a + (sum_b - 2 * rows_b) / ((m - 1) * (m - 2)) - 2 * (sum_ab - across.sum(0)) / (n * (m - 1))
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    return float(mean_a + mean_b - 2 * mean_ab), float(variance.sqrt())


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), each 0..1.

    Precision is the share of generated images that lie no further from some real image than this one's k-th nearest
    real neighbour; recall is the same with the sets exchanged.

    Args:
        generated: [N, D]; `real`: [M, D].
        neighbours: k, less than N and M.

    Raises:
        ValueError: a set has not more than `neighbours` images.
    """
    _require(generated, real, neighbours + 1)
    table = distances(generated, real)
    precision = (table <= _radii(real, neighbours)).any(1)
    recall = (table <= _radii(generated, neighbours)[:, None]).any(0)
    return float(precision.double().mean()), float(recall.double().mean())


def density_coverage(generated: Tensor, real: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020), less moved by outliers than precision and recall.

    Density (0 or more, about 1 for equal distributions) counts in how many real images' balls a generated one lies,
    over k; coverage (0..1) is the share of real images with a generated one in their ball. A ball reaches to the k-th
    nearest real neighbour.

    Args:
        generated: [N, D]; `real`: [M, D].
        neighbours: k, less than M.

    Raises:
        ValueError: fewer than one generated, or not more than `neighbours` real images.
    """
    _require(generated, real, 1)
    _require(real, real, neighbours + 1)
    inside = distances(generated, real) <= _radii(real, neighbours)
    return float(inside.double().sum(1).mean() / neighbours), float(inside.any(0).double().mean())


def copy_limit(real: Tensor, share: float = 0.01) -> float:
    """The distance below which `share` of the real images [M, D] have their nearest other; an image nearer than this
    is suspected to be a copy. inf for fewer than two images."""
    return float(nearest_other(real).quantile(share)) if len(real) > 1 else float("inf")


def memorisation(
    generated: Tensor, train: Tensor, fresh: Tensor | None = None, share: float = 0.01
) -> dict[str, float | None]:
    """Whether generated images are copies of those that were learnt from.

    Args:
        generated: [N, D]; `train`: [M, D], M >= 2.
        fresh: real images that were not learnt from, [L, D], or None.
        share: which part of the train-to-train distances counts as a copy.

    Returns:
        "nearest_ratio": median distance of a generated image to its nearest training one over the median distance of
            a training image to its nearest other; far below 1 suspects copies.
        "copies": share of the generated images nearer to a training image than `share` of the training images are
            to their nearest other; "copies_expected": `share`, which further real images would have.
        "nearer_than_fresh": the chance that a generated image is nearer to the training images than a fresh real one
            is (Meehan et al. 2020; ties count half): 0.5 is as it should be, 1 is copying. None without `fresh`.
    """
    _require(generated, train, 1)
    to_train, _ = nearest(generated, train)
    among = nearest_other(train)
    chance = None
    if fresh is not None and len(fresh):
        apart = to_train[:, None] - nearest(fresh, train)[0]
        chance = float(((apart < 0).double() + 0.5 * (apart == 0)).mean())
    return {
        "nearest_ratio": float(to_train.median() / among.median()),
        "copies": float((to_train <= among.quantile(share)).double().mean()),
        "copies_expected": share,
        "nearer_than_fresh": chance,
    }


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    products = a.double() @ b.double().T
    return (products / a.shape[1] + 1) ** 3


def _centred(features: Tensor) -> Tensor:
    return (features.double() - features.double().mean(0)) / math.sqrt(len(features) - 1)


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each of [N, D] to its k-th nearest other, float64 [N]."""
    table = distances(features, features).fill_diagonal_(torch.inf)
    radii: Tensor = table.kthvalue(neighbours, 1).values
    return radii


def _require(a: Tensor, b: Tensor, count: int) -> None:
    if min(len(a), len(b)) < count:
        raise ValueError(f"{len(a)} and {len(b)} images; at least {count} of each are needed")
