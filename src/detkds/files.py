"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""The end of the name of a file that is being written; one that is left was never finished."""


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Write a file whole or not at all: beside it first, then put in its place.

    Args:
        sync: wait until it is on disk; without that a power loss may leave a file of another content.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with open(scratch, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
