"""Segment many images and videos into a folder; called again, it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from segmint.config import write_atomic
from segmint.data.frames import is_stream
from segmint.data.io import MAX_PIXELS, Bytes, read_image
from segmint.data.windows import Decoded, Place, Raster, TiffRaster, Window, is_tiff, open_raster, read_place
from segmint.inference.inputs import STDIN, Input, find_inputs
from segmint.inference.mirrored import methods_of
from segmint.inference.outputs import KINDS, Result, WriteError, check_kinds, path_of, writing
from segmint.inference.predict import Runs, check_draws, open_runs, predict_pixels
from segmint.inference.tally import Row, Tally, cell_of, read_csv, write_csv
from segmint.inference.tiles import Cell, Tiling, segment_tiles
from segmint.inference.video import MEMORY, VIDEO_KINDS, predict_video, results_of
from segmint.inference.workers import Workers, write_all
from segmint.training.run import Run
from segmint.types import SegmintError, is_memory, reason

Progress = Callable[[str, int, int], None]
"""Told what is counted ("images", "tiles" or "frames"), how many are done, and of how many (0: not known)."""

SAVED = ("masks", "overlays")

AHEAD = 100
"""So many inputs wait for each worker at most, so that none is idle while another is busy with a film."""


@dataclass(frozen=True)
class Outcome:
    """What became of the images.

    Attributes:
        out: the folder with the results.
        done: how many images and videos were segmented now; `skipped`: how many had been before.
        failed: what could not be segmented, and why.
    """

    out: Path
    done: int
    skipped: int
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _How:
    """How all images of a folder are segmented; see `predict_folder`."""

    members: Sequence[Run]
    draws: int | None
    seed: int
    tiling: Tiling | None
    memory: float
    most: int | None
    mirror: bool

    @contextmanager
    def opened(self, path: Path) -> Iterator[Raster]:
        """An image to be segmented so, with the channels that the runs expect."""
        if self.tiling is None:
            yield Decoded(read_whole(path, self.members[0]))
            return
        with open_raster(path, self.members[0].settings.depth) as raster:
            _refuse_channels(path, raster, self.members[0])
            yield raster

    def cells(self, raster: Raster, progress: Callable[[int, int], None]) -> Iterator[Cell]:
        """The parts of an image, segmented."""
        if self.tiling is None:
            pixels = raster.read(Window(0, 0, *raster.size))
            yield cell_of(
                predict_pixels(
                    self.members, pixels, draws=self.draws, seed=self.seed, mirror=self.mirror, plausible=False
                )
            )
            return
        methods = methods_of(self.members, self.mirror)
        yield from segment_tiles(methods, raster, self.tiling, draws=self.draws, seed=self.seed, progress=progress)

    def facts(self) -> dict[str, Any]:
        """As predictions.json keeps it, to be compared when it is called again."""
        tiling = self.tiling
        return {
            "models": [{"path": str(run.folder), "sha256": digest(run)} for run in self.members],
            "draws": self.draws,
            "seed": self.seed,
            "tile": None if tiling is None else tiling.tile,
            "overlap": None if tiling is None else tiling.overlap,
            "scale": None if tiling is None else tiling.scale,
            "smooth": self.memory,
            "frames": self.most,
            "mirror": self.mirror,
        }


def predict_folder(
    runs: Runs,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    save: Sequence[str] = SAVED,
    draws: int | None = None,
    seed: int = 0,
    mirror: bool = False,
    tiling: Tiling | None = None,
    memory: float = MEMORY,
    most: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Segment images, videos and whole folders of them.

    Writes, into a folder for each kind that is saved, masks/NAME.png (class ids with the classes' colours as palette),
    overlays/NAME.png or .jpg, probabilities/NAME.npz ("probabilities", float16 [H, W, K]), and maps of uncertainty,
    aleatoric, epistemic (8 bits: 255 is log K nats) and errors (255 is 1). Of a TIFF all but the probabilities are
    TIFFs with its place on the map and its resolution. predictions.csv has a row for each image; predictions.json says
    how it was done. For videos see `predict_video`.

    Called again, it leaves out what is there, unless the image is newer. What cannot be read is left out and told at
    the end.

    Args:
        runs: as in `segmint.predict`; also models that `segmint export` wrote.
        inputs: see `segmint.inference.inputs.find_inputs`.
        out: the folder for the results.
        save: which kinds, of `segmint.inference.outputs.KINDS`.
        draws, seed, mirror: as in `segmint.predict`.
        tiling: segment images at their own resolution in tiles, instead of whole with the shorter side as at training.
        memory: how far frames of a video before count; 0: not at all.
        most: leave off after so many frames of each video.
        workers, ray: where files are segmented, see `segmint.inference.workers.Workers`. Each worker has one thread,
            one process alone all of them; results are the same up to rounding.
        progress: told how it goes; of other processes, only the images.

    Raises:
        SegmintError: the runs do not fit each other; an input does not exist; results would have the same name, or lie
            among the images or beside masks of somebody else's; a setting is wrong, or not that of the results that
            are there; the disk is full; there is a stream or standard input for several workers; the cluster is out
            of reach.
    """
    kinds, folder = check_kinds(save), Path(out)
    members, place = open_runs(runs), Workers(workers, ray)
    check_draws(draws, members, mirror)
    if mirror and tiling and any(run.method.draws_differ for run in members):
        raise SegmintError("--mirror: noise cut out of one field for all tiles cannot be mirrored; leave out --tile")
    how = _How(members, draws, seed, tiling, memory, most, mirror)
    jobs = find_inputs(inputs, folder)
    _refuse_own(jobs, folder)
    if not place.alone:
        _refuse_streams(jobs)
    _settle(folder, how)
    return _Desk(_Segmenter(how, folder, kinds, progress or _silent), place).work(jobs)


