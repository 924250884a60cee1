"""Training states on disk, one file per student: written whole or not at all, taken up where they were left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detkds.errors import WeightsError
from detkds.files import write_whole
from detkds.training.student import StudentTrainer


class StateFiles:
    """The states of unfinished trainings, ``folder/KEY.EPOCHS.state`` by the student's key and the passes done.

    A student's training does not depend on its company, so each state can be taken up alone.

    Args:
        folder: made when the first state is saved.
        every: seconds between two saves; the state after the last pass is kept in any case.
    """

    def __init__(self, folder: Path, every: float = 5.0) -> None:
        self.folder = folder
        self.every = every
        self._saved = time.monotonic()

    def epochs(self, key: str) -> int:
        """The passes that the saved state of a student has done; 0 where there is none."""
        return max((_epochs(path) for path in self._paths(key)), default=0)

    def save(self, students: Sequence[StudentTrainer], epochs: int, *, last: bool = False) -> None:
        """Keep the state of all students after ``epochs`` passes; a crash while writing leaves the one before.

        Without ``last`` nothing is written where the last save is less than ``every`` seconds ago.
        """
        if not last and time.monotonic() - self._saved < self.every:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for student in students:
            outdated = self._paths(student.key)
            path = self.folder / f"{student.key}.{epochs}.state"
            write_whole(path, partial(torch.save, student.state_dict()))
            for other in outdated:
                if other != path:
                    other.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def load(self, students: Sequence[StudentTrainer]) -> int:
        """Restore the students' states; the passes they have done, 0 where there are none.

        Raises:
            WeightsError: a file is not the state of its student, or the students have done different numbers of passes.
        """
        done = {self.epochs(student.key) for student in students}
        if len(done) != 1:
            raise WeightsError(
                f"{self.folder}: expected students that have done equally many passes, got {sorted(done)}"
            )
        [epochs] = done
        for student in students if epochs else ():
            path = self.folder / f"{student.key}.{epochs}.state"
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                student.load_state_dict(state)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise WeightsError(f"{path}: not a state of this training: {reason}; delete it to start over") from None
        return epochs

    def remove(self, key: str) -> None:
        """Forget a student."""
        for path in self._paths(key):
            path.unlink(missing_ok=True)

    def _paths(self, key: str) -> list[Path]:
        return list(self.folder.glob(f"{key}.*.state"))


def _epochs(path: Path) -> int:
    number = path.suffixes[-2][1:]
    return int(number) if number.isdecimal() else 0
