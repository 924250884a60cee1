"""What passes between a search and whoever measures its candidates."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from detkds.errors import UserError
from detkds.policy import Policy


class SearchError(UserError):
    """A search that cannot start or that found nothing."""


class State(enum.StrEnum):
    """How the measurement of a candidate ended.

    ``COMPLETE``: measured. ``FILTERED``: refused before training, at no cost. ``PRUNED``: stopped early because it
    was losing. ``FAILED``: an error; it says nothing about the candidate's quality and is never AP 0.
    """

    COMPLETE = "complete"
    FILTERED = "filtered"
    PRUNED = "pruned"
    FAILED = "failed"


REFUSED = (State.FILTERED, State.FAILED)
"""States without any measurement."""


@dataclass(frozen=True)
class Result:
    """The measurement of one candidate.

    Attributes:
        state: how it ended.
        ap: proxy validation AP, larger is better; for ``PRUNED`` that at the last rung; None where there is none.
        metrics: further numbers by name; ``"AP50"`` breaks ties of AP.
        reason: why it was not completed.
        seconds: wall time spent on it.
        policy: the policy as it was trained, with calibrated absolute weights; None where it is the proposed one.
        trained: whether training took place; what was trained counts against the budget.
        rungs: AP at each rung of successive halving it reached, the one it lost at included.
        epochs: passes it was trained for, so that the cost of candidates that stopped early can be summed.
    """

    state: State
    ap: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    policy: Policy | None = None
    trained: bool = True
    rungs: tuple[float, ...] = ()
    epochs: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether it counts against a budget of candidate trainings."""
        return self.trained and self.state is not State.FILTERED

    def checked(self) -> Result:
        """The same result, or a failed one where a completed measurement has no finite AP."""
        if self.state is not State.COMPLETE or (self.ap is not None and math.isfinite(self.ap)):
            return self
        return replace(self, state=State.FAILED, ap=None, reason=f"AP is not a finite number: {self.ap}")


@dataclass(frozen=True)
class HalvingGroup:
    """Candidates that are compared with one another at the rungs of successive halving.

    Attributes:
        name: candidates of one call with the same name are compared with one another.
        earlier: rung APs of the candidates measured before, completed or pruned, by canonical key; those of the same
            study alone, because candidates of different kinds of knowledge never stop each other.
    """

    name: str = ""
    earlier: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Evaluator(Protocol):
    """Measures candidates; it knows data and models, which a search never sees."""

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """Measure policies, possibly side by side; one result per policy, in the same order.

        A candidate that fails gives a ``FAILED`` result. What is raised ends the search, which resumes there.

        Args:
            policies: what to measure.
            groups: one per policy, for evaluators that stop losing candidates early; none: all are one group. Such
                an evaluator that distributes its work keeps a group together, so that a resumed search decides alike.
        """
        ...


