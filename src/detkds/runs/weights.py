"""Weights of policies, from ratios to the task's gradient to factors and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from detkds.policy import Policy, Term
from detkds.runs.plan import Plan
from detkds.training.calibrate import TermProbe, calibrate, probe_terms, unit
from detkds.training.population import Setting


def absolute_policies(plan: Plan, setting: Setting, policies: Sequence[Policy]) -> list[Policy]:
    """The policies with absolute weights, calibrated once, on the start of the comparison's first seed."""
    terms = [term for policy in policies for term in policy if term.weighting != "absolute"]
    probes = _probe(plan, setting, terms, plan.config.final.seeds[0])
    return [calibrate(policy, probes) for policy in policies]


def relative_policies(plan: Plan, setting: Setting, policies: Sequence[Policy]) -> list[Policy]:
    """The policies with every weight a ratio to the task's gradient, measured on the start of the search.

    A term that has no gradient or cannot be measured keeps its number.
    """
    terms = [term for policy in policies for term in policy if term.weighting != "gradient"]
    probes = _probe(plan, setting, terms, plan.config.search.seed)

    def relative(term: Term) -> Term:
        if term.weighting == "gradient":
            return term
        probe = probes[unit(term)]
        ratio = term.weight * probe.gradient / probe.task_gradient if probe.task_gradient > 0 else 0.0
        usable = math.isfinite(ratio) and ratio > 0
        return replace(term, weight=ratio if usable else term.weight, weighting="gradient")

    return [replace(policy, terms=tuple(relative(term) for term in policy)) for policy in policies]


def _probe(plan: Plan, setting: Setting, terms: Sequence[Term], seed: int) -> dict[Term, TermProbe]:
    if not terms:
        return {}
    batches = [b.to(plan.device) for b in islice(setting.batches(seed)(0), plan.config.proxy.calibration_batches)]
    scratch = copy.deepcopy(plan.build_student(seed, True)).to(plan.device)
    return probe_terms(terms, scratch, plan.teacher, batches, seed=seed)