def digest(run: Run) -> str:
    """SHA-256 of a run's model, or of an exported one."""
    path = run.folder
    files = [path, path.with_suffix(".bin")] if path.is_file() else [path / "method.json", path / "model.safetensors"]
    total = hashlib.sha256(json.dumps(dict(run.changes), default=str).encode())
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


def _refuse_own(jobs: Sequence[Input], out: Path) -> None:
    """Refuse inputs that lie where results go."""
    taken = {(out / kind).resolve() for kind in check_kinds(SAVED)}
    for job in jobs:
        if not job.moving and job.source != STDIN and taken & set(job.path.resolve().parents):
            raise SegmintError(f"{job.source}: lies where results go (--out {out}); choose another folder for them")


def _refuse_streams(jobs: Sequence[Input]) -> None:
    """Refuse inputs that only this process can read."""
    for job in jobs:
        if job.source == STDIN or is_stream(job.source):
            raise SegmintError(f"{job.source}: is read by one process alone; leave it, or --workers and --ray, out")


def _settle(folder: Path, how: _How) -> None:
    """Write down how it is done, or refuse to mix with what was done otherwise."""
    path, facts = folder / "predictions.json", how.facts()
    if path.is_file():
        try:
            known = {"mirror": False, **json.loads(path.read_text(encoding="utf-8"))["settings"]}
            plain: list[list[Any]] = [
                [[model["sha256"] for model in one[key]] if key == "models" else one.get(key) for key in facts]
                for one in (facts, known)
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise SegmintError(f"{path}: damaged; remove the folder, or choose another --out") from error
        changed = [key for key, ours, theirs in zip(facts, *plain, strict=True) if ours != theirs]
        if changed:
            told = ", ".join(
                "other models" if key == "models" else f"{key} {known.get(key)} instead of {facts[key]}"
                for key in changed
            )
            raise SegmintError(f"{folder}: holds results with other settings ({told}); choose another --out")
        return
    _refuse_foreign(folder)
    classes = how.members[0].classes
    text = {
        "settings": facts,
        "classes": [
            {"id": number, "name": name, "color": list(color)}
            for number, name, color in zip(classes.ids, classes.names, classes.colors, strict=True)
        ],
        "scales": {
            "uncertainty, aleatoric, epistemic": "value / 255 * log(number of classes), in nats",
            "errors": "value / 255, a probability",
        },
    }
    with writing():
        _written(path, json.dumps(text, indent=2, ensure_ascii=False))


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder, as yet without predictions.json, whose files results could overwrite: a data folder's masks."""
    for kind in KINDS:
        place = folder / kind
        if place.is_dir() and any(place.iterdir()):
            raise SegmintError(f"{place}: holds files that `segmint predict` did not write; choose another --out")


def _written(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise SegmintError(f"{path}: cannot be written ({reason(error)}); free or choose a place") from error


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class _Done:
    """What became of one input: its row (a video has none), or why it failed."""

    row: Row | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Segmenter:
    """Segments inputs and writes what is wanted of them; in another process as well."""

    how: _How
    out: Path
    kinds: tuple[str, ...]
    progress: Progress = _silent

    def builder(self) -> Callable[[], _Segmenter]:
        """What makes the same in another process, which reads the models itself."""
        members = [replace(run) for run in self.how.members]
        return partial(_Segmenter, replace(self.how, members=members), self.out, self.kinds)

    def write(self, job: Input) -> _Done:
        """Segment one input.

        Raises:
            WriteError: nothing more can be written.
        """
        try:
            if job.moving:
                self._video(job)
                return _Done()
            return _Done(self._image(job))
        except WriteError:
            raise
        except SegmintError as error:
            return _Done(failure=str(error) if job.source in str(error) else f"{job.source}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not is_memory(error):
                raise
            return _Done(failure=f"{job.source}: does not fit into memory; segment it in tiles (--tile)")

    def _video(self, job: Input) -> None:
        how = self.how
        predict_video(
            how.members,
            job.source,
            self.out,
            job.name,
            kinds=[kind for kind in self.kinds if kind in VIDEO_KINDS],
            draws=how.draws,
            seed=how.seed,
            mirror=how.mirror,
            memory=how.memory,
            most=how.most,
            progress=partial(self.progress, "frames"),
        )

    def _image(self, job: Input) -> Row:
        """Segment an image, write what is wanted of it, and return its row."""
        classes, suffix = self.how.members[0].classes, "" if job.source == STDIN else job.path.suffix
        paths = {kind: path_of(self.out, kind, job.name, suffix) for kind in self.kinds}
        tally = Tally(classes)
        with _local(job) as path, self.how.opened(path) as raster:
            place = read_place(path) if is_tiff(path) else Place()
            with Result(paths, raster.size, classes, place) as result:
                for cell in self.how.cells(raster, partial(self.progress, "tiles")):
                    result.put(cell, raster)
                    tally.add(cell)
                result.write()
            height, width = raster.size
        file = STDIN if job.source == STDIN else str(job.path.resolve())
        return {"name": job.name, "file": file, "height": str(height), "width": str(width), **tally.row()}


@dataclass
class _Desk:
    """One call of `predict_folder` at work."""

    segmenter: _Segmenter
    workers: Workers

    def work(self, jobs: Sequence[Input]) -> Outcome:
        out, tell = self.segmenter.out, self.segmenter.progress
        table = out / "predictions.csv"
        rows = {row["name"]: row for row in read_csv(table)}
        wanted = [job for job in jobs if not self._is_there(job, rows.get(job.name))]
        skipped, saved = len(jobs) - len(wanted), time.monotonic()
        failed: list[tuple[str, str]] = []
        tell("images", skipped, len(jobs))
        try:
            for number, (job, done) in enumerate(zip(wanted, self._results(wanted), strict=True), 1):
                if done.failure is not None:
                    failed.append((job.source, done.failure))
                if done.row is not None:
                    rows[job.name] = done.row
                tell("images", skipped + number, len(jobs))
                if time.monotonic() - saved > 5:
                    write_csv(table, list(rows.values()))
                    saved = time.monotonic()
        finally:
            if rows:
                write_csv(table, list(rows.values()))
        return Outcome(out, len(wanted) - len(failed), skipped, tuple(failed))

    def _results(self, jobs: Sequence[Input]) -> Iterator[_Done]:
        """What becomes of inputs, in their order."""
        place, each = self.workers.at_most(len(jobs)), ((job,) for job in jobs)
        return write_all(self.segmenter, self.segmenter.builder(), each, place, threads=None, ahead=AHEAD)

    def _is_there(self, job: Input, row: Row | None) -> bool:
        """Whether all that is wanted of an input is there, and no older than it."""
        out, kinds = self.segmenter.out, self.segmenter.kinds
        if job.source == STDIN or (job.moving and not job.path.exists()):
            return False
        if not job.moving and row is not None and row["file"] != str(job.path.resolve()):
            raise WriteError(
                f"{job.source}: {out} holds results of {row['file']} under the same name; choose another --out"
            )
        if job.moving:
            paths = results_of(out, job.name, kinds)
        else:
            paths = [path_of(out, kind, job.name, job.path.suffix) for kind in kinds]
        if not job.moving and row is None:
            return False
        born = job.path.stat().st_mtime_ns
        return all(path.is_file() and path.stat().st_mtime_ns >= born for path in paths)


def read_whole(path: Path, run: Run) -> Bytes:
    """The pixels of an image as a run expects them, uint8 [H, W, C].

    Raises:
        SegmintError: it cannot be read, is too large, or is grey where the run was trained on colour or the reverse.
    """
    if is_tiff(path):
        with TiffRaster(path) as raster:
            if raster.size[0] * raster.size[1] > MAX_PIXELS:
                raise SegmintError(
                    f"{path}: {raster.size[1]} x {raster.size[0]} pixels, but {MAX_PIXELS:,} at most are read at once; "
                    "segment it in tiles (--tile 512)"
                )
    pixels = read_image(path, depth=run.settings.depth)
    _refuse_channels(path, Decoded(pixels), run)
    return pixels


def _refuse_channels(path: Path, raster: Raster, run: Run) -> None:
    wanted, kinds = run.method.config["in_channels"], {1: "grey", 3: "in colour"}
    if raster.channels != wanted:
        raise SegmintError(
            f"{path}: is {kinds[raster.channels]}, but the run was trained on images that are {kinds[wanted]}; "
            "convert it, or train on images like it"
        )


@contextmanager
def _local(job: Input) -> Iterator[Path]:
    """The file of an input; what comes from standard input is put into a temporary one."""
    if job.source != STDIN:
        yield job.path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        path.write_bytes(sys.stdin.buffer.read())
        yield path
