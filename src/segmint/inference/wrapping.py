"""What lies around a network in an exported model: bytes in, bytes out, at the image's own size; and what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segmint.inference.tracing import GENERATE, PAINT, SEGMENT, Traced

if TYPE_CHECKING:
    import onnx

KEY = "segmint"
"""The key of an exported model's metadata under which its description is, as JSON."""

FORMAT = 1
"""Changes whenever the meaning of the description or of inputs and outputs does."""

_BEFORE = """
<ir_version: {ir}, opset_import: ["": {opset}]>
before (uint8[batch,full_height,full_width,{channels}] image)
    => (float[batch,{channels},height,width] shown, int64[2] whole)
<float half={{127.5}}, float one={{1}}, float lowest={{-1}}, double side={{{side}}}, double least={{1}}>
{{
    bytes = Cast<to=1>(image)
    doubled = Div(bytes, half)
    values = Sub(doubled, one)
    planes = Transpose<perm=[0,3,1,2]>(values)
    whole = Shape<start=1,end=3>(image)
    sides = Cast<to=11>(whole)
    shorter = ReduceMin<keepdims=1>(sides)
    scaled = Mul(sides, side)
    fitting = Div(scaled, shorter)
    rounded = Round(fitting)
    kept = Max(rounded, least)
    size = Cast<to=7>(kept)
    outer = Shape<start=0,end=2>(planes)
    sizes = Concat<axis=0>(outer, size)
    fitted = Resize<mode="linear", antialias=1, exclude_outside=1>(planes, , , sizes)
    shown = Clip(fitted, lowest, one)
}}
"""
"""As `inference.predict.fitted` does: the shorter side as long as at training, antialiased where it shrinks."""

_AFTER = """
<ir_version: {ir}, opset_import: ["": {opset}]>
after (float[batch,{classes},height,width] logits, int64[2] whole)
    => (uint8[batch,full_height,full_width] labels, float[batch,{classes},full_height,full_width] probabilities)
<int64[1] axis={{1}}>
{{
    highest = ReduceMax<keepdims=1>(logits, axis)
    lowered = Sub(logits, highest)
    powers = Exp(lowered)
    total = ReduceSum<keepdims=1>(powers, axis)
    small = Div(powers, total)
    outer = Shape<start=0,end=2>(small)
    sizes = Concat<axis=0>(outer, whole)
    probabilities = Resize<mode="linear">(small, , , sizes)
    likeliest = ArgMax<axis=1, keepdims=0>(probabilities)
    labels = Cast<to=2>(likeliest)
}}
"""

"""The softmax is written out, for ONNX Runtime takes four times as long for its own over any but the last axis."""

_JUDGED = """
<ir_version: {ir}, opset_import: ["": {opset}]>
judged (float[batch,height,width] suspicion, int64[2] whole) => (float[batch,full_height,full_width] errors)
<int64[1] axis={{1}}>
{{
    plane = Unsqueeze(suspicion, axis)
    outer = Shape<start=0,end=2>(plane)
    sizes = Concat<axis=0>(outer, whole)
    enlarged = Resize<mode="linear">(plane, , , sizes)
    errors = Squeeze(enlarged, axis)
}}
"""

_GIVEN = """
<ir_version: {ir}, opset_import: ["": {opset}]>
before (uint8[batch,height,width] mask) => (int64[batch,height,width] given)
{{
    given = Cast<to=7>(mask)
}}
"""

_MADE = """
<ir_version: {ir}, opset_import: ["": {opset}]>
after (float[batch,{channels},height,width] made) => (uint8[batch,height,width,{channels}] image)
<float half={{127.5}}, float one={{1}}, float lowest={{-1}}>
{{
    values = Clip(made, lowest, one)
    raised = Add(values, one)
    bytes = Mul(raised, half)
    rounded = Round(bytes)
    planes = Cast<to=2>(rounded)
    image = Transpose<perm=[0,2,3,1]>(planes)
}}
"""

_KINDS = """
<ir_version: {ir}, opset_import: ["": {opset}]>
kinds (int64[batch,height,width] kinds) => (uint8[batch,height,width] mask)
{{
    mask = Cast<to=2>(kinds)
}}
"""


def wrap(traced: Traced, job: str, *, channels: int, classes: int, side: int) -> onnx.ModelProto:
    """Put a network between what takes bytes in and what gives bytes out.

    Args:
        traced: of `tracing.trace`.
        job: "segment", "generate" or "paint".
        channels, classes: C and K.
        side: the length of the shorter side of the training images, in pixels.

    Returns:
        For "segment" from `image`, uint8 [N, H, W, C], to `labels`, uint8 [N, H, W], `probabilities`, float32
        [N, K, H, W], and `errors`, float32 [N, H, W], where it judges itself. For "paint" from `mask`, uint8 [N, H, W],
        to `image`, uint8 [N, H, W, C]; for "generate" from noise alone to `image` and `mask`. Further inputs are its
        noise. What the network itself takes and gives keeps its name inside.
    """
    model = traced.model
    facts = {"ir": model.ir_version, "channels": channels, "classes": classes, "side": side}
    facts["opset"] = next(entry.version for entry in model.opset_import if entry.domain == "")
    given = {value.name for value in model.graph.output}
    if job == SEGMENT:
        model = _joined(_part(_BEFORE, facts), model, ["shown"], keep=["whole"])
        model = _joined(model, _part(_AFTER, facts), ["logits", "whole"], keep=["whole", "suspicion"])
        if "suspicion" in given:
            model = _joined(model, _part(_JUDGED, facts), ["suspicion", "whole"])
        else:
            _drop_output(model, "whole")
    else:
        if job == PAINT:
            model = _joined(_part(_GIVEN, facts), model, ["given"])
        model = _joined(model, _part(_MADE, facts), ["made"], keep=["kinds"])
        if job == GENERATE:
            model = _joined(model, _part(_KINDS, facts), ["kinds"])
    return model


def shown_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width at which an image of this size is shown to the network, whose shorter side is `side`."""
    height, width = (max(1, round(length * side / min(size))) for length in size)
    return height, width


def describe(model: onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    """Write a description into a model's metadata, in place of any before."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(facts)


def part_of(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model between tensors of these names."""
    from onnx.utils import Extractor

    part: onnx.ModelProto = Extractor(model).extract_model(list(inputs), list(outputs))
    return part


def _part(text: str, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """One of the texts above as a model; its inner names are kept apart from those of any other."""
    import onnx.compose
    import onnx.parser

    model = onnx.parser.parse_model(text.format(**facts))
    prefix = f"{KEY}_{model.graph.name}_"
    part: onnx.ModelProto = onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)
    return part


def _joined(
    first: onnx.ModelProto, second: onnx.ModelProto, through: Sequence[str], keep: Sequence[str] = ()
) -> onnx.ModelProto:
    """One model after the other; what passes between them keeps its name and is described inside the whole.

    Args:
        through: outputs of the first that are inputs of the second.
        keep: outputs of the first that remain outputs, where it has them, beside all others that are not used up.
    """
    import onnx.compose

    values = {value.name: value for value in (*first.graph.output, *second.graph.input)}
    names = [value.name for value in first.graph.output if value.name in keep or value.name not in through]
    names += [value.name for value in second.graph.output]
    model: onnx.ModelProto = onnx.compose.merge_models(
        first, second, io_map=[(name, name) for name in through], outputs=names
    )
    del model.opset_import[1:]
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    model.graph.value_info.extend(values[name] for name in through if name not in known)
    return model


def _drop_output(model: onnx.ModelProto, name: str) -> None:
    kept = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
