"""The same study on a local Ray cluster, one of whose workers is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from segmint.study.cluster import RayPool, _piece
from segmint.study.files import STOPPED
from segmint.study.pieces import FOLDER
from segmint.types import SegmintError


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an optional extra")
def test_a_study_on_two_workers_of_which_one_is_killed_is_complete_and_equal(whole, tmp_path, tiny):
    folder, full = whole
    cut = tiny.write(tmp_path / "cut", Path(full.plan.study.data), {"supervised": tiny.SUPERVISED})
    argv = [sys.executable, "-m", "segmint", "study", str(cut), "--ray", "local", "--processes", "2"]
    lost: list[int] = []
    threading.Thread(target=_kill_one, args=(cut / FOLDER, lost), daemon=True).start()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials done, 0 running, 0 pieces to come" in done.stdout
    assert lost
    theirs = {row[:3]: row[3:-1] for row in tiny.table(folder)}
    ours = {row[:3]: row[3:-1] for row in tiny.table(cut)}
    assert ours == {place: theirs[place] for place in [("supervised", 3, 0), ("supervised", 3, 1)]}


def _kill_one(pieces: Path, lost: list[int]) -> None:
    """Kill the Ray worker that has begun a piece, which is the parent of the piece's own process."""
    while not lost:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                on_ray = Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"ray::")
            except OSError:
                continue
            ours = b"segmint.study.worker" in words and any(word.startswith(os.fsencode(pieces)) for word in words)
            if ours and on_ray:
                lost.append(parent)
                os.kill(parent, signal.SIGKILL)
                return
        time.sleep(0.05)


def test_a_cluster_out_of_reach_is_told():
    with pytest.raises(SegmintError, match="no cluster there"):
        RayPool("127.0.0.1:1", 1, 1)


class Ray:
    """What a pool uses of Ray: tasks that end when the test says so."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

    def __init__(self, **resources: float) -> None:
        self.resources, self.asked, self.ends, self.cancelled, self.gone = resources, {}, {}, [], False

    def init(self, **asked: object) -> None:
        self.asked |= asked

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **asked: object):
        self.asked |= asked

        class Task:
            @staticmethod
            def remote(folder: str, limit: float | None, threads: int) -> str:
                return f"task of {folder}"

        return lambda function: Task

    def wait(self, references: list[str], num_returns: int, timeout: float):
        return [one for one in references if one in self.ends], []

    def get(self, reference: str) -> int:
        if isinstance(self.ends[reference], Exception):
            raise self.ends[reference]
        return self.ends[reference]

    def cancel(self, reference: str, force: bool) -> None:
        self.cancelled.append((reference, force))

    def shutdown(self) -> None:
        self.gone = True


def test_a_pool_takes_what_the_cluster_has_and_tells_lost_tasks(monkeypatch):
    ray = Ray(CPU=8.0, GPU=3.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    pool = RayPool("auto", 1, 2)
    assert (ray.asked["address"], ray.asked["num_cpus"], ray.asked["num_gpus"]) == ("auto", 2, 1)
    assert pool.room == 3
    assert pool.ended() == {}
    pool.start("a", Path("/s/a"), None)
    pool.start("b", Path("/s/b"), 5.0)
    assert pool.room == 1
    ray.ends = {"task of /s/a": 0, "task of /s/b": Ray.exceptions.RayError("the machine is gone")}
    assert pool.ended() == {"a": 0, "b": STOPPED}
    assert pool.room == 3
    pool.start("c", Path("/s/c"), None)
    for at_once in (False, False, True):
        pool.stop(at_once)
    assert ray.cancelled == [("task of /s/c", False), ("task of /s/c", True)]
    pool.close()
    assert ray.gone


def test_a_local_cluster_has_as_many_processors_as_asked_and_no_gpu(monkeypatch):
    ray = Ray(CPU=2.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert RayPool("local", 2, 1).room == 2
    assert ray.asked["num_gpus"] == 0
    monkeypatch.setattr(Ray, "init", lambda self, **asked: (_ for _ in ()).throw(ConnectionError("nobody there")))
    with pytest.raises(SegmintError, match=r"no cluster there \(nobody there\); start one"):
        RayPool("auto", 2, 1)


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SegmintError, match="needs Ray; install it with"):
        RayPool("auto", 1, 1)


def test_a_task_is_the_process_of_its_piece(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "segmint.study.local.command", lambda folder, limit: [sys.executable, "-c", "raise SystemExit(5)"]
    )
    assert _piece(str(tmp_path / "x"), None, 1) == 5
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr("segmint.study.local.command", lambda folder, limit: slow)
    monkeypatch.setattr(subprocess.Popen, "wait", _cancelled(subprocess.Popen.wait))
    assert _piece(str(tmp_path / "x"), None, 1) == STOPPED


def _cancelled(wait):
    """A `wait` whose first call ends as Ray cancels a task."""
    calls = []

    def first(self, timeout=None):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(self, timeout)

    return first
