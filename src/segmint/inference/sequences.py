"""Write labelled sequences that a method made, frame by frame."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmint.config import write_atomic
from segmint.data.cache import Pixels
from segmint.data.classes import write_classes
from segmint.data.folder import Data, open_folder
from segmint.data.io import Bytes, read_image
from segmint.data.masks import read_mask
from segmint.data.video import write_video
from segmint.inference.generate import MOST, claim, facts_of, sweep, to_bytes, write_pair
from segmint.inference.workers import Entries, Workers, write_all
from segmint.locks import locked
from segmint.methods.method import Method, device_of
from segmint.seeds import Seeds
from segmint.training.precision import autocast
from segmint.training.run import Run
from segmint.types import Batch, SegmintError

SPEED = 1 / 16
"""How far the noise walks per frame, where masks are the method's own: 1 / SPEED frames on, the scene is another."""


@dataclass(frozen=True)
class Script:
    """What all sequences of a folder have in common.

    Attributes:
        frames: per sequence, at most.
        seed: of the whole folder; sequence i has the seed `seed * 1_000_000 + i`.
        speed: how far the noise walks per frame; 0 where masks are given, as noise then stands still.
        independent: fresh noise for every frame, which knows nothing of the one before.
        masks: the data folder that the masks are from, with a digest of its files; None for masks of the method's own.
        precision: in which the method works.
    """

    frames: int
    seed: int = 0
    speed: float = SPEED
    independent: bool = False
    masks: tuple[str, str] | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class Job:
    """One sequence to make: its number, and the masks to paint uint8 [N, H, W] with the names of their items."""

    number: int
    masks: Bytes | None = None
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder, and so the group, of its frames."""
        return f"sequence-{self.number:04d}"


def generate_sequences(
    run: Run | str | Path,
    *,
    count: int,
    frames: int,
    masks: str | Path | Data | None = None,
    split: str | None = None,
    speed: float = SPEED,
    independent: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Make sequences of frames that follow from one another; write them as a data folder with a `manifest.jsonl`.

    The frames of sequence i are images/sequence-000i/000.png, 001.png, ...; a sequence is a group. All frames of a
    sequence share their seed. Given masks are painted in turn with the same noise. Without them the noise walks
    smoothly (`Seeds.at`), and masks and images move with it. A method that follows a previous frame is given it.

    Sequence i depends on these arguments, i and the trained method alone. Called again on the same folder it goes on
    after the sequences that are there; one that is not whole is made again.

    Args:
        run: a run whose method generates.
        count: how many sequences. If there are fewer of masks, these are used again with other noise.
        frames: how many frames each, 2 or more; fewer where a given sequence of masks is shorter.
        masks: a data folder whose sequences of masks are painted, cut to pieces of that many frames; None for masks
            of the method's own.
        split: which split of `masks`; None for all of it.
        speed: how far the noise walks per frame, from one independent draw (0) to the next (1); above 0.
        independent: fresh noise for every frame and no previous one, for comparison.
        out: the folder to write; None: `sequences` in the run folder.
        seed: of the whole folder.
        workers, ray: where they are made, which does not change them; see `segmint.inference.workers.Workers`.
        progress: told how many sequences of how many are done.

    Raises:
        SegmintError: the method cannot do it, a number is out of its range, `masks` holds no sequence of masks or
            other classes, or the folder holds something else.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    _check(run, count, frames, speed, masks is not None)
    folder = Path(out) if out is not None else run.folder / "sequences"
    script = Script(frames, seed, speed, independent, precision=run.precision)
    job: Callable[[int], Job] = Job
    if masks is not None:
        data = masks if isinstance(masks, Data) else open_folder(masks)
        found = _find_masks(run, data, frames, split)
        script = Script(frames, seed, 0.0, independent, (str(data.root.resolve()), _digest(data, found)), run.precision)
        job = partial(_paint_job, Pixels.open(data, run.size), found)
    with locked(folder):
        claim(folder, _facts(run, script))
        done = _drop_broken(folder)
        write_classes(folder / "classes.yaml", run.classes)
        wanted = [number for number in range(count) if number not in done]
        made, place = count - len(wanted), Workers(workers, ray).at_most(len(wanted))
        with (folder / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
            maker, build = _Maker(run, folder, script), partial(_Maker, replace(run), folder, script)
            for entries in write_all(maker, build, ((job(number),) for number in wanted), place):
                manifest.write("".join(json.dumps(entry) + "\n" for entry in entries))
                manifest.flush()
                made += 1
                if progress is not None:
                    progress(made, count)
        sweep(folder)
    return open_folder(folder)


def frames_of(method: Method, script: Script, number: int, masks: Tensor | None = None) -> Iterator[Batch]:
    """The frames of one sequence, one after another.

    Args:
        method: one that generates, in evaluation mode.
        script: what the sequences have in common.
        number: which sequence.
        masks: int64 [N, H, W], painted frame by frame; None for `script.frames` frames with masks of its own.

    Yields:
        A batch of one item for every frame, on the CPU.

    Raises:
        SegmintError: the method cannot paint masks, or makes values that are not finite.
    """
    device = device_of(method)
    value = script.seed * MOST + number
    follows = "previous" in method.conditions and not script.independent
    previous: Tensor | None = None
    for frame in range(script.frames if masks is None else len(masks)):
        seeds = Seeds([value], 0.0 if masks is not None or script.independent else frame * script.speed)
        if script.independent:
            seeds = seeds.fork("frame", frame)
        with torch.inference_mode(), autocast(script.precision, device):
            mask = None if masks is None else masks[frame : frame + 1].to(device)
            batch = method.generate(seeds, mask=mask, previous=previous if follows else None)
        if not bool(torch.isfinite(batch.image).all()):
            raise SegmintError(f"{method.name}: generated values that are not finite; train it again with a smaller lr")
        previous = batch.image.clamp(-1, 1)
        yield batch.to("cpu")


def pieces(data: Data, frames: int, split: str | None = None, *, labelled: bool = True) -> list[list[int]]:
    """Runs of frames that follow one another, cut to pieces of one length.

    Args:
        data: the folder; its groups are the sequences (`Data.sequences`).
        frames: how long a piece is; a sequence with fewer frames, but two at least, is one piece.
        split: only sequences of this split; None for all.
        labelled: whether all frames of a piece must have masks.

    Returns:
        Item indices, one list a piece; what is left at the end of a longer sequence is not used.
    """
    allowed = set(range(len(data)) if split is None else data.split(split))
    if labelled:
        allowed = {index for index in allowed if data.items[index].masks}
    found = []
    for sequence in data.sequences():
        for usable, members in groupby(sequence, lambda index: index in allowed):
            run = list(members)
            if usable and len(run) >= 2:
                step = min(frames, len(run))
                found += [run[start : start + step] for start in range(0, len(run) - step + 1, step)]
    return found


def write_videos(folder: str | Path, fps: int = 12, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write videos/NAME.mp4 for every sequence of a folder, the image left and its mask right.

    Small images are enlarged by a whole factor. Videos that are there already are kept.

    Raises:
        SegmintError: PyAV is not installed (the `video` extra brings it), or `fps` is below 1.
    """
    data = open_folder(folder)
    sequences = [sequence for sequence in data.sequences() if len(sequence) > 1]
    paths = []
    for number, sequence in enumerate(sequences, 1):
        paths.append(data.root / "videos" / f"{data.items[sequence[0]].group.replace('/', '-')}.mp4")
        if not paths[-1].is_file():
            write_video(paths[-1], (_shown(data, index) for index in sequence), fps)
        if progress is not None:
            progress(number, len(sequences))
    return paths


