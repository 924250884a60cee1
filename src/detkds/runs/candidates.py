"""The candidates of a search as tasks: trained on the proxy, measured on the validation images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from detkds.policy import Policy, Term
from detkds.policy_search.result import HalvingGroup, Result
from detkds.runs.plan import SEARCH, Plan
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.task import Task
from detkds.training.calibrate import probe_terms, unit


class ProxyEvaluator:
    """Measures policies on the proxy: an :class:`detkds.policy_search.result.Evaluator`.

    Args:
        scheduler: trains what is not stored.
        labels: what the candidates of the next call are called, in order; by default their policies.
    """

    def __init__(self, plan: Plan, scheduler: Scheduler) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.labels: Sequence[str] = ()

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """One result per policy, in order; without ``groups`` all are compared with one another."""
        search = self.plan.config.search
        compared: list[HalvingGroup | None] = [None] * len(policies)
        if self.plan.halving is not None:
            compared = list(groups) or [HalvingGroup()] * len(policies)
        members: dict[str, list[str]] = {}
        for policy, own in zip(policies, compared, strict=True):
            members.setdefault(own.name if own else "", []).append(policy.key)
        labels = self.labels if len(self.labels) == len(policies) else [str(policy) for policy in policies]
        tasks = [
            Task(
                SEARCH,
                policy,
                search.seed,
                calibration_seed=search.seed,
                screened=search.filter,
                group=own,
                members=tuple(sorted(members[own.name])) if own else (),
                label=label,
            )
            for policy, own, label in zip(policies, compared, labels, strict=True)
        ]
        return [result.as_measurement() for result in self.scheduler.run(tasks)]


def relative_policies(plan: Plan, policies: Sequence[Policy]) -> list[Policy]:
    """The policies with every weight a ratio to the task's gradient, measured on the start of the search.

    A term that has no gradient or cannot be measured keeps its number.
    """
    terms = [term for policy in policies for term in policy if term.weighting != "gradient"]
    if not terms:
        return list(policies)
    setup, seed = plan.setups[SEARCH], plan.config.search.seed
    batches = islice(setup.batches(seed)(0), plan.config.proxy.calibration_batches)
    scratch = copy.deepcopy(setup.build_student(seed, True)).to(setup.device)
    probes = probe_terms(terms, scratch, plan.teacher, [batch.to(setup.device) for batch in batches], seed=seed)

    def relative(term: Term) -> Term:
        if term.weighting == "gradient":
            return term
        probe = probes[unit(term)]
        ratio = term.weight * probe.gradient / probe.task_gradient if probe.task_gradient > 0 else 0.0
        usable = math.isfinite(ratio) and ratio > 0
        return replace(term, weight=ratio if usable else term.weight, weighting="gradient")

    return [replace(policy, terms=tuple(relative(term) for term in policy)) for policy in policies]
