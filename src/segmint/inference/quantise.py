"""Networks in 8-bit integers, calibrated on images (static quantisation, Jacob 2018)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.data.io import Array
from segmint.inference.engines import require
from segmint.inference.wrapping import part_of

if TYPE_CHECKING:
    import onnx

_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "Add", "Concat", "Resize", "Relu", "Clip", "AveragePool")
"""What is computed in integers. Clip and Relu vanish into the ranges of the convolutions before them."""

FLOATING = (3, 6, 12)
"""How many of the first convolutions stay in float32, to be tried in this order: their few channels have very different
ranges, and bytes cost most there."""


def quantise(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]], floating: int = FLOATING[0]
) -> onnx.ModelProto:
    """A segmenter's network with 8-bit weights, one scale for each output channel, and 8-bit maps.

    Depthwise convolutions need scales by channel; ReLU6 bounds the maps, for which EfficientNet-Lite gave up SiLU.

    Args:
        model: of `tracing.trace`, from "shown" to "logits"; it is left as it is. A judge of errors beside it, and the
            resizing of the logits, stay in float32.
        feeds: its inputs, one batch after another; the ranges of the maps are those seen here.
        floating: how many of the first convolutions stay in float32.
    """
    require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    named = type(model).FromString(model.SerializeToString())
    for number, node in enumerate(named.graph.node):
        node.name = f"node_{number}"
    outside = _outside(named, floating)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            named,
            path,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=outside,
        )
        quantised = type(model).FromString(path.read_bytes())
    del quantised.metadata_props[:]
    return quantised


def _outside(model: onnx.ModelProto, floating: int) -> list[str]:
    """Names of the nodes that stay as they are."""
    network = part_of(model, [value.name for value in model.graph.input], ["logits"])
    inside = [node for node in network.graph.node if "logits" not in node.output]
    first = [node.name for node in inside if node.op_type == "Conv"][:floating]
    quantised = {node.name for node in inside} - set(first)
    return [node.name for node in model.graph.node if node.name not in quantised]


class _Feeds:
    """The calibration data as ONNX Runtime wants them: one after the other, then None."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next inputs."""
        return next(self.feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on its own use, which it logs to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
