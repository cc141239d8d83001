"""Draws of masks, and what they say together of the classes and of the doubt about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from segmint.functional import ambiguity
from segmint.functional.labels import most_likely
from segmint.methods.method import Method
from segmint.seeds import Seeds, mix

DRAWS = 16
"""Draws of each image where draws differ and nobody says how many."""

Methods: TypeAlias = Method | Sequence[Method]
"""One method, or several trained alike: an ensemble."""


@dataclass(frozen=True)
class Draws:
    """Several draws of masks for a batch of images.

    Members are the methods of an ensemble, or the passes of Monte-Carlo dropout.

    Attributes:
        probabilities: float32 [B, K, H, W], the mean over members and draws of the softmax.
        uncertainty: float32 [B, H, W], the entropy of `probabilities` in nats (total uncertainty).
        aleatoric: float32 [B, H, W], the mean over members of the entropy of that member's mean: what the image leaves
            open, as far as the members know.
        epistemic: float32 [B, H, W], `uncertainty` less `aleatoric`: on what the members differ (mutual information of
            class and member, 0 or more; Depeweg et al. 2018). None where there is only one member: not known.
        masks: uint8 [S, B, H, W], the most probable class of each draw; S = 1 where draws do not differ.
        differ: whether the masks are draws of methods that draw at random.
        errors: float32 [B, H, W] in 0..1, where the methods' own judges expect `labels` to be wrong; None without one.
    """

    probabilities: Tensor
    uncertainty: Tensor
    aleatoric: Tensor
    epistemic: Tensor | None
    masks: Tensor
    differ: bool
    errors: Tensor | None

    @property
    def labels(self) -> Tensor:
        """The most probable class of each pixel, int64 [B, H, W]."""
        return most_likely(self.probabilities)

    def expected_dice(self) -> Tensor:
        """Dice that `labels` may expect, float64 [B] in 0..1: the mean over the draws as if each were the truth.

        Where draws are not random, over the masks that have these probabilities, see `ambiguity.expected_dice`.
        """
        classes = ambiguity.foreground(self.probabilities.shape[1])
        if not self.differ or len(self.masks) == 1:
            return ambiguity.expected_dice(self.labels, self.probabilities, classes)
        return ambiguity.dice(self.labels[:, None], self.masks.transpose(0, 1), classes).mean((1, 2))


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over dimension 1: [B, K, H, W] -> [B, H, W]."""
    return -torch.xlogy(probabilities, probabilities).sum(1)


def listed(methods: Methods) -> Sequence[Method]:
    """The members of an ensemble; one method is an ensemble of itself."""
    return methods if isinstance(methods, Sequence) else [methods]


def usual_draws(methods: Methods) -> int:
    """How many draws are taken where nobody says: 16 where a method draws at random, else 1."""
    return DRAWS if any(method.draws_differ for method in listed(methods)) else 1


@torch.inference_mode()
def draw(methods: Methods, image: Tensor, seeds: Seeds, draws: int | None = 1) -> Draws:
    """Segment a batch with one method or several, once or more often.

    One method whose draws do not differ is drawn from by Monte-Carlo dropout (Gal & Ghahramani 2016) if `draws` is 2 or
    more and it has dropout layers; without them, one draw says all it knows.

    Args:
        methods: methods that segment, in evaluation mode, on one device.
        image: float32 [B, C, H, W] in [-1, 1].
        seeds: one per image; draw s uses the stream `seeds.fork("draw", s)`.
        draws: of each method that draws at random, at least 1; None: `usual_draws`.

    Raises:
        ValueError: `draws` is less than 1, or there is no method.
    """
    methods = listed(methods)
    draws = usual_draws(methods) if draws is None else draws
    if draws < 1 or not methods:
        raise ValueError(f"draws must be at least 1, not {draws}, of at least one method, not {len(methods)}")
    differ = any(method.draws_differ for method in methods)
    dropping = not differ and len(methods) == 1 and draws > 1 and bool(dropouts(methods[0]))
    passes = _dropped(methods[0], image, seeds, draws) if dropping else _drawn(methods, image, seeds, draws, differ)
    masks: list[Tensor] = []
    members = [_mean(logits, masks) for logits in passes]
    mean = torch.stack(members).mean(0)
    uncertainty = entropy(mean)
    aleatoric = torch.stack([entropy(member) for member in members]).mean(0).minimum(uncertainty)
    judged = [method.errors(image, mean.clamp_min(1e-12).log()) for method in methods]
    known = [errors for errors in judged if errors is not None]
    return Draws(
        probabilities=mean,
        uncertainty=uncertainty,
        aleatoric=aleatoric,
        epistemic=uncertainty - aleatoric if len(members) > 1 else None,
        masks=torch.stack(masks),
        differ=differ,
        errors=torch.stack(known).mean(0) if known else None,
    )


def _mean(logits: Iterator[Tensor], masks: list[Tensor]) -> Tensor:
    """The mean softmax of one member's draws; their masks are added to the list."""
    total, count = torch.zeros(()), 0
    for single in logits:
        likely = single.float().softmax(1)
        masks.append(most_likely(likely).to(torch.uint8))
        total, count = (likely if count == 0 else total + likely), count + 1
    return total / count


def _drawn(
    methods: Sequence[Method], image: Tensor, seeds: Seeds, draws: int, differ: bool
) -> Iterator[Iterator[Tensor]]:
    """The draws of each method; as many of each, so that all masks weigh the same."""
    for number, method in enumerate(methods):
        own = seeds if number == 0 else seeds.fork("member", number)
        yield method.draws(image, own, draws if differ else 1)


def dropouts(method: Method) -> list[_DropoutNd]:
    """The layers of a method that drop anything in training."""
    return [layer for layer in method.modules() if isinstance(layer, _DropoutNd) and layer.p > 0]


def _dropped(method: Method, image: Tensor, seeds: Seeds, draws: int) -> Iterator[Iterator[Tensor]]:
    """Passes with dropout, each a member. Every image by itself, so that its noise does not depend on its batch."""
    layers = dropouts(method)
    devices = [image.device] if image.device.type == "cuda" else []
    for number in range(draws):
        passes = []
        with torch.random.fork_rng(devices):
            for layer in layers:
                layer.train()
            try:
                for item, value in enumerate(seeds.values):
                    torch.manual_seed(mix(value, "dropout", number))
                    one = slice(item, item + 1)
                    passes.append(method.segment(image[one], seeds[one].fork("draw", number)))
            finally:
                for layer in layers:
                    layer.eval()
        yield iter([torch.cat(passes)])
