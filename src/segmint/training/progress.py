"""What a person sees while a method trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingBar:
    """A progress bar with losses, images per second and time left; plain lines where there is no terminal.

    Args:
        console: where to write.
        title: what is trained.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.figures: dict[str, float] = {}
        self.task: TaskID | None = None
        self.started = self.printed = time.monotonic()
        self.first = -1
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )

    def __enter__(self) -> TrainingBar:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def progress(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show the newest figures."""
        self.figures |= {key: value for key, value in figures.items() if not key.endswith("_norm")}
        if self.first < 0:
            self.first = step
        told = self._told()
        if self.console.is_terminal:
            if self.task is None:
                self.task = self.bar.add_task(self.title, total=steps, figures=told)
            self.bar.update(self.task, completed=step, figures=told)
        elif "miou" in figures or step == steps or time.monotonic() - self.printed > 30:
            self.printed = time.monotonic()
            spent = time.monotonic() - self.started
            left = spent / max(1, step - self.first) * (steps - step) if step > self.first else 0.0
            self.console.print(f"{self.title} {step}/{steps}, {left:.0f} s left: {told}", highlight=False)

    def _told(self) -> str:
        shown = []
        for key in ("loss", "generator", "discriminator", "kl", "log_likelihood", "miou"):
            if key in self.figures:
                value = self.figures[key]
                shown.append(f"mIoU {100 * value:.1f}%" if key == "miou" else f"{key} {value:.3g}")
        if "images_per_second" in self.figures:
            shown.append(f"{self.figures['images_per_second']:.0f} images/s")
        return ", ".join(shown)
