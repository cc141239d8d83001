"""Workers as processes of their own: each takes seconds to start, so there are few of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from segmint.locks import hold
from segmint.study import files, local, worker
from segmint.study.files import LOG, fail, read_facts
from segmint.study.local import LocalPool, launch
from segmint.study.pieces import job_of
from segmint.study.results import read_results
from segmint.study.run import run_study
from segmint.study.worker import said
from segmint.training.checkpoint import load_state, read_log
from segmint.types import SegmintError


def long(tmp_path: Path, shapes: Path, tiny, **changes) -> Path:
    """The folder of a training that would take minutes, saved after every step."""
    training = {"validate_every": 50, "batch_size": 2, "save_every": 0.0}
    study = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED}, steps=20_000, training=training)
    plan = tiny.plan_of(study)
    name, piece = next(iter(plan.pieces.items()))
    folder = study / "pieces" / name
    files.write_job(folder, job_of(piece, folder.parent.joinpath) | changes)
    return folder


def until(reached, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_a_worker_saves_and_ends_when_its_starter_is_gone(tmp_path, shapes, tiny):
    folder = long(tmp_path, shapes, tiny)
    process = launch(folder, None, 1)
    until(lambda: len(read_log(folder)) > 0 or process.poll() is not None)
    with pytest.raises(SegmintError, match="still at it"), hold(folder / "lock", 0.0, "still at it"):
        pass
    process.stdin.close()
    assert process.wait(60) == files.STOPPED, (folder / LOG).read_text(encoding="utf-8")
    saved = load_state(folder)
    assert saved is not None
    assert saved["step"] >= 1
    assert read_facts(folder / files.DONE) is None


def test_a_stop_that_an_import_swallows_is_heeded_all_the_same(tmp_path, shapes, tiny, monkeypatch):
    folder = long(tmp_path, shapes, tiny)

    def swallowing(path: Path) -> dict:
        with suppress(worker.Ends):
            os.kill(os.getpid(), signal.SIGTERM)
        return json.loads(path.read_text(encoding="utf-8"))

    monkeypatch.setattr("segmint.evaluation.files.read_json", swallowing)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert worker.work(folder) == files.STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (folder / "config.yaml").exists()


def test_gpus_are_shared_out_among_the_places(tmp_path, monkeypatch):
    seen: dict[str, str | None] = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 2)
    pool = LocalPool(3, 1)
    monkeypatch.setattr(local, "launch", lambda folder, limit, threads, gpu: seen.update({folder.name: gpu}))
    for name in ("a", "b", "c"):
        pool.start(name, tmp_path / name, None)
    del pool.running["b"]
    pool.start("d", tmp_path / "d", None)
    assert seen == {"a": "4", "b": "7", "c": "4", "d": "7"}
    assert local.environment(1, "7")["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_worker_ends_at_its_limit_and_says_so(tmp_path, shapes, tiny):
    folder = long(tmp_path, shapes, tiny)
    pool = LocalPool(1, 1)
    assert pool.room == 1
    pool.start("x", folder, 1.0)
    assert pool.room == 0
    ended: dict[str, int] = {}
    until(lambda: bool(ended.update(pool.ended()) or ended))
    assert ended == {"x": files.BROKEN}
    facts = read_facts(folder / files.FAILED)
    assert facts["status"] == "out of time"
    assert re.fullmatch(r"not done after \d\.\d minutes", facts["reason"])
    assert files.spent(folder) >= 1.0
    pool.close()


def test_time_that_is_up_at_once_ends_the_piece_and_nothing_else(tmp_path, shapes, tiny, monkeypatch):
    """The signal comes before the work has begun: what waits to end the process must still be told that all is over."""
    folder = long(tmp_path, shapes, tiny)
    exits: list[int] = []
    monkeypatch.setattr(worker, "GRACE", 0.2)
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(worker, "_work", lambda folder, clock: time.sleep(60))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert worker.work(folder, limit=0.0) == files.BROKEN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_facts(folder / files.FAILED)["status"] == "out of time"
    time.sleep(0.5)
    assert not exits


def test_two_processes_killed_with_their_workers_and_started_again(whole, tmp_path, tiny):
    """The command itself, with two workers: `kill -9` of the parent leaves no process behind."""
    folder, engine = whole
    cut = tiny.write(tmp_path / "cut", Path(engine.plan.study.data), {"supervised": tiny.SUPERVISED})
    argv = [sys.executable, "-m", "segmint", "study", str(cut), "--processes", "2"]
    first = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    locks = cut / "pieces"
    until(lambda: first.poll() is not None or len(list(locks.glob("*/lock"))) >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    until(lambda: all(_is_free(lock) for lock in locks.glob("*/lock")), 60)
    assert not read_results(cut)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials done, 0 running, 0 pieces to come" in done.stdout
    assert "report: " in done.stdout
    theirs = {row[:3]: row[3:-1] for row in tiny.table(folder)}
    ours = {row[:3]: row[3:-1] for row in tiny.table(cut)}
    assert ours == {place: theirs[place] for place in ours}
    assert len(ours) == 2


def _is_free(lock: Path) -> bool:
    try:
        with hold(lock, 0.0, "taken"):
            return True
    except SegmintError:
        return False


def test_only_one_study_at_a_time_in_a_folder(tmp_path, shapes, tiny):
    folder = tiny.write(tmp_path / "s", shapes, {"supervised": tiny.SUPERVISED})
    with (
        hold(folder / "lock", 0.0, ""),
        pytest.raises(SegmintError, match="another `segmint study` is at work here"),
    ):
        run_study(folder)


def test_a_pool_ends_what_still_runs(tmp_path):
    pool = LocalPool(1, 1)
    (tmp_path / "x").mkdir()
    pool.start("x", tmp_path / "x", None)
    process = pool.running["x"]
    pool.stop()
    pool.stop()
    pool.close()
    assert process.returncode is not None
    assert pool.running == {}


def test_reasons_are_one_line():
    assert said(SegmintError("data: wrong\nsecond")) == "data: wrong"
    assert said(ValueError("odd")) == "ValueError: odd"
    assert said(MemoryError()) == "out of memory: MemoryError"
    assert said(RuntimeError("DefaultCPUAllocator: not enough memory: you tried")).startswith("out of memory: Def")


def test_files_of_a_piece(tmp_path: Path):
    assert files.spent(tmp_path) == 0.0
    fail(tmp_path, "failed", "why", 3.456)
    assert files.spent(tmp_path) == 3.46
    (tmp_path / files.DONE).write_text("{", encoding="utf-8")
    assert read_facts(tmp_path / files.DONE) is None
    assert files.progress(tmp_path, {"kind": "train", "training": {"steps": 9}}) == (0, 9)
    assert files.progress(tmp_path, {"kind": "evaluate"}) == (0, 0)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    assert files.progress(tmp_path, {"kind": "generate", "count": 5}) == (2, 5)
    files.write_job(tmp_path / "job", {"kind": "train", "size": (1, 2)})
    before = (tmp_path / "job" / files.JOB).stat().st_mtime_ns
    files.write_job(tmp_path / "job", {"kind": "train", "size": (1, 2)})
    assert (tmp_path / "job" / files.JOB).stat().st_mtime_ns == before
    assert json.loads((tmp_path / "job" / files.JOB).read_text(encoding="utf-8"))["size"] == [1, 2]
