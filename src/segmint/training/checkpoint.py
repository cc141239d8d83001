"""Save and resume: whatever a run needs to continue bit for bit on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from segmint.types import SegmintError, reason


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `state.pt` to a temporary name, then rename it; the old one stays whole until then.

    Raises:
        SegmintError: it could not be written (disk full, no permission).
    """
    temporary = folder / "state.pt.tmp"
    try:
        with temporary.open("wb") as file:  # a path's errors, such as a full disk, torch does not pass on
            torch.save(state, file)
        temporary.replace(folder / "state.pt")
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise SegmintError(
            f"{folder / 'state.pt'}: the checkpoint could not be written ({reason(cause)}); the one before it "
            f"is whole: make room, then `segmint train --resume {folder}`"
        ) from error


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read `state.pt`, or None if there is none. Nothing but tensors and plain values is unpickled.

    Raises:
        SegmintError: the file is damaged.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise SegmintError(f"{path}: damaged ({reason(error)}); delete it to start this run again") from error
    return state


class Log:
    """`log.jsonl`: one line per report, appended; lines after the resumed step are dropped.

    Args:
        folder: the run folder.
        step: the step from which the run continues; lines of later steps are taken back.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.jsonl"
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        temporary = self.path.with_name("log.jsonl.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def write(self, **values: Any) -> None:
        """Append one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise SegmintError(f"{self.path}: cannot be written ({error.strerror}); make room, then resume") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `log.jsonl`; a last line cut off by a kill is left out."""
    path = folder / "log.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
