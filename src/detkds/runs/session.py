"""A run at work: its folder, its teacher, and the scheduler that every training goes through."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkds.detectors.weights import load_weights
from detkds.errors import ConfigError
from detkds.files import append_line, read_lines
from detkds.policy import Policy
from detkds.policy_search.result import State
from detkds.progress import Progress
from detkds.progress_sinks import PROGRESS_FILE, ProgressFile
from detkds.runs.executors import count_workers, make_trainer, open_executor
from detkds.runs.folder import open_folder
from detkds.runs.plan import COMPARISON, TEACHING, Plan
from detkds.tasks.executor import Executor, InlineExecutor
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.store import Store
from detkds.tasks.task import Task, TaskResult
from detkds.training.digests import detector_digest, digest_of
from detkds.training.loop import TrainingObserver

TIMING, TEACHER_FILE = "timing.jsonl", "teacher.safetensors"


@dataclass
class Session:
    """A run at work in its folder.

    Attributes:
        plan: what the run was resolved to; its teacher has weights after :meth:`prepare_teacher`.
        folder: of the run, held by this process.
        progress: told of everything.
        store: of results and weights.
    """

    plan: Plan
    folder: Path
    progress: Progress
    store: Store

    def prepare_teacher(self, observer: TrainingObserver | None = None, beside: Sequence[Task] = ()) -> dict[str, Any]:
        """Give the plan's teacher its weights, training it where it has none, and measure it on the test images.

        Args:
            observer: is told of every step of its training.
            beside: tasks that need no teacher, which other workers train meanwhile.

        Returns:
            Its metrics, AP as fractions; none where students teach themselves.

        Raises:
            ConfigError: its training failed.
        """
        plan = self.plan
        self.progress.stage("teacher", 1)
        plan.teacher.requires_grad_(False).eval()
        if plan.config.self_taught:
            self.progress.note("teacher: the moving average of each student's own weights")
            return {}
        if plan.teacher.info.layout.kind == "none":
            self.progress.note("teacher: feature maps alone, there is nothing to measure")
            return {}
        with self.clocked("teacher"):
            result = self._measured_teacher() if plan.teacher_ready else self._trained_teacher(observer, beside)
        kind = {"mask": "mask AP", "box": "box AP"}[result.metrics.get("kind", "box")]
        self.progress.note(f"teacher: {kind} {result.ap:.1f} on the test images")
        return dict(result.metrics)

    @contextmanager
    def scheduler(self) -> Iterator[Scheduler]:
        """Turns tasks into results with the executor that the configuration asks for; the teacher must be ready."""
        executor = open_executor(self.plan, self.folder, self.progress.note)
        try:
            yield self.scheduler_on(executor)
        finally:
            executor.close()

    def scheduler_on(self, executor: Executor) -> Scheduler:
        """Turns tasks into results with this executor."""
        return Scheduler(self.store, executor, self.plan.digest_for, self.progress)

    @contextmanager
    def clocked(self, stage: str) -> Iterator[None]:
        """Add the wall time of a stage to the run's, also where it ends early."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = round(time.perf_counter() - started, 3)
            append_line(self.folder / TIMING, {"stage": stage, "seconds": seconds})

    def seconds(self) -> dict[str, float]:
        """Spent in each stage, over all processes that worked on this run."""
        spent: dict[str, float] = {}
        for record in read_lines(self.folder / TIMING):
            stage, seconds = str(record.get("stage")), record.get("seconds")
            if isinstance(seconds, int | float):
                spent[stage] = spent.get(stage, 0.0) + seconds
        return spent

    def _trained_teacher(self, observer: TrainingObserver | None, beside: Sequence[Task]) -> TaskResult:
        task = teacher_task(self.plan, self.plan.config.seed)
        inline = InlineExecutor(make_trainer(self.plan, self.folder, self.progress.note, observer=observer))
        scheduler = self.scheduler_on(inline)
        if beside and count_workers(self.plan) > 1 and self.store.get(scheduler.key(task)) is None:
            self.progress.stage("teacher", 1 + len(beside))
            with self.scheduler() as pooled:
                pooled.run([task, *beside])
        [result] = scheduler.run([task])
        weights = scheduler.weights(task)
        load_weights(self.plan.teacher, str(weights))
        self.plan.teacher.to(self.plan.device).requires_grad_(False).eval()
        deliver(weights, self.folder / TEACHER_FILE)
        return result

    def _measured_teacher(self) -> TaskResult:
        """A teacher that came with its weights is measured once."""
        task = Task(COMPARISON, Policy(), self.plan.config.seed, label="teacher")
        key = digest_of("measured", self.plan.setup_digest(COMPARISON), detector_digest(self.plan.teacher))
        result = self.store.get(key)
        if result is None:
            metrics = self.plan.setups[COMPARISON].measure(self.plan.teacher).to_dict()
            result = self.store.put(key, task, TaskResult(State.COMPLETE, metrics=metrics))
        return result


@contextmanager
def open_session(plan: Plan, progress: Progress) -> Iterator[Session]:
    """Hold the run's folder; what stages leave unfinished stays there for the next process, and goes with the last.

    Raises:
        ConfigError: the folder is held by another process, cannot be written, or belongs to another run.
    """
    with open_folder(plan.config, plan.content, progress) as folder:
        progress.add_sink(ProgressFile(folder / PROGRESS_FILE))
        parent = None if plan.config.parent is None else plan.config.runs / plan.config.parent
        store = Store(folder, progress.note, parent=parent)
        yield Session(plan, folder, progress, store)
        store.remove_states()


def teacher_task(plan: Plan, seed: int) -> Task:
    """The training of the teacher.

    Raises:
        ConfigError: it is given with its weights.
    """
    if TEACHING not in plan.setups:
        raise ConfigError(
            "teacher.train: expected how to train the teacher, got nothing; its weights are given instead"
            if plan.config.teacher.train is None
            else f"teacher.weights: the teacher is loaded from {plan.config.teacher.weights}, not trained; "
            "leave weights out to train it"
        )
    return Task(TEACHING, Policy(), seed, inherit=False, label="teacher", keep_weights=True)


def deliver(weights: Path, target: Path) -> None:
    """Put a copy of a weights file where a user looks for it, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.copyfile(weights, scratch)
    scratch.replace(target)
