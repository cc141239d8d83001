"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from segmint.types import SegmintError


@dataclass(frozen=True)
class Settings:
    """What a server allows and how it batches.

    Attributes:
        key: what clients have to give as `X-API-Key` or bearer token; None: nothing.
        megabytes: the largest body of a request, in 10^6 bytes.
        megapixels: the largest image or mask, in 10^6 pixels.
        seconds: how long an answer may take once the body is there; `upload_seconds`: the body.
        draws: the most draws for an image; `pairs`: the most pairs a request.
        waiting: how many images may wait for each model; a request that finds more is sent away.
        batch: the most images that are computed together; 1: each alone.
        wait: how long the first of them waits for others, in seconds.
    """

    key: str | None = None
    megabytes: float = 32.0
    megapixels: float = 16.0
    seconds: float = 60.0
    upload_seconds: float = 60.0
    draws: int = 64
    pairs: int = 64
    waiting: int = 128
    batch: int = 8
    wait: float = 0.005

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "key":
                if value is not None and not (value.isascii() and value.isprintable() and value.strip() == value != ""):
                    raise SegmintError("API key: must be printable ASCII, not empty, with no space around it")
            elif not (value > 0 or (field.name == "wait" and value == 0)):
                raise SegmintError(f"--{_option(field.name)}: must be more than 0, not {value}")
        if self.waiting < self.pairs:
            raise SegmintError(f"--max-waiting: must be at least --max-pairs, {self.pairs}, not {self.waiting}")

    @property
    def bytes(self) -> int:
        """The largest body, in bytes."""
        return round(self.megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """The largest image, in pixels."""
        return round(self.megapixels * 1e6)


def _option(name: str) -> str:
    return name if name in ("batch", "wait") else f"max-{name.replace('_', '-')}"
