"""Trains tasks in this process, as many side by side as fit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from detkds.config import HalvingConfig
from detkds.detectors.weights import weights_content
from detkds.errors import PolicyError
from detkds.policy import Policy, Term
from detkds.policy_search.halving import SuccessiveHalving
from detkds.policy_search.result import State
from detkds.tasks.task import Task, TaskResult
from detkds.training.calibrate import TermProbe, calibrate, probe_terms, unit
from detkds.training.checkpoint import StateFiles
from detkds.training.loop import TrainingObserver
from detkds.training.population import Rungs, StudentSpec, TrainResult, train_population
from detkds.training.processes import ALONE, Processes
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer
from detkds.training.teacher import TeacherForward

OnFraction = Callable[[str, float], None]
"""Told a task's key, and which fraction of its training is done."""


@dataclass(frozen=True)
class Outcome:
    """The result of the task of this key.

    Attributes:
        weights: of the student, as the content of a safetensors file, where they are kept.
        transient: whether another try may end otherwise, so that the result is not stored.
    """

    key: str
    result: TaskResult
    weights: bytes | None = None
    transient: bool = False


class Trainer:
    """Screens, calibrates, trains and measures tasks, ``population`` of them at a time.

    All tasks of one setup and seed share initial weights, batches, augmentation and teacher outputs.

    Args:
        setups: by name.
        population: how many students train side by side; halved for the rest of a call where memory runs out.
        calibration_batches: on which losses are screened and relative weights measured.
        halving: stops losing candidates early, where tasks have a group.
        teacher_of: from a setup's name to what gives the teacher's outputs there; None: the teacher, run on each batch.
        states: where unfinished trainings are kept, and taken up from.
        processes: those that share each training.
        observer: is told of every step, beside the trainer's own.
    """

    def __init__(
        self,
        setups: Mapping[str, TrainingSetup],
        *,
        population: int = 8,
        calibration_batches: int = 4,
        halving: HalvingConfig | None = None,
        teacher_of: Callable[[str], TeacherForward | None] = lambda setup: None,
        states: StateFiles | None = None,
        processes: Processes = ALONE,
        observer: TrainingObserver | None = None,
    ) -> None:
        self.setups = setups
        self.population = population
        self.calibration_batches = calibration_batches
        self.halving = halving
        self.teacher_of = teacher_of
        self.states = states
        self.processes = processes
        self.observer = observer
        self._probes: dict[tuple[str, int], dict[Term, TermProbe]] = {}

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction = lambda key, done: None) -> Iterator[Outcome]:
        """Train tasks, given by their keys, and yield what became of each as it is known."""
        ready: dict[str, Policy] = {}
        for key, task in tasks.items():
            screened = self.processes.share(self._screened(task, list(tasks.values())))
            if isinstance(screened, Policy):
                ready[key] = screened
            else:
                yield Outcome(key, screened)
        groups: dict[tuple[str, int, int], list[str]] = {}
        for key in ready:
            task = tasks[key]
            done = self.states.epochs(key) if self.states is not None and task.group is None else 0
            groups.setdefault((task.setup, task.seed, done), []).append(key)
        for waiting in groups.values():
            yield from self._in_populations(waiting, tasks, ready, on_fraction)

    def _in_populations(
        self, waiting: Sequence[str], tasks: Mapping[str, Task], ready: Mapping[str, Policy], on_fraction: OnFraction
    ) -> Iterator[Outcome]:
        """Train tasks of one setup and seed; a task that does not fit into memory alone has failed."""
        population, raced = self.population, [key for key in waiting if tasks[key].group is not None]
        rungs = None if self.halving is None or not raced else _rungs(self.halving, raced, tasks)
        while waiting:
            chunk = next_population([tasks[key] for key in waiting], population)
            keys = waiting[:chunk]
            try:
                results = self._train(keys, tasks, ready, rungs, on_fraction)
            except torch.OutOfMemoryError as error:
                gc.collect()
                torch.cuda.empty_cache()
                if chunk > 1:
                    population = chunk // 2
                    continue
                reason = f"out of memory when trained alone: {error}"
                yield Outcome(keys[0], TaskResult(State.FAILED, reason=reason), transient=True)
            else:
                for result in results:
                    yield _outcome(result, tasks[result.key], ready[result.key])
            if self.states is not None and self.processes.first:
                for key in keys:
                    self.states.remove(key)
            waiting = waiting[chunk:]

    def _train(
        self,
        keys: Sequence[str],
        tasks: Mapping[str, Task],
        ready: Mapping[str, Policy],
        rungs: Rungs | None,
        on_fraction: OnFraction,
    ) -> list[TrainResult]:
        first = tasks[keys[0]]
        setup = self.setups[first.setup]
        return train_population(
            setup,
            [StudentSpec(key, ready[key], tasks[key].inherit) for key in keys],
            seed=first.seed,
            teacher=self.teacher_of(first.setup),
            rungs=rungs,
            processes=self.processes,
            states=self.states if rungs is None else None,
            observer=_Fractions(setup.config.epochs, on_fraction, self.observer),
        )

    def _screened(self, task: Task, together: Sequence[Task]) -> Policy | TaskResult:
        """The policy with absolute weights, or the result of one that is no use to train or cannot be trained."""
        if not task.calibrated:
            return task.policy
        probes = self._probed(task, [other for other in together if other.calibrated])
        refusals = [reason for term in task.policy if (reason := probes[unit(term)].refusal(term))]
        if refusals and task.screened:
            return TaskResult(State.FILTERED, reason="; ".join(refusals), trained=False)
        failures = [failure for term in task.policy if (failure := probes[unit(term)].failure)]
        if failures:
            return TaskResult(State.FAILED, reason="; ".join(failures), trained=False)
        try:
            return calibrate(task.policy, probes)
        except PolicyError as error:  # a gradient so faint or so large that no weight makes up for it
            return TaskResult(State.FAILED, reason=str(error), trained=False)

    def _probed(self, task: Task, together: Sequence[Task]) -> dict[Term, TermProbe]:
        """What is known of the task's terms; those of all tasks alike are measured at once, and remembered."""
        place = task.setup, task.calibration_seed
        known = self._probes.setdefault(place, {})
        if any(unit(term) not in known for term in task.policy):
            setup = self.setups[task.setup]
            assert setup.teacher is not None
            alike = [other for other in together if (other.setup, other.calibration_seed) == place]
            terms = [term for other in alike for term in other.policy if unit(term) not in known]
            batches = islice(setup.batches(task.calibration_seed)(0), self.calibration_batches)
            scratch = copy.deepcopy(setup.build_student(task.calibration_seed, True)).to(setup.device)
            on_device = [batch.to(setup.device) for batch in batches]
            known |= probe_terms(terms, scratch, setup.teacher, on_device, seed=task.calibration_seed)
        return known


