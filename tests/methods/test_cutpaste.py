"""Cut and paste: what is in the bank, and that every pixel of a pair is labelled as what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.methods.cutpaste import MOST, CutPaste
from segmint.methods.method import Facts
from segmint.seeds import Seeds
from segmint.training.run import train
from segmint.types import IGNORE, Batch, SegmintError

COLOURS = torch.tensor([(40, 40, 40), (220, 20, 20), (20, 220, 20), (20, 20, 220)])
SIZE = (32, 40)


def pictures(count: int = 6) -> Batch:
    """Grounds of class 0, and single blocks of the classes 1 to 3, whose colours tell the class."""
    random = np.random.default_rng(0)
    masks = torch.zeros(count, *SIZE, dtype=torch.int64)
    for mask in masks:
        for label, left in ((1, 2), (2, 14), (3, 26)):
            top, height, width = (int(n) for n in random.integers((4, 6, 5), (12, 14, 10)))
            if random.random() < 0.8:
                mask[top : top + height, left : left + width] = label
    return Batch(COLOURS[masks].permute(0, 3, 1, 2).float() / 127.5 - 1, masks)


def filled(batch: Batch, **settings) -> CutPaste:
    method = CutPaste(classes=4, image_size=SIZE, bank=len(batch), **settings)
    method.step(batch, None)
    method.finish_epoch()
    return method.eval()


def colours_of(batch: Batch) -> torch.Tensor:
    return ((batch.image + 1) * 127.5).round().long().permute(0, 2, 3, 1)


@pytest.mark.parametrize("classmix", [0.0, 0.5, 1.0])
def test_no_pixel_is_labelled_as_what_it_is_not(classmix: float):
    method = filled(pictures(), classmix=classmix, feather=0.0, colour=0.0)
    made = method.generate(Seeds.range(40))
    assert torch.equal(colours_of(made), COLOURS[made.mask])


def test_soft_borders_change_the_class_at_one_half():
    method = filled(pictures(), classmix=0.0, objects=1, colour=0.0)
    made = method.generate(Seeds.range(40))
    distance = (colours_of(made).unsqueeze(-2) - COLOURS).abs().sum(-1)
    own = distance.gather(-1, made.mask.unsqueeze(-1)).squeeze(-1)
    soft = own > 0
    assert 0 < float(soft.float().mean()) < 0.25
    assert float((own == distance.min(-1).values).float().mean()) > 0.99


def test_grounds_are_not_objects():
    method = filled(pictures())
    assert method.things.tolist() == [False, True, True, True]


def test_pixels_of_unknown_class_are_not_pasted_and_stay_unknown():
    batch = pictures()
    batch.mask[:, :, 30:] = IGNORE
    batch.image[:, :, :, 30:] = 1.0
    made = filled(batch, feather=0.0, colour=0.0).generate(Seeds.range(40))
    white = (colours_of(made) == 255).all(-1)
    assert torch.equal(white, made.mask == IGNORE)
    assert bool(white.any())


def test_pairs_are_new_and_depend_on_their_seed_alone():
    batch = pictures()
    method = filled(batch)
    made = method.generate(Seeds.range(30))
    for place in (0, 17):
        alone = method.generate(Seeds([place]))
        assert torch.equal(alone.image[0], made.image[place])
        assert torch.equal(alone.mask[0], made.mask[place])
    known = torch.cat([batch.image, batch.image.flip(-1)])
    copies = [any(torch.equal(image, other) for other in known) for image in made.image]
    assert sum(copies) < 3
    assert len({image.numpy().tobytes() for image in made.image}) == 30


def test_without_objects_classes_are_mixed():
    halves = torch.zeros(2, *SIZE, dtype=torch.int64)
    halves[0, :16] = 1
    halves[1, :, :20] = 2
    batch = Batch(COLOURS[halves].permute(0, 3, 1, 2).float() / 127.5 - 1, halves)
    method = filled(batch, classmix=0.0, feather=0.0)
    assert not method.things.any()
    made = method.generate(Seeds.range(20))
    assert any(len(mask.unique()) == 3 for mask in made.mask)
    assert torch.equal(colours_of(made), COLOURS[made.mask])


def test_one_image_is_pasted_on_itself():
    method = filled(pictures(1), classmix=0.0)
    assert len({image.numpy().tobytes() for image in method.generate(Seeds.range(10)).image}) > 5


def test_training_keeps_the_labelled_images(shapes: Path, tmp_path: Path):
    run = train(shapes, method="cutpaste", budget=4, out=tmp_path / "run")
    assert run.method.config["bank"] == 4
    assert int(run.method.filled) == 4
    assert bool((run.method.masks != IGNORE).all())
    assert len({image.numpy().tobytes() for image in run.method.images}) == 4
    assert run.method.images.dtype == torch.uint8


def test_a_full_bank_takes_no_more():
    method = CutPaste(classes=4, image_size=SIZE, bank=2)
    for _ in range(2):
        method.step(pictures(3), None)
    assert int(method.filled) == 2
    assert torch.equal(method.masks.long(), pictures(3).mask[:2])


def test_the_bank_is_as_large_as_the_labels_are_many():
    def facts(labelled: int, unlabelled: int = 0) -> Facts:
        return Facts(3, 3, SIZE, (0.5, 0.3, 0.2), labelled, unlabelled, 1)

    assert CutPaste.adapt({}, facts(30)) == ({"bank": 30}, [])
    assert CutPaste.adapt({}, facts(30, 20)) == ({"bank": 50}, [])
    chosen, notes = CutPaste.adapt({"objects": 2}, facts(5000))
    assert chosen == {"bank": MOST, "objects": 2}
    assert "2,000 of the 5,000" in notes[0]
    assert CutPaste.adapt({"bank": 7}, facts(30))[0] == {"bank": 7}


@pytest.mark.parametrize(
    "wrong", [{"bank": 0}, {"objects": 0}, {"classmix": 1.5}, {"colour": -0.1}, {"feather": -1.0}, {"shift": -0.1}]
)
def test_wrong_settings_are_refused(wrong: dict):
    with pytest.raises(SegmintError, match=rf"cutpaste\.{next(iter(wrong))}: must"):
        CutPaste(classes=3, **wrong)


def test_an_empty_bank_is_refused():
    method = CutPaste(classes=4, image_size=SIZE)
    unlabelled = Batch(torch.zeros(2, 3, *SIZE), torch.full((2, *SIZE), IGNORE))
    method.step(unlabelled, None)
    with pytest.raises(SegmintError, match="no training image has a mask"):
        method.finish_epoch()
    with pytest.raises(SegmintError, match="bank is empty"):
        method.generate(Seeds([0]))
