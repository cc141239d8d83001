"""Jobs that write files, done by this process, by several of this machine, or by the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from segmint.cluster import RETRIES, join
from segmint.types import SegmintError, reason

Entries = list[dict[str, Any]]
"""Of the manifest, for what one job wrote."""

Result = TypeVar("Result")
Told = TypeVar("Told", covariant=True)


class Writer(Protocol[Told]):
    """Who does the jobs."""

    def write(self, *job: Any) -> Told:
        """Make and write what one job asks for, and tell of it."""
        ...


@dataclass(frozen=True)
class Workers:
    """Where jobs are done.

    Attributes:
        processes: of this machine; None or 1: this one. Each has one thread, so that rounding is the same for any
            number of them.
        ray: the address of a Ray cluster to do them instead, whose machines share all folders; it decides how many
            work at a time. "local": one of this machine alone, with so many `processes`; None: as many as it has
            processors.
    """

    processes: int | None = None
    ray: str | None = None

    @property
    def alone(self) -> bool:
        """Whether this process does all jobs."""
        return self.ray is None and (self.processes or 1) < 2

    def at_most(self, jobs: int) -> Workers:
        """No more than there are jobs; where there are none, no cluster is asked for either."""
        ray = self.ray if jobs else None
        return Workers(None if self.processes is None else max(1, min(self.processes, jobs)), ray)


def write_all(
    writer: Writer[Result],
    build: Callable[[], Writer[Result]],
    jobs: Iterable[tuple[Any, ...]],
    workers: Workers,
    *,
    threads: int | None = 1,
    ahead: int = 2,
) -> Iterator[Result]:
    """What is told of the jobs, in their order. Jobs of workers that a Ray cluster has lost are done again.

    Args:
        writer: does the jobs where this process is enough.
        build: makes such a writer in another process, to which this function itself must be able to travel.
        jobs: the arguments of `write`.
        workers: where they are done.
        threads: of this process, where it does the jobs; None: those that it has.
        ahead: for each worker so many jobs may be begun or wait, so that memory stays flat.

    Raises:
        SegmintError: the first that a job raises; a process was killed, or the cluster is lost or out of reach.
    """
    if workers.ray is not None:
        yield from _on_ray(build, jobs, workers, ahead)
    elif not workers.alone:
        yield from _on_processes(build, jobs, workers.processes or 1, ahead)
    else:
        with _threads(threads):
            for job in jobs:
                yield writer.write(*job)


def _on_processes(
    build: Callable[[], Writer[Result]], jobs: Iterable[tuple[Any, ...]], count: int, ahead: int
) -> Iterator[Result]:
    quiet = (signal.SIGINT, signal.SIG_DFL)  # of Ctrl-C, this process alone speaks
    with ProcessPoolExecutor(count, get_context("spawn"), signal.signal, quiet) as pool:

        def start(job: tuple[Any, ...]) -> Future[Result]:
            return pool.submit(_work, build, *job)

        try:
            yield from _in_turn(start, lambda begun: begun.result(), jobs, ahead * count)
        except BrokenProcessPool as error:
            raise SegmintError(
                "--workers: one of them was killed, most likely because memory ran out; what is done is kept, so give "
                "the same command with fewer"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(
    build: Callable[[], Writer[Result]], jobs: Iterable[tuple[Any, ...]], workers: Workers, ahead: int
) -> Iterator[Result]:
    ray = join(str(workers.ray), workers.processes)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work_at)
        shared, home = ray.put(build), Path.cwd()
        count = max(1, int(ray.cluster_resources().get("CPU", 0)))
        yield from _in_turn(lambda job: task.remote(home, shared, *job), ray.get, jobs, ahead * count)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SegmintError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise SegmintError(
            f"--ray {workers.ray}: a worker or its machine was lost {RETRIES + 1} times ({reason(error)}); "
            "what is done is kept, and the same command goes on"
        ) from error
    finally:
        ray.shutdown()


def _in_turn(
    start: Callable[[tuple[Any, ...]], Any], end: Callable[[Any], Result], jobs: Iterable[tuple[Any, ...]], most: int
) -> Iterator[Result]:
    """Start jobs, of which so many at most are under way, and wait for them in their order."""
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(start(job))
        if len(waiting) > most:
            yield end(waiting.popleft())
    while waiting:
        yield end(waiting.popleft())


_writer: Writer[Any] | None = None


def _work(build: Callable[[], Writer[Result]], *job: Any) -> Result:
    """Do a job in a process that does nothing else; its writer is built once."""
    global _writer
    if _writer is None:
        torch.set_num_threads(1)
        _writer = build()
    done: Result = _writer.write(*job)
    return done


def _work_at(home: Path, build: Callable[[], Writer[Result]], *job: Any) -> Result:
    """The same as a task of Ray, where paths mean what they do in another process."""
    with contextlib.suppress(OSError):
        os.chdir(home)
    return _work(build, *job)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
