"""Where decoded pixels and small facts about files are kept; what lies there may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from segmint.data.io import replacing
from segmint.types import SegmintError

T = TypeVar("T")


def cache_folder() -> Path:
    """$SEGMINT_CACHE, or ~/.cache/segmint."""
    return Path(os.environ.get("SEGMINT_CACHE") or Path.home() / ".cache" / "segmint").expanduser()


def digest_of(key: Any) -> str:
    """A short name that stands for some JSON values, and for nothing else."""
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()


def stamps_of(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size in bytes and modification time of files: they change when a file does.

    Raises:
        SegmintError: a file is gone.
    """
    stamps = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise SegmintError(f"{path}: cannot be opened ({error.strerror}); open the folder again") from error
        stamps.append((os.path.abspath(path), stat.st_size, stat.st_mtime_ns))  # noqa: PTH100, keeps links
    return stamps


def remembered(key: Any, make: Callable[[], T]) -> T:
    """What `make` makes of the key, from the store if it was made before; JSON values, tuples come back as lists."""
    path = cache_folder() / f"{digest_of(key)}.json"
    with suppress(OSError, ValueError):
        known: T = json.loads(path.read_text(encoding="utf-8"))
        return known
    made = make()
    with suppress(SegmintError), replacing(path) as temporary:
        temporary.write_text(json.dumps(made), encoding="utf-8")
    return made
