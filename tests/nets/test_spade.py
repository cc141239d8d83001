from __future__ import annotations

import pytest
import torch

from segmint.functional.losses import one_hot
from segmint.nets.spade import Modulate, NoiseEncoder, PixelDiscriminator, SpadeGenerator, halvings, sizes_of

SIZE = (35, 22)


def some_classes(count: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return one_hot(torch.randint(3, (count, *size)), 3).float()


def test_resolutions_round_up():
    assert sizes_of(SIZE) == [(3, 2), (5, 3), (9, 6), (18, 11), (35, 22)]


@torch.no_grad()
def test_without_conditions_modulation_is_plain_normalisation():
    layer = Modulate(8, 4)
    x = torch.randn(2, 8, 5, 5)
    torch.nn.init.zeros_(layer.scale_shift.bias)
    assert torch.allclose(layer(x, torch.zeros(2, 4, 5, 5)), torch.nn.functional.group_norm(x, 8), atol=1e-6)


@torch.no_grad()
def test_the_generator_paints_each_image_by_its_own_mask_and_noise():
    torch.manual_seed(0)
    net = SpadeGenerator(3, 3, SIZE, latent=6, width=4).eval()
    classes, noise = some_classes(), torch.randn(2, 6)
    image = net(classes, noise)
    assert image.shape == (2, 3, *SIZE)
    assert float(image.abs().max()) < 1
    assert torch.allclose(net(classes[1:], noise[1:])[0], image[1], atol=1e-5)
    assert not torch.allclose(net(classes, -noise), image)
    assert not torch.allclose(net(classes.flip(1), noise), image)
    assert net(some_classes(2, (20, 50)), noise).shape == (2, 3, 20, 50)


@torch.no_grad()
def test_the_style_of_an_absent_class_does_not_matter():
    torch.manual_seed(0)
    net = SpadeGenerator(3, 3, SIZE, latent=6, width=4).eval()
    classes, noise = one_hot(torch.randint(2, (1, *SIZE)), 3).float(), torch.randn(1, 6)
    image = net(classes, noise)
    bias = net.style[0].bias.view(3, -1)
    bias[2] += 1
    assert torch.equal(net(classes, noise), image)
    bias[1] += 1
    assert not torch.equal(net(classes, noise), image)


def test_shares_are_halved_with_sizes_rounded_up():
    classes = some_classes()
    whole, half, quarter = halvings(classes, 2)
    assert torch.equal(whole, classes)
    assert (half.shape[-2:], quarter.shape[-2:]) == ((18, 11), (9, 6))
    assert torch.equal(half[0, :, 0, 0], classes[0, :, :2, :2].mean((1, 2)))
    assert torch.allclose(quarter.sum(1), torch.ones(2, 9, 6))


@torch.no_grad()
def test_the_encoder_sees_the_colour_of_each_class():
    torch.manual_seed(0)
    net = NoiseEncoder(3, 3, (32, 32), 5, width=8)
    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[:, :, 16:] = 1
    image, classes = torch.rand(1, 3, 32, 32), one_hot(mask, 3).float()
    mean, log_variance = net(image, classes)
    assert mean.shape == log_variance.shape == (1, 5)
    assert not torch.allclose(net(image, classes.flip(1))[0], mean)
    net.style.bias += 1
    changed, _ = net(image, classes)
    assert not torch.allclose(changed, mean)
    net.statistics.weight[:, -16:] += 1  # what the absent class is weighted with
    assert torch.equal(net(image, classes)[0], changed)


@pytest.mark.parametrize("projected", [True, False])
def test_the_discriminator_gives_every_pixel_one_class_more(projected: bool):
    net = PixelDiscriminator(3, 5, projected=projected).train()
    image = torch.rand(2, 3, *SIZE) * 2 - 1
    features = net.features(image)
    assert torch.equal(features[0], image)
    assert net.judge(features).shape == (2, 6, *SIZE)
    frozen = [p for p in net.encoder.parameters() if not p.requires_grad]
    assert bool(frozen) == projected
    assert not (projected and net.encoder.training)


@torch.no_grad()
def test_the_frozen_maps_are_of_size_one():
    net = PixelDiscriminator(3, 5).eval()
    torch.manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 8), size=(96, 64), mode="bicubic").clamp(0, 1)
    for y in net.features(blobs * 2 - 1)[1:]:
        assert 0.2 < float(y.std()) < 5
