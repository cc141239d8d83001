"""The classes of a data folder: their names, colours, and the ids that stand for them in mask files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segmint.types import IGNORE, SegmintError

Color = tuple[int, int, int]
LARGEST = 254
"""The most classes there can be: indices are bytes, 255 is `IGNORE`, and 254 marks unknown ids in reading."""

# Kelly's colours of maximum contrast and Trubetskoy's list, ordered so that any first few are far apart.
_PALETTE: tuple[Color, ...] = (
    (0, 0, 0), (230, 159, 0), (0, 114, 178), (204, 60, 90), (0, 158, 115), (240, 228, 66), (145, 30, 180),
    (86, 180, 233), (150, 90, 40), (255, 160, 190), (170, 255, 195), (128, 128, 128), (210, 245, 60),
    (240, 50, 230), (0, 0, 128), (128, 128, 0), (220, 190, 255), (128, 0, 0), (0, 255, 255), (255, 255, 255),
)  # fmt: skip


@dataclass(frozen=True)
class Classes:
    """What a pixel can be. The class of index k (0..K-1) is called `names[k]` and is `ids[k]` in masks.

    Attributes:
        names: K distinct names.
        colors: K distinct (red, green, blue), 0..255 each.
        ids: K distinct integers, 0..65535.
        ignore: the id of pixels whose class is unknown; none of `ids`.
        ignore_color: the colour of such pixels in colour-coded masks; None where these have no such pixels.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ids: tuple[int, ...]
    ignore: int = IGNORE
    ignore_color: Color | None = None

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def named(names: Iterable[str], ids: Iterable[int] | None = None, ignore: int = IGNORE) -> Classes:
        """Classes of these names with ids 0, 1, ... and colours of the default palette."""
        names = tuple(names)
        ids = tuple(range(len(names))) if ids is None else tuple(ids)
        return Classes(names, fill_colors([None] * len(names)), ids, ignore)

    def same_as(self, other: Classes) -> bool:
        """Whether the other's masks mean the same (colours are a matter of taste)."""
        return (self.names, self.ids, self.ignore) == (other.names, other.ids, other.ignore)


def fill_colors(given: Iterable[Color | None]) -> tuple[Color, ...]:
    """The given colours, and for each None the next of the default palette that is far from all in use."""
    given = list(given)
    used = [color for color in given if color is not None]
    filled: list[Color] = []
    for color in given:
        if color is None:
            color = next((free for free in _PALETTE if _is_far(free, used)), None) or _farthest(used)
            used.append(color)
        filled.append(color)
    return tuple(filled)


def _farthest(used: list[Color]) -> Color:
    """The colour of a grid whose Euclidean distance in RGB to the nearest used one is largest."""
    levels = (0, 42, 85, 128, 170, 212, 255)
    grid = np.array([(red, green, blue) for red in levels for green in levels for blue in levels])
    squares = ((grid[:, None] - np.array(used)) ** 2).sum(2).min(1)
    red, green, blue = grid[squares.argmax()].tolist()
    return red, green, blue


def _is_far(color: Color, used: list[Color]) -> bool:
    """Whether no used colour is within 60 of 255 steps."""
    return all(sum((a - b) ** 2 for a, b in zip(color, other, strict=True)) > 60**2 for other in used)


def read_classes(path: Path) -> Classes:
    """Read a classes.yaml: `ignore: 255` and `classes: [{id: 0, name: sky, color: [128, 128, 128]}, ...]`.

    `color` may also be "#rrggbb" or left out; `ignore_color` is the colour of unknown pixels in colour masks.

    Raises:
        SegmintError: the file cannot be read or means nothing; the message names the key's path.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or "not YAML"
        raise SegmintError(f"{path}{where}: cannot be parsed ({reason}); correct this line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SegmintError(f"{path}: cannot be read ({error}); it must be a text file in UTF-8") from error
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list) or not content["classes"]:
        raise SegmintError(f"{path}: classes: must be a list like `classes: [{{id: 0, name: sky}}]`")
    for key in content:
        if key not in ("classes", "ignore", "ignore_color"):
            raise SegmintError(f"{path}: {key}: there is no such key; there are classes, ignore and ignore_color")
    if len(content["classes"]) > LARGEST:
        raise SegmintError(f"{path}: classes: {len(content['classes'])} classes; there can be {LARGEST} at most")
    return _parse(path, content)


def _parse(path: Path, content: Mapping[str, Any]) -> Classes:
    ignore = _integer(path, "ignore", content.get("ignore", IGNORE))
    void = _color(path, "ignore_color", content.get("ignore_color"))
    names: list[str] = []
    ids: list[int] = []
    colors: list[Color | None] = []
    for place, entry in enumerate(content["classes"]):
        key = f"classes[{place}]"
        if not isinstance(entry, dict):
            raise SegmintError(f"{path}: {key}: must be like {{id: {place}, name: sky}}, not {entry!r}")
        for word in entry:
            if word not in ("id", "name", "color"):
                raise SegmintError(f"{path}: {key}.{word}: there is no such key; there are id, name and color")
        ids.append(_integer(path, f"{key}.id", entry.get("id")))
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise SegmintError(
                f"{path}: {key}.name: must be a word (in quotes if YAML reads it otherwise), not {name!r}"
            )
        names.append(name.strip())
        colors.append(_color(path, f"{key}.color", entry.get("color")))
    for word, values in (("id", [*ids, ignore]), ("name", names), ("color", [*colors, void])):
        _refuse_doubles(path, word, values)
    return Classes(tuple(names), fill_colors(colors), tuple(ids), ignore, void)


def _refuse_doubles(path: Path, word: str, values: list[Any]) -> None:
    for place, value in enumerate(values):
        if value is not None and value in values[:place]:
            first = values.index(value)
            key = f"classes[{place}].{word}"
            if word != "name" and place == len(values) - 1:
                key = "ignore" if word == "id" else "ignore_color"
            raise SegmintError(f"{path}: {key}: {value!r} is already classes[{first}].{word}; choose another")


def _integer(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise SegmintError(f"{path}: {key}: must be a whole number from 0 to 65535, not {value!r}")
    return value


def _color(path: Path, key: str, value: Any) -> Color | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    if isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return value[0], value[1], value[2]
    raise SegmintError(f"{path}: {key}: must be three numbers 0..255 or '#rrggbb' in quotes, not {value!r}")


def write_classes(path: Path, classes: Classes) -> None:
    """Write a classes.yaml that `read_classes` reads back as the same classes."""
    from segmint.data.io import replacing

    entries = [
        {"id": number, "name": name, "color": list(color)}
        for number, name, color in zip(classes.ids, classes.names, classes.colors, strict=True)
    ]
    content: dict[str, Any] = {"ignore": classes.ignore, "classes": entries}
    if classes.ignore_color is not None:
        content["ignore_color"] = list(classes.ignore_color)
    with replacing(path) as temporary:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        temporary.write_text(text, encoding="utf-8")
