"""Gaussian mixtures by expectation maximisation: the classical baseline for image-and-mask pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segmint.functional.labels import most_likely
from segmint.functional.mixture import expand, grid, gumbel, kmeans, natural, pixels, smooth_basis
from segmint.methods.method import Method, Optimizers
from segmint.seeds import Seeds, mix
from segmint.types import IGNORE, Batch, SegmintError

TINY = 1e-300
LEFT_OUT = -1
FLOOR = -100.0
"""The lowest log posterior that `segment` returns, so that a class never seen gives no infinities."""


class GMM(Method):
    """A Gaussian mixture for every class over colour and position, fitted by semi-supervised EM.

    The model of a pixel x = (colour, y, x) and its class k is p(k) p(j | k) N(x; m_kj, S_kj): pixels are
    independent of each other. EM (Dempster, Laird & Rubin 1977) maximises, over all pixels of all images,

        sum over labelled pixels of log p(x, k)
        + unlabelled_weight * sum over the others of log p(x) + log prior

    A labelled pixel is shared out among the components of its own class only; one marked `IGNORE` among
    those of all classes, counting `unlabelled_weight` (Nigam et al. 2000, who call it lambda: where
    unlabelled pixels are many and the model is as wrong as this one, a full vote would let them redefine
    the classes). The prior is inverse-Wishart on each covariance (Fraley & Raftery 2007), so that no
    component collapses on one colour.

    The first epoch draws a sample of labelled pixels of each class, from which k-means then makes the first
    components; each later epoch is one EM iteration. `finish_epoch` reports "log_likelihood" (the first two
    sums) and "objective" (all three), per weighted pixel and of the model that the epoch began with. EM
    never lowers the objective, nor the likelihood itself where `prior_weight` is 0.

    `generate` draws masks by perturb-and-MAP (Papandreou & Yuille 2011): the class with the largest log p(k
    | position) + Gumbel noise. Each class's noise is a smooth Gaussian random field, transformed pointwise
    to Gumbel values, so the class of a single pixel follows p(k | position) exactly, while neighbours
    agree. Components within a class are chosen in the same way, and colours come from the component's
    Gaussian given the position; the noise of both has a constant per class and image, and that of colours a
    white part. These fields are fitted to the training images: the length over which class fields are
    correlated so that masks have as many boundary pixels; the share of the constant so that a class's
    colours differ as much between images; the other lengths and the white part so that near pixels of one
    class differ as much.

    Args:
        classes: K, the number of classes.
        in_channels: C of the images.
        image_size: height and width of the images that `generate` makes, in pixels.
        components: the number of Gaussians per class, >= 1.
        regularization: the variance that the prior expects in every direction; > 0.
        prior_weight: what the prior counts, as a share of the mean number of pixels per component; >= 0.
            With 0 this is maximum likelihood, and a component that collapses is an error.
        unlabelled_weight: what a pixel of unknown class counts against a labelled one; 0 to 1.
        unlabelled_stride: of the unlabelled pixels only every so many rows and columns are looked at, and stand
            for the others, which saves most of the time where unlabelled images abound; >= 1.
        samples: labelled pixels per class from which the first components are made, >= 1.

    Raises:
        SegmintError: a value is out of its range.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 15,
        "batch_size": 32,
        "augment": "none",
        "ema": 0.0,
        "precision": "float32",
        "patience": 0,
    }
    conditions = frozenset({"mask"})
    uses_unlabelled = True
    whole_epochs = True

    weights: Tensor
    means: Tensor
    covariances: Tensor
    statistics: Tensor
    totals: Tensor
    prior_pixels: Tensor
    epoch: Tensor
    sample: Tensor
    keys: Tensor
    counts: Tensor
    neighbours: Tensor
    within: Tensor
    shared: Tensor
    grain: Tensor
    length: Tensor
    texture: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        components: int = 8,
        regularization: float = 0.01,
        prior_weight: float = 0.01,
        unlabelled_weight: float = 0.01,
        unlabelled_stride: int = 4,
        samples: int = 4000,
    ) -> None:
        super().__init__()
        counts = {"components": components, "unlabelled_stride": unlabelled_stride, "samples": samples}
        for key, value in counts.items():
            if value < 1:
                raise SegmintError(f"gmm.{key}: must be at least 1, not {value}")
        if regularization <= 0 or prior_weight < 0:
            raise SegmintError("gmm: regularization must be above 0, and prior_weight not below 0")
        if not 0 <= unlabelled_weight <= 1:
            raise SegmintError(f"gmm.unlabelled_weight: must be from 0 to 1, not {unlabelled_weight}")
        self.classes, self.components, self.image_size = classes, components, image_size
        self.regularization, self.prior_weight = regularization, prior_weight
        self.unlabelled_weight, self.unlabelled_stride = unlabelled_weight, unlabelled_stride
        size, dimension = classes * components, in_channels + 2
        features = 1 + dimension + dimension * (dimension + 1) // 2
        for name, tensor in {
            "weights": torch.full((size,), 1 / size),
            "means": torch.zeros(size, dimension),
            "covariances": torch.eye(dimension).repeat(size, 1, 1) / 3,
            "statistics": torch.zeros(size, features),
            "totals": torch.zeros(2),  # weighted log-likelihood; weight of the pixels
            "prior_pixels": torch.zeros(()),
            "sample": torch.zeros(classes, samples, dimension),
            "keys": torch.full((classes, samples), -1.0),
            "counts": torch.zeros(classes + 1),  # pixels of each class; of unknown class
            "neighbours": torch.zeros(2, 3),  # what `_neighbours` counts, at two distances
            "within": torch.zeros(classes),
            "shared": torch.zeros(classes),
            "grain": torch.tensor(0.1),
            "length": torch.tensor(0.1 * max(image_size)),
            "texture": torch.tensor(0.1 * max(image_size)),
        }.items():
            self.register_buffer(name, tensor.double())
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def parts(self) -> dict[str, nn.Module]:
        """Nothing: EM has no gradients."""
        return {}

    # Training

    @torch.no_grad()
    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """Add images to the epoch's statistics; from the second epoch on, report their log-likelihood."""
        if self.epoch == 0:
            self._collect(batch)
            return {}
        before = self.totals.clone()
        matrix = natural(self.weights.clamp_min(TINY).log(), self.means, self.covariances)
        for image, mask in zip(batch.image, batch.mask, strict=True):
            self._expect(expand(pixels(image)), self._thinned(mask).flatten(), matrix)
        value, weight = self.totals - before
        return {"log_likelihood": value / weight.clamp_min(TINY)}

    def _thinned(self, mask: Tensor) -> Tensor:
        """The mask with the unlabelled pixels that are off the grid marked `LEFT_OUT`."""
        on = torch.zeros_like(mask, dtype=torch.bool)
        on[:: self.unlabelled_stride, :: self.unlabelled_stride] = True
        return mask.where(on | (mask != IGNORE), LEFT_OUT)

    def _expect(self, features: Tensor, labels: Tensor, matrix: Tensor) -> None:
        """The E-step: share each pixel out among the components that it may belong to."""
        for label in torch.unique(labels).tolist():
            known = label != IGNORE
            weight = 1.0 if known else self.unlabelled_weight * self.unlabelled_stride**2
            if weight == 0 or label == LEFT_OUT:
                continue
            start = label * self.components if known else 0
            own = slice(start, start + self.components) if known else slice(None)
            group = features[labels == label]
            joint = group @ matrix[:, own]
            largest = joint.amax(1, keepdim=True)
            parts = joint.sub_(largest).exp_()
            whole = parts.sum(1, keepdim=True)
            self.statistics[own] += weight * (parts.T @ (group / whole))
            evidence = (largest + whole.log()).sum()
            self.totals += weight * torch.stack([evidence, evidence.new_tensor(len(group))])

    @torch.no_grad()
    def finish_epoch(self) -> dict[str, float]:
        """After the first epoch, make the first components; after a later one, the M-step.

        Raises:
            SegmintError: no pixel of the training images is labelled, or a component has collapsed.
        """
        figures: dict[str, float] = {}
        if self.epoch == 0:
            self._initialise()
        elif self.totals[1] > 0:
            value, weight = self.totals.tolist()
            penalised = value + self._log_prior()
            figures = {"log_likelihood": value / weight, "objective": penalised / weight}
            self._maximise(self.statistics)
        self.statistics.zero_()
        self.totals.zero_()
        self.epoch += 1
        return figures

    def _maximise(self, statistics: Tensor) -> None:
        """The M-step. A component without pixels gets no weight and stays where it was."""
        count, dimension = statistics[:, 0], self.means.shape[1]
        row, column = torch.triu_indices(dimension, dimension, device=count.device)
        alive = count > 1e-9
        safe = count.where(alive, 1.0)
        first = statistics[:, 1 : 1 + dimension] / safe.unsqueeze(1)
        second = torch.zeros_like(self.covariances)
        second[:, row, column] = statistics[:, 1 + dimension :] / safe.unsqueeze(1)
        second[:, column, row] = second[:, row, column]
        scatter = second - first.unsqueeze(2) * first.unsqueeze(1)
        prior = self.regularization * self.prior_pixels * torch.eye(dimension).to(scatter)
        covariance = (scatter * count.view(-1, 1, 1) + prior) / (safe + self.prior_pixels).view(-1, 1, 1)
        if bool(torch.linalg.cholesky_ex(covariance[alive]).info.any()):
            raise SegmintError("gmm.prior_weight: a component has collapsed; try a larger one, e.g. 0.01")
        self.weights.copy_(count * alive / (count * alive).sum())
        self.means.copy_(torch.where(alive.view(-1, 1), first, self.means))
        self.covariances.copy_(torch.where(alive.view(-1, 1, 1), covariance, self.covariances))

    def _log_prior(self) -> float:
        """Log density of the prior less a constant, the sum of -n/2 (log|S| + r trace(1/S))."""
        factor = torch.linalg.cholesky(self.covariances)
        determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
        trace = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).sum()
        return float(-self.prior_pixels / 2 * (determinant + self.regularization * trace))

    # The first epoch

    def _collect(self, batch: Batch) -> None:
        """Count classes and neighbours, and keep those pixels of each class that draw the largest keys."""
        generator = torch.Generator().manual_seed(mix("gmm", int(self.counts.sum())))
        labels = batch.mask.flatten()
        keys = torch.rand(len(labels), generator=generator, dtype=torch.float64).to(labels.device)
        x = torch.cat([pixels(image) for image in batch.image])
        for label in torch.unique(labels).tolist():
            if label == IGNORE:
                self.counts[-1] += (labels == label).sum()
                continue
            where = (labels == label).nonzero().squeeze(1)
            self.counts[label] += len(where)
            all_keys = torch.cat([self.keys[label], keys[where]])
            best, order = all_keys.topk(self.keys.shape[1])
            self.sample[label] = torch.cat([self.sample[label], x[where]])[order]
            self.keys[label] = best
        self.neighbours += torch.stack([_neighbours(batch, 1), _neighbours(batch, self._lag)])
        self.within += _within(batch, self.classes)

    def _initialise(self) -> None:
        known = self.counts[:-1]
        if float(known.sum()) == 0:
            raise SegmintError("gmm: no pixel of the training images is labelled; give some images masks")
        total = known.sum() + self.unlabelled_weight * self.counts[-1]
        self.prior_pixels.copy_(self.prior_weight * total / len(self.weights))
        generator = torch.Generator().manual_seed(mix("gmm", "components"))
        for label in known.nonzero().squeeze(1).tolist():
            x = self.sample[label][self.keys[label] >= 0]
            cluster = kmeans(x.cpu(), self.components, generator).to(x.device)
            member = nn.functional.one_hot(cluster, self.components).double()
            start = label * self.components
            scale = known[label] / len(x)
            self.statistics[start : start + self.components] = scale * (member.T @ expand(x))
        self._maximise(self.statistics)
        self._fit_fields()

    def _fit_fields(self) -> None:
        """Fit the random fields of `generate` to the training images: variances first, then lengths."""
        known = self.counts[:-1].nonzero().flatten().tolist()
        colours = [self.sample[label][self.keys[label] >= 0, :-2] for label in known]
        total = torch.stack([colour.var(0, correction=0).sum() for colour in colours]) * self.counts[known]
        self.shared[known] = (1 - self.within[known] / total.clamp_min(TINY)).clamp(0, 0.95)
        variance = float(self.within.sum() / self.counts[:-1].sum())
        near, far = (self.neighbours[:, 2] / self.neighbours[:, 1].clamp_min(1) / 2).tolist()
        if variance > 0 and float(self.neighbours[1, 1]) > 0:
            self.grain.fill_(min(near / variance, 0.9))
            correlation = (1 - far / variance) / (1 - float(self.grain))
            self.texture.fill_(self._lag / math.sqrt(-2 * math.log(min(max(correlation, 0.01), 0.99))))
        pairs = float(self.neighbours[0, :2].sum())
        if float(self.neighbours[0, 0]) > 0:
            self.length.fill_(self._fit_length(float(self.neighbours[0, 0]) / pairs))

    def _fit_length(self, boundary: float) -> float:
        """The correlation length, in pixels, at which drawn masks have this share of boundary pixels."""
        prior = self._prior(self.image_size).logsumexp(1)
        low, high = 0.5, 2.0 * max(self.image_size)
        for _ in range(10):
            middle = math.sqrt(low * high)
            fields = _fields(Seeds.range(4), self.classes, self.image_size, middle, prior.device)
            masks = most_likely(prior + gumbel(fields))
            rough = float((masks[..., 1:] != masks[..., :-1]).double().mean()) > boundary
            low, high = (middle, high) if rough else (low, middle)
        return math.sqrt(low * high)

    @property
    def _lag(self) -> int:
        return max(1, self.image_size[1] // 8)

    # Use

    @torch.no_grad()
    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """The log posterior of the classes of each pixel, not below -100; `seeds` are left alone."""
        matrix = natural(self.weights.clamp_min(TINY).log(), self.means, self.covariances)
        shape = (*image.shape[-2:], self.classes, self.components)
        logits = [(expand(pixels(item)) @ matrix).view(shape).logsumexp(3).log_softmax(2) for item in image]
        return torch.stack(logits).permute(0, 3, 1, 2).clamp_min(FLOOR).float()

    @torch.no_grad()
    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """Draw masks, or take those given (any size; pixels marked `IGNORE` are drawn), and colour them.

        Raises:
            SegmintError: a previous frame or a photograph is given.
        """
        self.refuse(previous=previous, image=image)
        device, channels = self.means.device, self.means.shape[1] - 2
        size = self.image_size if mask is None else (int(mask.shape[1]), int(mask.shape[2]))
        regions = _fields(seeds, self.classes, size, float(self.length), device)
        choices = _fields(seeds, self.components, size, float(self.texture), device)
        textures = _fields(seeds, self.classes * channels, size, float(self.texture), device)
        constants = seeds.randn(self.components + channels, self.classes, device=device).double()
        white = seeds.randn(channels, *size, device=device).double()
        prior = self._prior(size)
        images, masks = [], []
        for index, constant in enumerate(constants):  # one by one: rounding must not depend on the batch
            drawn = (prior.logsumexp(1) + gumbel(regions[index])).argmax(0)
            label = drawn if mask is None else mask[index].to(device)
            label = drawn.where(label == IGNORE, label)
            part, whole = (1 - self.shared[label]).sqrt(), self.shared[label].sqrt() * constant[:, label]
            own = prior.gather(0, label.expand(1, self.components, -1, -1)).squeeze(0)
            choice = whole[: self.components] + part * choices[index]
            component = (own + gumbel(choice)).argmax(0) + label * self.components
            texture = textures[index].view(self.classes, channels, *size)
            texture = texture.gather(0, label.expand(1, channels, -1, -1)).squeeze(0)
            rough = (1 - self.grain).sqrt() * texture + self.grain.sqrt() * white[index]
            images.append(self._paint(component, whole[self.components :] + part * rough))
            masks.append(label)
        return Batch(torch.stack(images), torch.stack(masks))

    def _paint(self, component: Tensor, noise: Tensor) -> Tensor:
        """Colours [C, H, W] in [-1, 1] from components [H, W] and standard normal noise [C, H, W]."""
        channels, height, width = noise.shape
        component, place = component.flatten(), grid(height, width, noise.device)
        slope, covariance = self._colour_given_position()
        mean, factor = self.means[component], torch.linalg.cholesky(covariance)[component]
        offset = (place - mean[:, channels:]).unsqueeze(2)
        spread = slope[component] @ offset + factor @ noise.flatten(1).T.unsqueeze(2)
        colour: Tensor = mean[:, :channels] + spread.squeeze(2)
        return colour.T.view(channels, height, width).clamp(-1, 1).float()

    def _colour_given_position(self) -> tuple[Tensor, Tensor]:
        """Regression of colour on position: slopes [G, C, 2] and the covariances that remain, [G, C, C]."""
        split = self.means.shape[1] - 2
        cross, place = self.covariances[:, :split, split:], self.covariances[:, split:, split:]
        slope = torch.linalg.solve(place, cross.mT).mT
        return slope, self.covariances[:, :split, :split] - slope @ cross.mT

    def _prior(self, size: tuple[int, int]) -> Tensor:
        """log p(class, component | position) for an image of this height and width: [K, J, H, W]."""
        split = self.means.shape[1] - 2
        log_weights = self.weights.clamp_min(TINY).log()
        matrix = natural(log_weights, self.means[:, split:], self.covariances[:, split:, split:])
        prior = (expand(grid(*size, self.means.device)) @ matrix).log_softmax(1)
        return prior.T.reshape(self.classes, self.components, *size)


def _fields(seeds: Seeds, count: int, size: tuple[int, int], length: float, device: torch.device) -> Tensor:
    """Smooth standard normal fields of this correlation length in pixels: float64 [B, count, H, W]."""
    rows, columns = (smooth_basis(side, length, device) for side in size)
    noise = seeds.randn(count, rows.shape[1], columns.shape[1], device=device).double()
    return torch.stack([rows @ item @ columns.T for item in noise])


def _neighbours(batch: Batch, lag: int) -> Tensor:
    """Compare pixels of known class with those `lag` to their right.

    Returns:
        float64 [3]: the number of pairs of two classes, the number of pairs of one class, and the sum of the
        squared colour distances of the latter.
    """
    left, right = batch.mask[:, :, :-lag], batch.mask[:, :, lag:]
    known = (left != IGNORE) & (right != IGNORE)
    same = known & (left == right)
    distance = (batch.image[..., lag:].double() - batch.image[..., :-lag]).square().sum(1)
    return torch.stack([(known & ~same).sum(), same.sum(), (distance * same).sum()]).double()


def _within(batch: Batch, classes: int) -> Tensor:
    """The squared distances of colours from the mean colour of their class in their image: float64 [K]."""
    result = torch.zeros(classes, dtype=torch.float64, device=batch.image.device)
    for image, mask in zip(batch.image.double(), batch.mask, strict=True):
        for label in torch.unique(mask[mask != IGNORE]).tolist():
            colour = image[:, mask == label]
            result[label] += (colour - colour.mean(1, keepdim=True)).square().sum()
    return result
