"""Files written whole or not at all, and lines that survive a crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

PART = ".part"
"""The end of the name of a file or folder that is being written; one that is left was never finished."""


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


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left half-written below a folder that no other process writes to."""
    for path in list(folder.rglob(f"*{PART}")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line with a checksum, and make sure it is on disk."""
    text = json.dumps(dict(record), sort_keys=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**json.loads(text), "sum": _sum(text)}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, damaged: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
    """The records of a file of :func:`append_line` whose checksums agree, in order.

    A last line torn by a crash is cut off, so that appending goes on cleanly.

    Args:
        damaged: told the number, from 1, of every other line that is left out.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and (not lines[-1].endswith(b"\n") or _parsed(lines[-1]) is None):
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[:-1])))
        lines = lines[:-1]
    return list(_records(lines, damaged or (lambda number: None)))


def _records(lines: list[bytes], damaged: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None:
            damaged(number)
        else:
            yield record


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        checksum = record.pop("sum")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return record if checksum == _sum(json.dumps(record, sort_keys=True)) else None


def _sum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
