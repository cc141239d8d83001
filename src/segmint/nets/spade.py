"""A generator that paints masks, an encoder that finds its noise, and a discriminator that judges every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segmint.nets.encoders import EfficientNetLite0
from segmint.nets.layers import groups

LEVELS = 5
"""Resolutions of the generator: strides 16, 8, 4, 2 and 1."""

Size = tuple[int, int]


def sizes_of(size: Size, levels: int = LEVELS) -> list[Size]:
    """Height and width at strides 2^(levels - 1), ..., 2, 1, rounded up."""
    strides = [2**level for level in range(levels - 1, -1, -1)]
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


class Modulate(nn.Module):
    """Spatially adaptive normalisation: group normalisation without weights of its own, then a scale and a shift for
    each pixel and channel that come from the map of conditions (SPADE, Park 2019, eq. 1).

    Args:
        channels: of what is normalised; `hidden`: of the map of conditions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels, affine=False)
        self.scale_shift = nn.Conv2d(hidden, 2 * channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, channels, h, w] and condition [B, hidden, h, w] -> [B, channels, h, w]."""
        scale, shift = self.scale_shift(condition).chunk(2, 1)
        y: Tensor = self.norm(x) * (1 + scale) + shift
        return y


class SpadeBlock(nn.Module):
    """A residual block of two modulated convolutions (SPADE, figure 4)."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = Modulate(inputs, hidden), Modulate(outputs, hidden)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, inputs, h, w] and condition [B, hidden, h, w] -> [B, outputs, h, w]."""
        y = self.conv_in(F.leaky_relu(self.first(x, condition), 0.2))
        y = self.conv_out(F.leaky_relu(self.second(y, condition), 0.2))
        return torch.as_tensor(self.skip(x) + y)


class SpadeGenerator(nn.Module):
    """A mask and a vector of noise become an image.

    The vector is unfolded to a style for each class and a plan of the image at stride 16. At each resolution the
    one-hot mask, the style of each pixel's class and the plan are joined and convolved to the map of conditions that
    modulates the block there (noise joined to the mask: OASIS, section 3.3).

    Args:
        classes: K; `in_channels`: C of the image; `size`: height and width in pixels.
        latent: length of the vector; `style`: of a style; `plan`: channels of the plan.
        width: channels at full resolution; they double at each coarser one up to `most`.
    """

    def __init__(
        self,
        classes: int,
        in_channels: int,
        size: Size,
        latent: int = 128,
        width: int = 16,
        most: int = 192,
        style: int = 16,
        plan: int = 8,
    ) -> None:
        super().__init__()
        rows, columns = sizes_of(size)[0]
        self.style = nn.Sequential(nn.Linear(latent, classes * style), nn.Unflatten(1, (classes, style)))
        self.plan = nn.Sequential(nn.Linear(latent, plan * rows * columns), nn.Unflatten(1, (plan, rows, columns)))
        inputs = classes + style + plan
        widths = [min(width * 2**level, most) for level in range(LEVELS - 1, -1, -1)]
        hidden = [min(channels, 64) for channels in widths]
        self.conditions = nn.ModuleList(nn.Conv2d(inputs, h, 3, padding=1) for h in hidden)
        self.first = nn.Conv2d(inputs, widths[0], 3, padding=1)
        steps = [(widths[0], widths[0]), *pairwise(widths)]
        self.blocks = nn.ModuleList(SpadeBlock(a, b, h) for (a, b), h in zip(steps, hidden, strict=True))
        self.image = nn.Conv2d(widths[-1], in_channels, 3, padding=1)

    def forward(self, classes: Tensor, noise: Tensor) -> Tensor:
        """classes float [B, K, H, W], one-hot, all zero where unknown, and noise [B, latent] -> image [B, C, H, W] in
        (-1, 1); the plan is stretched where H and W are not those of training."""
        styles, plan = self.style(noise), self.plan(noise).contiguous(memory_format=torch.channels_last)
        told = [_told(shares, styles, plan) for shares in reversed(halvings(classes, LEVELS - 1))]
        x = self.first(told[0])
        for block, condition, conditions in zip(self.blocks, self.conditions, told, strict=True):
            x = F.interpolate(x, size=conditions.shape[-2:], mode="nearest")
            x = block(x, F.leaky_relu(condition(conditions), 0.2))
        return torch.tanh(self.image(F.leaky_relu(x, 0.2)).float())


def halvings(classes: Tensor, count: int) -> list[Tensor]:
    """One-hot classes [B, K, H, W], then their shares at half the resolution, a quarter, ...; channels last."""
    maps = [classes.contiguous(memory_format=torch.channels_last)]
    for _ in range(count):
        maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True, count_include_pad=False))
    return maps


def _told(shares: Tensor, styles: Tensor, plan: Tensor) -> Tensor:
    """All that is known at one resolution: shares of the classes, their styles, the plan; [B, K + S + P, h, w]."""
    count, _, height, width = shares.shape
    style = shares.permute(0, 2, 3, 1).flatten(1, 2) @ styles
    style = style.view(count, height, width, -1).permute(0, 3, 1, 2)
    plan = F.interpolate(plan, size=(height, width), mode="bilinear", align_corners=False)
    return torch.cat([shares.to(style.dtype), style, plan.to(style.dtype)], 1)


