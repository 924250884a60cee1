"""The run folder: one process at a time, files written whole, results appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from detkds.config import RunConfig, changes
from detkds.errors import ConfigError


@contextmanager
def open_folder(config: RunConfig) -> Iterator[Path]:
    """Create or take up ``runs/<name>`` and hold it for this process.

    Raises:
        ConfigError: another process holds it, it cannot be written, or it belongs to another configuration.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process is running here; wait for it, or choose another name=") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}") from None
    try:
        _check_same(config, folder / "config.yaml")
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        yield folder
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".part")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line and make sure it is on disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole JSON lines; a line torn by a crash is left out and cut off, so that appending goes on cleanly."""
    if not path.exists():
        return []
    records, good = [], 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        records.append(record)
        good += len(line)
    if good < len(data):
        with open(path, "r+b") as file:
            file.truncate(good)
    return records


def _check_same(config: RunConfig, path: Path) -> None:
    """Refuse to go on in a folder whose results were made under other settings."""
    if not path.exists():
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    changed = [
        f"{config.folder}: {change.key} was {change.before!r} here, now {change.now!r}"
        for change in changes(before, config.model_dump(mode="json"))
        if change.effect == "numbers"
    ]
    if changed:
        raise ConfigError([*changed, f"{config.folder}: choose another name=, or delete the folder to start over"])
