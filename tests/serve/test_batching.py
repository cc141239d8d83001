from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
import torch

from segmint.serve.batching import Batcher, BusyError, Task, generating, painting, segmenting
from segmint.serve.models import Models


class Desk:
    """Computes what it is given, and remembers how; the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def task(self, given: object, key: str = "key", pixels: int = 1) -> Task:
        return Task("segment", key, given, pixels, self.compute)

    def compute(self, given):
        self.batches.append(list(given))
        self.begun.set()
        assert self.go.wait(10)
        if any(isinstance(one, str) for one in given):
            raise ValueError("words")
        return [2 * one for one in given]


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def batcher():
    batcher = Batcher(most=3, wait=0.0, waiting=8)
    yield batcher
    batcher.close(10)


def begin(batcher: Batcher, desk: Desk):
    """A batch that keeps the thread busy."""
    first = batcher.submit("m", [desk.task(0)])
    assert desk.begun.wait(10)
    return first


def test_what_waits_together_is_computed_together_in_order_and_up_to_the_most(batcher: Batcher, desk: Desk):
    futures = begin(batcher, desk)
    for number in (1, 2, 3, 4):
        futures += batcher.submit("m", [desk.task(number)])
    assert batcher.lengths() == {"m": 4}
    desk.go.set()
    assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8]
    assert desk.batches == [[0], [1, 2, 3], [4]]


def test_other_keys_and_too_many_pixels_are_computed_apart(batcher: Batcher, desk: Desk):
    futures = begin(batcher, desk)
    tasks = [
        desk.task(1, "a"),
        desk.task(2, "b"),
        desk.task(3, "a"),
        desk.task(4, "b", 2**21),
        desk.task(5, "b", 2**22),
    ]
    futures += batcher.submit("m", tasks)
    desk.go.set()
    assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert desk.batches == [[0], [1, 3], [2, 4], [5]]


def test_it_waits_for_others(desk: Desk):
    seen: list[tuple[object, ...]] = []
    batcher = Batcher(most=3, wait=5.0, watch=lambda *facts: seen.append(facts))
    desk.go.set()
    futures = batcher.submit("m", [desk.task(1)])
    time.sleep(0.05)
    futures += batcher.submit("m", [desk.task(2), desk.task(3)])
    wait(futures, 2)
    assert desk.batches == [[1, 2, 3]]
    batcher.close(10)
    assert [facts[:3] for facts in seen] == [("m", "segment", 3)]


def test_who_fails_fails_alone(batcher: Batcher, desk: Desk):
    futures = begin(batcher, desk) + batcher.submit("m", [desk.task(1), desk.task("x"), desk.task(3)])
    desk.go.set()
    assert [futures[place].result(10) for place in (0, 1, 3)] == [0, 2, 6]
    with pytest.raises(ValueError, match="words"):
        futures[2].result(10)
    assert desk.batches == [[0], [1, "x", 3], [1], ["x"], [3]]


def test_what_is_given_up_is_not_computed(batcher: Batcher, desk: Desk):
    futures = begin(batcher, desk) + batcher.submit("m", [desk.task(1), desk.task(2)])
    futures[1].cancel()
    desk.go.set()
    assert futures[2].result(10) == 4
    assert desk.batches == [[0], [2]]
    with pytest.raises(CancelledError):
        futures[1].result(10)


def test_more_than_may_wait_is_sent_away_whole(batcher: Batcher, desk: Desk):
    begin(batcher, desk)
    batcher.submit("m", [desk.task(number) for number in range(6)])
    with pytest.raises(BusyError, match="6 images are waiting, and 8 at most"):
        batcher.submit("m", [desk.task(number) for number in range(3)])
    assert batcher.lengths() == {"m": 6}
    assert batcher.submit("other", [desk.task(1)])
    desk.go.set()


def test_closing_finishes_what_is_there_and_takes_no_more(batcher: Batcher, desk: Desk):
    futures = begin(batcher, desk) + batcher.submit("m", [desk.task(1), desk.task(2)])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher.closing:
        time.sleep(0.01)
    with pytest.raises(BusyError, match="closing"):
        batcher.submit("m", [desk.task(3)])
    desk.go.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == [0, 2, 4]


def test_models_in_batches_give_what_they_give_alone(models: Models, pixels: np.ndarray):
    model, batcher = models["all"], Batcher(most=8, wait=0.2)
    mask = pixels[..., 0] % 3
    tasks = [segmenting(model, pixels, seed, 4) for seed in range(3)]
    tasks += [segmenting(model, pixels[:, :24], 0, 4), segmenting(model, pixels, 0, 2)]
    tasks += generating(model, [0, 1])
    tasks += [painting(model, mask, 0, None), painting(model, mask, 1, None), painting(model, mask, 0, pixels)]
    found = [future.result(30) for future in batcher.submit("all", tasks)]
    batcher.close(10)
    for seed in range(3):
        alone = models.segment("all", pixels, draws=4, seed=seed)
        assert torch.equal(model.finish(pixels, found[seed]).labels, alone.labels)
    assert found[3].masks.shape[:2] == (4, 1)
    assert len(found[4].masks) == 2
    assert np.array_equal(found[6].image, models.generate("all", 2)[1].image)
    assert np.array_equal(found[8], models.paint("all", mask, seed=1))
    assert np.array_equal(found[9], models.paint("all", mask, image=pixels))
