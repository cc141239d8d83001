"""The whole way from a folder to an answer, by the commands that anybody would type."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from segmint.types import SegmintError

BUDGET = 8
GENERATORS = {
    "gmm": [],
    "vae": ["--steps", "200"],
    "gan": ["--steps", "250", "--set", "warm_start=100"],
}
COUNT = 64
DESCRIPTION = (
    "One averaged brain, not many people: axial slices of a single volume, the MNI152 T1 template that nilearn ships, "
    "with masks from its grey and white matter maps. Training, validation and test are blocks of slices with a gap "
    "between them. What is measured here shows that the program works; it says nothing about the scans of real "
    "patients. Source and licence are in data/README.txt."
)


@dataclass
class _Shell:
    """Runs commands, two at a time with one thread each, and remembers them for the report."""

    folder: Path
    console: Console
    commands: list[str] = field(default_factory=list)
    timings: list[tuple[str, float]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self, jobs: Sequence[Sequence[str]]) -> None:
        """Run some commands side by side.

        Raises:
            SegmintError: one of them failed; what it printed is in the message.
        """
        workers = max(1, min(2, os.cpu_count() or 1))
        self.commands += [_spell(job) for job in jobs]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(self._one, jobs))

    def _one(self, job: Sequence[str]) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.started:4.0f} s[/] {_spell(job)}", highlight=False)
        begun = time.monotonic()
        threads = {"OMP_NUM_THREADS": "1"} if (os.cpu_count() or 1) <= 2 else {}
        done = subprocess.run(
            [sys.executable, "-m", "segmint", *job],
            env={**os.environ, **threads},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SegmintError(f"{_spell(job)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip())
        self.timings.append((_spell(job), round(time.monotonic() - begun, 1)))


def run_demo(folder: Path, steps: int, console: Console) -> Path:
    """Make the demo data, train, generate, train on generated pairs too, evaluate, compare, report.

    Stopped and called again, it goes on where it was.

    Args:
        folder: where data, runs and report go.
        steps: optimisation steps of each segmenter.
        console: where to say what is done.

    Returns:
        The path of the report.

    Raises:
        SegmintError: a step failed.
    """
    from segmint.data.cache import Pixels
    from segmint.data.demo import make_demo
    from segmint.data.folder import open_folder
    from segmint.evaluation.pictures import write_data_summary

    shell = _Shell(folder, console)
    data = folder / "data"
    if not (data / "splits").is_dir():
        console.print("making the demo data", highlight=False)
        make_demo(data)
    shell.run([["check", str(data)]])
    learn = [str(data), "--budget", str(BUDGET)]
    alone = [*learn, "--method", "supervised", "--steps", str(steps)]
    runs = {"supervised": alone}
    runs |= {name: [*learn, "--method", name, *extra] for name, extra in GENERATORS.items()}
    shell.run([_train(folder / name, arguments) for name, arguments in runs.items()])
    made = {name: folder / f"pairs-{name}" for name in GENERATORS}
    shell.run([["generate", str(folder / name), "--count", str(COUNT), "--out", str(made[name])] for name in made])
    both = {f"supervised+{name}": [*alone, "--synthetic", str(pairs)] for name, pairs in made.items()}
    shell.run([_train(folder / name, arguments) for name, arguments in both.items()])
    segmenters = [folder / "supervised", *(folder / name for name in both)]
    shell.run([["evaluate", str(run), "--split", "test"] for run in segmenters])
    others = [str(run) for run in segmenters[1:]]
    shell.run([["compare", str(segmenters[0]), *others, "--split", "test", "--out", str(folder)]])
    shell.commands.append(_spell(["report", str(folder)]))
    opened = open_folder(data)
    write_data_summary(
        Pixels.open(opened),
        folder,
        description=DESCRIPTION,
        budget=BUDGET,
        commands=shell.commands,
        timings=shell.timings,
    )
    shell.run([["report", str(folder)]])
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    console.print(comparison["answer"], highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - shell.started:.0f} s in all", highlight=False)
    return folder / "report.html"


def _train(run: Path, arguments: Sequence[str]) -> list[str]:
    """Train, or go on where a run was stopped; a finished run is over at once."""
    if (run / "config.yaml").exists():
        return ["train", "--resume", str(run)]
    return ["train", *arguments, "--out", str(run)]


def _spell(job: Sequence[str]) -> str:
    return shlex.join(["segmint", *job])
