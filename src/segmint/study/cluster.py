"""Pieces done by the machines of a Ray cluster, which share the study's folder and the data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from segmint.cluster import RETRIES, join
from segmint.study.files import STOPPED
from segmint.study.local import launch


def _piece(folder: str, limit: float | None, threads: int) -> int:
    """The task: do the piece of a folder in a process of its own, as on one machine; its exit code."""
    process = launch(Path(folder), limit, threads)
    try:
        return process.wait()
    except BaseException:  # Ray raises KeyboardInterrupt here where the task is cancelled
        process.terminate()
        process.wait()
        return STOPPED
    finally:
        if process.stdin is not None:
            process.stdin.close()


class RayPool:
    """Tasks of a Ray cluster: each takes `threads` processors, and a GPU where the cluster has some.

    Args:
        address: of the cluster, e.g. "auto" or "10.0.0.1:6379"; "local": one on this machine, for this study alone.
        processes: at most so many at a time on "local"; elsewhere the cluster decides.
        threads: of each.

    Raises:
        SegmintError: Ray is not installed, or the cluster is out of reach.
    """

    def __init__(self, address: str, processes: int, threads: int) -> None:
        self.ray: Any = join(address, processes * threads)
        whole = self.ray.cluster_resources()
        gpus = 1 if whole.get("GPU", 0) >= 1 else 0
        self.task = self.ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_piece)
        self.threads, self.gpus = threads, gpus
        self.running: dict[Any, str] = {}
        self.asked: set[tuple[str, bool]] = set()

    @property
    def room(self) -> int:
        """How many more the cluster has processors (and GPUs) for, as it is now."""
        whole = self.ray.cluster_resources()
        slots = int(whole.get("CPU", 0)) // self.threads
        if self.gpus:
            slots = min(slots, int(whole.get("GPU", 0)))
        return slots - len(self.running)

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        """Start the task of a piece."""
        self.running[self.task.remote(str(folder), limit, self.threads)] = name

    def ended(self) -> dict[str, int]:
        """The pieces whose tasks have ended since."""
        if not self.running:
            return {}
        done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        found = {}
        for reference in done:
            try:
                code = int(self.ray.get(reference))
            except self.ray.exceptions.RayError:
                code = STOPPED
            found[self.running.pop(reference)] = code
        return found

    def stop(self, at_once: bool = False) -> None:
        """Ask all tasks to save and end, or end them at once."""
        for reference, name in self.running.items():
            if (name, at_once) not in self.asked:
                self.asked.add((name, at_once))
                self.ray.cancel(reference, force=at_once)

    def close(self) -> None:
        """End whatever still runs, and leave the cluster."""
        with contextlib.suppress(Exception):
            self.stop(at_once=True)
        self.ray.shutdown()
        self.running.clear()
