"""Which method to train with where nobody says: every method judges itself (`Method.suits`), the best one is picked."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch

from segmint.data.cache import Pixels
from segmint.functional.ambiguity import distances, diversity, foreground
from segmint.methods.method import Facts, Hardware, Suit, find, names
from segmint.types import SegmintError

SAMPLE = 32
"""Images on which raters are compared."""

FASTER = 2
"""No method is taken to be more times faster than one that was measured, so that few have to be."""


@dataclass(frozen=True)
class Choice:
    """A strategy, and why it was picked.

    Attributes:
        method: what is trained; `prepare`: what is trained before it, from whose weights it starts, or None.
        facts: what was known; `steps` are those of both trainings together.
        suits: what every method that can be picked said, best first.
        minutes: how long it may take; None: as long as the steps take.
    """

    method: str
    prepare: str | None
    facts: Facts
    suits: Mapping[str, Suit]
    minutes: float | None = None

    @property
    def title(self) -> str:
        """The strategy in a few words."""
        return f"{self.prepare}, then {self.method}" if self.prepare else self.method

    @property
    def share(self) -> float:
        """The share of steps and minutes of what is trained first, 0..1."""
        return self.suits[self.prepare].share if self.prepare else 0.0

    @property
    def reason(self) -> str:
        """Why it was picked, in a sentence."""
        why = self.suits[self.method].why
        return f"{self.prepare} {self.suits[self.prepare].why}; {self.method} {why}" if self.prepare else f"it {why}"

    @property
    def seen(self) -> str:
        """What it was picked for: data, machine and time."""
        facts, machine = self.facts, self.facts.hardware
        images = f"{facts.labelled:,} labelled and {facts.unlabelled:,} unlabelled images"
        raters = "one rater"
        if facts.raters > 1:
            raters = f"{facts.raters} raters, whose masks are {facts.disagreement:.2f} apart (1 - IoU)"
        memory = "" if machine.memory == float("inf") else f" with {machine.memory:.0f} GiB"
        place = f"{machine.gpu}{memory}" if machine.gpu else f"{machine.cores} processor cores{memory}, no GPU"
        time = f"{facts.steps:,} steps" + ("" if self.minutes is None else f" in {self.minutes:g} min")
        size = f"{facts.size[0]} x {facts.size[1]}"
        return f"{images} of {size} (height x width), {facts.classes} classes, {raters}; {place}; {time}"

    @property
    def others(self) -> dict[str, str]:
        """What else was considered, best first, and what was said for or against it; alike ones together."""
        said: dict[str, list[str]] = {}
        for name, suit in self.suits.items():
            if name not in (self.method, self.prepare):
                said.setdefault(suit.why, []).append(name)
        return {", ".join(alike): why for why, alike in said.items()}

    @property
    def notes(self) -> list[str]:
        """All of it in sentences."""
        others = [f"also considered: {alike} ({why})" for alike, why in self.others.items()]
        return [f"picked {self.title}: {self.reason}", f"picked for {self.seen}", *others]


def choose(
    facts: Facts,
    *,
    given: Collection[str] = (),
    minutes: float | None = None,
    steps_of: Callable[[str], int] = lambda name: 0,
    starts: Callable[[str, str], bool] = lambda first, then: True,
    alone: str = "",
) -> Choice:
    """Pick a strategy. The same on all processes, if the arguments are.

    Methods are measured one by one, the most promising first, until one that has been measured is the best: mostly
    the first.

    Args:
        facts: what is known of data and machine.
        given: settings that the user has given, which the method must have.
        minutes: how long it may take; None: `facts` know the steps.
        steps_of: how many steps of a method fit into the minutes.
        starts: whether a method (the second) can start from the weights of one that prepares others (the first).
        alone: why nothing can be trained before; empty if it can.

    Raises:
        SegmintError: no method suits.
    """
    measured: dict[str, int] = {}
    while True:
        most = min([facts.steps, *(FASTER * steps for steps in measured.values())])
        known = {name: replace(facts, steps=measured.get(name, most)) for name in names()}
        found = {name: suit for name in names() if (suit := _judged(name, known[name], given)) is not None}
        best = _best({name: suit for name, suit in found.items() if not find(name).prepares})
        if minutes is None or best in measured:
            break
        measured[best] = steps_of(best)
    facts = known[best]
    first: str | None = None
    for name in [name for name in found if find(name).prepares]:
        found[name] = _preparing(name, best, facts, starts, alone)
        if found[name].score > max(0, found[first].score if first else 0):
            first = name
    order = sorted(found, key=lambda name: -found[name].score)
    return Choice(best, first, facts, {name: found[name] for name in order}, minutes)


def _judged(name: str, facts: Facts, given: Collection[str]) -> Suit | None:
    """What a method says of itself, or that it lacks a setting; None where it has to be named."""
    cls = find(name)
    suit = cls.suits(facts)
    lacking = sorted(set(given) - cls.settings())
    if suit is None or cls.prepares or not lacking:
        return suit
    return Suit(0, f"has no setting {', '.join(lacking)}")


def _preparing(name: str, then: str, facts: Facts, starts: Callable[[str, str], bool], alone: str) -> Suit:
    """What a method that prepares others says of itself, or why it cannot come before `then`."""
    suit = Suit(0, f"cannot come first, as {alone}") if alone else find(name).suits(facts) or Suit(0, "")
    if suit.score > 0 and not starts(name, then):
        return Suit(0, f"has no weights that {then} could start from, with these settings")
    return suit


def _best(suits: Mapping[str, Suit]) -> str:
    best = max(suits, key=lambda name: suits[name].score, default=None)
    if best is None or suits[best].score <= 0:
        reasons = "; ".join(f"{name} {suit.why}" for name, suit in suits.items())
        raise SegmintError(f"method: none suits ({reasons}); name one with --method")
    return best


def disagreement(pixels: Pixels, items: Collection[int]) -> float:
    """How far the masks of two raters of an image are apart on average (1 - IoU), 0..1; 0 where each has one rater.

    Args:
        pixels: the data.
        items: images with masks, of which up to 32, evenly spread, are looked at.
    """
    several = [item for item in items if len(pixels.rows[item]) > 1]
    chosen = several[:: max(1, len(several) // SAMPLE)][:SAMPLE]
    classes = foreground(len(pixels.data.classes))
    found = []
    for item in chosen:
        masks = torch.stack([torch.from_numpy(pixels.masks[row].copy()) for row in pixels.rows[item]])
        found.append(float(diversity(distances(masks, masks, classes))))
    return sum(found) / len(found) if found else 0.0


def hardware(device: str = "auto") -> Hardware:
    """The machine at hand.

    Args:
        device: the training's: "auto", "cpu" or "cuda".
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device != "cpu" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Hardware(cores, card.name, card.total_memory / 2**30)
    try:
        return Hardware(cores, memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):  # Windows tells neither
        return Hardware(cores)