def _shown(data: Data, index: int) -> Bytes:
    """An item as a frame of a video: uint8 [H, W, 3]."""
    item = data.items[index]
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(data.classes)] = data.classes.colors
    sides = [read_image(item.image, channels=3), *(palette[read_mask(path, data.classes)] for path in item.masks[:1])]
    both = np.concatenate(sides, axis=1)
    factor = max(1, round(288 / both.shape[0]))
    return both.repeat(factor, 0).repeat(factor, 1)


def _check(run: Run, count: int, frames: int, speed: float, masks: bool) -> None:
    method = run.method
    if "generate" not in method.capabilities():
        raise SegmintError(f"{run.folder}: {method.name} does not generate; `segmint methods` lists those that do")
    if not 1 <= count <= MOST:
        raise SegmintError(f"--count: must be at least 1 and at most {MOST:,}, not {count}")
    if frames < 2:
        raise SegmintError(f"--frames: must be at least 2, not {frames}; leave it out for single images")
    if speed <= 0:
        raise SegmintError(f"--speed: must be above 0, not {speed}")
    if masks:
        method.refuse(mask=torch.empty(0))
    elif method.needs_mask:
        raise SegmintError(f"--masks: {method.name} only paints masks; name a data folder with sequences of them")


def _find_masks(run: Run, data: Data, frames: int, split: str | None) -> list[list[int]]:
    if not data.classes.same_as(run.classes):
        raise SegmintError(f"--masks {data.root}: its classes are not those of {run.folder}; choose another folder")
    found = pieces(data, frames, split)
    if not found:
        where = "" if split is None else f" in its split {split}"
        raise SegmintError(
            f"--masks {data.root}: no sequence of masks{where}; the frames of a sequence lie in one folder, "
            "images/NAME/ and masks/NAME/, in the order of their names"
        )
    return found