class NoiseEncoder(nn.Module):
    """The noise of a real image, as a diagonal Gaussian.

    Strided convolutions; the colours and the map at stride 4 are averaged over each class of the mask (region-wise
    pooling as in SEAN, Zhu 2020), and joined to the last map.

    Args:
        in_channels: C of the image; `classes`: K; `size`: height and width in pixels.
        latent: dimensions of the Gaussian.
        width: channels at stride 2; they double at each halving.
        style: numbers to which the averages over a class are brought.
    """

    def __init__(
        self, in_channels: int, classes: int, size: Size, latent: int = 128, width: int = 24, style: int = 16
    ) -> None:
        super().__init__()
        rows, columns = sizes_of(size)[0]
        widths = [in_channels, *(width * 2**level for level in range(LEVELS - 1))]
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(groups(b), b), nn.LeakyReLU(0.2))
            for a, b in pairwise(widths)
        )
        self.style = nn.Linear(in_channels + widths[2], style)
        self.statistics = nn.Linear(widths[-1] * rows * columns + classes * style, 2 * latent)

    def forward(self, image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Image [B, C, H, W] and classes float [B, K, H, W] -> mean and log-variance [B, latent], the latter within
        -10..10."""
        maps = [image]
        for level in self.levels:
            maps.append(level(maps[-1]))
        shares = halvings(classes, 2)
        pooled = torch.cat([_pooled(maps[0], shares[0]), _pooled(maps[2], shares[2])], 2)
        present = classes.flatten(2).any(2, keepdim=True)
        styles = F.leaky_relu(self.style(pooled), 0.2) * present
        seen = torch.cat([maps[-1].flatten(1).to(styles.dtype), styles.flatten(1)], 1)
        mean, log_variance = self.statistics(seen).float().chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)


def _pooled(x: Tensor, shares: Tensor) -> Tensor:
    """The mean of x [B, C, h, w] over each class, of which shares [B, K, h, w] tells: [B, K, C]; zero where absent."""
    total = shares.flatten(2) @ x.to(shares.dtype).flatten(2).transpose(1, 2)
    return total / shares.flatten(2).sum(2, keepdim=True).clamp_min(1e-6)


class _PlainMaps(nn.Module):
    """Strided convolutions with spectral normalisation: feature maps at strides 2, 4, 8, 16, 32."""

    def __init__(self, in_channels: int, width: int = 24, most: int = 192) -> None:
        super().__init__()
        self.channels = tuple(min(width * 2**level, most) for level in range(5))
        self.levels = nn.ModuleList(
            nn.Sequential(spectral_norm(nn.Conv2d(a, b, 3, 2, 1)), nn.LeakyReLU(0.2))
            for a, b in pairwise([in_channels, *self.channels])
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class PixelDiscriminator(nn.Module):
    """A segmentation network with one class more, for generated pixels (OASIS, section 3.1).

    Its decoder has spectral normalisation (Miyato 2018) except in the last layer. Its encoder is either learnt with it
    or the frozen EfficientNet-Lite0, which knows from the start what to look at (as in Projected GAN, Sauer 2021).

    Args:
        in_channels: C of the images; `classes`: K.
        projected: whether the encoder is the frozen one.
    """

    WIDTHS = (96, 96, 64, 32, 16)
    # Standard deviation of the frozen encoder's maps on photographs, by which they are divided.
    SPREAD = (6.7, 9.6, 8.5, 7.7, 2.8)

    def __init__(self, in_channels: int, classes: int, projected: bool = True) -> None:
        super().__init__()
        self.projected = projected
        self.encoder: EfficientNetLite0 | _PlainMaps
        if projected:
            self.encoder = EfficientNetLite0(in_channels).requires_grad_(False)
        else:
            self.encoder = _PlainMaps(in_channels)
        skips = [*reversed(self.encoder.channels), in_channels]
        inputs, decoder = skips[0], []
        for skip, width in zip(skips[1:], self.WIDTHS, strict=True):
            decoder.append(spectral_norm(nn.Conv2d(inputs + skip, width, 3, padding=1)))
            inputs = width
        self.decoder = nn.ModuleList(decoder)
        self.head = nn.Conv2d(inputs, classes + 1, 1)

    def train(self, mode: bool = True) -> PixelDiscriminator:
        """The frozen network always normalises with its ImageNet statistics."""
        super().train(mode)
        if self.projected:
            self.encoder.eval()
        return self

    def features(self, image: Tensor) -> list[Tensor]:
        """Image [B, C, H, W] in [-1, 1] -> what does not change in training: the image and the frozen maps of it."""
        if not self.projected:
            return [image]
        return [image, *(y / spread for y, spread in zip(self.encoder(image), self.SPREAD, strict=True))]

    def judge(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> logits [B, K + 1, H, W]; the last channel is for generated pixels."""
        maps = list(features) if self.projected else [features[0], *self.encoder(features[0])]
        x = maps[-1]
        for conv, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = F.leaky_relu(conv(torch.cat([x, skip.to(x.dtype)], 1)), 0.2)
        return torch.as_tensor(self.head(x)).float()
