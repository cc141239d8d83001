"""A study that is killed again and again (signal 9, at random moments) against the same one left alone: equal tables?

    python benchmarks/study_killed.py [--kills 10] [--seed 0] [--out docs/results/study-killed.json]

The data is the demo's. A moment is a number of pieces of work that are done, and some seconds. Every other time the
workers are killed with the study, else they are left to notice. It takes some minutes, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from segmint.data.demo import make_demo

OUT = Path(__file__).parents[1] / "docs" / "results" / "study-killed.json"
TIMES = ("seconds", "shared_seconds")

STRATEGIES = {
    "supervised": [{"train": "supervised"}],
    "self-taught": [
        {"name": "first", "train": "supervised", "share": 0.33},
        {"train": "supervised", "init": "first", "masks_from": "first"},
    ],
    "denoise": [{"train": "denoise", "share": 0.33, "once": True}, {"train": "supervised", "init": "denoise"}],
    "cutpaste": [
        {"name": "maker", "train": "cutpaste"},
        {"generate": "maker", "count": 16},
        {"train": "supervised", "synthetic": ["pairs"], "training": {"synthetic_fraction": 0.25}},
    ],
}


def write_study(folder: Path, data: Path, steps: int, seeds: int) -> Path:
    study = {
        "data": str(data),
        "size": [56, 48],
        "baseline": "supervised",
        "strategies": STRATEGIES,
        "budgets": [8],
        "seeds": list(range(seeds)),
        "steps": steps,
        "settings": {"encoder_name": "plain", "decoder_channels": [8, 8, 8, 8]},
        "training": {"validate_every": 10, "save_every": 0.5},
        "precision": "float32",
        "threads": 1,
    }
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "segmint", "study", str(folder), "--processes", "1"]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path) -> float:
    """Run it to its end; the seconds that it took."""
    begun = time.monotonic()
    if start(folder).wait():
        raise SystemExit(folder.with_suffix(".log").read_text(encoding="utf-8"))
    return time.monotonic() - begun


def workers(process: int) -> list[int]:
    """The processes that a process has started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text(encoding="ascii").split()] if path.exists() else []


def kill(process: subprocess.Popen[bytes], with_workers: bool) -> None:
    below = workers(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for worker in below if with_workers else []:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def done(folder: Path) -> int:
    """How many pieces are done."""
    return sum(1 for _ in (folder / "pieces").glob("*/done.json"))


def interrupt(folder: Path, pieces: int, delay: float, with_workers: bool) -> dict[str, Any] | None:
    """Start it and kill it some seconds after so many pieces are done; None if it had come to its end."""
    begun, process = time.monotonic(), start(folder)
    while done(folder) < pieces and process.poll() is None:
        time.sleep(0.05)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        kill(process, with_workers)
    else:
        return None
    told = {"after, s": round(time.monotonic() - begun, 1), "killed": "study and workers" if with_workers else "study"}
    checkpoints = sum(1 for _ in (folder / "pieces").glob("*/state.pt"))
    return {**told, "pieces done": done(folder), "checkpoints": checkpoints, "trials ended": len(results(folder))}


def results(folder: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl without their times, in the order of the trials."""
    path = folder / "results.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return sorted(rows, key=lambda row: (row["strategy"], row["budget"], row["seed"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    numbers = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        os.environ["SEGMINT_CACHE"] = f"{place}/cache"
        make_demo(Path(place) / "data")
        whole, broken = (
            write_study(Path(place) / name, Path(place) / "data", asked.steps, asked.seeds)
            for name in ("whole", "broken")
        )
        unbroken = finish(whole)
        begun, kills, pieces = time.monotonic(), [], done(whole)
        for number, moment in enumerate(sorted(numbers.uniform(0, pieces - 1) for _ in range(asked.kills))):
            told = interrupt(broken, int(moment), moment % 1 * unbroken / pieces, number % 2 == 0)
            if told is None:
                raise SystemExit(f"it came to its end after {number} kills; give more --steps")
            kills.append(told)
            print(json.dumps(told), flush=True)
        finish(broken)
        rows, same = results(whole), results(whole) == results(broken)
    found = {
        "command": shlex.join(["python", "benchmarks/study_killed.py", *sys.argv[1:]]),
        "trials": len(rows),
        "pieces": pieces,
        "all done": all(row["status"] == "done" for row in rows),
        "same results": same,
        "unbroken, s": round(unbroken, 1),
        "killed, s": round(time.monotonic() - begun, 1),
        "kills": kills,
    }
    print(json.dumps({key: value for key, value in found.items() if key != "kills"}, indent=1))
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not same)


if __name__ == "__main__":
    main()
