"""From study.yaml to results: the data is looked at, what is the same for all is settled, and the work is done."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from segmint.config import write_atomic
from segmint.data.folder import Data, open_folder
from segmint.data.store import digest_of
from segmint.evaluation.files import read_json, write_json
from segmint.evaluation.tables import MEASURES
from segmint.locks import hold
from segmint.study.cost import Forecast, foresee, time_paces
from segmint.study.live import LiveView
from segmint.study.local import LocalPool, Pool, gpus
from segmint.study.outcomes import SETTLED, settled
from segmint.study.pieces import make_plan
from segmint.study.plan import FILE, Study, read_study
from segmint.study.trials import Engine
from segmint.types import SegmintError


def run_study(
    folder: str | Path,
    *,
    processes: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
) -> bool:
    """Run the study of a folder, or go on with it; killed at any moment, the same call ends with the same results.

    Args:
        folder: with study.yaml in it; gets results.jsonl, pieces.json and the folder pieces/.
        processes: trainings at a time; None: as many as there are cores for, see `Study.threads`.
        ray: address of a Ray cluster whose machines share this folder and the data; "local": one on this machine.
        retry_failed: try again what failed before.
        console: where the view is; None: nowhere.

    Returns:
        Whether all trials have ended; False if it was asked to stop.

    Raises:
        SegmintError: study.yaml or the data does not allow it, or another process is at work in the folder.
    """
    folder, console = Path(folder).resolve(), console or Console(quiet=True)
    study = read_study(folder)
    with hold(folder / "lock", 0, f"{folder}: another `segmint study` is at work here; wait for it, or end it"):
        data = check_data(study)
        ready = settle(study, folder, processes or usual_processes(), console)
        settle_data(data, folder)
        paces, _ = time_paces(study, folder, ready.threads or 1, console)
        forecast = foresee(make_plan(ready), paces, len(data.split(study.split)))
        pool = open_pool(ready, processes or usual_processes(ready.threads or 1), ray)
        try:
            return _run(folder, forecast, pool, retry_failed, console)
        finally:
            pool.close()


def _run(folder: Path, forecast: Forecast, pool: Pool, retry_failed: bool, console: Console) -> bool:
    view = LiveView(console, folder.name)
    engine = Engine(folder, forecast.plan, pool, view.tell, view.watch, forecast.costs)
    if retry_failed:
        engine.retry()
    if left := engine.left():
        _say(forecast.lines(left, pool.room), console)
    with view:
        ended = engine.run()
    view.end(engine)
    return ended


def foretell(folder: str | Path, *, processes: int | None = None, console: Console) -> None:
    """Say what the study of a folder would take, from the time of some steps, and run nothing else.

    Args:
        folder: with study.yaml in it.
        processes: trainings at a time; None: as many as there are cores for.
        console: is told.

    Raises:
        SegmintError: study.yaml or the data does not allow it.
    """
    folder = Path(folder).resolve()
    study = read_study(folder)
    data = check_data(study)
    threads = (settled(study, folder) or study).threads or max(1, cores_here() // (processes or usual_processes()))
    at_a_time = processes or usual_processes(threads)
    paces, precision = time_paces(study, folder, threads, console)
    plan = make_plan(study.model_copy(update={"precision": precision}))
    _say(foresee(plan, paces, len(data.split(study.split))).lines(list(plan.pieces), at_a_time), console)


def _say(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def cores_here() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_processes(threads: int = 1) -> int:
    """Trainings at a time where nobody says: one for each GPU, else as many as there are cores for."""
    return len(gpus()) or max(1, cores_here() // threads)


def open_pool(study: Study, processes: int, ray: str | None) -> Pool:
    """Where the pieces are done."""
    threads = study.threads or 1
    if ray is None:
        return LocalPool(processes, threads)
    from segmint.study.cluster import RayPool

    return RayPool(ray, processes, threads)


def check_data(study: Study) -> Data:
    """Open the data, and see that it has the splits, masks and budgets that the study asks for.

    Raises:
        SegmintError: it does not.
    """
    data = open_folder(study.data)
    for split in dict.fromkeys(("val", study.split)):
        if not any(data.items[index].masks for index in data.split(split)):
            raise SegmintError(f"{data.root}: no image of split {split!r}, which the study needs, has a mask")
    several = any(len(data.items[index].masks) > 1 for index in data.split(study.split))
    if MEASURES[study.metric].table == "sets" and not several:
        raise SegmintError(
            f"metric: {study.metric} compares masks with those of several raters, and no image of split "
            f"{study.split!r} of {data.root} has more than one; take another metric"
        )
    for budget in study.every_budget:
        for seed in study.seeds:
            data.labelled(budget, seed)
    return data


def settle(study: Study, folder: Path, processes: int, console: Console | None = None) -> Study:
    """The study with what is the same for all trials and all sittings: precision and threads of a process.

    Rounding depends on both, so they are measured or counted once and kept in settled.json.

    Raises:
        SegmintError: the baseline cannot begin.
    """
    known = settled(study, folder)
    if known is None:
        threads = study.threads or max(1, cores_here() // processes)
        precision: str = study.precision
        if precision == "auto":
            _, precision = time_paces(study, folder, threads, console)
        write_json(folder / SETTLED, {"precision": precision, "threads": threads, "cores": cores_here()})
        known = settled(study, folder)
    assert known is not None
    return known


def settle_data(data: Data, folder: Path) -> None:
    """Keep what the data is when a study is begun.

    Raises:
        SegmintError: it is another by now, so that new trials could not be compared with those that are done.
    """
    facts = read_json(folder / SETTLED)
    files = [(str(path), path.stat().st_size) for item in data.items for path in (item.image, *item.masks)]
    splits = [data.split(name) for name in data.split_names]
    stamp = digest_of([files, splits, data.classes.names, data.classes.ids, data.classes.ignore])
    known = facts.setdefault("data", {}).setdefault(str(data.root), stamp)
    if known != stamp:
        raise SegmintError(
            f"{data.root}: its images, masks, classes or splits have changed since the study {folder} was begun, so "
            "new trials could not be compared with those that are done; restore them, or begin another study elsewhere"
        )
    write_json(folder / SETTLED, facts)


def write_study(study: Study, folder: Path, text: str) -> Path:
    """Write study.yaml into a folder; `text` is what `segmint.study.presets` made of the study.

    Raises:
        SegmintError: the folder has one already.
    """
    path = folder / FILE
    if path.exists():
        raise SegmintError(f"{path}: is there already; run it with `segmint study {path}`, or choose another --out")
    write_atomic(path, text)
    return path
