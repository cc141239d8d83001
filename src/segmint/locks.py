"""One process at a time: a folder is locked while something is written there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segmint.types import SegmintError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, which is made where it is missing; the system lets it go when the process ends, however it ends.

    Args:
        folder: that only this process is to write to.
        patience: seconds to wait for another process to let it go.

    Raises:
        SegmintError: another process holds it for longer than that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise SegmintError(
            f"{folder}: another process is writing there; wait until it has ended, or stop it, or choose another --out"
        ) from error
    except NotImplementedError:  # the file system has no locks, as some network drives
        yield
        return
    try:
        yield
    finally:
        lock.release()
