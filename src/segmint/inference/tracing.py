"""A trained method as an ONNX graph with any batch size, height and width, by way of `torch.export`."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.inference.noise import HEIGHT, WIDTH, Given, Noise, noise_of
from segmint.methods.method import Method
from segmint.nets.encoders import SamePadConv2d
from segmint.nets.vae import AggregatePosterior
from segmint.seeds import Seeds
from segmint.types import SegmintError, reason

if TYPE_CHECKING:
    import onnx

OPSET = 20
SEGMENT, GENERATE, PAINT = "segment", "generate", "paint"
JOBS = (SEGMENT, GENERATE, PAINT)

_LOGGERS = ("torch.onnx", "torch.export", "torch._dynamo", "torch._guards", "torch.__trace")

_SIZE = (97, 131)
"""Of the images that a method is traced with: far from any whole stride, so that no side is equal by accident."""


@dataclass(frozen=True)
class Traced:
    """A method's graph.

    Attributes:
        model: from "shown", float32 [N, C, H, W] in [-1, 1], to "logits", float32 [N, K, H, W] (and "suspicion",
            float32 [N, H, W], where the method judges its own errors); or from "given", int64 [N, H, W], for a
            painter, or from noise alone, to "made", float32 [N, C, H, W], and "kinds", int64 [N, H, W].
        noise: its further inputs.
    """

    model: onnx.ModelProto
    noise: tuple[Noise, ...]


def trace(method: Method, job: str) -> Traced:
    """The graph of one job of a method, in float32.

    Args:
        method: in evaluation mode; it is left as it is.
        job: "segment", "generate" (from noise alone) or "paint" (from a mask).

    Raises:
        SegmintError: the method cannot do that, or not as a graph; the message says why.
    """
    if job not in able(method):
        raise SegmintError(f"{method.name}: cannot {job}; it can {' and '.join(able(method)) or 'neither'}")
    if not any(True for _ in method.parameters()):
        raise SegmintError(f"{method.name}: has no network that could be exported; it is a table of what it has seen")
    twin = _plain(method)
    module: nn.Module = _Segment(twin) if job == SEGMENT else _Make(twin)
    try:
        with torch.no_grad(), _quiet():
            noise = noise_of(lambda seeds, size: _run(twin, job, seeds, size))
            model = _convert(module, job, _names(method, job), noise, method)
    except SegmintError as error:
        raise SegmintError(f"{method.name}: cannot be exported: {error}") from error
    except Exception as error:  # torch.export raises anything from AssertionError to its own kinds
        raise SegmintError(
            f"{method.name}: cannot be exported, for it is no graph of tensor operations: {reason(error)}"
        ) from error
    return Traced(model, noise)


def able(method: Method) -> tuple[str, ...]:
    """Which jobs a method has."""
    jobs = [SEGMENT] if "segment" in method.capabilities() else []
    if "generate" in method.capabilities():
        jobs += [] if method.needs_mask else [GENERATE]
        jobs += [PAINT] if "mask" in method.conditions else []
    return tuple(jobs)


def judges(method: Method) -> bool:
    """Whether a method has its own judgement of where it errs."""
    return type(method).errors is not Method.errors


class _Segment(nn.Module):
    """A method's `segment`, and its `errors` where it has a judge of its own."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method, self.judges = method, judges(method)

    def forward(self, shown: Tensor, noise: list[Tensor]) -> tuple[Tensor, ...]:
        logits = self.method.segment(shown, Given(noise))
        suspicion = self.method.errors(shown, logits) if self.judges else None
        return (logits,) if suspicion is None else (logits, suspicion)


