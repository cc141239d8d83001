"""The experiments on generated pairs: which generator, and does it help a segmenter with few labels?

    python docs/results/generators.py SHARED_DATA OUT [--only PATTERN] [--processes 2] [--list]

SHARED_DATA holds the folders `clothes` and `camvid`. Every job is a command of the program (see
`experiments.py`). `docs/results/tables.py` and `collect.py` read what they leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments import Job, main, options

SEEDS = (0, 1, 2)
SETS = {"clothes": ("144x96", 30), "camvid": ("96x128", 12)}
STEPS = {"clothes": "1500", "camvid": "600"}
"""Of every segmenter. Real labels alone were best at 900 to 1050 of 1500 steps (clothes), at 450 of 1500 (CamVid)."""

PAIRS = 500
MAKERS = ("cutpaste", "gmm", "vae", "gan", "spade", "flow", "plain")
PAINTERS = ("spade", "flow", "plain")


FLOWS = {"flow": ("base", []), "plain": ("plain-base", options(perceptual=0))}
"""The joint flow, and the same without the distance of features in its loss, which came later."""


def base(flow: str) -> Job:
    """The joint flow on the images of clothes alone, no mask: every other flow starts from it."""
    name, chosen = FLOWS[flow]
    command = ["train", "DATA/clothes", "--method", "flow", "--budget", "0", "--size", "144x96", "--steps", "2000"]
    usual = options(training__batch_size=8, training__precision="bfloat16", training__validate_every=500)
    return Job(name, [*command, *chosen, *usual])


@dataclass(frozen=True)
class Case:
    """Some labels of a data set: 30 of clothes with seed 0, say."""

    data: str
    size: str
    budget: int | None
    seed: int

    @property
    def tag(self) -> str:
        return f"{self.data}-{self.budget or 'all'}-{self.seed}"

    def train(self, name: str, *words: str, needs: Sequence[str] = ()) -> Job:
        """Training on these labels."""
        where = ["train", f"DATA/{self.data}", "--size", self.size, "--seed", str(self.seed)]
        where += ["--budget", str(self.budget)] if self.budget else []
        return Job(f"{self.tag}/{name}", [*where, *words], [f"{self.tag}/{need}" for need in needs])

    def real(self) -> Job:
        return self.train("real", "--steps", STEPS[self.data])

    def maker(self, method: str) -> Job:
        """A generator; the painters also learn from masks that the segmenter predicts for unlabelled images."""
        steps = {
            "vae": 800,
            "gan": 800,
            "spade": 800 if self.budget else 1500,
            "flow": 1200 if self.data == "clothes" else 600,
        }
        flow = method in FLOWS
        steps["plain"] = steps["flow"]
        words = ["--method", "flow" if flow else method]
        words += ["--steps", str(steps[method])] if method in steps else []
        few = ["--masks-from", f"OUT/{self.tag}/real"] if method in PAINTERS and self.budget else []
        start, chosen = FLOWS.get(method, ("", []))
        if flow:
            words += ["--init", f"OUT/{start}", *chosen]
            words += options(training__batch_size=8, training__validate_every=600)
        job = self.train(method, *words, *few, needs=["real"] if few else [])
        return Job(job.name, job.command, [*job.needs, *([start] if flow else [])])

    def pairs(self, method: str, name: str, *words: str) -> Job:
        """Pairs that a generator makes; the painters paint real or predicted masks, half of them varied."""
        asked, needs = list(words), [f"{self.tag}/{method}"]
        if method in PAINTERS:
            asked += ["--mix", "predicted=1,varied=1" if self.budget else "real=1,varied=1"]
            if self.budget:
                asked += ["--segmenter", f"OUT/{self.tag}/real"]
                needs.append(f"{self.tag}/real")
        made = ["generate", f"OUT/{self.tag}/{method}", "--count", str(PAIRS), "--out", f"OUT/{self.tag}/{name}"]
        return Job(f"{self.tag}/{name}", [*made, *asked], needs)

    def over(self) -> Job:
        """Pairs painted over photographs."""
        return self.pairs("plain", "over-pairs", "--repaint")

    def near(self, flow: str = "flow") -> Job:
        """Pairs painted over photographs from closer by."""
        name = "near-pairs" if flow == "flow" else f"{flow}-near-pairs"
        return self.pairs(flow, name, "--repaint", *options(strength=0.35, guidance=1.0))

    def both(self, pairs: str, share: float = 0.25) -> Job:
        """The segmenter on real labels and pairs, at the same number of steps as on real labels alone."""
        words = ["--steps", STEPS[self.data], "--synthetic", f"OUT/{self.tag}/{pairs}-pairs"]
        words += options(training__synthetic_fraction=share)
        return self.train(f"{'both' if share < 0.5 else 'half'}-{pairs}", *words, needs=[f"{pairs}-pairs"])

    def others(self) -> Iterator[Job]:
        """What else was tried.

        Pairs further from the photographs, and half of each batch; pairs first and real labels then.
        """
        yield from (self.over(), self.both("over", 0.5), self.both("cutpaste", 0.5))
        alone = options(training__synthetic_fraction=1)
        first = ["--steps", "500", "--synthetic", f"OUT/{self.tag}/over-pairs", *alone]
        yield self.train("first-over", *first, needs=["over-pairs"])
        then = ["--steps", str(int(STEPS[self.data]) - 500), "--init", f"OUT/{self.tag}/first-over"]
        yield self.train("then-real", *then, needs=["first-over"])

    def self_taught(self) -> Job:
        """No generator: the photographs without labels, with the masks predicted for them."""
        words = ["--steps", STEPS[self.data], "--masks-from", f"OUT/{self.tag}/real"]
        return self.train("self", *words, *options(training__labelled_fraction=0.75), needs=["real"])

    def remedies(self) -> Iterator[Job]:
        """Other pairs for the same segmenter.

        Painted over the labelled photographs alone, whose masks are right; over collages of cut and paste; by spade;
        cut and pasted and painted ones side by side; and those of the usual ones that the assay keeps.
        """
        gently = options(strength=0.35, guidance=1.0)
        for name, needs, chosen in (
            ("own", [], ["--mix", "real=1,varied=3"]),
            ("collage", ["cutpaste-pairs"], ["--masks", f"OUT/{self.tag}/cutpaste-pairs"]),
        ):
            made = ["generate", f"OUT/{self.tag}/flow", "--count", str(PAIRS), "--out", f"OUT/{self.tag}/{name}-pairs"]
            needed = [f"{self.tag}/{need}" for need in ("flow", *needs)]
            yield Job(f"{self.tag}/{name}-pairs", [*made, "--repaint", *chosen, *gently], needed)
            yield self.both(name)
        words = ["--steps", STEPS[self.data], *options(training__synthetic_fraction=0.25)]
        for pairs in ("near", "cutpaste"):
            words += ["--synthetic", f"OUT/{self.tag}/{pairs}-pairs"]
        yield self.train("both-near-cutpaste", *words, needs=["near-pairs", "cutpaste-pairs"])
        yield from self.assays()
        yield from self.painted()

    def painted(self) -> Iterator[Job]:
        """By spade, from nothing but the mask."""
        yield from (self.maker("spade"), self.pairs("spade", "spade-pairs"), self.both("spade"))

    def only(self, pairs: str) -> Job:
        """The segmenter on pairs alone, or for comparison on the real labels, at fewer steps."""
        where = ["train", f"DATA/{self.data}", "--size", self.size, "--steps", "400"]
        if pairs == "real":
            where += ["--budget", str(self.budget), "--seed", str(self.seed)] if self.budget else []
            return Job(f"{self.tag}/only-real", where)
        words = ["--budget", "0", "--synthetic", f"OUT/{self.tag}/{pairs}-pairs"]
        return Job(f"{self.tag}/only-{pairs}", [*where, *words], [f"{self.tag}/{pairs}-pairs"])

    def measured(self, pairs: str) -> Job:
        """The measures of some pairs, mask agreement by the segmenter on 30 real labels."""
        words = [
            "measure",
            f"OUT/{self.tag}/{pairs}-pairs",
            f"DATA/{self.data}",
            "--segmenter",
            "OUT/clothes-30-0/real",
        ]
        return Job(f"{self.tag}/{pairs}-measured", words, [f"{self.tag}/{pairs}-pairs", "clothes-30-0/real"])

    def evaluations(self) -> Iterator[Job]:
        """The flow's own pairs after 8 and after 50 evaluations, from the same noise."""
        for steps in (8, 50):
            name = f"steps{steps}"
            made = ["generate", f"OUT/{self.tag}/flow", "--count", "200", "--out", f"OUT/{self.tag}/{name}-pairs"]
            yield Job(f"{self.tag}/{name}-pairs", [*made, *options(steps=steps)], [f"{self.tag}/flow"])
            yield self.measured(name)

    def parametrizations(self) -> Iterator[Job]:
        """Short trainings from nothing that differ in what the flow's network predicts, and how that is judged."""
        kinds = {kind: options(parametrization=kind, perceptual=0) for kind in ("clean", "velocity", "edm")}
        kinds |= {"perceptual": options(perceptual=1), "perceptual3": options(perceptual=3)}
        for kind, chosen in kinds.items():
            words = ["--method", "flow", "--steps", "600", *chosen, *options(training__batch_size=8)]
            yield self.train(kind, *words, *options(training__validate_every=600))
            made = ["generate", f"OUT/{self.tag}/{kind}", "--count", "200", "--out", f"OUT/{self.tag}/{kind}-pairs"]
            yield Job(f"{self.tag}/{kind}-pairs", [*made, "--mix", "real=1"], [f"{self.tag}/{kind}"])
            yield self.measured(kind)

    def sequences(self) -> Job:
        """The validation drive's masks painted frame by frame, and each frame anew."""
        words = ["generate", f"OUT/{self.tag}/flow", "--frames", "24", "--count", "3", "--masks", f"DATA/{self.data}"]
        words += ["--split", "val", "--independent", "--out", f"OUT/{self.tag}/frames"]
        return Job(f"{self.tag}/frames", words, [f"{self.tag}/flow"])

    def assays(self) -> Iterator[Job]:
        """Copies of those pairs, of which the assay keeps the better seven tenths, and the segmenter on each."""
        for by in ("agreement", "usefulness"):
            source, target = f"OUT/{self.tag}/near-pairs", f"OUT/{self.tag}/{by}-pairs"
            yield Job(f"{self.tag}/{by}-copy", ["cp", "-r", source, target], [f"{self.tag}/near-pairs"])
            words = ["assay", target, "--segmenter", f"OUT/{self.tag}/real", "--keep", "0.7", "--by", by, "--copies"]
            yield Job(f"{self.tag}/{by}-pairs", words, [f"{self.tag}/{by}-copy"])
            yield self.both(by)


