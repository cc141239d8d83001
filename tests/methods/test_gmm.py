import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import Tensor

from segmint.methods import gmm
from segmint.methods.gmm import GMM
from segmint.methods.method import build, load, save
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (12, 10)


class NoOptimizers:
    def minimize(self, part: str, loss: Tensor) -> None:
        raise AssertionError("EM optimises nothing by gradients")


def scene(count: int = 6, seed: int = 0, ignored: float = 0.3) -> Batch:
    """Bright sky, dark ground, a red object, and noise; half of the masks unknown. No pixel has class 3."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    mask = torch.zeros(count, *SIZE, dtype=torch.int64)
    mask[:, height // 2 :] = 1
    for index in range(count):
        left = int(torch.randint(width - 4, (1,), generator=generator))
        mask[index, 4:8, left : left + 4] = 2
    colours = torch.tensor([[0.7, 0.7, 0.9], [-0.6, -0.5, -0.6], [0.5, -0.6, -0.4]])
    image = colours[mask].movedim(3, 1) + 0.15 * torch.randn(count, 3, *SIZE, generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = IGNORE
    mask[count // 2 :] = IGNORE
    return Batch(image.clamp(-1, 1), mask)


def make(**config: float) -> GMM:
    settings = {"components": 2, "samples": 100, "unlabelled_stride": 1, **config}
    method = build("gmm", classes=4, in_channels=3, image_size=SIZE, **settings)
    assert isinstance(method, GMM)
    return method


def batches(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def fit(method: GMM, batch: Batch, epochs: int, size: int = 4) -> list[dict[str, float]]:
    figures = []
    for _ in range(epochs):
        for part in batches(batch, size):
            method.step(part, NoOptimizers())
        figures.append(method.finish_epoch())
    return figures


@pytest.fixture(scope="module")
def fitted() -> GMM:
    method = make(unlabelled_weight=0.1)
    fit(method, scene(), 6)
    return method


def densities(method: GMM, x: Tensor) -> np.ndarray:
    """p(x, component) [P, G] by scipy."""
    columns = [
        float(weight) * stats.multivariate_normal(mean.numpy(), covariance.numpy()).pdf(x.numpy())
        for weight, mean, covariance in zip(method.weights, method.means, method.covariances, strict=True)
    ]
    return np.stack(columns, 1)


@pytest.mark.parametrize("unlabelled_weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_objective_never_falls(unlabelled_weight: float, ignored: float) -> None:
    figures = fit(make(unlabelled_weight=unlabelled_weight), scene(ignored=ignored), 12)
    objective = [figure["objective"] for figure in figures[1:]]
    assert all(after >= before - 1e-12 for before, after in pairwise(objective))
    assert objective[-1] > objective[0] + 1e-3
    assert all(figure["log_likelihood"] != figure["objective"] for figure in figures[1:])


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_of_noise_never_falls_without_a_prior(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(4, (4, *SIZE), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.5] = IGNORE
    batch = Batch(2 * torch.rand(4, 3, *SIZE, generator=generator) - 1, mask)
    figures = fit(make(prior_weight=0, unlabelled_weight=1), batch, 12)[1:]
    assert all(figure["log_likelihood"] == figure["objective"] for figure in figures)
    values = [figure["log_likelihood"] for figure in figures]
    assert all(after >= before - 1e-12 for before, after in pairwise(values))


def test_reported_likelihood_is_scipys() -> None:
    method, batch = make(unlabelled_weight=0.25), scene()
    fit(method, batch, 3)
    x = torch.cat([gmm.pixels(image) for image in batch.image])
    labels = batch.mask.flatten().numpy()
    by_class = densities(method, x).reshape(len(labels), 4, 2).sum(2)
    known = labels != IGNORE
    sure = np.log(by_class[known, labels[known]]).sum()
    value = (sure + 0.25 * np.log(by_class[~known].sum(1)).sum()) / (known.sum() + 0.25 * (~known).sum())
    assert fit(method, batch, 1)[0]["log_likelihood"] == pytest.approx(value, rel=1e-9)


def test_a_few_unlabelled_pixels_stand_for_all() -> None:
    batch = scene(ignored=0.0)
    method = make(unlabelled_weight=0.25, unlabelled_stride=2)
    figures = fit(method, batch, 8)
    objective = [figure["objective"] for figure in figures[1:]]
    assert all(after >= before - 1e-12 for before, after in pairwise(objective))
    method.step(batch, NoOptimizers())
    assert float(method.totals[1]) == pytest.approx(3 * 120 + 0.25 * 3 * 120)


def test_one_class_is_scikit_learns_mixture() -> None:
    batch = scene(ignored=0.0)
    batch = Batch(batch.image, torch.zeros_like(batch.mask))
    method = GMM(classes=1, in_channels=3, image_size=SIZE, components=3, prior_weight=0, samples=500)
    fit(method, batch, 1)
    x = torch.cat([gmm.pixels(image) for image in batch.image]).numpy()
    reference = GaussianMixture(
        3,
        reg_covar=0,
        tol=0,
        max_iter=10,
        weights_init=method.weights.numpy(),
        means_init=method.means.numpy(),
        precisions_init=np.linalg.inv(method.covariances.numpy()),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        reference.fit(x)
    fit(method, batch, 10)
    np.testing.assert_allclose(method.weights.numpy(), reference.weights_, rtol=1e-6)
    np.testing.assert_allclose(method.covariances.numpy(), reference.covariances_, rtol=1e-6, atol=1e-9)
    assert fit(method, batch, 1)[0]["log_likelihood"] == pytest.approx(reference.score(x), abs=1e-9)


def test_labels_are_kept_and_one_gaussian_is_closed_form() -> None:
    batch = scene(ignored=0.0)[0:3]
    method = make(components=1, prior_weight=0)
    fit(method, batch, 2)
    x = torch.cat([gmm.pixels(image) for image in batch.image])
    for label in range(3):
        own = x[batch.mask.flatten() == label]
        torch.testing.assert_close(method.means[label], own.mean(0))
        torch.testing.assert_close(method.covariances[label], own.T.cov(correction=0))
        assert float(method.weights[label]) == pytest.approx(len(own) / len(x))
    assert float(method.weights[3]) == 0


def test_prior_is_inverse_wishart() -> None:
    batch = scene(ignored=0.0)[0:3]
    method = make(components=1, regularization=0.5, prior_weight=0.1)
    fit(method, batch, 2)
    x = torch.cat([gmm.pixels(image) for image in batch.image])
    strength = 0.1 * len(x) / 4
    own = x[batch.mask.flatten() == 2]
    expected = (len(own) * own.T.cov(correction=0) + strength * 0.5 * torch.eye(5)) / (len(own) + strength)
    torch.testing.assert_close(method.covariances[2], expected)


def test_segment_is_the_posterior_at_any_size(fitted: GMM) -> None:
    image = scene(2, seed=9).image
    logits = fitted.segment(image, Seeds.range(2))
    by_class = densities(fitted, gmm.pixels(image[1])).reshape(-1, 4, 2).sum(2)
    expected = (by_class / by_class.sum(1, keepdims=True)).reshape(*SIZE, 4).transpose(2, 0, 1)
    np.testing.assert_allclose(logits[1].softmax(0).numpy(), expected, atol=1e-6)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())
    larger = torch.nn.functional.interpolate(image, scale_factor=2)
    assert fitted.segment(larger, Seeds.range(2)).shape == (2, 4, 24, 20)


def test_segments_new_scenes(fitted: GMM) -> None:
    batch = scene(8, seed=5, ignored=0.0)[0:4]
    guess = fitted.segment(batch.image, Seeds.range(4)).argmax(1)
    assert float((guess == batch.mask).double().mean()) > 0.97


def test_unlabelled_pixels_teach_unless_they_weigh_nothing() -> None:
    batch = scene()
    alone, without, with_all = make(unlabelled_weight=0), make(unlabelled_weight=0), make(unlabelled_weight=1)
    fit(alone, batch[0:3], 5)
    fit(without, batch, 5)
    fit(with_all, batch, 5)
    image = scene(2, seed=7).image
    one, two, three = (method.segment(image, Seeds.range(2)) for method in (alone, without, with_all))
    assert not torch.allclose(one, three)
    assert GMM.uses_unlabelled
    assert float(with_all.weights.sum()) == pytest.approx(1)
    assert float((one.argmax(1) == two.argmax(1)).double().mean()) > 0.95


def test_state_continues_bit_for_bit_from_any_step() -> None:
    batch = scene()
    whole = make()
    expected = fit(whole, batch, 4, size=2)
    for stop in range(12):
        method, position, figures = make(), 0, []
        for _ in range(4):
            for part in batches(batch, 2):
                if position == stop:
                    state = {key: value.clone() for key, value in method.state_dict().items()}
                    method = make()
                    method.load_state_dict(state)
                    torch.rand(3)
                method.step(part, NoOptimizers())
                position += 1
            figures.append(method.finish_epoch())
        assert figures == expected
        for key, value in whole.state_dict().items():
            assert torch.equal(value, method.state_dict()[key]), (stop, key)


def test_saved_and_loaded(fitted: GMM, tmp_path: Path) -> None:
    save(fitted, tmp_path)
    image = scene(1, seed=3).image
    again = load(tmp_path)
    assert torch.equal(again.segment(image, Seeds.range(1)), fitted.segment(image, Seeds.range(1)))


def test_nothing_is_left_to_an_optimiser(fitted: GMM) -> None:
    assert fitted.parts() == {}
    assert list(fitted.parameters()) == []
    assert fitted.capabilities() == {"segment", "generate"}


def test_an_untrained_model_answers() -> None:
    method = make()
    assert bool((method.segment(scene(1).image, Seeds.range(1)).softmax(1) - 0.25).abs().max() < 1e-6)
    batch = method.generate(Seeds.range(2))
    assert bool(batch.image.isfinite().all())


def test_generate_makes_pairs_that_fit(fitted: GMM) -> None:
    pairs = fitted.generate(Seeds.range(24))
    assert pairs.image.shape == (24, 3, *SIZE)
    assert pairs.mask.dtype == torch.int64
    assert pairs.image.dtype == torch.float32
    assert float(pairs.image.abs().max()) <= 1
    assert set(pairs.mask.unique().tolist()) <= {0, 1, 2}
    guess = fitted.segment(pairs.image, Seeds.range(24)).argmax(1)
    assert float((guess == pairs.mask).double().mean()) > 0.9
    assert not torch.equal(pairs.mask[0], pairs.mask[1])


def test_item_depends_on_its_seed_alone(fitted: GMM) -> None:
    together = fitted.generate(Seeds.range(5))
    for index in range(5):
        alone = fitted.generate(Seeds([index]))
        assert torch.equal(alone.image[0], together.image[index])
        assert torch.equal(alone.mask[0], together.mask[index])


def test_marginals_of_masks_and_colours_are_the_models(fitted: GMM) -> None:
    count = 1500
    pairs = fitted.generate(Seeds.range(count, start=1000))
    expected = fitted._prior(SIZE).exp().sum(1)
    share = torch.stack([(pairs.mask == label).double().mean(0) for label in range(4)])
    margin = 4.5 * (expected * (1 - expected) / count).sqrt() + 4 / count
    assert bool(((share - expected).abs() < margin).all())
    weight = fitted._prior(SIZE).exp().flatten(0, 1).movedim(0, 2).reshape(-1, 8)
    slope = fitted._colour_given_position()[0]
    offset = gmm.grid(*SIZE).unsqueeze(1) - fitted.means[:, 3:]
    colour = fitted.means[:, :3] + torch.einsum("gcd,pgd->pgc", slope, offset)
    mean = (weight.unsqueeze(2) * colour).sum(1).T.view(3, *SIZE)
    assert float((pairs.image.double().mean(0) - mean).abs().max()) < 0.1


def test_neighbours_agree_as_in_training(fitted: GMM) -> None:
    real = scene(40, ignored=0.0).mask[:20]
    drawn = fitted.generate(Seeds.range(60)).mask
    rough = [float((mask[..., 1:] != mask[..., :-1]).double().mean()) for mask in (real, drawn)]
    assert rough[1] == pytest.approx(rough[0], rel=0.5)


def test_paints_given_masks_and_fills_unknown_pixels(fitted: GMM) -> None:
    mask = scene(3, seed=4, ignored=0.0).mask[0:1].repeat(4, 2, 2)
    mask[:, :5] = IGNORE
    pairs = fitted.generate(Seeds.range(4), mask=mask)
    assert pairs.image.shape == (4, 3, 24, 20)
    assert torch.equal(pairs.mask[:, 5:], mask[:, 5:])
    assert not bool((pairs.mask == IGNORE).any())
    red = pairs.image[:, 0] - pairs.image[:, 2]
    assert float(red[mask == 2].mean()) > 0.5 > float(red[mask == 1].mean())
    with pytest.raises(SegmintError, match="cannot follow a frame"):
        fitted.generate(Seeds.range(4), previous=pairs.image)


def test_smooth_fields_are_standard_normal_and_correlated() -> None:
    basis = gmm.smooth_basis(40, 5.0)
    covariance = basis @ basis.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(40).double())
    assert float(covariance[20, 25]) == pytest.approx(math.exp(-0.5), abs=1e-2)
    assert basis.shape[1] < 25
    assert gmm.smooth_basis(1, 0.5).shape == (1, 1)


def test_gumbel_is_gumbel() -> None:
    field = torch.linspace(-6, 6, 13, dtype=torch.float64)
    np.testing.assert_allclose(gmm.gumbel(field), stats.gumbel_r.ppf(stats.norm.cdf(field)), rtol=1e-6)
    assert bool(gmm.gumbel(torch.tensor([-30.0, 9.0]).double()).isfinite().all())


def test_kmeans_finds_clusters_and_survives_equal_points() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).double()
    x = centres.repeat_interleave(20, 0) + 0.1 * torch.randn(60, 2, generator=generator)
    cluster = gmm.kmeans(x, 3, generator).view(3, 20)
    assert sorted(cluster[:, 0].tolist()) == [0, 1, 2]
    assert bool((cluster == cluster[:, :1]).all())
    assert len(set(gmm.kmeans(torch.zeros(5, 2).double(), 3, generator).tolist())) == 1


def test_few_and_equal_pixels_do_no_harm() -> None:
    image, mask = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 4, 4), IGNORE)
    mask[0, 0, 0], mask[0, 3, 3] = 0, 1
    method = GMM(classes=3, in_channels=3, image_size=(4, 4), components=3)
    figures = fit(method, Batch(image, mask), 5)
    assert all(math.isfinite(value) for figure in figures for value in figure.values())
    assert bool(method.segment(image, Seeds.range(1)).isfinite().all())
    assert bool(method.generate(Seeds.range(2)).image.isfinite().all())


def test_steps_report_the_likelihood_and_an_empty_epoch_is_harmless(fitted: GMM) -> None:
    method = make()
    method.load_state_dict(fitted.state_dict())
    part = scene()[0:2]
    terms = method.step(part, NoOptimizers())
    figures = method.finish_epoch()
    assert float(terms["log_likelihood"]) == pytest.approx(figures["log_likelihood"])
    before = method.means.clone()
    assert method.finish_epoch() == {}
    assert torch.equal(before, method.means)


def test_without_labels_it_says_so() -> None:
    method, batch = make(), scene()
    method.step(batch[3:6], NoOptimizers())
    with pytest.raises(SegmintError, match="no pixel of the training images is labelled"):
        method.finish_epoch()


def test_collapse_without_a_prior_is_an_error() -> None:
    batch = Batch(torch.zeros(1, 3, *SIZE), torch.zeros(1, *SIZE, dtype=torch.int64))
    with pytest.raises(SegmintError, match="prior_weight: a component has collapsed"):
        fit(make(prior_weight=0), batch, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"components": 0}, "gmm.components: must be at least 1"),
        ({"samples": 0}, "gmm.samples"),
        ({"regularization": 0.0}, "regularization must be above 0"),
        ({"prior_weight": -1.0}, "prior_weight not below 0"),
        ({"unlabelled_weight": 2.0}, "gmm.unlabelled_weight: must be from 0 to 1"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    with pytest.raises(SegmintError, match=message):
        make(**setting)
