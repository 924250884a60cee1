"""Successive halving: candidates that lose against others of their study stop before their training is over."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detkds.errors import ConfigError, Faults
from detkds.policy import Policy
from detkds.search.result import Peers, Result, SearchError, State


@dataclass(frozen=True)
class Halving:
    """When candidates are measured on their way, and how many go on.

    A candidate that arrives at a rung goes on if fewer than ceil(n / eta) of the n APs at this rung are larger than
    its own: those of its group that arrive with it, and those of the candidates its study measured before. Fewer than
    ``eta`` APs decide nothing, and all go on. Who goes on keeps training where it is, and who stopped stays so.

    With several ``brackets`` a candidate belongs to one of them by its policy, is compared within it alone, and
    bracket b (from 0) decides nothing at its first b rungs: a hedge against early AP that misleads.

    Source: successive halving (Jamieson and Talwalkar, 2016) in the form without waiting of ASHA (Li et al., 2020),
    which decides by what is known on arrival, but never takes up again what has stopped; brackets as in Hyperband
    (Li et al., 2018), with equal shares.

    Attributes:
        rungs: epochs after which AP is measured, ascending, each at least 1.
        eta: of ``eta`` candidates one goes on; at least 2.
        brackets: 1 for successive halving; at most one more than there are rungs.

    Raises:
        ConfigError: listing every fault.
    """

    rungs: tuple[int, ...]
    eta: int = 3
    brackets: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        faults = Faults("halving")
        steps = list(zip((0, *self.rungs), self.rungs, strict=False))
        if not steps or not all(_is_whole(after) and after > before for before, after in steps):
            faults.add(f"rungs: expected at least one epoch, ascending whole numbers >= 1, got {list(self.rungs)}")
        if not _is_whole(self.eta) or self.eta < 2:
            faults.add(f"eta: expected a whole number >= 2, got {self.eta!r}")
        if not _is_whole(self.brackets) or not 1 <= self.brackets <= len(self.rungs) + 1:
            most = len(self.rungs) + 1
            faults.add(f"brackets: expected a whole number from 1 to {most}, rungs and one, got {self.brackets!r}")
        faults.raise_as(ConfigError)

    def bracket(self, key: str) -> int:
        """The bracket of a policy, by its canonical key."""
        return zlib.crc32(key.encode()) % self.brackets

    def shares(self, epochs: int) -> tuple[float, ...]:
        """The share of candidates that is expected to train in each of ``epochs`` epochs."""
        passed = [sum(rung <= epoch for rung in self.rungs) for epoch in range(epochs)]
        kept = [[self.eta ** -max(0.0, rungs - bracket) for bracket in range(self.brackets)] for rungs in passed]
        return tuple(sum(row) / self.brackets for row in kept)


class Contest:
    """Successive halving among the candidates of one call of an evaluator.

    Args:
        halving: the rule.
        policies: the candidates.
        peers: as in :meth:`detkds.search.result.Evaluator.evaluate`.
    """

    def __init__(self, halving: Halving, policies: Sequence[Policy], peers: Sequence[Peers] = ()) -> None:
        self.halving = halving
        self.peers = list(peers) or [Peers()] * len(policies)
        brackets = [halving.bracket(policy.key) for policy in policies]
        self._pools = [(one.group, bracket) for one, bracket in zip(self.peers, brackets, strict=True)]
        self._arrived: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def arrive(self, rung: int, aps: Mapping[int, float]) -> dict[int, str]:
        """Candidates, by their place in the call, arrive at a rung (from 0) with these APs; those that stop, and why.

        Candidates of a group are compared with all of it that has arrived, now or in an earlier call of this method.
        """
        self._arrived[rung].update(aps)
        return {place: reason for place in aps if (reason := self._loses(rung, place))}

    def _loses(self, rung: int, place: int) -> str:
        """Why a candidate stops here; empty where it goes on."""
        bracket, ap = self._pools[place][1], self._arrived[rung][place]
        pool = [ap for other, ap in self._arrived[rung].items() if self._pools[other] == self._pools[place]]
        pool += [
            rungs[rung]
            for key, rungs in self.peers[place].earlier.items()
            if rung < len(rungs) and self.halving.bracket(key) == bracket
        ]
        better, best = sum(other > ap for other in pool), math.ceil(len(pool) / self.halving.eta)
        if rung < bracket or len(pool) < self.halving.eta or better < best:
            return ""
        epochs = self.halving.rungs
        go_on = f"the best {best} go on" if best > 1 else "the best goes on"
        return (
            f"rung {rung + 1} of {len(epochs)} (epoch {epochs[rung]}): AP {ap:.1f}, "
            f"place {better + 1} of {len(pool)}, {go_on}"
        )


def halved(
    halving: Halving, policies: Sequence[Policy], peers: Sequence[Peers], results: Sequence[Result]
) -> list[Result]:
    """What successive halving would have made of candidates that were measured to the end.

    Args:
        halving: the rule.
        policies, peers: the candidates, as in :meth:`detkds.search.result.Evaluator.evaluate`.
        results: of the candidates; completed ones with their AP at every rung. Time is shared out by epochs.

    Raises:
        SearchError: a completed result has not as many rungs as the rule.
    """
    found, contest, count = list(results), Contest(halving, policies, peers), len(halving.rungs)
    alive = [place for place, result in enumerate(results) if result.state is State.COMPLETE]
    faults = [
        f"{policies[place].key}: expected AP at {count} rungs (epochs {list(halving.rungs)}), got {len(result.rungs)}"
        for place in alive
        if len((result := results[place]).rungs) != count
    ]
    if faults:
        raise SearchError(faults)
    for rung, epoch in enumerate(halving.rungs):
        stops = contest.arrive(rung, {place: results[place].rungs[rung] for place in alive})
        for place, reason in stops.items():
            whole = results[place]
            found[place] = replace(
                whole,
                state=State.PRUNED,
                ap=whole.rungs[rung],
                metrics={},
                reason=reason,
                seconds=whole.seconds * epoch / whole.epochs if whole.epochs else whole.seconds,
                rungs=whole.rungs[: rung + 1],
                epochs=epoch,
            )
        alive = [place for place in alive if place not in stops]
    return found


def check_rungs(rungs: Sequence[int], epochs: int) -> None:
    """Make sure that every rung comes before the end of a training of so many epochs.

    Raises:
        ConfigError: one does not.
    """
    if max(rungs) >= epochs:
        raise ConfigError(
            f"halving: rungs: expected epochs below the last one, {epochs}, got {list(rungs)}; "
            "train for longer (proxy.epochs) or lower the rungs"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
