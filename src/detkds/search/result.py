"""What passes between a search and whoever measures its candidates."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
class Peers:
    """Whom a candidate is compared with at the rungs of successive halving.

    Attributes:
        group: candidates of one call with the same group are compared with one another.
        earlier: rung APs of the candidates measured before, completed or pruned, by canonical key; those of its
            own study alone, because candidates of different kinds of knowledge never stop each other.
    """

    group: str = ""
    earlier: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Evaluator(Protocol):
    """Measures candidates; it knows data and models, which a search never sees."""

    def evaluate(self, policies: Sequence[Policy], peers: Sequence[Peers] = ()) -> list[Result]:
        """Measure policies, possibly side by side; one result per policy, in the same order.

        A candidate that fails gives a ``FAILED`` result. What is raised ends the search, which resumes there.

        Args:
            policies: what to measure.
            peers: one per policy, for evaluators that stop losing candidates early; none: all are one group. Such
                an evaluator that shares its work out keeps a group whole, so that a resumed search decides alike.
        """
        ...


@dataclass(frozen=True)
class Record:
    """One stored trial.

    Attributes:
        study: the name of its study: a kind of knowledge, or ``combination``.
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
        twin_of: where its value was looked up (``study/number``); empty for a measured one.
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
    twin_of: str = ""
    rungs: tuple[float, ...] = ()
    epochs: float = 0.0

    @property
    def best_policy(self) -> Policy:
        """The policy to train again: with calibrated weights where there are any."""
        return self.policy if self.resolved is None else Policy.from_dict(self.resolved)

    @property
    def place(self) -> str:
        """``study/number``."""
        return f"{self.study}/{self.number}"

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
            "twin_of": self.twin_of,
            "rungs": list(self.rungs),
            "epochs": self.epochs,
            "key": self.key,
            "policy": self.policy.to_dict(),
            "resolved": None if self.resolved is None else dict(self.resolved),
        }


def rank(records: Sequence[Record]) -> list[Record]:
    """Completed records, best first: by AP, then AP50, then the earlier one; one per distinct policy."""
    done = [record for record in records if record.state is State.COMPLETE and record.ap is not None]
    done.sort(key=lambda record: fitness(record.state, record.ap, record.metrics, record.rungs), reverse=True)
    best: dict[str, Record] = {}
    for record in done:
        best.setdefault(record.key, record)
    return list(best.values())


def fitness(
    state: State | None, ap: float | None, metrics: Mapping[str, float], rungs: Sequence[float] = ()
) -> tuple[float, float, float]:
    """What candidates are compared by: a completed one beats a pruned one, a later rung an earlier, then AP, AP50."""
    ap50 = metrics.get("AP50", -math.inf)
    return (
        math.inf if state is State.COMPLETE else float(len(rungs)),
        ap if ap is not None and math.isfinite(ap) else -math.inf,
        ap50 if ap50 is not None and math.isfinite(ap50) else -math.inf,
    )
