"""The encoder of a variational autoencoder for pairs (its decoder is `PairDecoder`), and parts of one for masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segmint.functional.gaussian import covariance_root, soft_clamp
from segmint.functional.losses import one_hot
from segmint.nets.generators import stages_for
from segmint.nets.layers import groups
from segmint.ranks import average, randn_like
from segmint.types import IGNORE, Batch


class PairEncoder(nn.Module):
    """Strided convolutions, then fully connected to the mean and log-variance of a Gaussian (Kingma & Welling 2014).

    Mirrors `PairDecoder` with group normalisation.

    Args:
        in_channels: C of the image; `classes`: K of the mask.
        latent: dimensions of the Gaussian.
        size: height and width in pixels.
        width: channels at full resolution; they double at each halving up to `most`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        latent: int,
        size: tuple[int, int],
        width: int = 24,
        most: int = 192,
        smallest: int = 4,
    ) -> None:
        super().__init__()
        self.classes = classes
        inputs = in_channels + classes + 1
        count, base = stages_for(size, smallest)
        layers: list[nn.Module] = []
        for level in range(1, count + 1):
            outputs = min(width * 2**level, most)
            # Kernel 4, stride 2 halves rounding down; one row or column more where the size is odd.
            layers += [
                nn.ZeroPad2d((1, 2, 1, 2)),
                nn.Conv2d(inputs, outputs, 4, 2),
                nn.GroupNorm(groups(outputs), outputs),
                nn.LeakyReLU(0.2),
            ]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.base = base
        self.statistics = nn.Linear(inputs * base[0] * base[1], 2 * latent)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pairs -> mean [B, latent] and log-variance [B, latent], the latter within -10..10.

        It sees the image, the one-hot mask, and for each pixel whether the mask is known.
        """
        known = (batch.mask != IGNORE).unsqueeze(1).to(batch.image.dtype)
        y = self.body(torch.cat([batch.image, one_hot(batch.mask, self.classes).float(), known], 1))
        mean, log_variance = self.statistics(y[..., : self.base[0], : self.base[1]].flatten(1)).float().chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)


class AggregatePosterior(nn.Module):
    """The mean and covariance of all encoded training pairs, followed with a decay of 0.99 a step.

    Sampling from this Gaussian instead of N(0, I) leaves out regions that the decoder never saw (Ghosh 2020).
    """

    mean: Tensor
    square: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("square", torch.eye(latent))

    @torch.no_grad()
    def follow(self, mean: Tensor, log_variance: Tensor) -> None:
        """Take a batch of encodings [B, latent] into the two moments."""
        square = mean.T @ mean / len(mean) + torch.diag(log_variance.exp().mean(0))
        self.mean.lerp_(average(mean.mean(0)), 0.01)
        self.square.lerp_(average(square), 0.01)

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal numbers [B, latent] -> samples [B, latent]."""
        covariance = self.square - torch.outer(self.mean, self.mean)
        return self.mean + noise @ covariance_root(covariance).T


def sample_gaussian(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A reparameterised sample of a diagonal Gaussian (Kingma & Welling 2014, section 2.4)."""
    return mean + (0.5 * log_variance).exp() * randn_like(mean)


class MaskPosterior(nn.Module):
    """q(z | x, y) of a conditional variational autoencoder: strided convolutions, then a Gaussian; any image size.

    Args:
        in_channels: C of the image; `classes`: K of the mask.
        latent: dimensions of the Gaussian.
        width: channels of the first map; they double at each of the four further halvings, up to 8 times as many.
    """

    def __init__(self, in_channels: int, classes: int, latent: int, width: int = 16) -> None:
        super().__init__()
        self.classes = classes
        inputs, layers = in_channels + classes + 1, []
        for level in range(5):
            outputs = width * min(2**level, 8)
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(groups(outputs), outputs), nn.ReLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.gaussian = GaussianHead(inputs, latent)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images with masks -> mean [B, latent] and log-variance [B, latent].

        It sees the image, the one-hot mask, and for each pixel whether the mask is known.
        """
        known = (batch.mask != IGNORE).unsqueeze(1).to(batch.image.dtype)
        mask = one_hot(batch.mask, self.classes).to(batch.image.dtype)
        mean, log_variance = self.gaussian(self.body(torch.cat([batch.image, mask, known], 1)))
        return mean, log_variance


class GaussianHead(nn.Module):
    """A map of features -> a Gaussian with a diagonal covariance: 1x1 convolution, mean over the map, linear.

    Args:
        inputs: channels of the map; `latent`: dimensions of the Gaussian.
        bound: the log-variance stays within -bound..bound, so that no divergence between two of them explodes.
    """

    def __init__(self, inputs: int, latent: int, bound: float = 5.0) -> None:
        super().__init__()
        self.bound = bound
        self.mix = nn.Conv2d(inputs, 64, 1)
        self.statistics = nn.Linear(64, 2 * latent)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs, h, w] -> mean [B, latent] and log-variance [B, latent], float32 whatever the precision."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = self.mix(features.float()).relu().mean((2, 3))
            mean, log_variance = self.statistics(pooled).chunk(2, 1)
        return mean, soft_clamp(log_variance, self.bound)


class Combination(nn.Module):
    """1x1 convolutions over a map of features and a latent code at every pixel (Kohl 2018, f_comb).

    The first of them is linear in both, so its part of the features is computed once for all codes.

    Args:
        inputs: channels of the map; `latent`: dimensions of the code.
        outputs: channels of the result; `width`: channels in between.
    """

    def __init__(self, inputs: int, latent: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.of_features = nn.Conv2d(inputs, width, 1)
        self.of_code = nn.Linear(latent, width, bias=False)
        self.middle = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, shared: Tensor, z: Tensor) -> Tensor:
        """`of_features` of a map, [B, width, h, w], and codes [B, latent] -> [B, outputs, h, w]."""
        x = (shared + self.of_code(z)[:, :, None, None]).relu()
        y: Tensor = self.last(self.middle(x).relu())
        return y
