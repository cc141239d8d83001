"""Experiments as jobs: commands of the program that need one another, run side by side, each done once.

What is done is skipped when a script is started again, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One command; it runs when the jobs it needs are done."""

    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        return self.command[0] == "train"


def options(**values: object) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


class Runner:
    """Takes up the jobs whose needs are met, several at a time with one thread each."""

    def __init__(self, wanted: list[Job], data: Path, out: Path, processes: int) -> None:
        self.wanted, self.data, self.out, self.processes = wanted, data, out, processes
        self.running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
        self.failed: set[str] = set()

    def mark(self, name: str) -> Path:
        return self.out / "done" / f"{name.replace('/', '.')}.json"

    def argv(self, job: Job) -> list[str]:
        if job.trains and (self.out / job.name / "config.yaml").exists():
            return [sys.executable, "-m", "segmint", "train", "--resume", str(self.out / job.name)]
        words = [w.replace("DATA/", f"{self.data}/").replace("OUT/", f"{self.out}/") for w in job.command]
        if job.command[0] == "cp":
            return words
        program = [sys.executable, "-m", "segmint", *words]
        return [*program, "--out", str(self.out / job.name)] if job.trains else program

    def start(self, job: Job) -> None:
        print(time.strftime("%H:%M:%S"), "start", job.name, flush=True)
        log = (self.out / "logs" / f"{job.name.replace('/', '.')}.log").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(self.argv(job), stdout=log, stderr=log, env=environment)
        self.running[process] = (job, time.time())

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        job, begun = self.running.pop(process)
        print(time.strftime("%H:%M:%S"), "end", job.name, process.returncode, flush=True)
        if process.returncode:
            self.failed.add(job.name)
            return
        told = {"command": ["segmint", *job.command], "seconds": round(time.time() - begun, 1)}
        self.mark(job.name).write_text(json.dumps(told, indent=1) + "\n")

    def run(self) -> None:
        for part in ("done", "logs"):
            (self.out / part).mkdir(parents=True, exist_ok=True)
        while True:
            for process in [process for process in self.running if process.poll() is not None]:
                self.finish(process)
            busy = {job.name for job, _ in self.running.values()}
            left = [j for j in self.wanted if not self.mark(j.name).exists() and j.name not in busy | self.failed]
            ready = [job for job in left if all(self.mark(need).exists() for need in job.needs)]
            for job in ready[: max(0, self.processes - len(self.running))]:
                self.start(job)
            if not self.running:
                return
            time.sleep(0.5)


def main(description: str | None, jobs: Iterable[Job]) -> None:
    """The command line of a script that lists experiments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="*", help="names of the jobs to run, as patterns with commas between")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    patterns = asked.only.split(",")
    every = {job.name: job for job in jobs}
    wanted = [job for job in every.values() if any(fnmatch.fnmatch(job.name, pattern) for pattern in patterns)]
    if asked.list:
        for job in wanted:
            print(job.name, "<-", ", ".join(job.needs), ":", "segmint", " ".join(job.command))
        return
    Runner(wanted, asked.data.resolve(), asked.out.resolve(), asked.processes).run()