def _digest(data: Data, found: Sequence[Sequence[int]]) -> str:
    """A digest of the masks' names and the sizes of their files."""
    items = [data.items[index] for piece in found for index in piece]
    told = [(item.name, item.masks[0].stat().st_size) for item in items]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _paint_job(pixels: Pixels, found: Sequence[Sequence[int]], number: int) -> Job:
    piece = found[number % len(found)]
    masks = np.stack([pixels.masks[pixels.rows[index][0]] for index in piece])
    return Job(number, masks, tuple(pixels.data.items[index].name for index in piece))


def _facts(run: Run, script: Script) -> dict[str, Any]:
    """Everything that determines the sequences."""
    facts = {**facts_of(run, script.seed), "frames": script.frames}
    facts |= {"speed": script.speed, "independent": script.independent}
    return facts if script.masks is None else {**facts, "masks": script.masks[0], "files": script.masks[1]}


def _drop_broken(folder: Path) -> set[int]:
    """The numbers of the sequences that are there, whole; what is left of the others is removed."""
    path = folder / "manifest.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    counts = Counter(entry["sequence"] for entry in entries)
    whole = {entry["sequence"] for entry in entries if counts[entry["sequence"]] == entry["frames"]}
    kept = [line for line, entry in zip(lines, entries, strict=True) if entry["sequence"] in whole]
    write_atomic(path, "".join(line + "\n" for line in kept))
    names = {Job(number).name for number in whole}
    for part in ("images", "masks"):
        for place in (folder / part).glob("sequence-*"):
            if place.name not in names:
                shutil.rmtree(place)
    return whole


@dataclass(frozen=True)
class _Maker:
    run: Run
    folder: Path
    script: Script

    def write(self, job: Job) -> Entries:
        """Make one sequence and write its frames; returns their entries for the manifest."""
        masks = None if job.masks is None else torch.from_numpy(job.masks).long()
        length = self.script.frames if masks is None else len(masks)
        shared = {"seed": self.script.seed * MOST + job.number, "run": str(self.run.folder.resolve())}
        shared |= {"method": self.run.method.name, "kept": True, "sequence": job.number, "frames": length}
        entries = []
        for frame, batch in enumerate(frames_of(self.run.method, self.script, job.number, masks)):
            name = f"{job.name}/{frame:03d}"
            write_pair(self.folder, name, *to_bytes(batch, 0), self.run.classes)
            mask = {"mask": job.names[frame]} if job.names else {}
            entries.append({"name": name, **shared, "frame": frame, **mask})
        return entries
