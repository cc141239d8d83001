"""Jobs that write pairs, done by this process or by several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import multiprocessing

Entries = list[dict[str, Any]]
"""Of the manifest, for what one job wrote."""


class Writer(Protocol):
    """Who does the jobs."""

    def write(self, *job: Any) -> Entries:
        """Make and write what one job asks for."""
        ...


def write_all(
    writer: Writer, build: Callable[[], Writer], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[Entries]:
    """The entries of the jobs in their order; few of them wait at a time, so that memory stays flat.

    Every process has one thread, so that rounding is the same for any number of them.

    Args:
        writer: does the jobs where one process is enough.
        build: makes such a writer in another process, to which this function itself must be able to travel.
        jobs: the arguments of `write`.
        workers: how many processes.
    """
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers, _start, (build,)) as pool:
            waiting: deque[Any] = deque()
            for job in jobs:
                waiting.append(pool.apply_async(_work, job))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().get()
            while waiting:
                yield waiting.popleft().get()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            yield writer.write(*job)
    finally:
        torch.set_num_threads(threads)


_writer: Writer | None = None


def _start(build: Callable[[], Writer]) -> None:
    global _writer
    torch.set_num_threads(1)
    _writer = build()


def _work(*job: Any) -> Entries:
    if _writer is None:
        raise RuntimeError("a worker was given work before it was started")
    return _writer.write(*job)
