"""Hugging Face diffusers' DDPM pipeline with an untrained U-Net, as its users run it.

Needs nothing but torch and diffusers, and so runs in an environment of its own; README.md here has the recipe. The
speed does not depend on the weights. The U-Net has the proportions of the library's own tutorial on unconditional
generation (widths 1, 1, 2, 2, 4, two residual blocks a level, attention at the last but one), and 10 million
parameters. Alone it makes one batch and prints JSON with seconds per image. With `--paced` it makes batch after batch,
`--evaluations` of the network for each line that it reads, and answers with JSON of the seconds that they took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator

import diffusers
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

WIDTHS = (48, 48, 96, 96, 192)


def network(size: tuple[int, int], channels: int) -> UNet2DModel:
    down, up = ["DownBlock2D"] * len(WIDTHS), ["UpBlock2D"] * len(WIDTHS)
    down[-2], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=WIDTHS,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=16,
    ).eval()


class PacedPipeline(DDPMPipeline):
    """The pipeline, which stops after every so many evaluations, tells how long they took and awaits a line."""

    every: int | None = None
    done = 0

    def progress_bar(self, iterable: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What the pipeline's loop over the timesteps runs through."""
        for time_step in iterable:
            if self.every and self.done % self.every == 0:
                self._pause()
            yield time_step
            self.done += 1

    def _pause(self) -> None:
        if self.done:
            seconds = {"wall": time.perf_counter() - self.wall, "processor": time.process_time() - self.processor}
            print(json.dumps(seconds), flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.wall, self.processor = time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="inference steps")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", default="144x96", help="height x width, multiples of 16")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--paced", action="store_true", help="some evaluations for each line read")
    parser.add_argument("--evaluations", type=int, default=50, help="of the network for each line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    torch.manual_seed(0)
    unet = network((height, width), args.channels)
    pipeline = PacedPipeline(unet, DDPMScheduler())
    facts = {
        "parameters": sum(p.numel() for p in unet.parameters()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }

    def make(steps: int) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bfloat16"):
            pipeline(batch_size=args.batch, generator=torch.Generator().manual_seed(0), num_inference_steps=steps)

    make(2)
    if args.paced:
        print(json.dumps(facts), flush=True)
        pipeline.every, pipeline.done = args.evaluations, 0
        while True:
            make(args.steps)
    begun = time.perf_counter()
    make(args.steps)
    print(json.dumps({**facts, "seconds_per_image": round((time.perf_counter() - begun) / args.batch, 3)}))


if __name__ == "__main__":
    main()
