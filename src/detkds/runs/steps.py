"""The losses of a training, step by step, as JSON lines: so that distillation is seen to happen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from detkds.files import write_text
from detkds.training.loop import TrainingObserver
from detkds.training.student import StudentTrainer


class StepLog(TrainingObserver):
    """Writes every ``every``-th step (and the first): step, learning rate and each loss by name.

    A resumed training overwrites the lines of steps that it repeats.
    """

    def __init__(self, path: Path, *, steps_per_epoch: int, every: int = 10) -> None:
        super().__init__()
        self.path = path
        self.every = every
        self.steps_per_epoch = steps_per_epoch
        self._began = False

    def step(self, student: StudentTrainer, losses: dict[str, Tensor]) -> None:
        """Take the losses of a student's step."""
        step = student.steps
        if not self._began:
            self._begin(step)
        if step % self.every and step != 1:
            return
        record: dict[str, Any] = {
            "step": step,
            "epoch": (step - 1) // self.steps_per_epoch,
            "lr": student.optimizer.param_groups[0]["lr"],
            "losses": {name: round(loss.item(), 6) for name, loss in losses.items()},
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _begin(self, step: int) -> None:
        """Keep the lines before ``step``, the first one of this process."""
        self._began = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a crash
