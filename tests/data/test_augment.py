from __future__ import annotations

import pytest
import torch

from segmint.data.augment import PRESETS, Augmentation, _grid, augment, resolve
from segmint.types import IGNORE, Batch, SegmintError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(count: int = 16, size: tuple[int, int] = (32, 40)) -> Batch:
    """Class k has brightness k / 2 - 0.5 in every colour, so that the image tells where the mask should be."""
    mask = torch.zeros(count, *size, dtype=torch.int64)
    mask[:, 10:24, 6:18] = 1
    mask[:, 4:12, 22:34] = 2
    image = (mask.float() / 2 - 0.5).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    return Batch(image, mask)


GEOMETRY = Augmentation(flip=0.5, flip_vertical=0.5, zoom=(0.6, 2.0), stretch=0.3, rotate=30.0)


def test_masks_move_with_their_images():
    batch = scene()
    out = augment(batch, GEOMETRY, generator())
    expected = ((out.image[:, 0] + 0.5) * 2).round().long()
    known = out.mask != IGNORE
    agree = float((expected == out.mask)[known].float().mean())
    assert agree > 0.95
    assert not torch.equal(out.mask, batch.mask)


def test_nothing_is_made_up_outside_the_image():
    out = augment(scene(), Augmentation(zoom=(0.5, 0.5)), generator())
    assert 0.6 < float((out.mask == IGNORE).float().mean()) < 0.8
    closer = augment(scene(), Augmentation(zoom=(2.0, 2.0)), generator())
    assert not bool((closer.mask == IGNORE).any())


def test_a_flip_is_a_mirror_image():
    batch = scene(1)
    out = augment(batch, Augmentation(flip=1.0), generator())
    assert torch.equal(out.mask, batch.mask.flip(2))
    assert torch.allclose(out.image, batch.image.flip(3), atol=1e-4)
    upside = augment(batch, Augmentation(flip_vertical=1.0), generator())
    assert torch.equal(upside.mask, batch.mask.flip(1))


def test_no_augmentation_changes_nothing():
    batch = scene(2)
    out = augment(batch, PRESETS["none"], generator())
    assert torch.equal(out.image, batch.image)
    assert torch.equal(out.mask, batch.mask)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_keep_shapes_and_ranges_and_follow_the_generator(name: str, channels: int):
    batch = Batch(torch.rand(4, channels, 32, 40) * 2 - 1, scene(4).mask, torch.rand(4, channels, 32, 40) * 2 - 1)
    a, b = (augment(batch, PRESETS[name], generator(3)) for _ in range(2))
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.mask, b.mask)
    assert a.image.shape == batch.image.shape
    assert float(a.image.abs().max()) <= 1
    assert a.previous.shape == batch.previous.shape


def test_previous_frames_change_as_their_images_do():
    batch = scene(8)
    how = Augmentation(flip=0.5, zoom=(0.8, 1.5), brightness=0.3, contrast=0.3, saturation=0.3, hue=20)
    out = augment(Batch(batch.image, batch.mask, batch.image), how, generator())
    assert torch.allclose(out.image, out.previous, atol=1e-5)


def test_colours_turn_but_grey_stays_grey():
    grey = Batch(torch.full((4, 3, 8, 8), 0.3), torch.zeros(4, 8, 8, dtype=torch.int64))
    out = augment(grey, Augmentation(hue=180.0, saturation=0.9), generator())
    assert torch.allclose(out.image, grey.image, atol=1e-5)
    red = Batch(torch.zeros(4, 3, 8, 8) + torch.tensor([0.8, 0, 0]).view(1, 3, 1, 1), grey.mask)
    bleached = augment(red, Augmentation(grey=1.0), generator()).image
    assert float((bleached - bleached.mean(1, keepdim=True)).abs().max()) < 1e-5


def test_blur_smooths_and_noise_and_erasing_do_what_they_say():
    torch.manual_seed(0)
    rough = Batch(torch.randn(6, 3, 32, 32).clamp(-1, 1), torch.zeros(6, 32, 32, dtype=torch.int64))
    blurred = augment(rough, Augmentation(blur=1.0), generator()).image
    assert float(blurred.diff(dim=3).abs().mean()) < 0.8 * float(rough.image.diff(dim=3).abs().mean())
    flat = Batch(torch.zeros(6, 3, 32, 32), rough.mask)
    assert 0 < float(augment(flat, Augmentation(noise=0.2), generator()).image.std()) < 0.2
    erased = augment(rough, Augmentation(erase=1.0), generator())
    gone = erased.mask == IGNORE
    assert 0.005 < float(gone.float().mean()) < 0.2
    assert float(erased.image.permute(0, 2, 3, 1)[gone].abs().max()) == 0


def test_settings_are_resolved_and_checked():
    assert resolve("weak") == PRESETS["weak"]
    assert resolve({"flip": 0.2}) == Augmentation(flip=0.2)
    assert resolve({"preset": "strong", "zoom": [1, 1.5]}).zoom == (1, 1.5)
    with pytest.raises(SegmintError, match=r"augment\.flop: no such setting"):
        resolve({"flop": 1})
    with pytest.raises(SegmintError, match="there is no 'mad'"):
        resolve({"preset": "mad"})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (5, "training.augment: must be one of none"),
        ({"zoom": 3}, r"augment\.zoom: .*tuple.* \(given: 3\)"),
        ({"zoom": [1]}, r"augment\.zoom: .* \(given: \[1\]\)"),
        ({"zoom": [0, 2]}, r"augment\.zoom: must be two magnifications above 0"),
        ({"zoom": [2, 1]}, "the smaller first"),
        ({"rotate": "ten"}, r"augment\.rotate: .*number.* \(given: 'ten'\)"),
        ({"rotate": -1}, r"augment\.rotate: must be 0 or more, not -1"),
        ({"noise": float("nan")}, r"augment\.noise: .*finite"),
        ({"flip": 1.5}, r"augment\.flip: must be a probability"),
        ({"gamma": 0.5}, r"augment\.gamma: must be 1 or more"),
        ({"flip": {"x": 1}}, r"augment\.flip: "),
    ],
)
def test_values_that_mean_nothing_are_refused(setting: object, words: str):
    with pytest.raises(SegmintError, match=words):
        resolve(setting)


def test_turning_and_mirroring_shear_nothing():
    how = Augmentation(flip=0.5, flip_vertical=0.5, rotate=180.0)
    theta = _grid(Batch(torch.zeros(64, 1, 24, 24), torch.zeros(64, 24, 24, dtype=torch.long)), how, generator())
    across, down = theta[:, 12, 13] - theta[:, 12, 12], theta[:, 13, 12] - theta[:, 12, 12]
    steps = torch.stack([across, down], 2)
    assert torch.allclose(torch.linalg.det(steps).abs(), torch.full((64,), (2 / 24) ** 2), rtol=1e-3)
    assert torch.allclose((across * down).sum(1), torch.zeros(64), atol=1e-6)
    assert set(torch.linalg.det(steps).sign().tolist()) == {-1.0, 1.0}
