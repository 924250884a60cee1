"""What is trained: a task, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from detkds.policy import Policy
from detkds.policy_search.result import HalvingGroup, Result, State
from detkds.training.digests import digest_of


@dataclass(frozen=True)
class Task:
    """One training of a student and its measurement.

    Attributes:
        setup: the name of the :class:`detkds.training.setup.TrainingSetup` it is trained in.
        policy: what the student learns from the teacher; weights that are ratios to the task's gradient are calibrated
            before the training.
        seed: of initial weights, data order and augmentation.
        inherit: whether the student starts from the teacher's neck and head.
        calibration_seed: of the student and the batches on which weights are calibrated and losses screened.
        screened: whether it is refused, without training, where its loss is no use; see
            :meth:`detkds.training.calibrate.TermProbe.refusal`.
        group: whom it is compared with where losing candidates stop early; None where it is trained to the end.
        members: the policies of all tasks of that group, itself included.
        world: processes that share the training, each with batches of its own.
        label: what it is called in tables and progress; no part of what it is.
        keep_weights: whether the trained weights are stored; no part of what it is.
    """

    setup: str
    policy: Policy
    seed: int
    inherit: bool = True
    calibration_seed: int = 0
    screened: bool = False
    group: HalvingGroup | None = None
    members: tuple[str, ...] = ()
    world: int = 1
    label: str = ""
    keep_weights: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether anything is measured before the training."""
        return self.screened or any(term.weighting != "absolute" for term in self.policy)

    @property
    def alone(self) -> bool:
        """Whether no teacher has a part in it, unless the student is its own."""
        return not self.inherit and not len(self.policy)

    def key(self, setup_digest: str) -> str:
        """One name for all that its result depends on: equal keys mean equal results.

        Args:
            setup_digest: of the content of its setup; see :func:`detkds.tasks.content.setup_digest`.
        """
        calibration = (self.calibration_seed, self.screened) if self.calibrated else None
        compared = None if self.group is None else (self.members, sorted(self.group.earlier.items()))
        return digest_of(setup_digest, self.policy.key, self.seed, self.inherit, calibration, compared, self.world)


@dataclass(frozen=True)
class TaskResult:
    """What became of a task.

    Attributes:
        state: how it ended.
        metrics: of the trained student, AP as fractions; empty where it was not measured.
        reason: why it was not completed.
        seconds: wall time spent on it.
        trained: whether training took place; what was trained counts against a search's budget.
        epochs: passes it was trained for.
        rungs: AP, a fraction, at each rung of successive halving that it reached.
        curve: one record per pass: mean losses by name, and ``validation_ap``, a fraction, where it was measured.
        policy: plain data of the policy as it was trained, with absolute weights; None where that is the task's own.
        weights: the digest of the stored weights; empty where none are stored.
    """

    state: State
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    trained: bool = True
    epochs: float = 0.0
    rungs: tuple[float, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()
    policy: Mapping[str, Any] | None = None
    weights: str = ""

    @property
    def ap(self) -> float | None:
        """AP in points (0-100); None where it was not measured."""
        ap = self.metrics.get("ap")
        return None if ap is None else 100 * ap

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskResult:
        """The inverse of :meth:`to_dict`.

        Raises:
            TypeError, ValueError, KeyError: the data have another form.
        """
        values = {**data, "state": State(data["state"]), "rungs": tuple(data["rungs"]), "curve": tuple(data["curve"])}
        return cls(**values)

    def as_measurement(self) -> Result:
        """In the terms of a search: AP in points, at the last rung where it was stopped there."""
        rungs = tuple(100 * ap for ap in self.rungs)
        metrics = {"AP50": 100 * self.metrics["ap50"]} if self.metrics.get("ap50") is not None else {}
        return Result(
            self.state,
            ap=rungs[-1] if self.state is State.PRUNED else self.ap,
            metrics=metrics,
            reason=self.reason,
            seconds=self.seconds,
            policy=None if self.policy is None else Policy.from_dict(self.policy),
            trained=self.trained,
            rungs=rungs,
            epochs=self.epochs,
        ).checked()
