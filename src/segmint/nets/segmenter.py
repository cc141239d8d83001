"""The network of a segmenter: the U-Net, or one of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segmint.nets.encoders import build_encoder
from segmint.nets.layers import resize
from segmint.nets.unet import UNet
from segmint.types import SegmintError


def build_segmenter(
    classes: int,
    in_channels: int,
    encoder_name: str,
    encoder_weights: str | None,
    decoder_channels: Sequence[int],
    dropout: float,
    network: nn.Module | str | None = None,
) -> nn.Module:
    """A network from [B, C, H, W] to class logits [B, K, H, W].

    Args:
        classes, in_channels: K and C.
        encoder_name, encoder_weights: see `segmint.nets.encoders.build_encoder`.
        decoder_channels, dropout: see `UNet`.
        network: a module to use instead, or the dotted path of a function that makes one, "package.module:function".

    Raises:
        SegmintError: the dotted path gives no module.
    """
    if network is None:
        return UNet(build_encoder(encoder_name, in_channels, encoder_weights), classes, decoder_channels, dropout)
    return _imported(network) if isinstance(network, str) else network


def logits_of(network: nn.Module, image: Tensor, classes: int) -> Tensor:
    """Logits [B, K, H, W] at the image's size, float32, of any network or one whose output has `logits`.

    Raises:
        SegmintError: the network gives something else.
    """
    output: Any = network(image)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None or logits.ndim != 4 or logits.shape[1] != classes:
        shape = getattr(logits, "shape", type(output).__name__)
        raise SegmintError(f"network: must give logits [B, {classes}, h, w], not {shape}")
    return resize(logits, (int(image.shape[-2]), int(image.shape[-1]))).float()


def _imported(path: str) -> nn.Module:
    """Call the function that a dotted path names."""
    module, _, function = path.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SegmintError(f"network: {path!r} cannot be called ({error}); give package.module:function") from error
    if not isinstance(network, nn.Module):
        raise SegmintError(f"network: {path!r} gave {type(network).__name__}, not a torch.nn.Module")
    return network
