"""Measures candidates by training their students side by side on the proxy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import cast

from detkds.config import HalvingConfig
from detkds.errors import PolicyError
from detkds.policy import Policy, Term
from detkds.search.halving import SuccessiveHalving, check_rungs
from detkds.search.result import HalvingGroup, Result, State
from detkds.structures import Batch
from detkds.training.calibrate import TermProbe, calibrate, probe_terms, unit
from detkds.training.loop import AskTeacher, OnEpoch
from detkds.training.population import Candidate, Rungs, Setting, Trained, train_in_populations


class PopulationEvaluator:
    """Filters, calibrates, trains and validates candidates, ``population`` of them at a time.

    All candidates share initial weights, batches, augmentation and teacher outputs: they differ by their policy alone.

    Args:
        setting: the proxy: its test data are the part of the training images kept for validation.
        population: how many students train side by side; halved for the rest of a call where memory runs out.
        calibration_batches: on which losses are filtered and relative weights measured.
        halving: stops losing candidates early; None trains all to the end.
        filter: refuses candidates whose loss is no use before they are trained; without it they are trained too, and
            fail or score.
        seed: of initial weights and data order, the same for every candidate.
        ask_teacher: gives the teacher's outputs for the batches of ``seed``; by default the teacher is run on each.
        on_epoch: called with the epochs that a population has done.

    Raises:
        ConfigError: a rung of ``halving`` lies at or behind the end of the setting's training.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        population: int = 8,
        calibration_batches: int = 4,
        halving: HalvingConfig | None = None,
        filter: bool = True,
        seed: int = 0,
        ask_teacher: AskTeacher | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        if halving is not None:
            check_rungs(halving.rungs, setting.config.epochs)
        self.setting = setting
        self.halving = halving
        self.filter = filter
        self.population = population
        self.seed = seed
        self.ask_teacher = ask_teacher
        self.on_epoch = on_epoch
        batches = islice(setting.batches(seed)(0), calibration_batches)
        self.calibration: list[Batch] = [batch.to(setting.device) for batch in batches]

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """One result per policy, in order; without ``groups`` all are compared with one another."""
        rungs = None if self.halving is None else _rungs(SuccessiveHalving(self.halving, policies, groups))
        names = [group.name for group in groups] if self.halving and groups else [""] * len(policies)
        results: list[Policy | Result] = list(self.screen(policies))
        waiting = [i for i, policy in enumerate(results) if isinstance(policy, Policy)]
        candidates = [Candidate(str(i), cast(Policy, results[i]), group=names[i]) for i in waiting]
        for trained in train_in_populations(
            self.setting,
            candidates,
            seed=self.seed,
            population=self.population,
            ask_teacher=self.ask_teacher,
            rungs=rungs,
            on_epoch=self.on_epoch,
        ):
            for one in trained:
                results[int(one.candidate.name)] = _result(one)
        return cast(list[Result], results)

    def screen(self, policies: Sequence[Policy]) -> list[Policy | Result]:
        """Each policy with absolute weights, or the ``FILTERED`` result of one that is no use to train.

        Without the filter only what cannot be trained at all has a result: ``FAILED``.
        """
        assert self.setting.teacher is not None
        scratch = copy.deepcopy(self.setting.build_student(self.seed, True)).to(self.setting.device)
        terms = [term for policy in policies for term in policy]
        probes = probe_terms(terms, scratch, self.setting.teacher, self.calibration, seed=self.seed)
        return [self._screened(policy, probes) for policy in policies]

    def _screened(self, policy: Policy, probes: dict[Term, TermProbe]) -> Policy | Result:
        refusals = [reason for term in policy if (reason := probes[unit(term)].refusal(term))]
        if refusals and self.filter:
            return Result(State.FILTERED, reason="; ".join(refusals), trained=False)
        failures = [failure for term in policy if (failure := probes[unit(term)].failure)]
        if failures:
            return Result(State.FAILED, reason="; ".join(failures), trained=False)
        try:
            return calibrate(policy, probes)
        except PolicyError as error:  # a gradient so faint or so large that no weight makes up for it
            return Result(State.FAILED, reason=str(error), trained=False)


def _rungs(halving: SuccessiveHalving) -> Rungs:
    """Successive halving in the terms of training: candidates by name, AP as a fraction."""

    def stops(rung: int, aps: Mapping[str, float]) -> dict[str, str]:
        points = {int(name): 100 * ap for name, ap in aps.items()}
        return {str(place): reason for place, reason in halving.report(rung, points).items()}

    return Rungs(halving.config.rungs, stops)


def _result(trained: Trained) -> Result:
    rungs = tuple(100 * ap for ap in trained.rungs)
    whole = Result(
        State.COMPLETE,
        seconds=trained.seconds,
        policy=trained.candidate.policy,
        rungs=rungs,
        epochs=trained.epochs,
    )
    if trained.stopped is not None:
        return replace(whole, state=State.PRUNED, ap=rungs[-1], reason=trained.stopped)
    if trained.failure is not None or trained.metrics is None:
        return replace(whole, state=State.FAILED, reason=trained.failure or "not measured")
    metrics = trained.metrics
    return replace(whole, ap=100 * metrics.ap, metrics={"AP50": 100 * metrics.ap50}).checked()
