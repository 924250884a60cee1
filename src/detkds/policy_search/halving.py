"""Successive halving: candidates that lose against others of their study stop before their training is over."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from detkds.config import HalvingConfig
from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.policy_search.result import HalvingGroup, Result, SearchError, State, Trial


class SuccessiveHalving:
    """Successive halving among the candidates of one call of an evaluator.

    A candidate that arrives at a rung goes on if fewer than ceil(n / eta) of the n APs at this rung are larger than
    its own: those of its group that arrive with it, and those of the candidates its study measured before. Fewer than
    ``eta`` APs decide nothing, and all go on. Who goes on keeps training where it is, and who stopped stays so.

    With several ``brackets`` a candidate belongs to one of them by its policy, is compared within it alone, and
    bracket b (from 0) decides nothing at its first b rungs: a hedge against early AP that misleads.

    Source: successive halving (Jamieson and Talwalkar, 2016) in the form without waiting of ASHA (Li et al., 2020),
    which decides by what is known on arrival, but never takes up again what has stopped; brackets as in Hyperband
    (Li et al., 2018), with equal shares.

    Args:
        config: rungs, eta and brackets.
        policies: the candidates.
        groups: as in :meth:`detkds.policy_search.result.Evaluator.evaluate`.
    """

    def __init__(self, config: HalvingConfig, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> None:
        self.config = config
        self.groups = list(groups) or [HalvingGroup()] * len(policies)
        brackets = [bracket_of(policy.key, config) for policy in policies]
        self._pools = [(group.name, bracket) for group, bracket in zip(self.groups, brackets, strict=True)]
        self._reported: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def report(self, rung: int, aps: Mapping[int, float]) -> dict[int, str]:
        """Candidates, by their index in the call, arrive at a rung (from 0) with these APs; those that stop, and why.

        Candidates of a group are compared with all of it that has arrived, now or in an earlier call of this method.
        """
        self._reported[rung].update(aps)
        return {index: reason for index in aps if (reason := self._stop_reason(rung, index))}

    def _stop_reason(self, rung: int, index: int) -> str:
        """Why a candidate stops here; empty where it goes on."""
        bracket, ap = self._pools[index][1], self._reported[rung][index]
        pool = [ap for other, ap in self._reported[rung].items() if self._pools[other] == self._pools[index]]
        pool += [
            rungs[rung]
            for key, rungs in self.groups[index].earlier.items()
            if rung < len(rungs) and bracket_of(key, self.config) == bracket
        ]
        better, best = sum(other > ap for other in pool), math.ceil(len(pool) / self.config.eta)
        if rung < bracket or len(pool) < self.config.eta or better < best:
            return ""
        epochs = self.config.rungs
        go_on = f"the best {best} go on" if best > 1 else "the best goes on"
        return (
            f"rung {rung + 1} of {len(epochs)} (epoch {epochs[rung]}): AP {ap:.1f}, "
            f"place {better + 1} of {len(pool)}, {go_on}"
        )


def bracket_of(key: str, config: HalvingConfig) -> int:
    """The bracket of a policy, by its canonical key."""
    return zlib.crc32(key.encode()) % config.brackets


def expected_shares(config: HalvingConfig, epochs: int) -> tuple[float, ...]:
    """The share of candidates that is expected to train in each of ``epochs`` epochs."""
    passed = [sum(rung <= epoch for rung in config.rungs) for epoch in range(epochs)]
    kept = [[config.eta ** -max(0.0, rungs - bracket) for bracket in range(config.brackets)] for rungs in passed]
    return tuple(sum(row) / config.brackets for row in kept)


def halving_groups(trials: Iterable[Trial], numbers: Sequence[int], size: int) -> list[HalvingGroup]:
    """The groups of the trials of these numbers, which are to be measured now.

    A wave, the trials proposed before any of them is measured, is cut by the order of its trials into groups. What is
    known of other groups of its wave is no matter to a group, so that a search that was killed between two results
    goes on to compare the rest with the same candidates as if it had not been.

    Args:
        trials: all of the study.
        numbers: the trials to be measured.
        size: trials of a group.
    """
    begins: dict[int, int] = {}
    places: dict[int, tuple[int, int]] = {}
    reached: list[Trial] = []
    name = ""
    for trial in trials:
        if trial.wave is not None:
            wave, name = trial.wave[0], trial.study
            places[trial.number] = (wave, (trial.number - begins.setdefault(wave, trial.number)) // size)
        if trial.state in (State.COMPLETE, State.PRUNED) and trial.rungs and not trial.duplicate_of:
            reached.append(trial)
    groups: dict[tuple[int, int], HalvingGroup] = {}
    for place in {places[number] for number in numbers}:
        earlier = [t for t in reached if places[t.number][0] < place[0] or places[t.number] == place]
        groups[place] = HalvingGroup(f"{name}/{place[0]}/{place[1]}", {trial.key: trial.rungs for trial in earlier})
    return [groups[places[number]] for number in numbers]


def apply_halving(
    config: HalvingConfig, policies: Sequence[Policy], groups: Sequence[HalvingGroup], results: Sequence[Result]
) -> list[Result]:
    """What successive halving would have made of candidates that were measured to the end.

    Args:
        config: rungs, eta and brackets.
        policies, groups: the candidates, as in :meth:`detkds.policy_search.result.Evaluator.evaluate`.
        results: of the candidates; completed ones with their AP at every rung. Time is shared out by epochs.

    Raises:
        SearchError: a completed result has not as many rungs as the rule.
    """
    results, halving, count = list(results), SuccessiveHalving(config, policies, groups), len(config.rungs)
    alive = [index for index, result in enumerate(results) if result.state is State.COMPLETE]
    faults = [
        f"{policies[index].key}: expected AP at {count} rungs (epochs {list(config.rungs)}), "
        f"got {len(results[index].rungs)}"
        for index in alive
        if len(results[index].rungs) != count
    ]
    if faults:
        raise SearchError(faults)
    for rung, epoch in enumerate(config.rungs):
        stops = halving.report(rung, {index: results[index].rungs[rung] for index in alive})
        for index, reason in stops.items():
            whole = results[index]
            results[index] = replace(
                whole,
                state=State.PRUNED,
                ap=whole.rungs[rung],
                metrics={},
                reason=reason,
                seconds=whole.seconds * epoch / whole.epochs if whole.epochs else whole.seconds,
                rungs=whole.rungs[: rung + 1],
                epochs=epoch,
            )
        alive = [index for index in alive if index not in stops]
    return results


def check_rungs(rungs: Sequence[int], epochs: int) -> None:
    """Make sure that every rung comes before the end of a training of this many epochs.

    Raises:
        ConfigError: one does not.
    """
    if max(rungs) >= epochs:
        raise ConfigError(
            f"halving: rungs: expected epochs below the last one, {epochs}, got {list(rungs)}; "
            "train for longer (proxy.epochs) or lower the rungs"
        )
