"""A flow over masks given the image: each draw is one coherent mask that a rater could have drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.functional import flow
from segmint.functional.losses import compose, settle
from segmint.methods.method import Facts, Method, Suit
from segmint.nets.flow import usual_patch
from segmint.nets.layers import resize
from segmint.nets.maskflow import MaskDenoiser
from segmint.nets.segmenter import build_segmenter, logits_of
from segmint.nets.unet import UNet
from segmint.ranks import randn, rows, stream, whole
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

SAMPLERS = ("multistep", "euler", "heun")

CHUNK = 16
"""How many masks are drawn at once: more is no faster on a CPU, and needs memory."""

EVIDENCE = 4.0
"""What the evidence is multiplied with for the denoiser, which has it late and small beside noise of unit variance."""

STEPS, LONG = 2000, 10_000
"""From which on its draws are coherent, and from which on they should be the best: published flows and diffusions over
masks are ahead of Gaussian and coded draws (GED 0.21 beside 0.26 and 0.31 on lung nodules), after long trainings."""


@dataclass(frozen=True)
class Sight:
    """What the flow is told of images, once for all draws.

    Attributes:
        logits: [B, K, H, W], what the image alone says of each pixel's class.
        seen: [B, W, h', w'], the features that the denoiser adds to its first map.
        doubt: [B, D, h, w], the variance of the code words that it leaves, in cells.
    """

    logits: Tensor
    seen: Tensor
    doubt: Tensor

    def repeat(self, times: int) -> Sight:
        """The same images again and again: item i of repetition r is at r B + i."""
        return Sight(*(x.repeat(times, 1, 1, 1) for x in (self.logits, self.seen, self.doubt)))


class Maskflow(Method):
    """Flow matching (Lipman 2023) from Gaussian noise to masks, given the image, in a few steps.

    A mask is an image of code words, the corners of a regular simplex. On the straight path x_t = t x_1 + (1 - t) x_0
    the network predicts the clean mask as class logits, with cross-entropy (never noise), and the velocity is
    (E[x_1 | x_t] - x_t) / (1 - t): with the exact posterior, draws have the raters' distribution (CCDM, Zbinden 2023,
    has it for categorical diffusion). A segmenter, `network`, sees the image once; a small U-Net on patches corrects
    its logits as the mask emerges. Each training image shows one rater's mask a visit, so that all raters are learnt.

    The flow is of code words averaged over small cells: the mean of the expected code words is the expected mean, so
    this stays exact, and raters hardly differ in single pixels, where noise would only make speckles. Many cells
    together show early whether there is an object at all, single ones late where its edge is: `shift` puts most times
    near the noise, in training and use.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width it is trained at; it segments any size.
        encoder_name: "efficientnet_lite0" or "plain".
        encoder_weights: "imagenet", or None to learn from nothing; "plain" has none.
        decoder_channels: widths of the U-Net decoder that sees the image, coarsest first.
        dropout: probability with which channels before its head are dropped, 0..1.
        loss: of the logits, at every time: "cross_entropy" (the only one that keeps frequencies), "auto", or a sum as
            in `segmint.functional.losses.compose`.
        shares: class shares of the training pixels, which the first predictions are; found by `adapt`.
        network: a segmenter of your own instead of the U-Net, as for supervised; the flow then sees its logits only.
        widths: channels of the denoiser's levels, finest first.
        patch: side of the patches it works on, in pixels, even; "auto": 4 where both sides have 64 pixels or more,
            else 2.
        cell: side of the cells in pixels, a divisor of `patch`; 1 for a flow of single pixels.
        steps: of the sampler.
        sampler: "multistep" (second order at Euler's cost), "euler", or "heun" with two evaluations a step.
        shift: times are u / (u + shift (1 - u)) for u even in 0..1; more for larger objects (more cells).
        amplitude: half the distance of two classes' code words, against noise of unit variance.
        copies: how many noisy versions of each mask a training step shows, for one look at the image.
        image_weight: weight of the loss of the logits that the image alone gives.
    """

    defaults: ClassVar = {"lr": 2e-3, "weight_decay": 1e-2, "augment": "weak", "ema": 0.99}
    draws_differ = True
    monitor = ("loss", "min")

    codes: Tensor

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
        widths: Sequence[int] = (64, 96, 128),
        patch: int | Literal["auto"] = "auto",
        cell: int = 2,
        steps: int = 8,
        sampler: str = "multistep",
        shift: float = 4.0,
        amplitude: float = 1.0,
        copies: int = 2,
        image_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if steps < 1 or shift <= 0 or copies < 1:
            raise ValueError(f"steps and copies must be at least 1 and shift above 0, not {steps}, {copies}, {shift}")
        if sampler not in SAMPLERS:
            raise ValueError(f"there is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
        self.classes, self.criterion = classes, compose(loss, shares)
        self.steps, self.sampler, self.shift = steps, sampler, shift
        self.copies, self.image_weight = copies, image_weight
        self.register_buffer("codes", amplitude * simplex_codes(classes), persistent=False)
        self.network = build_segmenter(
            classes, in_channels, encoder_name, encoder_weights, decoder_channels, dropout, network
        )
        if shares is not None and isinstance(self.network, UNet):
            self.network.expect(shares)
        features = classes + (self.network.head.in_channels if isinstance(self.network, UNet) else 0)
        self.denoiser = MaskDenoiser(
            2 * self.codes.shape[1], classes, features, widths, _patch(patch, image_size), cell
        )

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Settle the patches' size, and the loss where it is "auto"."""
        patch = _patch(settings.get("patch", "auto"), facts.size)
        return settle({"loss": "cross_entropy", **settings, "patch": patch}, facts.shares, facts.alike)

    @classmethod
    def suits(cls, facts: Facts) -> Suit:
        """Where raters disagree: first with a GPU and a long training, last without."""
        if facts.agreed:
            return Suit(0, facts.agreed)
        if facts.steps < STEPS:
            return Suit(0, f"needs {STEPS:,} steps to draw coherent masks, more than there are")
        if facts.hardware.gpu and facts.steps >= LONG:
            return Suit(2.5, "should draw the masks closest to the raters', given a GPU and a long training")
        return Suit(1.5, f"draws masks step by step, which pays with a GPU and {LONG:,} steps or more")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the logits at random times, evenly spread over the batch, and from the image alone."""
        count, device = self.copies * len(batch), batch.image.device
        offset = torch.rand((), generator=stream(device), device=device)
        places = rows(torch.randperm(whole(count), generator=stream(device), device=device))
        even = (offset + places / whole(count)) % 1
        noise = randn(count, *self._shape(batch.image), device=device)
        return self._loss(batch, even / (even + self.shift * (1 - even)), noise)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The same with the sampler's own times, another for each image and copy, and always the same noise."""
        items, device = torch.arange(len(batch)), batch.image.device
        place = torch.cat([items + copy * self.steps // self.copies for copy in range(self.copies)]) % self.steps
        clock = torch.tensor(flow.time_grid(self.steps, self.shift))[place].to(device)
        noise = Seeds.range(len(clock)).randn(*self._shape(batch.image), device=device)
        return self._loss(batch, clock, noise)

    def _loss(self, batch: Batch, clock: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The loss at times [R B] of as many noisy masks."""
        times = len(clock) // len(batch)
        sight = self._look(batch.image)
        mean = flow.expected_code(sight.logits.detach(), self.codes)
        words = torch.where((batch.mask != IGNORE).unsqueeze(1), flow.encode(batch.mask, self.codes), mean)
        state = flow.interpolate(self._pool(words).repeat(times, 1, 1, 1), noise, clock)
        logits = self._evaluate(state, clock, sight.repeat(times))
        terms = {
            "flow_loss": self.criterion(logits, batch.mask.repeat(times, 1, 1))["loss"],
            "image_loss": self.criterion(sight.logits, batch.mask)["loss"],
        }
        return {"loss": terms["flow_loss"] + self.image_weight * terms["image_loss"], **terms}

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """Logits [B, K, H, W] of one draw; see `draws`."""
        return self._flow(self._look(image), seeds.randn(*self._shape(image), device=image.device))

    def draws(self, image: Tensor, seeds: Seeds, count: int) -> Iterator[Tensor]:
        """Several draws, the image seen once.

        The logits are those of the last evaluation, which the last step goes to. Their softmax is each pixel's class
        given the nearly clean mask: almost one-hot, and its mean over draws tends to the pixel's class probability.
        """
        sight, shape = self._look(image), self._shape(image)
        together = max(1, CHUNK // len(image))
        for start in range(0, count, together):
            numbers = range(start, min(start + together, count))
            noise = [seeds.fork("draw", number).randn(*shape) for number in numbers]
            logits = self._flow(sight.repeat(len(numbers)), torch.cat(noise).to(image.device))
            yield from logits.chunk(len(numbers))

    def _look(self, image: Tensor) -> Sight:
        size = (int(image.shape[-2]), int(image.shape[-1]))
        if isinstance(self.network, UNet):
            features = self.network.dropout(self.network.decode(self.network.encoder(image)))
            coarse = self.network.head(features)
            features, logits = torch.cat([features, coarse], 1), resize(coarse, size).float()
        else:
            features = logits = logits_of(self.network, image, self.classes)
        known = logits.detach()
        doubt = flow.expected_code(known, self.codes**2) - flow.expected_code(known, self.codes) ** 2
        return Sight(logits, self.denoiser.look(features, size), self._pool(doubt))

    def _shape(self, image: Tensor) -> tuple[int, int, int]:
        """Shape (D, h, w) of the flow's state for images of this size."""
        height, width = (-(-int(side) // self.denoiser.cell) for side in image.shape[-2:])
        return int(self.codes.shape[1]), height, width

    def _pool(self, words: Tensor) -> Tensor:
        """Code words [B, D, H, W] -> their means over cells [B, D, h, w]; cells at the rim may be partly outside."""
        return F.avg_pool2d(words, self.denoiser.cell, ceil_mode=True, count_include_pad=False)

    def _evaluate(self, state: Tensor, clock: Tensor, sight: Sight) -> Tensor:
        """Logits [B, K, H, W] of the clean mask, given a noisy state [B, D, h, w] at times [B].

        The denoiser sees beside the state how far it alone moves the expected code words, to first order of Bayes'
        rule: doubt times t / (1 - t)^2 x_t. Noise where nothing is in doubt is gone from it, and whether there is an
        object is read off its sum over the object, which is otherwise slow to learn for small ones.
        """
        height, width = sight.logits.shape[-2:]
        t = flow.per_item(clock, state)
        told = sight.doubt * state * (t / (1 - t).clamp_min(flow.NEAREST) ** 2).clamp_max(1)
        correction: Tensor = self.denoiser(torch.cat([state, EVIDENCE * told], 1), clock, sight.seen).float()
        return sight.logits + correction[..., :height, :width]

    def _flow(self, sight: Sight, noise: Tensor) -> Tensor:
        """Follow the flow from noise [B, D, h, w]; logits of the last evaluation."""
        logits = sight.logits

        times = flow.time_grid(self.steps, self.shift)
        ahead = _Extrapolation(times) if self.sampler == "multistep" else None

        def field(state: flow.State, position: float) -> flow.State:
            nonlocal logits
            clock = torch.full((len(noise),), position, device=noise.device)
            logits = self._evaluate(state[0], clock, sight)
            clean = self._pool(flow.expected_code(logits, self.codes))
            return (flow.velocity(ahead(clean, position) if ahead else clean, state[0], clock),)

        flow.solve(field, (noise,), times, "heun" if self.sampler == "heun" else "euler")
        return logits


class _Extrapolation:
    """What the clean mask will be thought to be in the middle of a step, from this and the last evaluation.

    Second order without further evaluations (Adams & Bashforth; Lu 2022, DPM-Solver++ 2M, does it in other time). The
    last step goes to the clean mask itself.
    """

    def __init__(self, times: Sequence[float]) -> None:
        self.after = dict(pairwise(times))
        self.before: tuple[Tensor, float] | None = None

    def __call__(self, clean: Tensor, position: float) -> Tensor:
        """The expected clean mask of this evaluation -> the one to head for."""
        last, self.before = self.before, (clean, position)
        step = self.after[position] - position
        if last is None or self.after[position] == 1:
            return clean
        return clean + step / (2 * (position - last[1])) * (clean - last[0])


def simplex_codes(classes: int) -> Tensor:
    """One code word for each class, all of them at distance 2 from each other and with mean zero.

    Two classes have -1 and 1. More have the corners of a regular simplex, so that noise mixes up any two equally
    easily, which binary codes do not have.

    Returns:
        float32 [K, max(1, K - 1)].
    """
    corners = max(2, classes)
    basis = torch.zeros(corners, corners - 1, dtype=torch.float64)
    for place in range(corners - 1):
        basis[: place + 1, place] = -1
        basis[place + 1, place] = place + 1
    words: Tensor = basis / basis.square().sum(0).sqrt() * math.sqrt(2)
    return words[:classes].float()


def _patch(patch: int | str, size: tuple[int, int]) -> int:
    if patch == "auto":
        return usual_patch(size)
    if isinstance(patch, str):
        raise SegmintError(f"maskflow.patch: there is no {patch!r}; give an even number of pixels, or auto")
    return patch
