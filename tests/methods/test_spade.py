from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segmint.config import TrainSettings
from segmint.methods.method import build
from segmint.methods.spade import Spade
from segmint.seeds import Seeds
from segmint.training.optimizers import PartOptimizers
from segmint.training.run import train
from segmint.training.train import Images, fit
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (32, 32)
SMALL = {"classes": 2, "image_size": SIZE, "discriminator": "plain", "width": 4, "latent": 4}


class Discs:
    """Discs (1) on a ground (0): every image has a colour of its own for the disc; the ground is dark."""

    def batch(self, indices, *, raters=None, labelled=None, previous=False) -> Batch:
        image, mask = torch.full((len(indices), 3, *SIZE), -0.8), torch.zeros(len(indices), *SIZE, dtype=torch.int64)
        rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
        for place, index in enumerate(indices):
            y, x = 10 + 5 * (index % 3), 10 + 5 * (index // 3 % 3)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 49
            image[place, :, disc] = torch.tensor([0.9, 0.5, 0.1]).roll(index % 3).unsqueeze(1)
            mask[place][disc] = 1
        return Batch(image, mask)


def make(**changes) -> Spade:
    torch.manual_seed(0)
    method = build("spade", **{**SMALL, **changes})
    assert isinstance(method, Spade)
    return method


def optimizers(method: Spade) -> PartOptimizers:
    return PartOptimizers(method.parts(), TrainSettings(**Spade.defaults))


def test_it_learns_to_paint_bright_discs(tmp_path: Path):
    method = make(warm_start=32)
    settings = {
        "steps": 36,
        "batch_size": 4,
        "precision": "float32",
        "lr_of": {"generator": 3e-3},
        "ema": 0.9,
        "augment": "none",
    }
    fit(method, Images(Discs(), range(9)), TrainSettings(**{**Spade.defaults, **settings}), tmp_path)
    mask = Discs().batch([1, 5]).mask
    with torch.inference_mode():
        made = method.eval().generate(Seeds([1, 2]), mask)
    brightness = made.image.mean(1)
    assert torch.equal(made.mask, mask)
    assert float(brightness[mask == 1].mean()) > float(brightness[mask == 0].mean()) + 0.5


def test_it_has_to_be_given_masks():
    with pytest.raises(SegmintError, match="paints masks and makes none"):
        make().generate(Seeds([0]))
    with pytest.raises(SegmintError, match=r"spade\.discriminator: there is no 'large'"):
        make(discriminator="large")


def test_unknown_pixels_are_filled_in():
    mask = torch.full((1, *SIZE), IGNORE)
    with torch.inference_mode():
        made = make().eval().generate(Seeds([0]), mask)
    assert bool(torch.isfinite(made.image).all())
    assert torch.equal(made.mask, mask)


def test_masks_of_other_sizes_are_painted_too():
    with torch.inference_mode():
        assert make().eval().generate(Seeds([0]), torch.zeros(1, 20, 50, dtype=torch.int64)).image.shape[-2:] == (
            20,
            50,
        )


def test_noise_moves_the_image_smoothly():
    method, mask = make().eval(), Discs().batch([4]).mask
    with torch.inference_mode():
        here, near, far = (method.generate(Seeds([0]).at(t), mask).image for t in (0.0, 0.05, 1.0))
    assert 0 < float((near - here).abs().mean()) < float((far - here).abs().mean())


def moved(method: Spade, batch: Batch) -> tuple[set[str], dict[str, torch.Tensor]]:
    """The modules that a step changes, and what it reports."""
    before = {key: value.clone() for key, value in method.named_parameters()}
    terms = method.train().step(batch, optimizers(method))
    return {key.partition(".")[0] for key, value in method.named_parameters() if not value.equal(before[key])}, terms


def test_the_warm_start_leaves_the_discriminator_alone():
    changed, terms = moved(make(warm_start=1), Discs().batch(range(4)))
    assert changed == {"generator", "encoder"}
    assert "anchor" in terms
    assert "real" not in terms


def test_the_game_moves_everything():
    changed, terms = moved(make(warm_start=0), Discs().batch(range(5)))
    assert changed == {"generator", "encoder", "discriminator"}
    assert {"anchor", "kl", "recovered", "real", "fake", "mix", "fooled"} <= terms.keys()


def test_it_plays_without_anchor_and_without_label_mix():
    changed, terms = moved(make(anchor=0.0, label_mix=0.0), Discs().batch(range(3)))
    assert changed == {"generator", "discriminator"}
    assert not {"anchor", "kl", "recovered", "mix"} & terms.keys()


def test_only_the_generator_learns_to_show_the_noise():
    method = make()
    batch = Discs().batch([1, 5])
    classes = torch.nn.functional.one_hot(batch.mask, 2).movedim(-1, 1).float()
    noise, _ = method._noise(batch.image, classes, 0)
    method._recovery(method.generator(classes, noise), classes, noise).backward()
    assert all(weight.grad is None for weight in method.encoder.parameters())
    assert any(weight.grad is not None for weight in method.generator.parameters())


@pytest.mark.parametrize("warm_start", [0, 1])
def test_unlabelled_images_teach_the_discriminator_alone(warm_start: int):
    batch = Discs().batch(range(4))
    mask = batch.mask.clone()
    mask[[0, 2]] = IGNORE
    _, terms = moved(make(warm_start=warm_start), Batch(batch.image, mask))
    assert all(bool(torch.isfinite(value)) for value in terms.values())


def test_a_batch_without_masks_is_passed_over_but_a_training_without_them_is_refused():
    method, batch = make(), Discs().batch(range(2))
    unlabelled = Batch(batch.image, torch.full_like(batch.mask, IGNORE))
    with pytest.raises(SegmintError, match="raise budget, or name synthetic"):
        moved(method, unlabelled)
    moved(method, batch)
    changed, terms = moved(method, unlabelled)
    assert not changed
    assert not terms


def test_the_projected_discriminator_keeps_its_encoder_frozen():
    method = make(discriminator="projected", warm_start=0)
    before = {key: value.clone() for key, value in method.discriminator.encoder.state_dict().items()}
    changed, _ = moved(method, Discs().batch(range(2)))
    assert "discriminator" in changed
    assert all(torch.equal(value, before[key]) for key, value in method.discriminator.encoder.state_dict().items())


def test_it_is_trained_from_a_folder_with_predicted_masks(shapes: Path, tmp_path: Path):
    quick = {"batch_size": 4, "precision": "float32", "steps": 2}
    plain = {"encoder_name": "plain", "decoder_channels": [16, 16, 16, 16]}
    segmenter = train(shapes, out=tmp_path / "a", settings=quick, **plain)
    small = {"discriminator": "plain", "width": 4, "warm_start": 1}
    run = train(
        shapes, method="spade", out=tmp_path / "b", masks_from=segmenter, masks_confidence=0.0, settings=quick, **small
    )
    assert any("6 images" in note or "3 images" in note for note in run.settings.notes)
