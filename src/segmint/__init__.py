"""Semantic segmentation from few masks, with deep generative models and honest comparisons."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segmint.types import IGNORE, Batch, Prediction, SegmintError

if TYPE_CHECKING:
    from segmint.data.check import check
    from segmint.data.convert import convert
    from segmint.data.folder import Data
    from segmint.data.folder import open_folder as open
    from segmint.evaluation.assay import assay
    from segmint.evaluation.compare import compare
    from segmint.evaluation.evaluate import evaluate
    from segmint.evaluation.measure import measure
    from segmint.inference.generate import generate
    from segmint.inference.predict import predict
    from segmint.methods.method import Method, build, load, save
    from segmint.seeds import Seeds
    from segmint.study.page import report
    from segmint.training.run import Run, resume, train

__all__ = [
    "IGNORE",
    "Batch",
    "Data",
    "Method",
    "Prediction",
    "Run",
    "Seeds",
    "SegmintError",
    "assay",
    "build",
    "check",
    "compare",
    "convert",
    "evaluate",
    "generate",
    "load",
    "measure",
    "open",
    "predict",
    "report",
    "resume",
    "save",
    "train",
]

_HOMES = {
    "check": "data.check:check",
    "convert": "data.convert:convert",
    "Data": "data.folder:Data",
    "open": "data.folder:open_folder",
    "assay": "evaluation.assay:assay",
    "compare": "evaluation.compare:compare",
    "evaluate": "evaluation.evaluate:evaluate",
    "measure": "evaluation.measure:measure",
    "report": "study.page:report",
    "generate": "inference.generate:generate",
    "predict": "inference.predict:predict",
    "Method": "methods.method:Method",
    "build": "methods.method:build",
    "load": "methods.method:load",
    "save": "methods.method:save",
    "Seeds": "seeds:Seeds",
    "Run": "training.run:Run",
    "resume": "training.run:resume",
    "train": "training.run:train",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import segmint` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'segmint' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(import_module(f"segmint.{module}"), attribute)
