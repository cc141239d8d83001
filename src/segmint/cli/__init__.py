"""The command line: thin, and everything heavy is imported when a command needs it."""

from __future__ import annotations

import os
import sys

# The help lists the commands in the order in which they are imported.
# isort: off
from segmint.cli import folders, formats, learn, make, judge, study, use, serve

# isort: on
from segmint.cli.app import app, console, errors, plain
from segmint.types import SegmintError, is_memory, reason

__all__ = ["app", "console", "errors", "folders", "formats", "judge", "learn", "main", "make", "serve", "study", "use"]


_SMALLER = "take fewer images at once (training.batch_size, --batch), smaller ones (--size), or a smaller network"


def main() -> None:
    """Run the command line; a user's mistake, and too little memory, give a message and exit code 2, no traceback."""
    try:
        app()
    except SegmintError as error:
        errors.quiet = not _first_to_fail()
        errors.print(f"[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[bold red]error:[/] {plain(where + (error.strerror or str(error)))}", highlight=False)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        told = f"does not fit into memory ({reason(error)}); {_SMALLER}"
        errors.print(f"[bold red]error:[/] {plain(told)}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)


def _first_to_fail() -> bool:
    """Whether no other process of the same training, started by torchrun, has said yet why it ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from segmint.training.parallel import first_to_fail

    return first_to_fail()
