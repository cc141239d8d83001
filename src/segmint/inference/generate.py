"""Write labelled sets that a method made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segmint.config import write_atomic
from segmint.data.cache import to_pixels
from segmint.data.classes import Classes, write_classes
from segmint.data.folder import Data, open_folder
from segmint.data.io import Bytes, write_image
from segmint.data.masks import write_mask
from segmint.inference.masks import FolderMasks, MaskMix, MaskSource, MixedMasks, Originals, weights
from segmint.inference.workers import Entries, Workers, write_all
from segmint.locks import LOCK, locked
from segmint.methods.method import Method, device_of
from segmint.seeds import Seeds
from segmint.training.precision import autocast
from segmint.training.run import Run
from segmint.types import Batch, SegmintError

BLOCK = 8
"""Items are always computed in aligned blocks of this many, so that rounding is the same however they are asked for."""

MOST = 1_000_000
"""Pair i of seed s has the seed s * MOST + i, so there are no more pairs of a seed than this."""

USUAL = MaskMix(real=1, varied=1)


def generate(
    run: Run | str | Path,
    *,
    count: int,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    ray: str | None = None,
    masks: str | Path | None = None,
    mix: MaskMix | str | None = None,
    segmenter: Run | str | Path | None = None,
    mask_generator: Run | str | Path | None = None,
    repaint: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Data:
    """Make image-and-mask pairs and write them as a data folder with a `manifest.jsonl`.

    Item i depends on `seed`, i, the trained method and the masks alone. Called again on the same folder it goes on
    after the items that are there, to the folder that it would have been, bit for bit.

    Args:
        run: a run whose method generates.
        count: how many pairs.
        out: the folder to write; None: `generated` in the run folder.
        seed: of the whole set; pair i has the seed `seed * 1_000_000 + i`.
        workers, ray: where they are made, which does not change them; see `segmint.inference.workers.Workers`.
        masks: a data folder whose masks are painted, one after the other and again from the first.
        mix: kinds of masks to paint, such as "real=1,varied=1" (the default where the method cannot do without);
            see `segmint.inference.masks.MaskMix`. None: the method makes its own.
        segmenter: the run that predicts the masks of unlabelled images, for "predicted".
        mask_generator: the run that draws masks, for "drawn".
        repaint: paint over the image that the mask belongs to, with methods that can.
        progress: told how many pairs of how many are done.

    Raises:
        SegmintError: the method does not generate or cannot paint, `count` is not positive, the folder holds
            something else or was begun with other settings, or the masks to paint are not to be had.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    if not 1 <= count <= MOST:
        raise SegmintError(f"--count: must be at least 1 and at most {MOST:,}, not {count}")
    folder = Path(out) if out is not None else run.folder / "generated"
    how = Recipe(
        folder=folder,
        seed=seed,
        masks=_folder(masks),
        mix=MaskMix.parse(mix) if isinstance(mix, str) else mix,
        segmenter=_folder(segmenter),
        mask_generator=_folder(mask_generator),
        repaint=repaint,
    ).settled(run.folder, run.method)
    maker = Maker(run, how)
    with locked(folder):
        done = {int(name) for name in claim(folder, maker.facts())}
        write_classes(folder / "classes.yaml", run.classes)
        jobs = [(block, [n for n in _members(block, count) if n not in done]) for block in range(-(-count // BLOCK))]
        jobs = [job for job in jobs if job[1]]
        made = count - sum(len(numbers) for _, numbers in jobs)
        with (folder / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
            build = partial(Maker, replace(run), how)
            for entries in write_all(maker, build, jobs, Workers(workers, ray).at_most(len(jobs))):
                manifest.write("".join(json.dumps(entry) + "\n" for entry in entries))
                manifest.flush()
                made += len(entries)
                if progress is not None:
                    progress(made, count)
        sweep(folder)
    return open_folder(folder)


@dataclass(frozen=True)
class Recipe:
    """How the pairs of a folder are made; the arguments of `generate`, as paths."""

    folder: Path
    seed: int = 0
    masks: Path | None = None
    mix: MaskMix | None = None
    segmenter: Path | None = None
    mask_generator: Path | None = None
    repaint: bool = False

    def settled(self, run: Path, method: Method) -> Recipe:
        """With the default mixture, where one is needed; refuses what contradicts itself or the method."""
        if "generate" not in method.capabilities():
            raise SegmintError(f"{run}: {method.name} does not generate; `segmint methods` lists those that do")
        if self.masks is not None and (self.mix is not None or self.segmenter or self.mask_generator):
            raise SegmintError("--masks: takes the place of --mix and its runs; leave one or the other out")
        given = self.masks is not None or self.mix is not None
        settled = self
        if not given and (method.needs_mask or self.repaint):
            settled = replace(self, mix=USUAL)
        elif not given and (self.segmenter or self.mask_generator):
            raise SegmintError("--segmenter, --mask-generator: say how often, e.g. --mix real=1,predicted=1,drawn=1")
        asked = torch.empty(0)
        method.refuse(mask=asked if given or self.repaint else None, image=asked if self.repaint else None)
        return settled


class Maker:
    """Makes and writes the pairs of a folder, block by block.

    Args:
        run: whose method makes them.
        how: from what.
    """

    def __init__(self, run: Run, how: Recipe) -> None:
        self.run, self.how = run, how
        self.source: MaskSource | None = None
        if how.masks is not None:
            self.source = FolderMasks(run, how.masks)
        elif how.mix is not None:
            self.source = MixedMasks(run, how.mix, segmenter=how.segmenter, mask_generator=how.mask_generator)

    def facts(self) -> dict[str, Any]:
        """Everything that determines the pairs."""
        facts = facts_of(self.run, self.how.seed)
        if self.source is not None:
            facts |= {**self.source.facts(), "repaint": self.how.repaint}
        return facts

    def write(self, block: int, numbers: Sequence[int]) -> Entries:
        """Make a whole block, write some of its pairs, and return their entries for the manifest."""
        first = block * BLOCK
        seeds = range(self.how.seed * MOST + first, self.how.seed * MOST + first + BLOCK)
        originals = None if self.source is None else self.source.take(range(first, first + BLOCK), seeds)
        batch = make_block(self.run, seeds, originals, repaint=self.how.repaint)
        entries = []
        for number in numbers:
            name, place = f"{number:05d}", number - first
            write_pair(self.how.folder, name, *to_bytes(batch, place), self.run.classes)
            entry = {"name": name, "seed": seeds[place], "run": str(self.run.folder.resolve())}
            entry |= {"method": self.run.method.name, "kept": True}
            entries.append(entry if originals is None else {**entry, "mask": originals.names[place]})
        return entries


def make_block(run: Run, seeds: Sequence[int], originals: Originals | None = None, *, repaint: bool = False) -> Batch:
    """One pair per seed, on the CPU.

    Args:
        run: one whose method generates; it does so in the precision that it was trained in.
        seeds: one per pair.
        originals: the masks to paint, with their images; None for masks of the method's own.
        repaint: paint over these images.

    Raises:
        SegmintError: values are not finite.
    """
    given = {}
    if originals is not None:
        real = originals.batch(device_of(run.method))
        given = {"mask": real.mask, **({"image": real.image} if repaint else {})}
    method = run.method
    with torch.inference_mode(), autocast(run.precision, device_of(method)):
        batch = method.generate(Seeds(seeds), **given)
    if not bool(torch.isfinite(batch.image).all()):
        raise SegmintError(f"{method.name}: generated values that are not finite; train it again with a smaller lr")
    return batch.to("cpu")


def to_bytes(batch: Batch, place: int) -> tuple[Bytes, Bytes]:
    """One item of a batch as uint8 image [H, W, C] and uint8 mask indices [H, W]."""
    return to_pixels(batch.image[place]).cpu().numpy(), batch.mask[place].to(torch.uint8).cpu().numpy()


def write_pair(folder: Path, name: str, image: Bytes, mask: Bytes, classes: Classes) -> None:
    """Write images/{name}.png and masks/{name}.png of a data folder, each to a temporary name first.

    Args:
        folder: the data folder.
        name: "00001" or "group/00001".
        image: uint8 [H, W, C]; `mask`: uint8 [H, W] of class indices, `IGNORE` where unknown.
        classes: gives the mask file its ids and colours.
    """
    write_image(folder / "images" / f"{name}.png", image)
    write_mask(folder / "masks" / f"{name}.png", mask, classes)


def facts_of(run: Run, seed: int) -> dict[str, Any]:
    """What determines anything that a run generates: its weights, its method's settings, and the seed."""
    facts: dict[str, Any] = {"run": str(run.folder.resolve()), "weights": weights(run.folder)}
    facts |= {"method": run.method.name, "seed": seed}
    return {**facts, "changes": dict(run.changes)} if run.changes else facts


def claim(folder: Path, facts: Mapping[str, Any]) -> set[str]:
    """Begin a generated folder, or go on with one that was begun with the same facts (`generate.json`).

    What a killed process left half-written is removed, and manifest entries from the first broken one on.

    Args:
        folder: need not exist yet.
        facts: everything that determines its content, as JSON values.

    Returns:
        The names of the pairs that are there, whole.

    Raises:
        SegmintError: the folder holds something else, or was begun with other facts.
    """
    path, known = folder / "manifest.jsonl", folder / "generate.json"
    if not known.exists():
        if folder.exists() and any(path.suffix != ".tmp" and path.name != LOCK for path in folder.iterdir()):
            raise SegmintError(f"{folder}: is not empty and has no generate.json; choose another --out")
        write_atomic(known, json.dumps(dict(facts), indent=2) + "\n")
        path.touch()
        return set()
    try:
        before: dict[str, Any] = dict(json.loads(known.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SegmintError(f"{known}: damaged ({error}); choose another --out") from error
    for key in [*before, *facts]:
        if before.get(key) != facts.get(key):
            raise SegmintError(
                f"{folder}: was begun with {key} {_spelt(before.get(key))}, now it is {_spelt(facts.get(key))}; "
                "give the same settings to go on, or choose another --out"
            )
    sweep(folder)
    kept: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            name = str(json.loads(line)["name"])
        except (ValueError, KeyError, TypeError):
            break
        if not all(is_made(folder, part, name) for part in ("images", "masks")):
            break
        kept[name] = line
    write_atomic(path, "".join(line + "\n" for line in kept.values()))
    return set(kept)


def sweep(folder: Path) -> None:
    """Remove what killed processes have left half-written among a folder's images and masks."""
    for part in ("images", "masks"):
        for left in (folder / part).rglob(".*.tmp"):
            left.unlink(missing_ok=True)


def is_made(folder: Path, part: str, name: str) -> bool:
    """Whether a pair's file of "images" or "masks" is there, be it kept or among what an assay dropped."""
    return any((place / part / f"{name}.png").is_file() for place in (folder, folder / "dropped"))


def _spelt(value: Any) -> str:
    return "none" if value is None else str(value)


def _folder(run: Run | str | Path | None) -> Path | None:
    if run is None:
        return None
    return run.folder if isinstance(run, Run) else Path(run)


def _members(block: int, count: int) -> range:
    return range(block * BLOCK, min(count, (block + 1) * BLOCK))
