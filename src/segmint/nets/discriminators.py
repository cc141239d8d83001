"""Networks that tell real from generated."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segmint.nets.encoders import EfficientNetLite0
from segmint.ranks import alone, average


class Discriminator(Protocol):
    """What tells real from generated: first features, on which gradients can be penalised, then a judgement."""

    def features(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> what `judge` takes."""
        ...

    def judge(self, features: list[Tensor]) -> Tensor:
        """Features -> logits [B, N]; higher is more real."""
        ...


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2))


class ConvDiscriminator(nn.Module):
    """Strided convolutions with spectral normalisation (Miyato 2018) down to a map of logits, one per patch.

    Args:
        inputs: channels of what it judges: an image, or an image and a one-hot mask.
        width: channels after the first convolution; they double up to `most`.
        depth: number of halvings.
    """

    def __init__(self, inputs: int, width: int = 32, most: int = 256, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            outputs = min(width * 2**level, most)
            layers += [_conv(inputs, outputs, 4, 2), nn.LeakyReLU(0.2, inplace=True)]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = _conv(inputs + 1, 1, 3)

    def features(self, x: Tensor) -> list[Tensor]:
        """What `judge` takes: here the input itself."""
        return [x]

    def judge(self, features: list[Tensor]) -> Tensor:
        """[x] with x [B, inputs, H, W] -> logits [B, N] of N patches."""
        x = self.body(features[0])
        # The spread over the batch tells a collapsed generator (Karras 2018, minibatch standard deviation).
        spread = _spread(x.float()).to(x.dtype).expand(len(x), 1, *x.shape[2:])
        return torch.as_tensor(self.head(torch.cat([x, spread], 1))).flatten(1)


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over the whole batch [B, ...], mean over everything else; a scalar."""
    if alone():
        return x.std(0, correction=0).mean()
    variance = average((x - average(x.mean(0))).square().mean(0))
    return variance.clamp_min(1e-12).sqrt().mean()  # where all are alike, the root has no gradient


class MaskDiscriminator(nn.Module):
    """A fully convolutional discriminator: class probabilities in, a map of logits out (Hung 2018, section 3).

    Strided convolutions and leaky ReLUs without any normalisation, so that its logits can be read as confidences. A
    pixel that is zero in every channel is unknown to it; what lies beyond the rim looks the same.

    Args:
        inputs: channels of what it judges: K class probabilities, or K + C with the image.
        width: channels after the first convolution; they double up to `most`.
        depth: number of halvings.
    """

    def __init__(self, inputs: int, width: int = 32, most: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.stride = 2**depth
        layers: list[nn.Module] = []
        for level in range(depth):
            outputs = min(width * 2**level, most)
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(inputs, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> float32 logits [B, H, W], bilinear from 1 / 2^depth of it; higher is more real."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        logits = self.head(self.body(padded)).float()
        full = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return full[:, 0, :height, :width]


class LinearDiscriminant(nn.Module):
    """The probability of "yes" given one number, from running moments of the numbers of either answer.

    Fisher's linear discriminant: two Gaussians of one variance, as frequent as the answers (Bishop 2006, eqs. 4.57 to
    4.67). In closed form, it keeps up with a discriminator whose logits change their scale while it learns.

    Args:
        decay: share of the old moments that stays at each `follow`.
    """

    moments: Tensor

    def __init__(self, decay: float = 0.95) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("moments", torch.zeros(2, 3))

    @torch.no_grad()
    def follow(self, values: Tensor, answers: Tensor) -> None:
        """Take numbers [N] and their answers, bool [N], into the moments."""
        powers = torch.stack([torch.ones_like(values), values, values.square()]).float()
        sums = torch.stack([(powers * (answers == answer)).sum(1) for answer in (False, True)])
        self.moments.lerp_(average(sums) / average(sums[:, 0].sum()).clamp_min(1), 1 - self.decay)

    def forward(self, values: Tensor) -> Tensor:
        """Numbers of any shape -> logits of "yes", of that shape; zero as long as nothing has been followed."""
        tiny = torch.finfo(torch.float32).tiny
        share, total, squares = self.moments.unbind(1)
        mean = total / share.clamp_min(tiny)
        variance = (squares.sum() - (total * mean).sum()) / share.sum().clamp_min(tiny)
        slope = (share > 0).all() * (mean[1] - mean[0]) / variance.clamp_min(1e-6)
        prior = (share[1].clamp_min(1e-6) / share[0].clamp_min(1e-6)).log()
        return slope * (values - mean.mean()) + prior


class ProjectedDiscriminator(nn.Module):
    """Small discriminators on the frozen ImageNet features of an image (Projected GAN, Sauer 2021).

    The feature maps at strides 4 to 32 of EfficientNet-Lite0 are mixed over channels and over scales by fixed random
    convolutions (section 3.2), and each is judged by a few learnt ones. It converges with far fewer images than a
    discriminator that has to learn to see first.

    Args:
        in_channels: C of the images.
        width: channels of the mixed feature maps.
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(in_channels)
        channels = self.backbone.channels[1:]
        self.mix = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.merge = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels)
        for frozen in (self.backbone, self.mix, self.merge):
            frozen.requires_grad_(False)
        for layer in (*self.mix, *self.merge):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(
                    layer
                    for _ in range(halvings)
                    for layer in (_conv(width, width, 4, 2), nn.LeakyReLU(0.2, inplace=True))
                ),
                _conv(width, width, 3),
                nn.LeakyReLU(0.2, inplace=True),
                _conv(width, 1, 1),
            )
            for halvings in (2, 1, 1, 0)
        )

    def train(self, mode: bool = True) -> ProjectedDiscriminator:
        """The frozen network always normalises with its ImageNet statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, x: Tensor) -> list[Tensor]:
        """Image [B, C, H, W] in [-1, 1] -> mixed feature maps at strides 4, 8, 16, 32."""
        maps = [mix(y) for mix, y in zip(self.mix, self.backbone(x)[1:], strict=True)]
        merged = [self.merge[-1](maps[-1])]
        for level in range(len(maps) - 2, -1, -1):
            up = F.interpolate(merged[0], size=maps[level].shape[-2:], mode="bilinear", align_corners=False)
            merged.insert(0, self.merge[level](maps[level] + up))
        return merged

    def judge(self, features: list[Tensor]) -> Tensor:
        """Mixed feature maps -> logits [B, N], every scale with the same total weight."""
        logits = [head(y).flatten(1) for head, y in zip(self.heads, features, strict=True)]
        most = max(x.shape[1] for x in logits)
        return torch.cat([F.interpolate(x.unsqueeze(1), size=most).squeeze(1) for x in logits], 1)
