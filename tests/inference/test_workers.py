"""The same files whoever writes them: this process, several, or a Ray cluster that loses a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segmint.cli import app
from segmint.inference import workers
from segmint.inference.batch import predict_folder
from segmint.inference.generate import BLOCK, generate
from segmint.inference.workers import Workers, write_all
from segmint.training.run import Run, train
from segmint.types import SegmintError

QUICK = {"batch_size": 4, "precision": "float32", "steps": 2}


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """It segments and generates."""
    return train(shapes, method="gmm", out=tmp_path_factory.mktemp("workers") / "run", settings=QUICK, components=2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        noise = np.random.default_rng(seed).integers(0, 255, (40, 30 + seed, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def test_a_folder_is_segmented_by_two_processes_as_by_one(run: Run, photos: Path, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    one = predict_folder(run, photos, tmp_path / "one", save=["masks", "probabilities"])
    two = predict_folder(
        run,
        photos,
        tmp_path / "two",
        save=["masks", "probabilities"],
        workers=2,
        progress=lambda *counts: told.append(counts),
    )
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (two.done, two.failed) == (one.done, one.failed) == (5, two.failed)
    assert "broken.png" in two.failed[0][1]
    assert told == [("images", number, 6) for number in range(7)]
    again = predict_folder(run, photos, tmp_path / "two", save=["masks", "probabilities"], workers=2)
    assert (again.done, again.skipped) == (0, 5)


@pytest.mark.parametrize("given", ["-", "camera:0", "rtsp://host/one"])
def test_what_only_one_process_can_read_is_refused(run: Run, tmp_path: Path, given: str):
    with pytest.raises(SegmintError, match=f"{given}: is read by one process alone"):
        predict_folder(run, given, tmp_path / "out", workers=2)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an optional extra")
def test_on_ray_files_are_the_same_though_a_worker_is_killed(run: Run, photos: Path, tmp_path: Path):
    """Paths are relative, as they may be; the task that is lost has begun."""
    generate(run, count=6 * BLOCK, out=tmp_path / "pairs", seed=2)
    predict_folder(run, photos, tmp_path / "found")
    script = (
        "import sys; from segmint import generate; from segmint.cli import app\n"
        f"generate(sys.argv[1], count={6 * BLOCK}, out='far/pairs', seed=2, workers=2, ray='local')\n"
        "app(['predict', sys.argv[1], 'photos', '--out', 'far/found', '--workers', '2', '--ray', 'local'])"
    )
    argv = [sys.executable, "-c", script, os.path.relpath(run.folder, tmp_path)]
    lost: list[int] = []
    threading.Thread(target=_kill_one, args=(tmp_path, lost), daemon=True).start()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert "5 segmented, 1 left out" in done.stdout, done.stdout + done.stderr
    assert lost
    assert files(tmp_path / "far" / "pairs") == files(tmp_path / "pairs")
    ours, theirs = files(tmp_path / "far" / "found"), files(tmp_path / "found")
    assert {name: ours[name] for name in theirs if name != "predictions.json"} == {
        name: content for name, content in theirs.items() if name != "predictions.json"
    }


def _kill_one(home: Path, lost: list[int]) -> None:
    """Kill a Ray worker at work in the folder where the command was given."""
    end = time.monotonic() + 500
    while not lost and time.monotonic() < end:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::_work_at") and (process / "cwd").samefile(home):
                    os.kill(int(process.name), signal.SIGKILL)
                    lost.append(int(process.name))
                    return
            except OSError:
                continue
        time.sleep(0.02)


def test_a_process_that_is_killed_is_told():
    build = partial(SimpleNamespace, write=signal.raise_signal)
    with pytest.raises(SegmintError, match=r"one of them was killed, .* give the same command with fewer"):
        list(write_all(build(), build, [(signal.SIGKILL,)] * 3, Workers(2)))


def test_jobs_end_in_their_order_and_few_of_them_wait():
    begun: list[int] = []
    ended = workers._in_turn(lambda job: begun.append(job[0]) or job[0], lambda job: job, ((n,) for n in range(9)), 3)
    assert next(ended) == 0
    assert begun == [0, 1, 2, 3]
    assert list(ended) == list(range(1, 9))


def test_there_are_no_more_workers_than_jobs():
    assert Workers(8, "auto").at_most(3) == Workers(3, "auto")
    assert Workers(8, "auto").at_most(0) == Workers(1, None)
    assert Workers(None, "local").at_most(3) == Workers(None, "local")
    assert Workers().alone
    assert not Workers(1, "auto").alone


class Ray:
    """What is used of Ray: tasks that are done when their results are asked for."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause: Exception

    def __init__(self) -> None:
        self.asked, self.gone, self.error = {}, False, None

    def init(self, **asked: object) -> None:
        self.asked |= asked

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: object) -> object:
        return value

    def remote(self, **asked: object):
        self.asked |= asked
        return lambda function: SimpleNamespace(remote=lambda *words: partial(function, *words))

    def get(self, task):
        if self.error is not None:
            raise self.error
        return task()

    def shutdown(self) -> None:
        self.gone = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(workers, "_writer", None)
    return ray


BUILD = partial(SimpleNamespace, write=str.upper)


def test_jobs_are_tasks_that_are_tried_again(ray: Ray):
    assert list(write_all(BUILD(), BUILD, [(word,) for word in "abcdefgh"], Workers(2, "local"))) == list("ABCDEFGH")
    assert (ray.asked["num_cpus"], ray.asked["max_retries"]) == (1, 5)
    assert ray.gone


@pytest.mark.parametrize("cause", [SegmintError("the disk is full"), KeyError("a bug")])
def test_what_a_task_raises_is_raised_here(ray: Ray, cause: Exception):
    ray.error = Ray.exceptions.RayTaskError("a long traceback")
    ray.error.cause = cause
    words = "the disk is full" if isinstance(cause, SegmintError) else "a long traceback"
    with pytest.raises(type(cause) if isinstance(cause, SegmintError) else Ray.exceptions.RayTaskError, match=words):
        list(write_all(BUILD(), BUILD, [("a",)], Workers(ray="auto")))
    assert ray.gone


def test_a_worker_lost_again_and_again_is_told(ray: Ray):
    ray.error = Ray.exceptions.RayError("the machine is gone\nlong words")
    with pytest.raises(SegmintError, match=r"lost 6 times \(the machine is gone\); .* the same command goes on"):
        list(write_all(BUILD(), BUILD, [("a",)], Workers(ray="auto")))
    assert ray.gone


@pytest.mark.parametrize("words", [["generate", "--count", "2"], ["generate", "--frames", "2"], ["predict", "photos"]])
def test_a_cluster_out_of_reach_and_ray_that_is_not_installed_are_told(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.chdir(tmp_path)
    argv = [words[0], str(run.folder), *words[1:], "--out", "out"]
    found = CliRunner().invoke(app, [*argv, "--ray", "127.0.0.1:1"])
    assert str(found.exception).startswith("--ray 127.0.0.1:1: no cluster there")
    monkeypatch.setitem(sys.modules, "ray", None)
    found = CliRunner().invoke(app, [*argv, "--ray", "auto"])
    assert str(found.exception) == '--ray: needs Ray; install it with `pip install "segmint[ray]"`'