class _Make(nn.Module):
    """A method's `generate`."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, given: Tensor | None, noise: list[Tensor]) -> tuple[Tensor, ...]:
        pair = self.method.generate(Given(noise), mask=given)
        return (pair.image,) if given is not None else (pair.image, pair.mask)


def _names(method: Method, job: str) -> tuple[list[str], list[str]]:
    """Names of the inputs, without noise, and of the outputs."""
    if job == SEGMENT:
        return ["shown"], ["logits", "suspicion"] if judges(method) else ["logits"]
    return (["given"], ["made"]) if job == PAINT else ([], ["made", "kinds"])


def _run(method: Method, job: str, seeds: Seeds, size: tuple[int, int]) -> object:
    given = _example(method, job, size)
    if job == SEGMENT:
        return method.segment(given, seeds)
    return method.generate(seeds, mask=given if job == PAINT else None)


def _example(method: Method, job: str, size: tuple[int, int]) -> Tensor:
    """Two images, or two masks in which every class occurs."""
    if job == SEGMENT:
        return torch.linspace(-1, 1, 2 * int(method.config["in_channels"]) * size[0] * size[1]).view(2, -1, *size)
    return (torch.arange(2 * size[0] * size[1]) % int(method.config["classes"])).view(2, *size)


def _plain(method: Method) -> Method:
    """A copy on the CPU, with other modules for what `torch.export` or ONNX cannot follow."""
    twin = copy.deepcopy(method).cpu().float().eval().requires_grad_(False)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, SamePadConv2d) and child.stride[0] > 1:
                setattr(module, name, _SameConv(child))
            elif isinstance(child, AggregatePosterior):
                setattr(module, name, _Gaussian(child))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim == 0 and not buffer.is_floating_point():  # a counter: a plain number is no unknown
                delattr(module, name)
                setattr(module, name, int(buffer))
    return twin


@torch.library.custom_op("segmint::same_conv", mutates_args=())
def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """A convolution padded as ONNX's SAME_UPPER, [B, C, H, W] -> [B, D, ceil(H / stride), ceil(W / stride)].

    In one piece: the sizes of its padding, written out, keep `torch.export` busy for minutes.
    """
    kernel = weight.shape[-1]
    rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
    x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.conv2d(x, weight, None, stride, 0, 1, groups)


@same_conv.register_fake
def _(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    height, width = ((side + stride - 1) // stride for side in x.shape[-2:])
    return x.new_empty(x.shape[0], weight.shape[0], height, width)


class _SameConv(nn.Module):
    def __init__(self, conv: SamePadConv2d) -> None:
        super().__init__()
        self.weight, self.stride, self.groups = conv.weight, conv.stride[0], conv.groups

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = same_conv(x, self.weight, self.stride, self.groups)
        return y


class _Gaussian(nn.Module):
    """An aggregate posterior with the root of its covariance taken once: ONNX has no eigenvectors."""

    mean: Tensor
    root: Tensor

    def __init__(self, posterior: AggregatePosterior) -> None:
        super().__init__()
        latent = len(posterior.mean)
        self.register_buffer("mean", posterior(torch.zeros(1, latent)))
        self.register_buffer("root", posterior(torch.eye(latent)) - self.mean)

    def forward(self, noise: Tensor) -> Tensor:
        y: Tensor = self.mean + noise @ self.root
        return y


def _convert(
    module: nn.Module, job: str, names: tuple[list[str], list[str]], noise: Sequence[Noise], method: Method
) -> onnx.ModelProto:
    inputs, outputs = names
    example = _example(method, job, _SIZE) if inputs else None
    numbers = [entry.draw(Seeds.range(2), _SIZE) for entry in noise]
    auto = torch.export.Dim.AUTO
    sides = {0: auto, 1: auto, 2: auto} if job == PAINT else {0: auto, 2: auto, 3: auto}
    shapes = (
        sides if inputs else None,
        [
            {0: auto, **{place + 1: auto for place, side in enumerate(entry.shape) if isinstance(side, str)}}
            for entry in noise
        ],
    )
    program = torch.export.export(module, (example, numbers), dynamic_shapes=shapes, strict=True)
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[*inputs, *(entry.name for entry in noise)],
        output_names=outputs,
        custom_translation_table=_translations(),
        verbose=False,
    )
    model: onnx.ModelProto = exported.model_proto
    _tidy(model, outputs)
    _name_sides(model, noise)
    return model


def _translations() -> dict[Any, Any]:
    """What ONNX is to make of our own operation, and of two that its exporter lacks or rounds wrongly."""
    from onnxscript import opset20 as op

    def same(x: Any, weight: Any, stride: int, groups: int) -> Any:
        return op.Conv(x, weight, auto_pad="SAME_UPPER", strides=[stride, stride], group=groups)

    def floor_division(one: Any, other: Any) -> Any:
        return op.Div(op.Sub(one, op.Mod(one, other)), other)

    def places(ladder: Any, values: Any, **_: Any) -> Any:
        """Of `searchsorted`: how many steps of the (one-dimensional) ladder are below each value."""
        below = op.Less(ladder, op.Unsqueeze(values, op.Constant(value_ints=[-1])))
        return op.ReduceSum(op.Cast(below, to=7), op.Constant(value_ints=[-1]), keepdims=0)

    return {
        torch.ops.segmint.same_conv.default: same,
        operator.floordiv: floor_division,
        torch.ops.aten.searchsorted.Tensor: places,
    }


def _tidy(model: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Remove what tells of the machine that it was made on; name the outputs."""
    graph = model.graph
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        thing.doc_string = ""
        if hasattr(thing, "metadata_props"):
            del thing.metadata_props[:]
    if [value.name for value in graph.output] != list(outputs):
        raise SegmintError(f"its graph gives {[value.name for value in graph.output]}, not {list(outputs)}")


def _name_sides(model: onnx.ModelProto, noise: Sequence[Noise]) -> None:
    """Call the sides of inputs batch, height and width; refuse those that tracing has fixed."""
    noises = {entry.name: entry.shape for entry in noise}
    known: dict[str, str] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        fixed = {"shown": ("", HEIGHT, WIDTH), "given": (HEIGHT, WIDTH)}.get(value.name) or noises[value.name]
        for dim, name in zip(dims, ("batch", *fixed), strict=True):
            if isinstance(name, str) and name:
                if not dim.dim_param:
                    raise SegmintError(f"its graph has a fixed {name} of {dim.dim_value}, whatever is given")
                known[dim.dim_param] = name
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_param = known[dim.dim_param]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own chatter from the user."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
