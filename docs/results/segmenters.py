"""The experiments on segmenters for few labels: which strategy, at equal total steps?

    python docs/results/segmenters.py SHARED_DATA OUT [--only PATTERN] [--processes 2] [--list]

SHARED_DATA holds the folders `clothes` and `camvid`. Every job is a command of the program (see `experiments.py`).
Steps of pre-training count: a strategy of two trainings has as many in all as `supervised` alone. OUT may be that of
`generators.py`, whose runs on real labels alone (`real`) are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments import Job, main, options

SEEDS = (0, 1, 2)
SIZES = {"clothes": "144x96", "camvid": "96x128"}
BUDGETS = {"clothes": (30, 100), "camvid": (12,)}
MORE = {"clothes": (10, None), "camvid": (None,)}
"""Further budgets for `supervised` alone; None: all labels."""

STEPS = {"clothes": 1500, "camvid": 600}
FIRST = {"clothes": 500, "camvid": 200}
"""Of them, those of the first training of a strategy that has two."""


@dataclass(frozen=True)
class Case:
    """Some labels of a data set: 30 of clothes with seed 0, say."""

    data: str
    budget: int | None
    seed: int

    @property
    def tag(self) -> str:
        return f"{self.data}-{self.budget or 'all'}-{self.seed}"

    @property
    def rest(self) -> int:
        return STEPS[self.data] - FIRST[self.data]

    def train(self, name: str, steps: int, *words: str, needs: Sequence[str] = ()) -> Job:
        where = ["train", f"DATA/{self.data}", "--size", SIZES[self.data], "--seed", str(self.seed)]
        where += ["--budget", str(self.budget)] if self.budget else []
        return Job(f"{self.tag}/{name}", [*where, "--steps", str(steps), *words], list(needs))

    def of(self, name: str) -> str:
        return f"{self.tag}/{name}"

    def supervised(self) -> Job:
        return self.train("real", STEPS[self.data])

    def longer(self) -> Job:
        """Twice the steps: had it stopped improving?"""
        return self.train("real-longer", 2 * STEPS[self.data])

    def single(self) -> Iterator[Job]:
        """One training each."""
        for method in ("adversarial", "consistency"):
            yield self.train(method, STEPS[self.data], "--method", method)
        quick = options(training__batch_size=8, training__validate_every=STEPS[self.data] // 5)
        yield self.train("joint-flow", STEPS[self.data], "--method", "flow", *quick)

    def double(self) -> Iterator[Job]:
        """A first training, and another that starts from it."""
        denoised = f"{self.data}-denoise"
        start = ["--init", f"OUT/{denoised}"]
        yield self.train("denoised", self.rest, *start, needs=[denoised])
        yield self.train("first", FIRST[self.data])
        began = ["--init", f"OUT/{self.of('first')}", "--method", "consistency"]
        gentle = options(weight=0.5, training__labelled_fraction=0.75)
        for name, chosen in {"consistent": [], "consistent-gentle": gentle}.items():
            yield self.train(name, self.rest, *began, *chosen, needs=[self.of("first")])
        taught = ["--init", f"OUT/{self.of('first')}", "--masks-from", f"OUT/{self.of('first')}"]
        share = options(training__labelled_fraction=0.5)
        yield self.train("self-taught", self.rest, *taught, *share, needs=[self.of("first")])


def denoise(data: str) -> Job:
    """Pre-training on all images, masks unseen: one for every budget and seed."""
    words = ["train", f"DATA/{data}", "--size", SIZES[data], "--method", "denoise", "--steps", str(FIRST[data])]
    return Job(f"{data}-denoise", words)


def jobs() -> Iterator[Job]:
    """All of them, in the order in which they are taken up."""
    for data, budgets in BUDGETS.items():
        yield denoise(data)
        yield Case(data, max(budgets), 0).longer()
        for seed in SEEDS:
            for budget in budgets:
                case = Case(data, budget, seed)
                yield from (case.supervised(), *case.single(), *case.double())
            for more in MORE[data]:
                yield Case(data, more, seed).supervised()


if __name__ == "__main__":
    main(__doc__, jobs())
