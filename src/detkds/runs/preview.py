"""What a run is going to do, as plain data, before it does anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from detkds.detectors.base import Detector
from detkds.runs.comparison import contenders
from detkds.runs.pair import describe_levels
from detkds.runs.plan import Plan, describe_data
from detkds.search.combination import CombinationSpace
from detkds.search.space import Space, points


def preview(plan: Plan) -> dict[str, Any]:
    """Data, pair, spaces, budgets and the policies to be compared."""
    config, settings = plan.config, plan.settings
    student = plan.build_student(config.seed, False)
    singles = settings.single_budget * len(plan.spaces)
    searched = "searched" if settings.finalists == 1 else f"searched (best {settings.finalists})"
    compared = [entry.name for entry in contenders(plan, [])]
    return {
        "name": config.name,
        "folder": str(config.folder),
        "device": str(plan.device),
        "data": {
            "train": describe_data(plan.train_data),
            "test": describe_data(plan.test_data),
            "proxy": describe_data(plan.proxy_data),
            "validation": describe_data(plan.validation_data),
            "size": config.data.size,
        },
        "pair": {
            "teacher": {
                "detector": config.teacher.detector,
                "backbone": config.teacher.backbone,
                "parameters": _parameters(plan.teacher),
                "weights": config.teacher.weights or f"trained first, {plan.teacher_epochs} epochs",
            },
            "student": {
                "detector": config.student.detector,
                "backbone": config.student.backbone,
                "parameters": _parameters(student),
                "inherited_tensors": len(plan.inherited),
            },
            "levels": describe_levels(student.info, plan.teacher.info),
        },
        "knowledge": {
            "offered": {
                kind: {"policies": space.size, "distinct": space.count_canonical()}
                for kind, space in plan.spaces.items()
            },
            "refused": dict(plan.refused),
        },
        "search": {
            "sampler": settings.sampler,
            "weighting": config.search.weighting,
            "halving": asdict(plan.halving) if plan.halving else None,
            "evaluator": config.search.evaluator,
            "workers": config.search.workers,
            "trainings": {
                "single": singles,
                "combination": combination_budget(plan),
                "total": singles + combination_budget(plan),
            },
            "combinations": combinations(plan.spaces),
            "confirmations": confirmations(plan),
        },
        "comparison": {
            "policies": [*compared, searched],
            "seeds": list(config.final.seeds),
            "trainings": (len(compared) + settings.finalists) * len(config.final.seeds),
        },
    }


def combination_budget(plan: Plan) -> int:
    """Candidate trainings of the second stage; none where there is only one kind of knowledge."""
    return plan.settings.combination_budget if len(plan.spaces) > 1 else 0


def populations(plan: Plan) -> int:
    """About how many populations a search trains: iterations of one study follow each other, kinds go side by side."""
    settings, kinds = plan.settings, len(plan.spaces)
    singles = max(1, min(plan.config.proxy.population, kinds * settings.parallel))
    combined = max(1, min(plan.config.proxy.population, settings.parallel))
    return math.ceil(settings.single_budget * kinds / singles) + math.ceil(combination_budget(plan) / combined)


def confirmations(plan: Plan) -> int:
    """Trainings at the full budget between search and comparison."""
    search = plan.config.search
    return max(search.confirm, plan.settings.finalists) * search.confirm_seeds if search.confirm else 0


def combinations(spaces: Mapping[str, Space]) -> int:
    """Weight vectors over one term of each kind: the size of the second stage's space, 0 where there is none."""
    if len(spaces) < 2:
        return 0
    terms = {name: space.term(next(points(space))) for name, space in spaces.items()}
    weights = sorted({float(weight) for space in spaces.values() for weight in space.genes["weight"]})
    return CombinationSpace(terms, weights).size


def all_policies(spaces: Mapping[str, Space]) -> int:
    """Distinct policies of at most one term of every kind: what divide and conquer need not walk through."""
    return math.prod(space.count_canonical() + 1 for space in spaces.values()) - 1


def _parameters(detector: Detector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())
