"""Joining the machines of a Ray cluster."""

from __future__ import annotations

import os
import socket
from typing import Any

from segmint.types import SegmintError, reason

RETRIES = 5
"""How often a task whose worker or machine was lost is tried again."""


def join(address: str, processors: int | None = None) -> Any:
    """Join a cluster; `shutdown()` of what is returned leaves it.

    Args:
        address: "auto" (the one that this machine is part of) or e.g. "10.0.0.1:6379"; "local": a new one of this
            machine alone.
        processors: of "local"; None: as many as the machine has.

    Returns:
        The package `ray`.

    Raises:
        SegmintError: Ray is not installed, or the cluster is out of reach.
    """
    unreachable = f"--ray {address}: no cluster there ({{}}); start one, or leave it out"
    try:
        _knock(address)
    except OSError as error:
        raise SegmintError(unreachable.format(reason(error))) from error
    try:
        import ray
    except ImportError as error:
        raise SegmintError('--ray: needs Ray; install it with `pip install "segmint[ray]"`') from error
    asked: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local":
        asked |= {"num_cpus": processors, "include_dashboard": False}
    try:
        ray.init(address=address, ignore_reinit_error=True, **asked)
    except (Exception, SystemExit) as error:  # Ray has many words, and kinds, for this
        raise SegmintError(unreachable.format(reason(error))) from error
    return ray


def _knock(address: str) -> None:
    """Raise an OSError if nobody listens at "host:port": Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
