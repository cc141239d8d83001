"""What is typed on the command line, turned into values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from segmint.types import SegmintError

_ELSEWHERE = {
    "data": "name the folder as DATA",
    "method": "give --method",
    "synthetic": "give --synthetic",
    "budget": "give --budget",
    "masks_from": "give --masks-from",
    "masks_confidence": "give --masks-confidence",
    "init": "give --init",
    "seed": "give --seed",
    "size": "give --size",
    "out": "give --out",
    "minutes": "give --minutes",
    "settings": "write --set training.KEY=VALUE",
    "watcher": "leave it out",
    "begins": "leave it out",
}
"""What is no setting of a method although `segmint.train` takes it, and where it belongs."""


def keep_of(text: str) -> float | int | None:
    """A share such as "0.5", a count such as "200", or "all" (None: no limit)."""
    if text == "all":
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise SegmintError(f"--keep: must be a share such as 0.5, a count such as 200, or all, not {text!r}") from error


def size_of(text: str | None) -> tuple[int, int] | None:
    """Height and width in pixels, from e.g. "96x128"; None where nothing was typed."""
    if text is None:
        return None
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise SegmintError(f"--size: must be height x width, e.g. 96x128, not {text!r}") from error
    return height, width


def settings_of(pairs: list[str], path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the method and of the training, from a file and then from KEY=VALUE.

    Raises:
        SegmintError: the file cannot be read, a value cannot, or a key is no setting.
    """
    from segmint.config import read_yaml

    stored = read_yaml(path) if path is not None else {}
    for key in stored:
        if key not in ("training", "method_settings"):
            raise SegmintError(f"{path}: {key}: there is no such key; a file has `training:` and `method_settings:`")
    chosen, training = (_mapping(path, key, stored.get(key)) for key in ("method_settings", "training"))
    for key, text in map(_split, pairs):
        if key.startswith("training."):
            _put(training, key.removeprefix("training."), _value(text))
        else:
            _put(chosen, key, _value(text))
    for key, remedy in _ELSEWHERE.items():
        if key in chosen:
            raise SegmintError(f"{key}: is no setting of the method; {remedy}")
    return chosen, training


def changes_of(pairs: list[str]) -> dict[str, Any]:
    """Settings of a trained method to be changed, from KEY=VALUE."""
    changes: dict[str, Any] = {}
    for key, text in map(_split, pairs):
        _put(changes, key, _value(text))
    return changes


def _mapping(path: Path | None, key: str, value: Any) -> dict[str, Any]:
    """What a file says under one of its two keys."""
    found = {} if value is None else value
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SegmintError(f"{path}: {key}: should hold settings as `key: value` lines, not {value!r}")
    return found


def _split(pair: str) -> tuple[str, str]:
    key, sign, text = pair.partition("=")
    if not sign:
        raise SegmintError(f"--set {pair}: must be KEY=VALUE")
    return key, text


def _put(settings: dict[str, Any], path: str, value: Any) -> None:
    key, dot, rest = path.partition(".")
    if not dot:
        settings[key] = value
        return
    inner = settings.setdefault(key, {})
    if not isinstance(inner, dict):
        inner = settings[key] = {"preset": inner}
    _put(inner, rest, value)


def _value(text: str) -> Any:
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        try:
            return yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise SegmintError(f"--set: {text!r} is not a value; write it as in YAML") from error