@dataclass(frozen=True)
class Trial:
    """One proposed policy and what came of it.

    Attributes:
        study: the name of its study: a kind of knowledge, ``combination`` or ``joint``.
        number: its number in the study.
        state: how it ended; None while it runs.
        params: the option of each gene.
        policy: the proposed policy.
        key: the text of the policy's canonical form.
        ap, metrics, reason, seconds, rungs, epochs: as in :class:`Result`.
        resolved: plain data of the policy as it was trained, with absolute weights; None where it is the proposed one.
        counts: whether it was trained, and so counts against the budget.
        role: what the sampler proposed it as (``init``, ``mutant``, ``newcomer``, ``seed`` ...).
        iteration: the sampler's iteration, or the slot of the initial population.
        parents: numbers of the trials it was made from.
        wave: index and size of the wave it was proposed in; None for what was given.
        duplicate_of: where its value was looked up (``study/number``); empty for a measured one.
    """

    study: str
    number: int
    state: State | None
    params: Mapping[str, Any]
    policy: Policy
    key: str
    ap: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0
    resolved: Mapping[str, Any] | None = None
    counts: bool = False
    role: str = ""
    iteration: int = 0
    parents: tuple[int, ...] = ()
    wave: tuple[int, int] | None = None
    duplicate_of: str = ""
    rungs: tuple[float, ...] = ()
    epochs: float = 0.0

    @cached_property
    def fitness(self) -> tuple[float, float, float]:
        """What trials are compared by: a completed one beats a pruned one, a later rung an earlier, then AP, AP50."""
        ap50 = self.metrics.get("AP50", -math.inf)
        return (
            math.inf if self.state is State.COMPLETE else float(len(self.rungs)),
            self.ap if self.ap is not None and math.isfinite(self.ap) else -math.inf,
            ap50 if math.isfinite(ap50) else -math.inf,
        )

    @property
    def best_policy(self) -> Policy:
        """The policy to train again: with calibrated weights where there are any."""
        return self.policy if self.resolved is None else Policy.from_dict(self.resolved)

    @property
    def place(self) -> str:
        """``study/number``."""
        return f"{self.study}/{self.number}"

    def measured(self, result: Result) -> Trial:
        """The trial with its measurement."""
        result = result.checked()
        calibrated = result.policy is not None and result.policy != self.policy
        return replace(
            self,
            state=result.state,
            ap=float(result.ap) if result.ap is not None and math.isfinite(result.ap) else None,
            metrics={name: float(value) for name, value in result.metrics.items() if math.isfinite(value)},
            reason=result.reason,
            seconds=round(float(result.seconds), 3),
            resolved=result.policy.to_dict() if calibrated and result.policy is not None else None,
            counts=result.counts,
            rungs=tuple(map(float, result.rungs)),
            epochs=round(float(result.epochs), 3),
        )

    def looked_up(self, original: Trial) -> Trial:
        """The trial with the value of another one that is the same loss, at no cost."""
        copied = {name: getattr(original, name) for name in ("state", "ap", "metrics", "reason", "resolved", "rungs")}
        return replace(self, **copied, counts=False, duplicate_of=original.place)

    def unmeasured(self) -> Trial:
        """The trial as it was proposed."""
        names = ("study", "number", "params", "policy", "key", "role", "iteration", "parents", "wave")
        return Trial(state=None, **{name: getattr(self, name) for name in names})

    @property
    def repeats(self) -> bool:
        """Whether its value was looked up in an earlier trial of its own study."""
        return self.duplicate_of.startswith(f"{self.study}/")

    def known_before(self, number: int) -> bool:
        """Whether its value was looked up in another study, or in a trial before this number."""
        original = self.duplicate_of.rpartition("/")[2]
        return bool(original) and (not self.repeats or int(original) < number)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON lines."""
        return {
            "study": self.study,
            "number": self.number,
            "state": self.state.value if self.state else "running",
            "ap": self.ap,
            "metrics": dict(self.metrics),
            "reason": self.reason,
            "seconds": self.seconds,
            "counts": self.counts,
            "role": self.role,
            "iteration": self.iteration,
            "duplicate_of": self.duplicate_of,
            "rungs": list(self.rungs),
            "epochs": self.epochs,
            "key": self.key,
            "policy": self.policy.to_dict(),
            "resolved": None if self.resolved is None else dict(self.resolved),
        }


def rank(trials: Sequence[Trial], *, stopped: bool = False) -> list[Trial]:
    """Completed trials, best first: by AP, then AP50, then the earlier one; one per distinct policy.

    Args:
        stopped: whether those that were stopped early follow, who got further first.
    """
    states = (State.COMPLETE, State.PRUNED) if stopped else (State.COMPLETE,)
    measured = [trial for trial in trials if trial.state in states and trial.ap is not None]
    best: dict[str, Trial] = {}
    for trial in sorted(measured, key=lambda trial: trial.fitness, reverse=True):
        best.setdefault(trial.key, trial)
    return list(best.values())
