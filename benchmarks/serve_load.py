"""Whether `segmint serve` bears a load: clients that ask without pause, with batching and without, and what it costs.

The server is a process of its own on the loopback, the clients share this one. Each client sends one image after the
other and looks at every answer: anything but a 200 is an error, and the mask is compared with that of a request which
was alone. Both servers get the same images in the same order. Memory is the server's resident set, once a second
(Linux); it grows until every buffer has been used once, so growth is told from the second quarter to the last.

    python benchmarks/serve_load.py runs/1-supervised --seconds 60 --out docs/results/serve-load.json
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from segmint.training.run import Run
from training_speed import processor

IMAGES = 16
PATH = "/v1/segment?answer=mask"


@dataclass
class Seen:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    other_pixels: int = 0
    other_answers: int = 0
    pixels: int = 0
    memory: list[float] = field(default_factory=list)


def pictures(size: tuple[int, int]) -> list[bytes]:
    """JPEG files of smooth random blots."""
    numbers, height, width = np.random.default_rng(0), *size
    files = []
    for _ in range(IMAGES):
        coarse = numbers.integers(0, 255, (8, 10, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextmanager
def server(run: Path, batch: int, threads: int) -> Iterator[tuple[str, int]]:
    """The address of a server, and its process id. It is asked to end by SIGTERM, and has to end well."""
    command = [sys.executable, "-m", "segmint", "serve", str(run), "--port", "0", "--no-page", "--batch", str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "COLUMNS": "1000"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("http://"):
                break
        else:
            raise SystemExit("the server did not start")
        yield line.strip(), process.pid
    finally:
        process.terminate()
        status = process.wait(60)
    if status:
        raise SystemExit(f"the server ended with status {status}")


def resident(pid: int) -> float:
    """Resident set of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def processor_seconds(pid: int) -> float:
    """What a process and its threads have used of the processor."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


async def ask(address: str, files: list[bytes], alone: list[bytes], first: int, end: float, seen: Seen) -> None:
    """One client, on one connection."""
    host = urlsplit(address)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    number = first
    while time.monotonic() < end:
        place = number % len(files)
        number += 1
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: image/jpeg\r\n"
        begun = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(files[place])}\r\n\r\n".encode() + files[place])
        try:
            top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in top if line.startswith("content-length"))
            answer = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.errors.append(repr(error))
            return
        seen.seconds.append(time.perf_counter() - begun)
        if " 200" not in top[0]:
            seen.errors.append(f"{top[0]}: {answer[:200]!r}")
        elif answer != alone[place]:
            mine, other = pixels_of(answer), pixels_of(alone[place])
            seen.other_answers += 1
            seen.other_pixels += int((mine != other).sum())
        seen.pixels += 0 if " 200" not in top[0] else pixels_of(alone[place]).size
    writer.close()


async def watch(pid: int, end: float, rows: list[float]) -> None:
    while time.monotonic() < end:
        rows.append(resident(pid))
        await asyncio.sleep(1)


async def load(address: str, pid: int, files: list[bytes], alone: list[bytes], clients: int, seconds: float) -> Seen:
    seen = Seen()
    end = time.monotonic() + seconds
    work = [ask(address, files, alone, first * 5, end, seen) for first in range(clients)]
    await asyncio.gather(watch(pid, end, seen.memory), *work)
    return seen


def post(address: str, file: bytes) -> bytes:
    request = urllib.request.Request(address + PATH, file, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def batches(address: str) -> tuple[float, float]:
    """How many batches there have been, and how many images in them."""
    with urllib.request.urlopen(address + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("segmint_batch_size_")}
    return found.get("segmint_batch_size_count", 0.0), found.get("segmint_batch_size_sum", 0.0)


def measure(run: Path, batch: int, args: argparse.Namespace, files: list[bytes]) -> dict[str, object]:
    with server(run, batch, args.threads) as (address, pid):
        alone = [post(address, file) for file in files]
        before, used = batches(address), processor_seconds(pid)
        seen = asyncio.run(load(address, pid, files, alone, args.clients, args.seconds))
        after, used = batches(address), processor_seconds(pid) - used
    memory = seen.memory
    quarter = max(1, len(memory) // 4)
    early, late = statistics.mean(memory[quarter : 2 * quarter]), statistics.mean(memory[-quarter:])
    ordered = sorted(seen.seconds)
    return {
        "requests": len(ordered),
        "errors": len(seen.errors),
        "first errors": seen.errors[:3],
        "requests a second": round(len(ordered) / args.seconds, 1),
        "median ms": round(1000 * statistics.median(ordered), 1),
        "95% ms": round(1000 * ordered[int(0.95 * len(ordered))], 1),
        "processor ms a request": round(1000 * used / max(1, len(ordered)), 1),
        "images a batch": round((after[1] - before[1]) / max(1.0, after[0] - before[0]), 2),
        "answers unlike a lone request's": seen.other_answers,
        "share of pixels that differ": seen.other_pixels / max(1, seen.pixels),
        "MiB in the second quarter": round(early, 1),
        "MiB in the last": round(late, 1),
        "MiB each second": [round(value, 1) for value in memory],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that segments, or an exported model")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default=None, help="height x width of the images; else those of the run")
    parser.add_argument("--growth", type=float, default=5.0, help="percent that memory may grow by")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    from segmint.inference.exported import opened

    known: Run = opened(args.run)
    height, width = known.size if args.size is None else map(int, args.size.split("x"))
    facts: dict[str, object] = {
        "model": known.method.name,
        "shown": list(known.size),
        "images": [height, width],
        "clients": args.clients,
        "seconds": args.seconds,
        "hardware": f"{processor()}, {args.threads} threads, Python {platform.python_version()}",
    }
    files, failed = pictures((height, width)), []
    for name, batch in (("batches", args.batch), ("alone", 1)):
        facts[name] = found = measure(args.run, batch, args, files)
        print(json.dumps({name: {key: value for key, value in found.items() if key != "MiB each second"}}), flush=True)
        growth = 100 * (float(str(found["MiB in the last"])) / float(str(found["MiB in the second quarter"])) - 1)
        if found["errors"]:
            failed.append(f"{name}: {found['errors']} errors, the first: {found['first errors']}")
        if growth > args.growth:
            failed.append(f"{name}: memory grew by {growth:.1f}% from the second quarter to the last")
    if args.out is not None:
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