def next_population(waiting: Sequence[Task], population: int) -> int:
    """How many of the first tasks to train side by side: at most ``population``.

    Tasks that are compared with one another are parted only where they stand at the beginning.
    """
    count = min(population, len(waiting))
    if count < len(waiting) and (group := waiting[count].group) is not None and group.name:
        begin = next(place for place, task in enumerate(waiting) if task.group and task.group.name == group.name)
        count = min(count, begin) or count
    return count


class _Fractions(TrainingObserver):
    """Tells which fraction of each training is done, and passes everything on."""

    def __init__(self, epochs: int, on_fraction: OnFraction, inner: TrainingObserver | None) -> None:
        inner = inner or TrainingObserver()
        self.clock = inner.clock
        self.step = inner.step
        self._epochs, self._on_fraction, self._inner = epochs, on_fraction, inner

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        for student in students:
            self._on_fraction(student.key, done / self._epochs)
        self._inner.epoch(done, students)


def _rungs(halving: HalvingConfig, keys: Sequence[str], tasks: Mapping[str, Task]) -> Rungs:
    """Successive halving in the terms of training: tasks by key, AP as a fraction."""
    groups = [group for key in keys if (group := tasks[key].group) is not None]
    rule = SuccessiveHalving(halving, [tasks[key].policy for key in keys], groups)
    places = {key: place for place, key in enumerate(keys)}

    def stops(rung: int, aps: Mapping[str, float]) -> dict[str, str]:
        points = {places[key]: 100 * ap for key, ap in aps.items()}
        return {keys[place]: reason for place, reason in rule.report(rung, points).items()}

    return Rungs(halving.rungs, stops)


def _outcome(trained: TrainResult, task: Task, policy: Policy) -> Outcome:
    state, reason = State.COMPLETE, ""
    if trained.stopped is not None:
        state, reason = State.PRUNED, trained.stopped
    elif trained.failure is not None or trained.metrics is None:
        state, reason = State.FAILED, trained.failure or "not measured"
    result = TaskResult(
        state,
        metrics=trained.metrics.to_dict() if trained.metrics is not None and state is State.COMPLETE else {},
        reason=reason,
        seconds=round(trained.seconds, 3),
        epochs=trained.epochs,
        rungs=trained.rungs,
        curve=trained.curve,
        policy=policy.to_dict() if policy.key != task.policy.key else None,
    )
    kept = task.keep_weights and state is State.COMPLETE
    return Outcome(trained.key, result, weights_content(trained.student) if kept else None)
