"""The usual inference loop around segmentation_models_pytorch: a MobileNetV2 U-Net in its default settings.

Needs nothing but torch and segmentation_models_pytorch, and so runs in an environment of its own; README.md here has
the recipe. Alone it prints JSON with images per second. With `--paced` it segments a batch of as many images as each
line that it reads says, and answers with the processor's seconds in it, so that `inference_speed.py` can let it take
turns with others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from smp_loop import segmentation_models

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Loop:
    """float32, PyTorch's own memory layout; from bytes to classes, as the library's examples do it."""

    def __init__(self, encoder: str, size: tuple[int, int], classes: int) -> None:
        torch.manual_seed(0)
        self.images = torch.randint(256, (16, *size, 3), dtype=torch.uint8)
        self.model = segmentation_models().Unet(encoder, encoder_weights=None, classes=classes).eval()

    @torch.no_grad()
    def segment(self, count: int) -> torch.Tensor:
        """Classes [count, H, W] of so many images."""
        image = (self.images[:count].float() / 255 - MEAN) / STD
        logits = self.model(image.permute(0, 3, 1, 2).contiguous())
        return logits.argmax(1)


def timed(loop: Loop, count: int) -> float:
    begun = time.process_time()
    loop.segment(count)
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--size", default="352x480", help="height x width, multiples of 32")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--paced", action="store_true", help="a batch for each line read, of as many images as it says")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    loop = Loop(args.encoder, (height, width), args.classes)
    facts = {
        "encoder": args.encoder,
        "size": [height, width],
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "torch": torch.__version__,
        "segmentation_models_pytorch": segmentation_models().__version__,
    }
    if args.paced:
        print(json.dumps(facts), flush=True)
        for line in sys.stdin:
            print(timed(loop, int(line)), flush=True)
        return
    seconds = []
    for _ in range(2 + args.rounds):
        begun = time.perf_counter()
        loop.segment(args.batch)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({**facts, "images_per_second": round(args.batch / statistics.median(seconds[2:]), 2)}))


if __name__ == "__main__":
    main()