def jobs() -> Iterator[Job]:
    """All of them, in the order in which they are taken up."""
    yield from (base("plain"), base("flow"))
    clothes, camvid = ([Case(data, *SETS[data], seed) for seed in SEEDS] for data in SETS)
    whole = Case("clothes", "144x96", None, 0)
    for case in clothes:
        yield from few_labels(case)
    for case in (whole, clothes[0]):
        for method in MAKERS:
            yield from (case.maker(method), case.pairs(method, f"{method}-pairs"), case.only(method))
            yield case.measured(method)
        yield case.only("real")
        for near in (case.near("plain"), case.near()):
            name = near.name.rpartition("/")[2].removesuffix("-pairs")
            yield from (near, case.only(name), case.measured(name))
    yield from whole.evaluations()
    yield from whole.parametrizations()
    for case in camvid:
        yield from few_labels(case)
    yield camvid[0].sequences()
    yield from camvid[0].remedies()
    for case in camvid[1:]:
        yield from (*case.painted(), *case.assays())
    yield from clothes[0].remedies()
    yield from clothes[0].others()
    for case in clothes:
        yield case.self_taught()
        yield from case.assays()
        yield from (case.maker("plain"), case.near("plain"), case.both("plain-near"))


def few_labels(case: Case) -> Iterator[Job]:
    """Real labels alone, with the flow's pairs, with the rival's."""
    yield from (case.real(), case.maker("flow"), case.near(), case.both("near"))
    yield from (case.maker("cutpaste"), case.pairs("cutpaste", "cutpaste-pairs"), case.both("cutpaste"))


if __name__ == "__main__":
    main(__doc__, jobs())
