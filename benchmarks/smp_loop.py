"""The usual training loop around segmentation_models_pytorch, in its default settings.

Needs nothing but torch and segmentation_models_pytorch, and so runs in an environment of its own; README.md here has
the recipe. Alone it prints JSON with images per second. With `--paced` it takes one step for each line that it reads
and answers with the processor's seconds in it, so that `training_speed.py` can let it take turns with others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType

import torch


def segmentation_models() -> ModuleType:
    """Import segmentation_models_pytorch, also where torchvision's compiled operators cannot be loaded.

    The torchvision wheels on PyPI are built for CUDA. Beside a CPU build of torch their operators stay unknown, and
    the import of torchvision fails as it describes two of them. The network uses neither; declaring them suffices.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import segmentation_models_pytorch

    module: ModuleType = segmentation_models_pytorch
    return module


class Loop:
    """float32, PyTorch's own memory layout, AdamW, cross-entropy; the data are in memory, nothing is augmented."""

    def __init__(self, encoder: str, batch: int, size: tuple[int, int], classes: int) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.images = torch.rand(64, 3, *size) * 2 - 1
        self.masks = torch.randint(classes, (64, *size))
        self.model = segmentation_models().Unet(encoder, encoder_weights=None, classes=classes).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.criterion = torch.nn.CrossEntropyLoss()

    def step(self) -> None:
        """Take one step."""
        index = torch.randint(len(self.images), (self.batch,))
        image, mask = self.images[index], self.masks[index]
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(image), mask)
        loss.backward()
        self.optimizer.step()


def timed(loop: Loop, clock: Callable[[], float]) -> float:
    begun = clock()
    loop.step()
    return clock() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="144x96", help="height x width")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after three of warm-up")
    parser.add_argument("--paced", action="store_true", help="one step for each line read")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    height, width = map(int, args.size.split("x"))
    loop = Loop(args.encoder, args.batch, (height, width), args.classes)
    facts = {
        "encoder": args.encoder,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "torch": torch.__version__,
        "segmentation_models_pytorch": segmentation_models().__version__,
    }
    if args.paced:
        print(json.dumps(facts), flush=True)
        for _ in sys.stdin:
            print(timed(loop, time.process_time), flush=True)
        return
    for _ in range(3):
        loop.step()
    seconds = statistics.median(timed(loop, time.perf_counter) for _ in range(args.steps))
    print(json.dumps({**facts, "images_per_second": round(args.batch / seconds, 2)}))


if __name__ == "__main__":
    main()
