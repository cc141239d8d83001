"""Concurrent requests to the same model, computed together."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from typing import Any

from segmint.data.io import Bytes
from segmint.inference.draws import Draws
from segmint.inference.predict import MOST_SHOWN
from segmint.serve.models import Model, Pair
from segmint.types import SegmintError

Watch = Callable[[str, str, int, float], None]
"""Told of each batch: the model, the job, how many it was, and how many seconds it took."""


class BusyError(SegmintError):
    """More is waiting for a model than may, or the server is closing."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to compute for one image.

    Attributes:
        job: "segment", "generate" or "paint".
        key: tasks of one model with equal keys can be computed together.
        given: what it starts from.
        pixels: how large it is.
        compute: from what several tasks of this key are given to a result for each.
    """

    job: str
    key: Hashable
    given: Any
    pixels: int
    compute: Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    task: Task
    result: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


def segmenting(model: Model, image: Bytes, seed: int, draws: int) -> Task:
    """Draw masks for an image; gives `Draws`, for `Model.finish`.

    Raises:
        SegmintError: the image is not fit for the model.
    """
    shown = model.shown(image)

    def compute(given: Sequence[Any]) -> list[Draws]:
        return model.draw([image for image, _ in given], [seed for _, seed in given], draws)

    size = tuple(shown.shape[2:])
    return Task("segment", ("segment", size, draws), (shown, seed), size[0] * size[1], compute)


def generating(model: Model, seeds: Sequence[int]) -> list[Task]:
    """Make pairs; each gives a `Pair`."""

    def compute(given: Sequence[Any]) -> list[Pair]:
        return model.make(list(given))

    height, width = model.size
    return [Task("generate", "generate", seed, height * width, compute) for seed in seeds]


def painting(model: Model, mask: Bytes, seed: int, image: Bytes | None) -> Task:
    """Paint a mask of any size, perhaps over a photograph; gives uint8 [h, w, C].

    Raises:
        SegmintError: the mask or the image is not fit for the model.
    """
    model.require("paint" if image is None else "repaint")
    below = None if image is None else model.fit_image(image)

    def compute(given: Sequence[Any]) -> list[Bytes]:
        masks, seeds, images = zip(*given, strict=True)
        return model.paint(masks, seeds, None if below is None else images)

    height, width = model.size
    return Task("paint", ("paint", below is None), (model.fit_mask(mask), seed, below), height * width, compute)


class Batcher:
    """Queues of tasks, one for each model, and a thread that works off each.

    A thread takes the oldest task and all others with its key that are waiting or come within `wait` seconds of it,
    `most` together at most, of 2^22 pixels in all unless the first alone is larger. If a batch fails, each of its tasks
    is tried alone, so that nobody suffers for another's.

    Args:
        most: tasks a batch; `wait`: in seconds.
        waiting: the most tasks in a queue.
        watch: is told of each batch.
    """

    def __init__(self, *, most: int = 8, wait: float = 0.005, waiting: int = 128, watch: Watch | None = None) -> None:
        self.most, self.wait, self.waiting = most, wait, waiting
        self.watch: Watch = watch or (lambda *_: None)
        self._queues: dict[str, _Queue] = {}
        self._lock = Lock()
        self.closing = False

    def submit(self, model: str, tasks: Sequence[Task]) -> list[Future[Any]]:
        """Queue tasks, all or none. A future that is cancelled before its turn is not computed.

        Raises:
            BusyError: too many are waiting, or it is closing.
        """
        with self._lock:
            if self.closing:
                raise BusyError("the server is closing; ask another, or again later")
            if model not in self._queues:
                self._queues[model] = _Queue(model, self)
            queue = self._queues[model]
        return queue.put(tasks)

    def lengths(self) -> Counter[str]:
        """How many tasks are waiting, by model."""
        with self._lock:
            return Counter({name: len(queue.tasks) for name, queue in self._queues.items()})

    def close(self, seconds: float | None = None) -> None:
        """Take no more tasks, finish those that are there, and end the threads; wait for it so long at most."""
        with self._lock:
            self.closing = True
            queues = list(self._queues.values())
        end = None if seconds is None else time.monotonic() + seconds
        for queue in queues:
            queue.close()
        for queue in queues:
            queue.thread.join(None if end is None else max(0.0, end - time.monotonic()))


class _Queue:
    """The tasks of one model, and the thread that works them off."""

    def __init__(self, model: str, owner: Batcher) -> None:
        self.model, self.owner = model, owner
        self.tasks: deque[_Waiting] = deque()
        self.closed = False
        self.changed = Condition()
        self.thread = Thread(target=self._work, name=f"segmint-{model}", daemon=True)
        self.thread.start()

    def put(self, tasks: Sequence[Task]) -> list[Future[Any]]:
        with self.changed:
            if len(self.tasks) + len(tasks) > self.owner.waiting:
                raise BusyError(
                    f"model {self.model!r}: {len(self.tasks)} images are waiting, and {self.owner.waiting} at most "
                    "may; try again in some seconds"
                )
            added = [_Waiting(task) for task in tasks]
            self.tasks.extend(added)
            self.changed.notify_all()
        return [item.result for item in added]

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _work(self) -> None:
        while batch := self._take():
            running = [item for item in batch if item.result.set_running_or_notify_cancel()]
            if running:
                self._compute(running)

    def _take(self) -> list[_Waiting]:
        """The next batch; empty once it is closed and nothing is left."""
        with self.changed:
            self.changed.wait_for(lambda: self.tasks or self.closed)
            if not self.tasks:
                return []
            end = self.tasks[0].since + self.owner.wait
            while len(self._fitting()) < self.owner.most and not self.closed:
                left = end - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            batch = self._fitting()
            for item in batch:
                self.tasks.remove(item)
            return batch

    def _fitting(self) -> list[_Waiting]:
        """The oldest task, and what can be computed with it now."""
        first = self.tasks[0]
        batch, pixels = [first], first.task.pixels
        for item in list(self.tasks)[1:]:
            if len(batch) == self.owner.most:
                break
            if item.task.key == first.task.key and pixels + item.task.pixels <= MOST_SHOWN:
                batch.append(item)
                pixels += item.task.pixels
        return batch

    def _compute(self, batch: Sequence[_Waiting]) -> None:
        task, start = batch[0].task, time.perf_counter()
        try:
            results = task.compute([item.task.given for item in batch])
        except Exception as error:  # whatever it is, it belongs to who waits for the result
            if len(batch) > 1:
                for item in batch:
                    self._compute([item])
            else:
                batch[0].result.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            item.result.set_result(result)
        self.owner.watch(self.model, task.job, len(batch), time.perf_counter() - start)
