"""The data set that needs no download: axial slices of the MNI152 brain template bundled with nilearn."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segmint.data.classes import Classes, write_classes
from segmint.data.folder import Data, open_folder
from segmint.data.io import Bytes, write_image
from segmint.data.masks import write_mask
from segmint.types import SegmintError

Floats = npt.NDArray[np.float32]

CLASSES = Classes(
    names=("background", "cerebrospinal fluid", "grey matter", "white matter"),
    colors=((0, 0, 0), (0, 114, 178), (230, 159, 0), (240, 240, 240)),
    ids=(0, 1, 2, 3),
)
SIZE = (112, 96)
FIRST = 26
GAP = 6
BLOCKS = (
    *(("train", 11), ("test", 6), ("train", 11), ("val", 4)) * 2,
    ("train", 11),
)
BUDGET = 8

README = """Segmint's demo data
===================

ONE AVERAGED BRAIN, NOT MANY PEOPLE. All images are axial slices of a single volume, the average of 152
adults after non-linear alignment. It is left-right symmetric and has next to no noise. What is measured
here shows that the program works; it says nothing about how well anything would do on the scans of real
patients.

Images  slices {first} to {last} of the 1 mm grid, averaged to 2 mm within the slice, 112 x 96 pixels
        (height x width), grey. Front is up.
Masks   0 background, 1 cerebrospinal fluid, 2 grey matter, 3 white matter: the most probable of the
        template's maps. nilearn brings no map of the fluid, so fluid is what lies inside the brain's hull
        and is neither grey nor white.
Splits  blocks of neighbouring slices, from the lowest up:
        {blocks}.
        {gap} mm between blocks are left out, so no test slice has a neighbour in training. Slices of a
        block, in order, are also a sequence of frames.
Labels  splits/labelled-{budget}-seed0.txt names the {budget} training slices that keep their masks under a
        budget of {budget}.

Source  ICBM 152 2009a nonlinear symmetric template, Montreal Neurological Institute, as bundled with
        nilearn (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template).
        V. Fonov, A. C. Evans, K. Botteron, C. R. Almli, R. C. McKinstry, D. L. Collins: Unbiased average
        age-appropriate atlases for pediatric studies. NeuroImage 54 (2011), 313-327.

Licence of the template, whose notice must stay with every copy:
        Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
        Institute, McGill University. Permission to use, copy, modify, and distribute this software and its
        documentation for any purpose and without fee is hereby granted, provided that the above copyright
        notice appear in all copies. The authors and McGill University make no representations about the
        suitability of this software for any purpose. It is provided "as is" without express or implied
        warranty. The authors are not responsible for any data loss, equipment damage, property loss, or
        injury to subjects or patients resulting from the use or misuse of this software package.
"""


def make_demo(root: str | Path) -> Data:
    """Write the demo's data folder, the same on every machine, and open it.

    The images are 112 x 96 and grey; there are four classes, 55 training, 8 validation and 12 test slices.

    Args:
        root: where to; a demo folder that is already there is opened as it is.

    Raises:
        SegmintError: nilearn is not installed, or `root` holds something else.
    """
    root = Path(root)
    title = README.partition("\n")[0]
    readme = root / "README.txt"
    if readme.is_file() and readme.read_text(encoding="utf-8").startswith(title):
        return open_folder(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise SegmintError(f"{root}: holds something else already; name a new folder for the demo data")
    images, masks = slices()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            _write(temporary, images, masks)
            temporary.chmod(0o755)
            temporary.replace(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SegmintError(f"{root}: cannot be written ({error.strerror}); choose a folder of yours") from error
    return open_folder(root)


def slices() -> tuple[Bytes, Bytes]:
    """All axial slices of the template, lowest first.

    Returns:
        Images uint8 [Z, 112, 96] and masks uint8 [Z, 112, 96] of class indices; front is up.

    Raises:
        SegmintError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise SegmintError('demo: the brain template needs nilearn; pip install "segmint[demo]"') from error
    head, grey, white = (
        _halved(np.asarray(load(resolution=1).dataobj, dtype=np.float32))
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    fluid = np.clip(1 - grey - white, 0, None)
    tissue = np.stack([fluid, grey, white]).argmax(0) + 1
    inside = head > 0.02  # the template is zero outside the brain's hull
    images = np.rint(head.clip(0, 1) * 255).astype(np.uint8)
    return images, np.where(inside, tissue, 0).astype(np.uint8)


def _halved(volume: Floats) -> Floats:
    """[X, Y, Z] at 1 mm -> [Z, 112, 96] at 2 mm within the slice, cut about the middle; front is up."""
    x, y, z = (volume.shape[0] // 2, volume.shape[1] // 2, volume.shape[2])
    small = volume[: 2 * x, : 2 * y].reshape(x, 2, y, 2, z).mean((1, 3))
    planes = small.transpose(2, 1, 0)[:, ::-1]
    for axis, size in ((1, SIZE[0]), (2, SIZE[1])):
        spare = planes.shape[axis] - size
        planes = planes.take(np.arange(size) + spare // 2, axis)
    return np.ascontiguousarray(planes)


def _write(root: Path, images: Bytes, masks: Bytes) -> None:
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    start = FIRST
    for number, (split, length) in enumerate(BLOCKS):
        for height in range(start, start + length):
            name = f"block-{number}/slice-{height:03d}"
            write_image(root / "images" / f"{name}.png", images[height])
            write_mask(root / "masks" / f"{name}.png", masks[height], CLASSES)
            splits[split].append(name)
        start += length + GAP
    train = splits["train"]
    chosen = [train[(2 * place + 1) * len(train) // (2 * BUDGET)] for place in range(BUDGET)]
    (root / "splits").mkdir()
    for split, names in {**splits, f"labelled-{BUDGET}-seed0": chosen}.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    write_classes(root / "classes.yaml", CLASSES)
    told = ", ".join(f"{length} {split}" for split, length in BLOCKS)
    text = README.format(first=FIRST, last=start - GAP - 1, blocks=told, gap=GAP, budget=BUDGET)
    (root / "README.txt").write_text(text, encoding="utf-8")
