"""A student that must say of disturbed images what its teacher says of them as they are."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segmint.config import TrainSettings
from segmint.data.augment import PRESETS, augment
from segmint.functional.losses import class_weights, cross_entropy, mse
from segmint.methods.consistency import Consistency, _Views, boxes
from segmint.methods.method import Facts, Method, build, load
from segmint.seeds import Seeds
from segmint.training.optimizers import PartOptimizers
from segmint.training.run import train
from segmint.training.setup import fitting
from segmint.types import IGNORE, Batch, SegmintError

SIZE = (32, 24)
SMALL = {"encoder_name": "plain", "encoder_weights": None, "decoder_channels": [8, 8, 8, 8]}
UNIMATCH = {"views": 2, "feature_dropout": 0.5}


def tiny() -> nn.Module:
    """A network with batch statistics that takes no time."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))


class Pixelwise(nn.Module):
    """A network whose logits depend on a pixel's colours alone."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, image):
        return self.conv(image)


def make(classes: int = 3, in_channels: int = 3, **settings) -> Consistency:
    torch.manual_seed(0)
    if "network" not in settings:
        settings = {**SMALL, **settings}
    method = build("consistency", classes=classes, in_channels=in_channels, image_size=SIZE, **settings)
    assert isinstance(method, Consistency)
    return method.train()


def optimizers_of(method: Method, **settings) -> PartOptimizers:
    return PartOptimizers(method.parts(), TrainSettings(**{**method.defaults, **settings}))


def mixed(labelled: int, unlabelled: int, classes: int = 3, channels: int = 3, size=SIZE) -> Batch:
    numbers = torch.Generator().manual_seed(1)
    count = labelled + unlabelled
    image = torch.rand(count, channels, *size, generator=numbers) * 2 - 1
    mask = torch.randint(classes, (count, *size), generator=numbers)
    mask[labelled:] = IGNORE
    return Batch(image, mask)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for key, value in a.items():
        assert torch.allclose(value, b[key], atol=1e-6), key


@pytest.mark.parametrize("soft", [False, True])
def test_no_gradient_reaches_the_teacher(soft: bool):
    method = make(**UNIMATCH, soft=soft, threshold=0.0, ramp=0.0)
    method.loss(mixed(2, 2))["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.network.parameters())
    assert set(method.parts()["model"].parameters()) == set(method.network.parameters())


def test_the_teacher_is_the_moving_average_of_the_student():
    method = make(decay=0.25, network=tiny())
    optimizers = optimizers_of(method)
    expected = {}
    for step in range(5):
        method.step(mixed(2, 2), optimizers)
        student, keep = state(method.network), min(step / (step + 10), 0.25)
        if step == 0:
            expected = student
        for key, value in student.items():
            average = keep * expected[key] + (1 - keep) * value
            expected[key] = average if value.is_floating_point() else value
        same(state(method.teacher), expected)
    assert int(method.teacher_age) == 5
    assert not method.teacher.training
    assert method.network.training


def test_weights_given_to_the_student_reach_the_teacher_before_it_teaches():
    method = make(network=tiny())
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(0.1)
    given = state(method.network)
    seen = []
    method.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(state(module)))
    method.step(mixed(2, 2), optimizers_of(method))
    same(seen[0], given)
    assert len(seen) == 1


def test_it_segments_with_the_teacher():
    method = make(network=Pixelwise()).eval()
    with torch.no_grad():
        method.network.conv.weight.zero_()
    image = mixed(2, 0).image
    assert torch.equal(method.segment(image, Seeds.range(2)), method.teacher(image))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_cutmix_moves_pixels_with_their_labels(count: int):
    method = make(strong_view="none", cutmix=1.0, network=Pixelwise(5), classes=5)
    number = torch.arange(count).view(-1, 1, 1).expand(-1, *SIZE)
    image = torch.stack([number / 10, number / 10, torch.zeros(number.shape)], 1)
    probability = F.one_hot(number, 5).permute(0, 3, 1, 2).float()
    view, mixed_probability = method._strong(Batch(image, number), probability, torch.Generator().manual_seed(3))
    for item in range(count):
        others = set(view.mask[item].unique().tolist())
        assert others <= set(range(count))
        assert len(others) <= 2
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                source = int(view.mask[item, y, x])
                assert torch.equal(view.image[item, :, y, x], image[source, :, y, x])
                assert torch.equal(mixed_probability[item, :, y, x], probability[source, :, y, x])
    if count == 5:
        assert len(view.mask.flatten(1).unique(dim=1)[0]) > 0
        assert any(len(view.mask[item].unique()) == 2 for item in range(count))


def test_boxes_are_boxes_of_a_tenth_to_half_of_the_image():
    size = (60, 40)
    made = boxes(300, size, 0.5, torch.Generator().manual_seed(0))
    some = made.flatten(1).any(1)
    assert 0.4 < float(some.float().mean()) < 0.6
    for box in made[some]:
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows.unsqueeze(1) & columns)
        for line in (rows, columns):
            inside = line.nonzero().flatten()
            assert len(inside) == int(inside[-1] - inside[0]) + 1
        assert 0.08 < float(box.float().mean()) < 0.53
    assert bool(made.any(0)[6:-6, 4:-4].all())
    assert not bool(boxes(50, size, 0.0, torch.Generator().manual_seed(0)).any())


def test_strong_views_keep_their_geometry():
    method = make(cutmix=0.0, network=tiny())
    mask = torch.zeros(40, *SIZE, dtype=torch.int64)
    mask[:, 10:25, 6:15] = 1
    image = torch.where(mask == 1, 0.3, -0.3).unsqueeze(1).expand(-1, 3, -1, -1)
    weak = Batch(image, mask)
    view, _ = method._strong(weak, torch.zeros(40, 3, *SIZE), torch.Generator().manual_seed(0))
    assert torch.equal(view.mask, mask)
    assert not torch.allclose(view.image, image, atol=0.1)
    grey = view.image.mean(1)
    middle = (grey[:, 17, 10] + grey[:, 2, 2]) / 2
    assert float(((grey > middle.view(-1, 1, 1)) == (mask == 1)).float().mean()) > 0.99


@pytest.mark.parametrize("view", ["strong_view", "labelled_view"])
def test_views_with_geometry_are_refused(view: str):
    with pytest.raises(SegmintError, match=rf"consistency\.{view}\.zoom: .*training\.augment"):
        make(**{view: {"zoom": [0.5, 1.0]}})
    with pytest.raises(SegmintError, match=rf"consistency\.{view}: there is no 'wild'"):
        make(**{view: "wild"})
    with pytest.raises(SegmintError, match=rf"consistency\.{view}\.colour: no such setting"):
        make(**{view: {"colour": 1}})


def views_of(target: torch.Tensor, probability: torch.Tensor, last: int = 0) -> _Views:
    count = len(target)
    return _Views(Batch(torch.zeros(count, 3, *target.shape[1:]), target), probability, count - last, last)


@pytest.mark.parametrize("soft", [False, True])
def test_pixels_that_do_not_count_have_no_influence(soft: bool):
    method = make(soft=soft, network=tiny())
    logits = torch.randn(2, 3, 5, 4, requires_grad=True)
    probability = torch.randn(2, 3, 5, 4).softmax(1)
    target = torch.randint(3, (2, 5, 4))
    target[0, :2] = IGNORE
    terms = method._judge(logits, views_of(target, probability))
    terms["unlabelled"].backward()
    counts = (target != IGNORE).unsqueeze(1)
    assert bool((logits.grad == 0)[~counts.expand_as(logits)].all())
    assert float(terms["confident"]) == pytest.approx(32 / 40)
    if soft:
        squared = ((logits.softmax(1) - probability) ** 2 * counts).sum() / target.numel()
        assert float(terms["strong"].detach()) == pytest.approx(float(squared.detach()), rel=1e-5)
    else:
        sure = F.one_hot(target.where(target != IGNORE, 0), 3).permute(0, 3, 1, 2)
        closed = (logits.detach().softmax(1) - sure) * counts / target.numel()
        assert torch.allclose(logits.grad, closed, atol=1e-6)


def test_where_all_counts_the_losses_are_the_usual_ones():
    logits, target = torch.randn(2, 3, 5, 4), torch.randint(3, (2, 5, 4))
    one_hot = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
    hard = make(network=tiny())._judge(logits, views_of(target, one_hot))["unlabelled"]
    assert torch.allclose(hard, cross_entropy(logits, target))
    soft = make(soft=True, network=tiny())._judge(logits, views_of(target, one_hot))["unlabelled"]
    assert torch.allclose(soft, mse(logits, target))
    shares = [0.8, 0.15, 0.05]
    weighted = make(balanced=True, shares=shares, network=tiny())._judge(logits, views_of(target, one_hot))[
        "unlabelled"
    ]
    expected = F.cross_entropy(logits, target, class_weights(shares), reduction="sum") / target.numel()
    assert torch.allclose(weighted, expected)


def test_strong_views_and_dropped_features_count_alike_however_many_there_are():
    logits, target = torch.randn(6, 3, 5, 4), torch.randint(3, (6, 5, 4))
    terms = make(**UNIMATCH)._judge(logits, views_of(target, torch.zeros(6, 3, 5, 4), last=2))
    strong, feature = cross_entropy(logits[:4], target[:4]), cross_entropy(logits[4:], target[4:])
    assert torch.allclose(terms["strong"], strong)
    assert torch.allclose(terms["feature"], feature)
    assert torch.allclose(terms["unlabelled"], (strong + feature) / 2)
    said = (logits.argmax(1) == target).float().mean()
    assert torch.allclose(terms["agreement"], said)


def test_a_fixed_threshold_is_one_for_all_classes():
    method = make(adaptive=False, threshold=0.7, network=tiny())
    assert method._limits(torch.rand(2, 4, 4), torch.randint(3, (2, 4, 4))).tolist() == pytest.approx([0.7] * 3)
    assert float(method.sureness.abs().sum()) == 0


def test_adaptive_thresholds_are_the_running_mean_of_each_class():
    method = make(threshold=0.9, floor=0.55, network=tiny())
    label = torch.tensor([0, 0, 0, 1]).view(1, 2, 2)
    first = method._limits(torch.tensor([0.5, 0.6, 0.7, 0.95]).view(1, 2, 2), label)
    assert first.tolist() == pytest.approx([0.6, 0.9, 0.9])
    second = method._limits(torch.tensor([0.8, 0.8, 0.8, 0.2]).view(1, 2, 2), label)
    assert second.tolist() == pytest.approx([(0.99 * 1.8 + 2.4) / (0.99 * 3 + 3), (0.99 * 0.95 + 0.2) / 1.99, 0.9])
    method._limits(torch.full((1, 8, 8), 0.1), torch.ones(1, 8, 8, dtype=torch.int64))
    low = method._limits(torch.tensor([0.5]).view(1, 1, 1), torch.tensor([1]).view(1, 1, 1))
    assert low[1] == pytest.approx(0.55)
    unseen = method._limits(torch.tensor([0.8]).view(1, 1, 1), torch.tensor([2]).view(1, 1, 1))
    assert unseen[0] == pytest.approx(float(second[0]))


def test_what_the_teacher_doubts_is_not_taught():
    method = make(network=Pixelwise(), adaptive=False, threshold=0.8, views=1, cutmix=0.0)
    with torch.no_grad():
        method.teacher.conv.weight.zero_()
        method.teacher.conv.bias.zero_()
        method.teacher.conv.weight[1, 0] = 10.0
    image = torch.zeros(2, 3, *SIZE)
    image[:, 0, :16] = 1.0
    views = method._disturbed(image, torch.Generator().manual_seed(0))
    assert bool((views.seen.mask[:, :16] == 1).all())
    assert bool((views.seen.mask[:, 16:] == IGNORE).all())


def test_erased_pixels_do_not_count():
    method = make(threshold=0.0, cutmix=0.0, strong_view={"erase": 1.0}, network=tiny())
    views = method._disturbed(mixed(0, 4).image, torch.Generator().manual_seed(0))
    erased = views.seen.mask == IGNORE
    assert 0 < float(erased.float().mean()) < 0.3
    assert bool((views.seen.image.abs().sum(1)[erased] == 0).all())


def test_only_the_last_images_lose_features():
    method = make(feature_dropout=0.5, dropout=0.0)
    method.network.eval()
    image = mixed(4, 0).image
    with torch.no_grad():
        whole, dropped = method._student(image, 0), method._student(image, 2)
    assert torch.allclose(whole[:2], dropped[:2], atol=1e-5)
    assert not torch.allclose(whole[2:], dropped[2:], atol=1e-2)
    assert not torch.allclose(dropped[2] - whole[2], dropped[3] - whole[3], atol=1e-2)


def test_the_student_sees_all_views_in_one_batch_and_the_teacher_none():
    method = make(**UNIMATCH)
    seen: dict[str, list[int]] = {"teacher": [], "student": []}
    method.teacher.encoder.register_forward_pre_hook(lambda module, inputs: seen["teacher"].append(len(inputs[0])))
    method.network.encoder.register_forward_pre_hook(lambda module, inputs: seen["student"].append(len(inputs[0])))
    method.loss(mixed(3, 2))
    assert seen == {"teacher": [2], "student": [3 + 2 * 2 + 2]}


def test_labelled_images_are_trained_on_as_supervised_training_does():
    method = make(network=Pixelwise(), loss="cross_entropy")
    batch = mixed(4, 0)
    torch.manual_seed(7)
    terms = method.loss(batch)
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    changed = augment(batch, method.labelled_view, generator)
    assert torch.equal(changed.mask, batch.mask)
    assert torch.allclose(terms["loss"], cross_entropy(method.network(changed.image), batch.mask))
    assert set(terms) == {"cross_entropy", "supervised", "loss"}
    together = {**vars(method.labelled_view), **Consistency.defaults["augment"]}
    assert together == vars(PRESETS["strong"])


def test_the_weight_rises_and_then_stays():
    method = make(ramp=0.5, steps=20, weight=2.0, threshold=0.0, network=tiny())
    seen = {}
    for age in (0, 5, 10, 15):
        method.teacher_age.fill_(age)
        seen[age] = method._ramp()
    assert seen == pytest.approx({0: math.exp(-5), 5: math.exp(-1.25), 10: 1.0, 15: 1.0})
    terms = {key: float(value.detach()) for key, value in method.loss(mixed(2, 2)).items()}
    assert terms["loss"] == pytest.approx(terms["supervised"] + 2 * terms["unlabelled"], rel=1e-5)
    assert make(ramp=0.0, network=tiny())._ramp() == 1.0


@pytest.mark.parametrize(
    ("batch", "settings"),
    [
        (mixed(0, 4), {}),
        (mixed(4, 0), {}),
        (mixed(0, 1), {}),
        (mixed(1, 0), {}),
        (mixed(1, 1, classes=2, channels=1), {"classes": 2, "in_channels": 1}),
        (mixed(2, 2, size=(8, 9)), {}),
        (mixed(2, 2), {"views": 0}),
        (mixed(2, 2), {"weight": 0.0}),
        (mixed(2, 2), {"soft": True, "cutmix": 0.0}),
        (mixed(2, 2), {"threshold": 1.0, "adaptive": False, "views": 0, "feature_dropout": 0.3}),
    ],
)
def test_every_kind_of_batch_is_learnt_from(batch: Batch, settings: dict):
    method = make(**{**UNIMATCH, "threshold": 0.0, **settings})
    before = state(method.network)
    terms = method.step(batch, optimizers_of(method))
    assert all(bool(torch.isfinite(value)) and not value.requires_grad for value in terms.values())
    assert all(bool(torch.isfinite(value).all()) for value in method.state_dict().values())
    assert any(not torch.equal(value, before[key]) for key, value in method.network.state_dict().items())
    assert ("strong" in terms) == (not bool(batch.labelled.all()) and method.views > 0 and method.weight > 0)
    assert ("supervised" in terms) == bool(batch.labelled.any())


def test_a_batch_that_teaches_nothing_changes_nothing():
    method = make(views=0)
    before = state(method.network)
    assert method.step(mixed(0, 2), optimizers_of(method)) == {}
    same(state(method.network), before)


def test_wrong_settings_are_refused():
    for key, value in {"ramp": 2.0, "cutmix": -0.1, "threshold": 1.5, "decay": 1.0, "feature_dropout": 1.0}.items():
        with pytest.raises(SegmintError, match=rf"consistency\.{key}: must be from 0 to"):
            make(**{key: value})
    with pytest.raises(SegmintError, match="cannot be negative"):
        make(weight=-1.0)
    with pytest.raises(SegmintError, match=r"consistency\.balanced"):
        make(balanced=True)
    with pytest.raises(SegmintError, match=r"consistency\.feature_dropout: needs the U-Net"):
        make(network=Pixelwise(), feature_dropout=0.5)


def test_it_learns_how_long_training_is_and_says_what_is_missing():
    facts = Facts(3, 3, SIZE, (0.5, 0.3, 0.2), labelled=3, unlabelled=9, steps=70)
    settled, notes = Consistency.adapt({"loss": "auto"}, facts)
    assert settled["steps"] == 70
    assert len(notes) == 1
    _, notes = Consistency.adapt({}, Facts(3, 3, SIZE, (0.5, 0.3, 0.2), labelled=3, unlabelled=0, steps=70))
    assert any("no image is without a mask" in note for note in notes)
    _, notes = Consistency.adapt({}, Facts(3, 3, SIZE, (0.0, 0.0, 0.0), labelled=0, unlabelled=5, steps=70))
    assert any("no image has a mask" in note for note in notes)


def test_steps_repeat_from_the_same_random_state():
    first = make(views=2, cutmix=1.0, network=nn.Sequential(tiny(), nn.Dropout2d(0.5)))
    second = copy.deepcopy(first)
    for method in (first, second):
        optimizers = optimizers_of(method)
        for step in range(3):
            torch.manual_seed(step)
            method.step(mixed(2, 2), optimizers)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_it_starts_from_a_supervised_run(shapes: Path, tmp_path: Path):
    quick = {"batch_size": 4, "precision": "float32", "steps": 6}
    first = train(shapes, method="supervised", out=tmp_path / "a", settings=quick, **SMALL)
    still = {**quick, "steps": 1, "lr": 0.0}
    copied = train(shapes, method="consistency", out=tmp_path / "b", settings=still, init=first, **SMALL)
    taken = {key: v for key, v in first.method.state_dict().items() if "running" not in key and "tracked" not in key}
    ours = copied.method.state_dict()
    for key, value in taken.items():
        assert torch.equal(ours[key], value), key
        assert torch.equal(ours[key.replace("network", "teacher", 1)], value), key
    run = train(shapes, method="consistency", out=tmp_path / "c", settings={**quick, "steps": 8}, init=first, **SMALL)
    assert run.settings.method_settings["steps"] == 8
    assert run.settings.training.ema == 0
    text = (run.folder / "log.jsonl").read_text(encoding="utf-8")
    assert all(f'"{key}"' in text for key in ("supervised", "unlabelled", "strong", "confident", "agreement"))
    numbers = torch.rand(1, 3, *SIZE) * 2 - 1
    assert torch.equal(load(run.folder).segment(numbers, Seeds([0])), run.method.segment(numbers, Seeds([0])))


def test_who_starts_from_it_starts_from_the_teacher():
    method = make()
    with torch.no_grad():
        method.teacher.head.bias += 1
    taken = fitting(make(), method)
    assert torch.equal(taken["network.head.bias"], method.teacher.head.bias)
    assert torch.equal(taken["teacher.head.bias"], method.teacher.head.bias)
