from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.nets.discriminators import ConvDiscriminator, ProjectedDiscriminator
from segmint.nets.encoders import EfficientNetLite0, PlainEncoder, SamePadConv2d, build_encoder
from segmint.nets.generators import PairDecoder, stages_for
from segmint.nets.layers import groups, resize
from segmint.nets.unet import UNet
from segmint.nets.vae import AggregatePosterior, PairEncoder
from segmint.types import Batch, SegmintError

PALACE, DAISY = 698, 985


def photograph(name: str) -> torch.Tensor:
    """A real photograph that scikit-learn ships, its middle square at 224 x 224, in [-1, 1]."""
    sklearn = pytest.importorskip("sklearn.datasets")
    picture = Image.fromarray(sklearn.load_sample_image(name))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "label"), [("china.jpg", PALACE), ("flower.jpg", None)])
def test_the_port_names_what_real_photographs_show(name: str, label: int | None):
    net = EfficientNetLite0(head=True).eval()
    with torch.inference_mode():
        scores = net.classify(photograph(name)).softmax(1)[0]
    best = int(scores.argmax())
    if label is not None:
        assert label in scores.topk(3).indices.tolist()
    else:
        assert best in (DAISY, 723, 883, 308, 309, 984, 986)
    assert float(scores[best]) > 0.15


def test_padding_at_stride_two_is_tensorflows():
    conv = SamePadConv2d(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    # Windows start at rows and columns 0 and 2; what lies beyond the right and lower rim is zero.
    expected = torch.tensor([[image[0, 0, :3, :3].sum(), image[0, 0, :3, 2:].sum()],
                             [image[0, 0, 2:, :3].sum(), image[0, 0, 2:, 2:].sum()]])  # fmt: skip
    assert torch.equal(conv(image)[0, 0], expected)
    assert conv(torch.zeros(1, 1, 5, 7)).shape[2:] == (3, 4)


def test_the_encoder_is_what_was_published():
    net = EfficientNetLite0(weights=None, head=True)
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    shapes = [tuple(f.shape[1:]) for f in net(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]


def test_a_grey_stem_sees_grey_as_colour_nets_do():
    color, grey = EfficientNetLite0(3).eval(), EfficientNetLite0(1).eval()
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        for a, b in zip(color(x.expand(-1, 3, -1, -1)), grey(x), strict=True):
            assert torch.allclose(a, b, atol=1e-3)


def test_what_is_not_there_is_refused():
    with pytest.raises(SegmintError, match="encoder_weights"):
        EfficientNetLite0(weights="imagenet21k")
    with pytest.raises(SegmintError, match="encoder_name: there is no 'resnet'"):
        build_encoder("resnet", 3, None)
    net = EfficientNetLite0(weights=None)
    for job in (net.embed, net.classify):
        with pytest.raises(SegmintError, match="head=True"):
            job(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (5, 9), (1, 1)])
def test_unets_give_logits_at_the_images_size(size: tuple[int, int]):
    lite = UNet(EfficientNetLite0(weights=None), 5, (16, 16, 8, 8)).eval()
    plain = UNet(PlainEncoder(3, 8, 4), 5, (16, 8, 8)).eval()
    for net in (lite, plain):
        assert net(torch.zeros(2, 3, *size)).shape == (2, 5, *size)
    with pytest.raises(ValueError, match="must be 4 numbers"):
        UNet(EfficientNetLite0(weights=None), 5, (16,))


def test_first_predictions_are_the_class_shares_that_are_expected():
    net = UNet(PlainEncoder(3, 8, 4), 3, (16, 8, 8)).eval()
    torch.nn.init.zeros_(net.head.weight)
    net.expect([0.9, 0.1, 0.0])
    with torch.no_grad():
        shares = net(torch.zeros(1, 3, 16, 16)).softmax(1).mean((0, 2, 3))
    assert torch.allclose(shares, torch.tensor([0.9, 0.1, 0.0001]), atol=1e-4)


@pytest.mark.parametrize("size", [(96, 128), (144, 96), (32, 24), (50, 33), (8, 8)])
def test_decoders_and_encoders_fit_every_size(size: tuple[int, int]):
    decoder = PairDecoder(8, 3, 4, size, width=8)
    image, logits = decoder(torch.randn(2, 8))
    assert image.shape == (2, 3, *size)
    assert logits.shape == (2, 4, *size)
    mean, log_variance = PairEncoder(3, 4, 8, size, width=8)(Batch(image.detach(), logits.argmax(1)))
    assert mean.shape == log_variance.shape == (2, 8)


def test_stages():
    assert stages_for((96, 128)) == (4, (6, 8))
    assert stages_for((8, 8)) == (1, (4, 4))
    assert stages_for((5, 5))[0] == 1


@pytest.mark.parametrize("judge", [ConvDiscriminator(3, 8), ProjectedDiscriminator(3, 8)])
def test_discriminators_judge_patches(judge):
    judge.train()
    image = torch.rand(2, 3, 48, 64, requires_grad=True)
    logits = judge.judge(judge.features(image))
    assert logits.shape[0] == 2
    assert logits.ndim == 2
    logits.sum().backward()
    assert float(image.grad.abs().sum()) > 0


def test_the_projected_discriminators_backbone_stays_frozen():
    judge = ProjectedDiscriminator(1, 8).train()
    assert not judge.backbone.training
    assert all(p.requires_grad == name.startswith("heads") for name, p in judge.named_parameters())


def test_the_aggregate_follows_the_encodings():
    torch.manual_seed(0)
    aggregate = AggregatePosterior(2)
    target = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    for _ in range(1500):
        aggregate.follow(torch.randn(64, 2) @ target.T + 3, torch.full((64, 2), -20.0))
    drawn = aggregate(torch.randn(20000, 2))
    assert torch.allclose(drawn.mean(0), torch.tensor([3.0, 3.0]), atol=0.2)
    assert torch.allclose(torch.cov(drawn.T), target @ target.T, atol=0.5)


def test_small_things():
    assert [groups(n) for n in (16, 12, 6, 7)] == [8, 4, 2, 1]
    x = torch.zeros(1, 1, 4, 4)
    assert resize(x, (4, 4)) is x
