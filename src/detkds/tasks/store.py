"""Results and weights by what they were made from: append-only, and checked when read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from detkds.files import append_line, read_lines, write_whole
from detkds.tasks.task import Task, TaskResult

RESULTS, WEIGHTS, STATES = "results.jsonl", "students", "states"
"""What a store keeps in the run folder: results, weights of students, and states of unfinished trainings."""


class Store:
    """Results of tasks by key, in ``folder/results.jsonl``, and weights in ``folder/students``.

    A line or a file whose checksum does not agree is passed over, so that its task is trained again.

    Args:
        folder: of the run, held by this process alone.
        note: told what is passed over.
        parent: the folder of another run, whose store is taken over where this one is empty.
    """

    def __init__(
        self, folder: Path, note: Callable[[str], None] = lambda text: None, *, parent: Path | None = None
    ) -> None:
        self.folder = folder
        self.states = folder / STATES
        self._note = note
        self._path = folder / RESULTS
        self._results: dict[str, TaskResult] = {}
        self._files: dict[str, str] = {}
        if parent is not None:
            self._adopt(parent)
        self._load()

    def _adopt(self, other: Path) -> None:
        """Take over results as they are, and weights as links where the disk allows it."""
        if (other / RESULTS).is_file() and not self._path.exists():
            shutil.copyfile(other / RESULTS, self._path)
            for path in (other / WEIGHTS).glob("*.safetensors"):
                (self.folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
                target = self.folder / WEIGHTS / path.name
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copyfile(path, target)

    def _load(self) -> None:
        """Read what is stored; damaged lines are passed over."""
        damaged: list[int] = []
        for record in read_lines(self._path, damaged.append):
            try:
                key, result = str(record["key"]), TaskResult.from_dict(record["result"])
            except (TypeError, ValueError, KeyError):
                damaged.append(len(self._results) + len(damaged) + 1)
                continue
            self._results[key] = result
            if result.weights:
                self._files[key] = str(record["file"])
        if damaged:
            self._note(f"{self._path}: {len(damaged)} damaged lines are passed over; their trainings are done again")

    def get(self, key: str) -> TaskResult | None:
        """The stored result, or None."""
        return self._results.get(key)

    def put(self, key: str, task: Task, result: TaskResult, weights: bytes | None = None) -> TaskResult:
        """Keep a result, and the content of a weights file with it; the result with the weights' digest."""
        record = {"key": key, "task": {"label": task.label, "setup": task.setup, "seed": task.seed}}
        if weights is not None:
            name = f"{slug(task.label)}-seed{task.seed}-{key[:8]}.safetensors"
            (self.folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / WEIGHTS / name, lambda file: file.write(weights))
            result = TaskResult.from_dict({**result.to_dict(), "weights": _digest(weights)})
            record["file"] = self._files[key] = name
        append_line(self._path, {**record, "result": result.to_dict()})
        self._results[key] = result
        return result

    def weights(self, key: str) -> Path | None:
        """The file of a task's weights; None where it was not kept, is not there any more, or is damaged."""
        result = self.get(key)
        if result is None or not result.weights:
            return None
        path = self.folder / WEIGHTS / Path(self._files[key]).name
        if not path.is_file():
            return None
        if _digest(path.read_bytes()) != result.weights:
            self._note(f"{path} is damaged; its training is done again")
            return None
        return path

    def remove_states(self) -> None:
        """Delete the states of trainings; what is unfinished starts over."""
        shutil.rmtree(self.states, ignore_errors=True)


def slug(name: str) -> str:
    """A name for a file: the name itself where it can be one, else a part of it and a digest; no two names share one.

    >>> slug("cwd"), slug("x y"), slug("x-y")
    ('cwd', 'x-y-a2fc', 'x-y')
    """
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "-_" else "-" for c in name).strip("-")[:60]
    return plain if plain == name else f"{plain}-{_digest(name.encode())[:4]}".strip("-")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
