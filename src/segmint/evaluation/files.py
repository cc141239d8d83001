"""Results as JSON files: read with a word about what is wrong, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmint.config import write_atomic
from segmint.types import SegmintError


def plain(value: Any) -> Any:
    """The value as JSON can hold it: what is not finite becomes None, tensors and arrays become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write a mapping as JSON (one line per key) to a temporary name, then rename it."""
    entries = [(json.dumps(str(key)), json.dumps(plain(item), ensure_ascii=False)) for key, item in value.items()]
    write_atomic(path, "{\n" + ",\n".join(f"  {key}: {item}" for key, item in entries) + "\n}\n")
    return path


def read_json(path: Path, remedy: str = "restore it or make it again") -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        SegmintError: missing, damaged, or not a mapping; the message ends with the remedy.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SegmintError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError) as error:
        raise SegmintError(f"{path}: cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise SegmintError(f"{path}: should hold named values, not {type(value).__name__}; {remedy}")
    return value


def read_lines(path: Path, remedy: str = "restore it or train again") -> list[dict[str, Any]]:
    """Read a file of one JSON mapping a line (log.jsonl, manifest.jsonl).

    A last line without its end, as an interrupted run leaves it, is left out.

    Raises:
        SegmintError: missing, or a line is damaged; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SegmintError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError) as error:
        raise SegmintError(f"{path}: cannot be read ({error}); {remedy}") from error
    entries = []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise SegmintError(f"{path}: line {number} is not JSON ({error}); {remedy}") from error
        if not isinstance(entry, dict):
            raise SegmintError(f"{path}: line {number} should hold named values; {remedy}")
        entries.append(entry)
    return entries
