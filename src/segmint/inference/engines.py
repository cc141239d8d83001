"""What runs an exported model: ONNX Runtime or OpenVINO, whole or a part of it between tensors of given names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeAlias

import torch

from segmint.data.io import Array
from segmint.inference.wrapping import FORMAT, KEY, part_of
from segmint.types import SegmintError, reason

Part: TypeAlias = Callable[[Mapping[str, Array]], list[Array]]
"""Arrays by name in, a list of arrays out."""


class Engine(Protocol):
    """A model file that has been read."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its description, see `segmint.inference.export.description`."""
        ...

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> Part:
        """What computes some tensors from others, by their names in the file."""
        ...


def open_engine(path: Path, precision: str = "float32") -> Engine:
    """Read a model that `segmint export` wrote.

    Args:
        path: model.onnx, or OpenVINO's model.xml with its model.bin.
        precision: "float32", or "bfloat16" where OpenVINO is to compute in it.

    Raises:
        SegmintError: missing, damaged, of another origin, or the package that runs it is not installed.
    """
    if path.suffix not in _ENGINES:
        raise SegmintError(f"{path}: not an exported model; give {' or '.join('*' + suffix for suffix in SUFFIXES)}")
    if not path.is_file():
        raise SegmintError(f"{path}: no such file; make it with `segmint export`")
    if precision not in ("float32", "bfloat16") or (precision == "bfloat16" and path.suffix == ".onnx"):
        raise SegmintError(f"{path}: cannot compute in {precision}; give float32, or bfloat16 for OpenVINO's *.xml")
    return _ENGINES[path.suffix](path, precision)


def require(*packages: str) -> None:
    """Raise a SegmintError unless all of these can be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SegmintError(
                f"{package} is not installed, or does not load ({reason(error)}); exported models need it: "
                "pip install 'segmint[export]'"
            ) from error


class OnnxEngine:
    """A model.onnx under ONNX Runtime, on as many threads as torch uses."""

    def __init__(self, path: Path, precision: str = "float32") -> None:
        require("onnx", "onnxruntime")
        import onnx

        try:
            self.model = onnx.load_model_from_string(path.read_bytes())
        except Exception as error:  # protobuf's own kinds
            raise SegmintError(f"{path}: damaged, or no ONNX file ({reason(error)}); export it again") from error
        self.path = path
        self.facts = _facts(path, {entry.key: entry.value for entry in self.model.metadata_props}.get(KEY))

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> Part:
        """A session of its own for this part."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        part = part_of(self.model, inputs, outputs)
        try:
            session = onnxruntime.InferenceSession(
                part.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds, which share no base of theirs
            raise SegmintError(f"{self.path}: onnxruntime cannot run it ({reason(error)}); export it again") from error
        return lambda feed: list(session.run(list(outputs), dict(feed)))


class OpenVinoEngine:
    """A model.xml under OpenVINO, on the CPU with as many threads as torch uses."""

    def __init__(self, path: Path, precision: str = "float32") -> None:
        require("openvino")
        self.path, self.precision = path, precision
        model = self._read()
        known = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        self.facts = _facts(path, known)

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> Part:
        """A compiled model of its own for this part."""
        hint = "bf16" if self.precision == "bfloat16" else "f32"
        config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core().compile_model(
            between(self._read(), inputs, outputs), "CPU", {**config, "PERFORMANCE_HINT": "LATENCY"}
        )
        ports = [compiled.output(place) for place in range(len(outputs))]
        turn = Lock()  # a compiled model refuses a second caller while the first is served

        def run(feed: Mapping[str, Array]) -> list[Array]:
            with turn:
                given = compiled([feed[name] for name in inputs])
                return [given[port] for port in ports]

        return run

    def _read(self) -> Any:
        if not self.path.with_suffix(".bin").is_file():
            raise SegmintError(f"{self.path.with_suffix('.bin')}: missing; it belongs to {self.path.name}: copy both")
        try:
            return core().read_model(str(self.path))
        except RuntimeError as error:
            raise SegmintError(f"{self.path}: damaged ({reason(error)}); export it again") from error


@cache
def core() -> Any:
    """OpenVINO's core, one for the whole process.

    Each core gives the thread another stack for signals, and takes it away with itself: of two cores that end in
    another order than they began, one leaves a stack that is no longer there, and the next signal, such as a Ctrl-C or
    a SIGTERM, crashes Python.
    """
    import openvino

    return openvino.Core()


def between(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The part of an `openvino.Model` between tensors of these names; the model itself is used up."""
    from openvino import Model
    from openvino import opset13 as ops

    ports = ports_of(model)
    parameters, results = [], []
    for name in outputs:
        ends = [target.get_node() for target in ports[name].get_target_inputs()]
        results.append(next((end for end in ends if end.get_type_name() == "Result"), None) or ops.result(ports[name]))
    for name in inputs:
        port = ports[name]
        node = port.get_node()
        if node.get_type_name() != "Parameter":
            node = ops.parameter(port.get_partial_shape(), port.get_element_type())
            for target in list(port.get_target_inputs()):
                target.replace_source_output(node.output(0))
        parameters.append(node)
    return Model(results, parameters)


def ports_of(model: Any) -> dict[str, Any]:
    """Where each tensor of an `openvino.Model` comes from, by its names."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Result"]
    return {name: port for node in nodes for port in node.outputs() for name in port.get_names()}


_ENGINES: dict[str, type[OnnxEngine] | type[OpenVinoEngine]] = {".onnx": OnnxEngine, ".xml": OpenVinoEngine}
SUFFIXES = tuple(_ENGINES)
"""How names of exported models end."""


def _facts(path: Path, text: str | None) -> dict[str, Any]:
    """The description in a model's metadata."""
    if text is None:
        raise SegmintError(f"{path}: does not say what it is; only models that `segmint export` wrote can be used")
    facts: dict[str, Any] = json.loads(text)
    if facts.get("format") != FORMAT:
        raise SegmintError(f"{path}: was exported by another version of Segmint; export it again with this one")
    return facts
