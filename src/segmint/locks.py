"""One process at a time: a folder is locked while something is written there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segmint.types import SegmintError

LOCK = ".lock"


@contextmanager
def hold(path: Path, patience: float, complaint: str) -> Iterator[None]:
    """Hold a lock file, which the system lets go when the process ends, however it ends.

    Raises:
        SegmintError: another process holds it for longer than `patience` seconds; with this message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise SegmintError(complaint) from error
    except NotImplementedError:  # the file system has no locks, as some network drives
        yield
        return
    try:
        yield
    finally:
        lock.release()


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder that only this process is to write to; it is made where it is missing.

    Raises:
        SegmintError: another process holds it.
    """
    complaint = "another process is writing there; wait until it has ended, or stop it, or choose another --out"
    return hold(folder / LOCK, 0.0, f"{folder}: {complaint}")
