"""Pieces done by processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from segmint.study.files import LOG, STARTED


class Pool(Protocol):
    """Where pieces are done, several at a time."""

    @property
    def room(self) -> int:
        """How many more can be started."""
        ...

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        """Start the worker of a piece; `limit` in seconds."""
        ...

    def ended(self) -> dict[str, int]:
        """The pieces whose workers have ended since, with their exit codes (minus a signal's number, if killed)."""
        ...

    def stop(self, at_once: bool = False) -> None:
        """Ask all workers to save and end, or end them at once; may be called again and again."""
        ...

    def close(self) -> None:
        """End whatever still runs, and let go of everything."""
        ...


def command(folder: Path, limit: float | None) -> list[str]:
    """The command line of a piece's worker."""
    told = [] if limit is None else [f"{limit:.1f}"]
    return [sys.executable, "-m", "segmint.study.worker", str(folder), *told]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    count = torch.cuda.device_count()
    return (named or [str(number) for number in range(count)])[:count]


def environment(threads: int, gpu: str | None = None) -> Mapping[str, str]:
    """The environment of a worker that starts now, in which every library keeps to so many threads, and to a GPU."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    told = {"PYTHONUNBUFFERED": "1", STARTED: f"{time.time():.3f}"}
    told |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return {**os.environ, **dict.fromkeys(names, str(threads)), **told}


def launch(folder: Path, limit: float | None, threads: int, gpu: str | None = None) -> subprocess.Popen[bytes]:
    """Start a worker that ends when this process does; what it prints goes to output.txt in its folder.

    It has a session of its own, so that Ctrl-C reaches this process alone, which then tells it to save.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command(folder, limit),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment(threads, gpu),
            start_new_session=True,
        )


class LocalPool:
    """Processes of this machine, among which its GPUs are shared out.

    Args:
        processes: how many at a time; `threads`: of each.
    """

    def __init__(self, processes: int, threads: int) -> None:
        self.processes, self.threads, self.gpus = processes, threads, gpus()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.places: dict[str, int] = {}
        self.asked: set[int] = set()

    @property
    def room(self) -> int:
        """How many more can be started."""
        return self.processes - len(self.running)

    def start(self, name: str, folder: Path, limit: float | None) -> None:
        """Start the worker of a piece, on the GPU of the first place that is free."""
        taken = {self.places[other] for other in self.running}
        self.places[name] = next(place for place in range(self.processes) if place not in taken)
        gpu = self.gpus[self.places[name] % len(self.gpus)] if self.gpus else None
        self.running[name] = launch(folder, limit, self.threads, gpu)

    def ended(self) -> dict[str, int]:
        """The pieces whose workers have ended since."""
        codes = {name: process.poll() for name, process in self.running.items()}
        found = {name: code for name, code in codes.items() if code is not None}
        for name in found:
            process = self.running.pop(name)
            if process.stdin is not None:
                process.stdin.close()
        return found

    def stop(self, at_once: bool = False) -> None:
        """Ask all workers to save and end, each once as twice would end it unsaved; or end them at once."""
        for process in self.running.values():
            if at_once:
                process.kill()
            elif process.pid not in self.asked:
                self.asked.add(process.pid)
                process.terminate()

    def close(self) -> None:
        """End whatever still runs."""
        self.stop(at_once=True)
        for process in self.running.values():
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self.running.clear()
