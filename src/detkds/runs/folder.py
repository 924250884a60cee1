"""The run folder: held by one process, and bound to the configuration and the content that it was begun with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from detkds.config import RunConfig
from detkds.config_changes import changes
from detkds.errors import ConfigError
from detkds.files import remove_unfinished, write_text
from detkds.progress import Progress

CONFIG, CONTENT = "config.yaml", "content.json"
"""What a run was begun with: its configuration, and digests of its images, weights and this package by name."""


@contextmanager
def open_folder(config: RunConfig, content: Mapping[str, str], progress: Progress) -> Iterator[Path]:
    """Create or take up ``runs/NAME`` and hold it for this process.

    Budgets and what changes no number may differ from those that the run was begun with. What killed processes left
    half-written is removed.

    Args:
        content: digests of what lies under the configuration's paths, by the name of the key that says where.
        progress: told of records that are damaged.

    Raises:
        ConfigError: another process holds it, it cannot be written, or it belongs to another configuration or content.
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
        _check_same(config, content, folder, progress)
        remove_unfinished(folder)
        write_text(folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        write_text(folder / CONTENT, json.dumps(dict(content), indent=1))
        yield folder
        remove_unfinished(folder)
    finally:
        lock.release()


def _check_same(config: RunConfig, content: Mapping[str, str], folder: Path, progress: Progress) -> None:
    """Refuse to go on in a folder whose results were made from something else."""
    before = _read(folder / CONFIG, progress)
    faults = [
        f"{folder}: {change.key} was {change.before!r} when this run began, now it is {change.now!r}"
        for change in (changes(before, config.model_dump(mode="json")) if before else ())
        if change.effect == "numbers"
    ]
    known = _read(folder / CONTENT, progress)
    faults += [
        f"{folder}: the content of {name} has changed since this run began"
        for name in sorted(known.keys() | content.keys() if known else ())
        if known.get(name) != content.get(name)
    ]
    if faults:
        raise ConfigError(
            [
                *faults,
                f"{folder}: its results belong to what it was begun with; give the new run another folder with name=, "
                "or with --fork NAME, which takes over the teacher and whatever else is still valid",
            ]
        )


def _read(path: Path, progress: Progress) -> dict[str, Any]:
    """A mapping as it was written; a damaged one is passed over, because results are bound to content by themselves."""
    if not path.exists():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        pass
    progress.note(f"{path} is damaged; it is written anew, and stored results are used where they fit")
    return {}
