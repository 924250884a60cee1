"""What a run is going to do, as plain data, before it does anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detkds.config import RunConfig
from detkds.detectors.base import Detector
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.joint import JointSpace
from detkds.policy_search.space import Space, points
from detkds.policy_search.whole import WAVE
from detkds.runs.comparison import FEW, FIRST_LOOK, contenders
from detkds.runs.datasets import describe_data
from detkds.runs.pair import describe_levels
from detkds.runs.plan import Plan
from detkds.runs.spending import search_cost


def preview(plan: Plan) -> dict[str, Any]:
    """Data, pair, spaces, budgets and the policies to be compared."""
    config, settings = plan.config, plan.config.search
    student = plan.build_student(config.seed, False)
    searched = "searched" if config.final.top == 1 else f"searched (best {config.final.top})"
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
                "weights": config.teacher.weights or _training(config),
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
            "halving": plan.halving.model_dump() if plan.halving else None,
            "evaluator": config.executor,
            "workers": config.workers,
            "filter": config.search.filter,
            "trainings": asdict(trainings(plan)) | {"total": settings.trainings(len(plan.spaces))},
            "combinations": combinations(plan.spaces),
            "joint_policies": JointSpace(plan.spaces).count_canonical(),
            "portfolio": [entry.name for entry in plan.portfolio[: settings.portfolio]],
            "race": list(settings.race),
            "cost": search_cost(plan),
        },
        "comparison": {
            "policies": [*compared, searched],
            "seeds": list(config.final.seeds) if config.final.seeds is not None else None,
            "trainings": comparisons(plan, config.final.top),
        },
    }


@dataclass(frozen=True)
class Trainings:
    """Candidate trainings of a search: of whole policies, or of single terms, of their combinations, and of the
    undivided space."""

    policies: int = 0
    single: int = 0
    combination: int = 0
    joint: int = 0


def trainings(plan: Plan) -> Trainings:
    """What the search spends."""
    settings, kinds = plan.config.search, len(plan.spaces)
    single, total = settings.single_budget * kinds, settings.trainings(kinds)
    if settings.method == "divide":
        return Trainings(single=single, combination=total - single)
    return Trainings(joint=total) if settings.method == "joint" else Trainings(policies=total)


def populations(plan: Plan) -> int:
    """About how many populations a search trains: iterations of one study follow each other, kinds go side by side."""
    spent, parallel, most = trainings(plan), plan.config.search.parallel, plan.config.proxy.population
    if spent.policies:
        return math.ceil(spent.policies / min(most, WAVE))
    singles, others = min(most, len(plan.spaces) * parallel), min(most, parallel)
    return math.ceil(spent.single / singles) + math.ceil((spent.combination + spent.joint) / others)


def confirmations(plan: Plan) -> int:
    """Trainings at the full budget between search and comparison."""
    rounds = plan.config.search.race
    return sum(rounds) + max(0, plan.config.final.top - rounds[0]) if rounds else 0


def comparisons(plan: Plan, searched: int) -> int:
    """Trainings of the comparison, before more seeds are asked for.

    Args:
        searched: how many of the search's policies are in it; 0 without a search.
    """
    plain, seeds = 1 + bool(plan.inherited), plan.config.final.seeds
    if seeds is not None:
        return (plain + len(plan.policies) + searched) * len(seeds)
    hand = len(plan.policies)
    few = hand - 1 if searched else 0
    return (plain + hand - few + searched) * FIRST_LOOK + few * FEW


def combinations(spaces: Mapping[str, Space]) -> int:
    """Weight vectors over one term of each kind: the size of the second stage's space, 0 where there is none."""
    if len(spaces) < 2:
        return 0
    terms = {name: space.term(next(points(space))) for name, space in spaces.items()}
    weights = sorted({float(weight) for space in spaces.values() for weight in space.genes["weight"]})
    return CombinationSpace(terms, weights).size


def _training(config: RunConfig) -> str:
    train = config.teacher.train
    return f"trained first, {train.epochs} epochs" if train is not None else "each student's own average"


def _parameters(detector: Detector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())
