"""Measures candidates by training their students side by side on the proxy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import cast

from detkds.policy import Policy
from detkds.registry import EVALUATORS
from detkds.search.result import Peers, Result, State
from detkds.structures import Batch
from detkds.training.calibrate import calibrate, probe_terms, unit
from detkds.training.loop import AskTeacher, OnEpoch
from detkds.training.population import Candidate, Setting, Trained, train_in_populations


@EVALUATORS.register("population")
class PopulationEvaluator:
    """Filters, calibrates, trains and validates candidates, ``population`` of them at a time.

    All candidates share initial weights, batches, augmentation and teacher outputs: they differ by their policy alone.

    Args:
        setting: the proxy: its test data are the part of the training images kept for validation.
        population: how many students train side by side; halved for good where memory runs out.
        calibration_batches: on which losses are filtered and relative weights measured.
        seed: of initial weights and data order, the same for every candidate.
        ask_teacher: gives the teacher's outputs for the batches of ``seed``; by default the teacher is run on each.
        on_epoch: called with the epochs that a population has done.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        population: int = 8,
        calibration_batches: int = 4,
        seed: int = 0,
        ask_teacher: AskTeacher | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.setting = setting
        self.population = population
        self.seed = seed
        self.ask_teacher = ask_teacher
        self.on_epoch = on_epoch
        batches = islice(setting.batches(seed)(0), calibration_batches)
        self.calibration: list[Batch] = [batch.to(setting.device) for batch in batches]

    def evaluate(self, policies: Sequence[Policy], peers: Sequence[Peers] = ()) -> list[Result]:
        """One result per policy, in order."""
        results: list[Policy | Result] = list(self.screen(policies))
        waiting = [i for i, policy in enumerate(results) if isinstance(policy, Policy)]
        candidates = [Candidate(str(i), cast(Policy, results[i])) for i in waiting]
        for trained in train_in_populations(
            self.setting,
            candidates,
            seed=self.seed,
            population=self.population,
            ask_teacher=self.ask_teacher,
            on_epoch=self.on_epoch,
        ):
            for one in trained:
                results[int(one.candidate.name)] = _result(one)
        return cast(list[Result], results)

    def screen(self, policies: Sequence[Policy]) -> list[Policy | Result]:
        """Each policy with absolute weights, or the ``FILTERED`` result of one that is no use to train."""
        assert self.setting.teacher is not None
        scratch = copy.deepcopy(self.setting.build_student(self.seed, True)).to(self.setting.device)
        terms = [term for policy in policies for term in policy]
        probes = probe_terms(terms, scratch, self.setting.teacher, self.calibration, seed=self.seed)
        screened: list[Policy | Result] = []
        for policy in policies:
            reasons = [reason for term in policy if (reason := probes[unit(term)].refusal(term))]
            if reasons:
                screened.append(Result(State.FILTERED, reason="; ".join(reasons), trained=False))
            else:
                screened.append(calibrate(policy, probes))
        return screened


def _result(trained: Trained) -> Result:
    if trained.failure is not None or trained.metrics is None:
        return Result(State.FAILED, reason=trained.failure or "not measured", policy=trained.candidate.policy)
    return Result(
        State.COMPLETE,
        ap=100 * trained.metrics.ap,
        metrics={"AP50": 100 * trained.metrics.ap50},
        seconds=trained.seconds,
        policy=trained.candidate.policy,
    ).checked()
