"""A segmenter for few masks: what a teacher says of an image, its student must say of a disturbed copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.data.augment import PRESETS, Augmentation, augment, resolve
from segmint.functional.labels import most_likely
from segmint.functional.losses import class_weights, compose, one_hot, settle
from segmint.methods.method import Facts, Method, Optimizers, Suit
from segmint.nets.layers import resize
from segmint.nets.segmenter import build_segmenter, logits_of
from segmint.nets.unet import UNet
from segmint.ranks import average, everywhere, rows, stream, whole
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

_MOVES = ("flip", "flip_vertical", "zoom", "stretch", "rotate")
_MEMORY, _NEGLIGIBLE = 0.99, 1e-8
_STRONGER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 30.0, "grey": 0.2, "blur": 0.5}


@dataclass(frozen=True)
class _Views:
    """What the student sees of U unlabelled images, and what it should say.

    Attributes:
        seen: N images, strong views first; the mask is the teacher's class, `IGNORE` where a pixel does not count.
        probability: the teacher's, float32 [N, K, H, W].
        strong: how many of them are strong views; `last`: of how many at the end the features are disturbed.
    """

    seen: Batch
    probability: Tensor
    strong: int
    last: int


class Consistency(Method):
    """Semi-supervised segmentation by pseudo-labels: FixMatch (Sohn 2020) with CutMix, or UniMatch (Yang 2023).

    The teacher is the moving average of the student's weights (Mean Teacher, Tarvainen & Valpola 2017). It labels each
    unlabelled image as the training loop shows it: moved, but in its own colours. The student must give these labels,
    where the teacher is sure of them, to strong views of that image: other colours, boxes cut out of other images
    (CutMix-Seg, French 2020), or encoder features of which channels are dropped (UniMatch, section 3.2). No gradient
    reaches the teacher, and only what the student sees is disturbed. All views pass the student in one batch.

    On labelled images it trains as `supervised` does: their colours change as in the augmentation "strong", whose
    geometry is the training loop's part. Where an image shrinks, the rim is its mirror image; as teacher and student
    see the same there, it counts like the rest.

    - FixMatch with CutMix: the defaults.
    - UniMatch: `views=2, feature_dropout=0.5, adaptive=False, threshold=0.95`.
    - Much as CutMix-Seg: `soft=True, cutmix=1, strong_view="none", adaptive=False, threshold=0.97`.
    - Mean Teacher: `soft=True, cutmix=0, adaptive=False, threshold=0`.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width it is trained at; it segments any size.
        encoder_name, encoder_weights, decoder_channels, dropout, network: see `supervised`.
        loss: of labelled images: "auto", or a sum; see `segmint.functional.losses.compose`.
        shares: class shares of the labelled pixels, which class-balanced losses need; found by `adapt`.
        weight: of the unlabelled images' loss, beside that of the labelled ones.
        ramp: share of the steps over which that weight rises, as exp(-5 (1 - t)^2), 0..1.
        steps: of the training; found by `adapt`.
        views: how many strong views of each unlabelled image; 0 for none.
        cutmix: probability that a strong view gets a box from another unlabelled image.
        feature_dropout: probability with which channels of the features are dropped in one more view; 0 for no such
            view. It needs the U-Net.
        soft: whether the student learns the teacher's probabilities (squared distance) or its classes (cross-entropy).
        threshold: the teacher's probability from which on a pixel counts, 0..1.
        adaptive: whether, for each class, the teacher's mean probability where it says this class takes the place of
            `threshold` if that is lower (FreeMatch, Wang 2023, eq. 5, for each class): so the better half of each
            class counts, when with few masks hardly any pixel reaches a threshold that suits many, and none of a rare
            class.
        floor: the lowest that such a threshold may become, 0..1; from 0.5 on, a class is likelier than all others.
        balanced: whether rare classes weigh more among pseudo-labels, too. The teacher has learnt from a balanced loss
            to favour them already, and would do so ever more.
        decay: of the teacher's moving average; (t - 1)/(t + 9) at step t if that is lower. So the teacher is the
            student after step 1, and soon forgets the start; with 1 - 1/t it would remember all steps alike.
        labelled_view, strong_view: colours, noise and erasing of labelled images and of the strong views: the name of
            an augmentation, whose geometry is left out, or a mapping; see `segmint.data.augment.resolve`.
            None: the usual ones.

    Raises:
        SegmintError: a value out of its range, geometry in a view, or dropped features without the U-Net.
    """

    defaults: ClassVar = {
        "lr": 2e-3,
        "weight_decay": 1e-2,
        "augment": {key: getattr(PRESETS["strong"], key) for key in _MOVES},
        "ema": 0.0,  # the teacher is the moving average
    }
    uses_unlabelled = True

    teacher_age: Tensor
    sureness: Tensor
    class_weight: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        encoder_name: str = "efficientnet_lite0",
        encoder_weights: str | None = "imagenet",
        decoder_channels: Sequence[int] = (128, 64, 48, 32),
        dropout: float = 0.1,
        loss: str = "cross_entropy",
        shares: Sequence[float] | None = None,
        network: nn.Module | str | None = None,
        weight: float = 1.0,
        ramp: float = 0.2,
        steps: int = 2000,
        views: int = 1,
        cutmix: float = 0.5,
        feature_dropout: float = 0.0,
        soft: bool = False,
        threshold: float = 0.95,
        adaptive: bool = True,
        floor: float = 0.5,
        balanced: bool = False,
        decay: float = 0.99,
        labelled_view: str | Mapping[str, Any] | None = None,
        strong_view: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for key, value in {"ramp": ramp, "cutmix": cutmix, "threshold": threshold, "floor": floor}.items():
            if not 0 <= value <= 1:
                raise SegmintError(f"consistency.{key}: must be from 0 to 1, not {value}")
        for key, value in {"feature_dropout": feature_dropout, "decay": decay}.items():
            if not 0 <= value < 1:
                raise SegmintError(f"consistency.{key}: must be from 0 to below 1, not {value}")
        if weight < 0 or views < 0:
            raise SegmintError("consistency: weight and views cannot be negative; 0 turns them off")
        if balanced and not shares:
            raise SegmintError("consistency.balanced: needs the class shares of the data, and none were given")
        self.classes, self.weight, self.ramp_steps = classes, weight, ramp * steps
        self.views, self.cutmix, self.feature_dropout = views, cutmix, feature_dropout
        self.soft, self.decay = soft, decay
        self.threshold, self.floor = threshold, min(floor, threshold) if adaptive else threshold
        self.labelled_view = _colours(labelled_view, "strong", "labelled_view")
        self.strong_view = _colours(strong_view, {"preset": "strong", **_STRONGER}, "strong_view")
        self.criterion = compose(loss, shares)
        self.network = build_segmenter(
            classes, in_channels, encoder_name, encoder_weights, decoder_channels, dropout, network
        )
        if feature_dropout and not isinstance(self.network, UNet):
            raise SegmintError("consistency.feature_dropout: needs the U-Net; set it to 0 for a network of your own")
        self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()
        weights = class_weights(shares) if balanced and shares else torch.ones(classes)
        self.register_buffer("class_weight", weights, persistent=False)
        self.register_buffer("teacher_age", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sureness", torch.zeros(2, classes))

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Choose the loss from the class shares where it is "auto", and learn how long the training is."""
        settled, notes = settle(settings, facts.shares, facts.alike)
        settled.setdefault("steps", facts.steps)
        if not facts.unlabelled:
            notes.append("consistency: no image is without a mask, so this is supervised training.")
        if not facts.labelled:
            notes.append("consistency: no image has a mask, so it learns from its own predictions; give it init.")
        return settled, notes

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """With images without masks, but not before it has beaten masks alone."""
        if not facts.labelled or not facts.unlabelled:
            return Suit(
                0, f"needs images with masks and without; there are none {'with' if facts.unlabelled else 'without'}"
            )
        return Suit(0.5, "learns from images without masks, too, but has yet to beat masks alone at equal steps")

    def train(self, mode: bool = True) -> Consistency:
        """As every module, but the teacher never drops anything nor uses the statistics of a batch."""
        super().train(mode)
        self.teacher.eval()
        return self

    def starting_weights(self) -> dict[str, Tensor]:
        """The teacher's, which is what was validated, for student and teacher."""
        found = self.state_dict()
        return {key: found.get(key.replace("network.", "teacher.", 1), value) for key, value in found.items()}

    def parts(self) -> dict[str, nn.Module]:
        """The student; the teacher follows it."""
        return {"model": self.network}

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """One step of the student on labelled and unlabelled images, then one of the teacher after it."""
        if not int(self.teacher_age):
            self._follow(1.0)  # the student may have been given other weights since it was made
        terms = self.loss(batch)
        if "loss" in terms:
            optimizers.minimize("model", terms["loss"])
        self._follow(1 - min(self.decay, int(self.teacher_age) / (int(self.teacher_age) + 10)))
        self.teacher_age += 1
        return {key: value.detach() for key, value in terms.items()}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The labelled images' loss and the weighted one of the unlabelled; nothing if there is nothing to learn.

        Returns:
            "loss", the sum; "supervised" and its terms; "unlabelled", the mean of "strong" and "feature", which are the
            losses of the strong views and of dropped features; "confident", the share of pixels that count, and
            "agreement", the share of these where the student says the same.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=stream())))
        known = batch.labelled
        parts, views = [], None
        if everywhere(bool(known.any())):
            parts.append(augment(batch[known], self.labelled_view, generator))
        if everywhere(bool((~known).any())) and self.weight and (self.views or self.feature_dropout):
            views = self._disturbed(batch.image[~known], generator)
            parts.append(views.seen)
        if not parts:
            return {}
        joined = Batch.cat(parts)
        logits = self._student(joined.image, views.last if views else 0)
        count = len(joined) - (len(views.seen) if views else 0)
        terms: dict[str, Tensor] = {}
        total = logits.new_zeros(())
        if count:
            terms = self.criterion(logits[:count], joined.mask[:count])
            total = terms["supervised"] = terms.pop("loss")
        if views:
            terms |= self._judge(logits[count:], views)
            total = total + self.weight * self._ramp() * terms["unlabelled"]
        return {**terms, "loss": total}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The labelled images' loss, of the teacher."""
        return self.criterion(logits_of(self.teacher, batch.image, self.classes), batch.mask)

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """The teacher's logits [B, K, H, W]; there is no randomness in them."""
        return logits_of(self.teacher, image, self.classes)

    @torch.no_grad()
    def _disturbed(self, image: Tensor, generator: torch.Generator) -> _Views:
        """Label images [U, C, H, W] and make the views of them."""
        probability = logits_of(self.teacher, image, self.classes).softmax(1)
        confidence, label = probability.max(1)
        sure = confidence >= self._limits(confidence, label)[label]
        weak = Batch(image, label.where(sure, IGNORE))
        made = [self._strong(weak, probability, generator) for _ in range(self.views)]
        if self.feature_dropout:
            made.append((weak, probability))
        last = len(image) if self.feature_dropout else 0
        seen, probabilities = Batch.cat([view for view, _ in made]), torch.cat([p for _, p in made])
        return _Views(seen, probabilities, len(seen) - last, last)

    def _limits(self, confidence: Tensor, label: Tensor) -> Tensor:
        """The probability from which on a pixel counts, for each class [K]; takes note of what the teacher says.

        Args:
            confidence, label: the highest probability and its class, [U, H, W].
        """
        limits = torch.full_like(self.sureness[0], self.threshold)
        if self.floor == self.threshold:
            return limits
        chosen = one_hot(label, self.classes).float()
        sums = torch.stack([(chosen * confidence.unsqueeze(1)).mean((0, 2, 3)), chosen.mean((0, 2, 3))])
        self.sureness.lerp_(average(sums.to(self.sureness)), 1 - _MEMORY)
        total, pixels = self.sureness
        mean = torch.where(pixels > _NEGLIGIBLE, total / pixels.clamp_min(_NEGLIGIBLE), limits)
        return mean.clamp(self.floor, self.threshold)

    def _strong(self, weak: Batch, probability: Tensor, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """A strong view of each image: new colours, and perhaps a box out of another image of the batch."""
        view = augment(weak, self.strong_view, generator)
        if not self.cutmix:
            return view, probability
        partner = torch.arange(len(view), device=view.mask.device).roll(1)
        box = boxes(len(view), (view.mask.shape[1], view.mask.shape[2]), self.cutmix, generator).to(view.mask.device)
        other = view[partner]
        wide = box.unsqueeze(1)
        mixed = Batch(torch.where(wide, other.image, view.image), torch.where(box, other.mask, view.mask))
        return mixed, torch.where(wide, probability[partner], probability)

    def _student(self, image: Tensor, last: int) -> Tensor:
        """Logits of the student [N, K, H, W]; in the features of the last images, channels are dropped."""
        if not last or not isinstance(self.network, UNet):
            return logits_of(self.network, image, self.classes)
        features = []
        for level in self.network.encoder(image):
            keep = torch.ones_like(level[:, :, :1, :1])
            keep[-last:] = F.dropout(keep[-last:], self.feature_dropout)
            features.append(level * keep)
        logits: Tensor = self.network.head(self.network.dropout(self.network.decode(features)))
        return resize(logits, (int(image.shape[-2]), int(image.shape[-1]))).float()

    def _judge(self, logits: Tensor, views: _Views) -> dict[str, Tensor]:
        """The losses of views, each a mean over all pixels, whether they count or not."""
        target = views.seen.mask
        counts = target != IGNORE
        if self.soft:
            error = (logits.softmax(1) - views.probability).square().sum(1)
        else:
            error = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
        error = error * counts * self.class_weight[target.where(counts, 0)]
        split = {"strong": error[: views.strong], "feature": error[views.strong :]}
        terms = {key: value.mean() for key, value in split.items() if len(value)}
        agreed = (most_likely(logits) == target).sum() / counts.sum().clamp_min(1)
        unlabelled = torch.stack(list(terms.values())).mean()
        return {**terms, "unlabelled": unlabelled, "confident": counts.float().mean(), "agreement": agreed}

    def _ramp(self) -> float:
        """The share of its weight that the unlabelled loss has by now (Mean Teacher, section 3)."""
        done = min(1.0, int(self.teacher_age) / self.ramp_steps) if self.ramp_steps else 1.0
        return math.exp(-5 * (1 - done) ** 2)

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        """Move the teacher this share of the way to the student, its batch statistics too; counts are copied."""
        pairs = [
            *zip(self.teacher.parameters(), self.network.parameters(), strict=True),
            *zip(self.teacher.buffers(), self.network.buffers(), strict=True),
        ]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in moving], [theirs for _, theirs in moving], share)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def boxes(count: int, size: tuple[int, int], probability: float, generator: torch.Generator) -> Tensor:
    """One box in each item with a probability, of a tenth to half of its area and any place within (CutMix).

    Args:
        count: B.
        size: H and W.
        probability: 0..1; without a box an item is all False.
        generator: on the CPU.

    Returns:
        bool [B, H, W].
    """
    area, ratio, top, left, chance = rows(torch.rand(5, whole(count), 1, 1, generator=generator), 1).unbind()
    area, ratio = 0.1 + 0.4 * area, torch.exp(0.7 * (2 * ratio - 1))
    height, width = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    high = (torch.arange(size[0]).view(1, -1, 1) + 0.5) / size[0] - top * (1 - height)
    wide = (torch.arange(size[1]).view(1, 1, -1) + 0.5) / size[1] - left * (1 - width)
    inside = (high >= 0) & (high < height) & (wide >= 0) & (wide < width)
    return inside & (chance < probability)


def _colours(setting: str | Mapping[str, Any] | None, usual: str | Mapping[str, Any], key: str) -> Augmentation:
    """What a view changes beside geometry, which would part it from its labels.

    Raises:
        SegmintError: there is no such augmentation, or it names geometry.
    """
    setting = usual if setting is None else setting
    moved = [name for name in _MOVES if isinstance(setting, Mapping) and name in setting]
    if moved:
        raise SegmintError(f"consistency.{key}.{moved[0]}: views cannot move; set it in training.augment")
    try:
        how = resolve(setting)
    except SegmintError as error:
        raise SegmintError(str(error).replace("training.augment", f"consistency.{key}")) from error
    return replace(how, **{name: getattr(Augmentation(), name) for name in _MOVES})
