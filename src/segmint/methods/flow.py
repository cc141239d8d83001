"""One joint flow over image, mask and previous frame, each with its own clock: it segments, paints and makes pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.functional import flow
from segmint.functional.labels import most_likely
from segmint.functional.losses import class_shares, cross_entropy, one_hot
from segmint.methods.method import Facts, Method, Optimizers
from segmint.nets.encoders import EfficientNetLite0
from segmint.nets.flow import FlowUNet, usual_patch
from segmint.nets.layers import resize
from segmint.ranks import average, gather, rand, randn_like
from segmint.seeds import Seeds
from segmint.types import IGNORE, Batch, SegmintError

BANK = 1024
"""How many training masks' class shares are remembered, to be asked for when pairs are made."""


class Flow(Method):
    """Flow matching (Lipman 2023) of image, mask and previous frame with independent clocks, 0 noise to 1 clean.

    UniDiffuser (Bao 2023) gave each modality its own clock, Diffusion Forcing (Chen 2024) each frame. Image clean and
    mask unknown: it segments. Mask given: it paints. Both unknown: it makes pairs, the mask `lead` ahead of the image.
    Previous frame given: it goes on from there; it learns this from real sequences and, by small random motions of
    every image, from stills. Masks are noisy code words to the network (Analog Bits, Chen 2023; binary codes as in
    JoDiffusion 2025), and always predicted clean, as class logits with cross-entropy. Unlabelled images train it with
    their masks' clock at 0.

    Args:
        classes: K.
        in_channels: C of the images.
        image_size: height and width of the pairs.
        widths: channels of the U-Net's levels, finest first; `blocks`: residual blocks of each, down and up.
        patch: side of the patches it works on, in pixels; "auto": 4 where both sides have 64 pixels or more, else 2.
        parametrization: what the network predicts of the image, "clean", "velocity" or "edm".
        code: amplitude of the masks' code words against noise of unit variance.
        mask_weight: weight of the masks' cross-entropy.
        alignment: weight of the cosine distance between the coarsest map and ImageNet features of the clean image
            (REPA, Yu 2025); 0 for none.
        perceptual: weight of the distance between ImageNet features of the predicted and the true clean image (LPIPS,
            Zhang 2018, on a flow's prediction as in Lin & Yang 2024); 0 for none.
        dropout: in the residual blocks.
        steps: of the sampler, for pairs and painting; `segment_steps`: for masks of given images.
        sampler: "euler" or "heun".
        shift: above 1, more of the steps are taken near the noise.
        guidance: how far painting is pushed towards the mask, 1 for not at all (Ho & Salimans 2022).
        lead: how far the mask's clock is ahead of the image's when both are made: 0 together, 1 one after the other.
        strength: how much noise a photograph gets that is painted over, 0..1 (SDEdit, Meng 2022).
        rare: how much more often layouts with rare classes are asked for; 0 as often as in the training masks.
    """

    defaults: ClassVar = {
        "lr": 1e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "ema": 0.998,
        "augment": "flip",
        "steps": 4000,
        "batch_size": 16,
        "labelled_fraction": 0.5,
    }
    uses_unlabelled = True
    conditions = frozenset({"mask", "previous", "image"})
    draws_differ = True
    monitor = None

    codes: Tensor
    bank: Tensor
    banked: Tensor

    def __init__(
        self,
        *,
        classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (128, 128),
        widths: Sequence[int] = (128, 192, 256),
        blocks: int = 1,
        patch: int | Literal["auto"] = "auto",
        parametrization: str = "clean",
        code: float = 0.5,
        mask_weight: float = 0.5,
        alignment: float = 0.5,
        perceptual: float = 1.0,
        dropout: float = 0.0,
        steps: int = 8,
        segment_steps: int = 2,
        sampler: str = "euler",
        shift: float = 1.0,
        guidance: float = 1.5,
        lead: float = 1.0,
        strength: float = 0.6,
        rare: float = 0.5,
    ) -> None:
        super().__init__()
        flow.check_kind(parametrization)
        if sampler not in ("euler", "heun"):
            raise ValueError(f"there is no sampler {sampler!r}; choose euler or heun")
        if min(steps, segment_steps) < 1:
            raise ValueError(f"steps ({steps}) and segment_steps ({segment_steps}) must be 1 or more")
        self.classes, self.channels, self.image_size = classes, in_channels, image_size
        self.kind, self.mask_weight = parametrization, mask_weight
        self.alignment, self.perceptual = alignment, perceptual
        self.steps, self.segment_steps, self.sampler, self.shift = steps, segment_steps, sampler, shift
        self.guidance, self.lead, self.strength, self.rare = guidance, lead, strength, rare
        self.register_buffer("codes", flow.binary_codes(classes, code))
        self.register_buffer("bank", torch.zeros(BANK, classes, dtype=torch.int64))
        self.register_buffer("banked", torch.zeros((), dtype=torch.int64))
        self.bits = self.codes.shape[1]
        self.net = FlowUNet(
            2 * in_channels + self.bits + 1,
            in_channels + classes,
            clocks=3,
            extras=classes + 1,
            widths=widths,
            blocks=blocks,
            patch=_patch(patch, image_size),
            dropout=dropout,
        )
        self._teacher: list[EfficientNetLite0] = []  # in a list, so that it is no part of the saved model
        if alignment:
            self.align = nn.Conv2d(self.net.middle_width, EfficientNetLite0.channels[3], 1)

    @classmethod
    def adapt(cls, settings: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Settle the patches' size."""
        return {**settings, "patch": _patch(settings.get("patch", "auto"), facts.size)}, []

    def step(self, batch: Batch, optimizers: Optimizers) -> dict[str, Tensor]:
        """Remember the masks' class shares, then minimise the loss."""
        counts = gather(one_hot(batch.mask[batch.labelled], self.classes).flatten(2).sum(2))
        self.bank[(self.banked + torch.arange(len(counts), device=self.bank.device)) % BANK] = counts
        self.banked += len(counts)
        return super().step(batch, optimizers)

    # Training

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the velocity or its like, the masks' cross-entropy, and the alignment of features."""
        image_clock, mask_clock = self._draw_clocks(batch.labelled)
        known = (batch.mask != IGNORE) | ~batch.labelled[:, None, None]
        words = flow.encode(batch.mask, self.codes)
        state = flow.interpolate(batch.image, randn_like(batch.image), image_clock)
        mask_state = flow.interpolate(words, randn_like(words), mask_clock)
        frame, frame_clock = self._draw_previous(batch)
        told = batch.labelled & (rand(len(batch), device=state.device) < 0.5)
        shares = class_shares(batch.mask, self.classes) * told[:, None]
        clocks = torch.stack([image_clock, mask_clock, frame_clock], 1)
        clean, logits, middle = self._evaluate(state, mask_state, known, frame, clocks, shares, told)
        error = (clean - batch.image).square().mean((1, 2, 3)) * flow.loss_weight(self.kind, image_clock)
        noisy = image_clock < 1
        terms = {"image_loss": (error * noisy).sum() / average(noisy.sum()).clamp_min(1)}
        hidden = torch.where((mask_clock < 1)[:, None, None], batch.mask, IGNORE)
        terms["mask_loss"] = cross_entropy(logits, hidden)
        total = terms["image_loss"] + self.mask_weight * terms["mask_loss"]
        if self.training and (self.alignment or self.perceptual):
            features = self._features(batch.image)
            if self.alignment:
                terms["alignment"] = self._alignment(middle, features[3])
                total = total + self.alignment * terms["alignment"]
            if self.perceptual:
                shown = noisy & (image_clock > 0.1)
                terms["perceptual"] = self._perceptual(clean, features, shown)
                total = total + self.perceptual * terms["perceptual"]
        return {"loss": total, **terms}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self.loss(batch)

    def _draw_clocks(self, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Times of images and masks for a share of each job: painting, segmenting, both noisy, mask unknown."""
        count, device = len(labelled), labelled.device
        job = rand(count, device=device)
        image = flow.sample_clock(count, -0.4, 1.0, device)
        mask = flow.sample_clock(count, -0.8, 1.2, device)
        mask = mask.masked_fill(job < 0.45, 1.0).masked_fill((job > 0.9) | ~labelled, 0.0)
        image = image.masked_fill((job >= 0.45) & (job < 0.65) & labelled, 1.0)
        return image, mask

    def _draw_previous(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The frame before, slightly moved and noisy, where it is to be seen; its clock is 0 where it is not."""
        count, device = len(batch), batch.image.device
        clock = (1 - 0.3 * rand(count, device=device)) * (rand(count, device=device) < 0.5)
        frame = _moved(batch.image if batch.previous is None else batch.previous)
        return flow.interpolate(frame, randn_like(frame), clock), clock

    def _features(self, image: Tensor) -> list[Tensor]:
        """ImageNet features of clean images, finest first."""
        if not self._teacher:
            teacher = EfficientNetLite0(self.channels).to(image.device).eval().requires_grad_(False)
            self._teacher.append(teacher)
        with torch.no_grad():
            return [level.float() for level in self._teacher[0](image)]

    def _alignment(self, middle: Tensor, target: Tensor) -> Tensor:
        ours = resize(self.align(middle).float(), (int(target.shape[-2]), int(target.shape[-1])))
        return 1 - F.cosine_similarity(ours, target).mean()

    def _perceptual(self, clean: Tensor, targets: list[Tensor], shown: Tensor) -> Tensor:
        """Mean cosine distance of the features over places, three levels, and the images shown; 0 if there is none."""
        count = average(shown.sum()).clamp_min(1)
        if not shown.any():
            return clean.sum() * 0
        ours = self._teacher[0](clean[shown])
        distances = [1 - F.cosine_similarity(ours[k].float(), targets[k][shown]).mean((1, 2)) for k in (1, 2, 3)]
        return torch.stack(distances).mean(0).sum() / count

    def _evaluate(
        self,
        state: Tensor,
        mask_state: Tensor,
        known: Tensor,
        frame: Tensor,
        clocks: Tensor,
        shares: Tensor,
        told: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation of the network: clean image [B, C, H, W], mask logits [B, K, H, W], coarsest map.

        Args:
            state, mask_state: noisy image and code words; `known`: bool [B, H, W], where the mask is no `IGNORE`.
            frame: the (noisy) frame before, [B, C, H, W].
            clocks: [B, 3], of image, mask and frame before.
            shares: [B, K] class shares to be had, where `told`, bool [B].
        """
        seen = flow.scale_input(self.kind, state, clocks[:, 0])
        frame = frame * (clocks[:, 2] > 0)[:, None, None, None]
        x = torch.cat([seen, mask_state, known.unsqueeze(1).to(state.dtype), frame], 1)
        output, middle = self.net(x, clocks, torch.cat([shares.sqrt(), told.unsqueeze(1).to(shares.dtype)], 1))
        output = output.float()
        clean = flow.read_output(self.kind, output[:, : self.channels], state, clocks[:, 0])
        return clean, output[:, self.channels :], middle

    # Use

    def segment(self, image: Tensor, seeds: Seeds) -> Tensor:
        """One draw: the mask's flow for a clean image; log-probabilities of the last evaluation."""
        count, size = len(image), (int(image.shape[-2]), int(image.shape[-1]))
        state = seeds.randn(self.bits, *size, device=image.device)
        known = torch.ones(count, *size, dtype=torch.bool, device=image.device)
        nothing = torch.zeros_like(image)
        shares, told = self._untold(count)
        logits = torch.zeros(count, self.classes, *size, device=image.device)
        times = flow.time_grid(self.segment_steps)
        for here, there in pairwise(times):
            clocks = torch.tensor([1.0, here, 0.0], device=image.device).expand(count, 3)
            _, logits, _ = self._evaluate(image, state, known, nothing, clocks, shares, told)
            slope = flow.velocity(flow.expected_code(logits, self.codes), state, clocks[:, 1])
            state = state + (there - here) * slope
        return logits.log_softmax(1)

    @torch.no_grad()
    def generate(
        self,
        seeds: Seeds,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Batch:
        """Make pairs, paint masks, go on from frames, or paint over the photographs of masks.

        Raises:
            SegmintError: a photograph is given without its mask.
        """
        if image is not None and mask is None:
            raise SegmintError("flow: a photograph to paint over needs its mask; give both")
        device = self.codes.device
        size = self.image_size if mask is None else (int(mask.shape[1]), int(mask.shape[2]))
        noise = seeds.randn(self.channels, *size, device=device)
        mask_noise = seeds.randn(self.bits, *size, device=device)
        painter = _Painter(self, mask, previous, mask_noise, self._asked(seeds) if mask is None else None)
        begin = 0.0
        if image is not None:
            begin = 1 - self.strength
            noise = flow.interpolate(image.to(device), noise, torch.full((len(seeds),), begin, device=device))
        times = [begin + (1 - begin) * t for t in flow.time_grid(self.steps, self.shift)]
        state, mask_state = flow.solve(painter.field, (noise, painter.start()), painter.turning(times), self.sampler)
        return Batch(state.clamp(-1, 1), painter.mask(mask_state))

    def _untold(self, count: int) -> tuple[Tensor, Tensor]:
        device = self.codes.device
        return torch.zeros(count, self.classes, device=device), torch.zeros(count, dtype=torch.bool, device=device)

    def _asked(self, seeds: Seeds) -> Tensor | None:
        """Class shares [B, K] of training masks, those with rare classes more often; None before any was seen."""
        count = min(int(self.banked), BANK)
        if not count:
            return None
        shares = F.normalize(self.bank[:count].cpu().float(), p=1, dim=1)
        rarity = ((shares > 1e-3) / shares.mean(0).clamp_min(1e-4)).amax(1)
        ladder = (rarity**self.rare).double().cumsum(0)
        places = torch.searchsorted(ladder, seeds.rand().double() * ladder[-1]).clamp_max(count - 1)
        return shares[places].to(self.codes.device)


class _Painter:
    """The joint flow's field under given conditions; the state is (image, code words of the mask)."""

    def __init__(
        self, model: Flow, mask: Tensor | None, previous: Tensor | None, noise: Tensor, shares: Tensor | None
    ) -> None:
        self.model, self.given, self.noise = model, mask, noise
        count, device = len(noise), noise.device
        self.known = torch.ones(count, *noise.shape[-2:], dtype=torch.bool, device=device)
        if mask is not None:
            self.given = mask.to(device)
            self.known = self.given != IGNORE
        self.frame_clock = 0.0 if previous is None else 0.9
        nothing = torch.zeros(count, model.channels, *noise.shape[-2:], device=device)
        self.frame = nothing if previous is None else previous.to(device) * self.frame_clock
        self.shares, self.told = model._untold(count)
        if shares is not None:
            self.shares, self.told = shares, torch.ones_like(self.told)

    def start(self) -> Tensor:
        return self.noise if self.given is None else flow.encode(self.given, self.model.codes)

    def mask(self, state: Tensor) -> Tensor:
        """The given mask, or the class with the nearest code word."""
        if self.given is not None:
            return self.given
        return most_likely(torch.einsum("bchw,kc->bkhw", state, self.model.codes))

    def clocks(self, position: float) -> tuple[float, float, float, float]:
        """Image clock and its speed, mask clock and its speed."""
        if self.given is not None:
            return position, 1.0, 1.0, 0.0
        pace = 1 + self.model.lead
        image = max(0.0, position * pace - self.model.lead)
        mask = min(1.0, position * pace)
        moves = position * pace >= self.model.lead - 1e-9
        return image, pace if moves else 0.0, mask, pace if mask < 1 else 0.0

    def turning(self, times: Sequence[float]) -> list[float]:
        """The times, the nearest moved to where one clock stops or the other starts, so that no step straddles it."""
        moved = list(times)
        if self.given is None and len(moved) > 2:
            for turn in (self.model.lead / (1 + self.model.lead), 1 / (1 + self.model.lead)):
                place = min(range(len(moved)), key=lambda i: abs(moved[i] - turn))
                if 0 < place < len(moved) - 1:
                    moved[place] = turn
        return moved

    def field(self, state: flow.State, position: float) -> flow.State:
        """Time derivatives of image and code words."""
        x, words = state
        image_clock, image_speed, mask_clock, mask_speed = self.clocks(position)
        clean, logits = self._denoised(x, words, image_clock, mask_clock)
        slope = image_speed * (clean - x) / max(1 - image_clock, 1e-6)
        mask_slope = mask_speed * (flow.expected_code(logits, self.model.codes) - words) / max(1 - mask_clock, 1e-6)
        return slope, mask_slope

    def _denoised(self, x: Tensor, words: Tensor, image_clock: float, mask_clock: float) -> tuple[Tensor, Tensor]:
        """Clean image and mask logits, guided towards the mask once it is known."""
        guided = self.model.guidance != 1 and mask_clock == 1
        clean, logits = self._evaluate(x, words, self.known, image_clock, mask_clock)
        if guided:
            free, _ = self._evaluate(x, self.noise, torch.ones_like(self.known), image_clock, 0.0)
            clean = free + self.model.guidance * (clean - free)
        return clean, logits

    def _evaluate(
        self, x: Tensor, words: Tensor, known: Tensor, image_clock: float, mask_clock: float
    ) -> tuple[Tensor, Tensor]:
        clocks = torch.tensor([image_clock, mask_clock, self.frame_clock], device=x.device).expand(len(x), 3)
        clean, logits, _ = self.model._evaluate(x, words, known, self.frame, clocks, self.shares, self.told)
        return clean, logits


def _patch(patch: int | str, size: tuple[int, int]) -> int:
    return usual_patch(size) if patch == "auto" else int(patch)


def _moved(frame: Tensor, shift: float = 0.08, turn: float = 0.05) -> Tensor:
    """Each frame shifted (as a share of its sides), turned and zoomed a little, at random."""
    count, device = len(frame), frame.device
    noise = 2 * rand(count, 6, device=device) - 1
    turned = torch.eye(2, device=device) + turn * noise[:, :4].view(count, 2, 2)
    matrix = torch.cat([turned, shift * noise[:, 4:].unsqueeze(2)], 2)
    grid = F.affine_grid(matrix, list(frame.shape), align_corners=False)
    return F.grid_sample(frame.float(), grid, padding_mode="reflection", align_corners=False)
