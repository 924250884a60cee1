"""Train policies at the full budget over several seeds and say what the numbers show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detkds.policy import Policy
from detkds.runs.plan import COMPARISON, Plan
from detkds.runs.verdict import INHERITED, PLAIN, SEARCHED, Row, is_open, with_differences
from detkds.statistics import mean_and_spread
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.task import Task, TaskResult

FIRST_LOOK, SECOND_LOOK, FEW = 5, 8, 2
"""Seeds of what matters most, those where its difference is open after the first, and of the others."""


@dataclass(frozen=True)
class Contender:
    """One line of a comparison before it is trained; ``kind`` is ``plain``, ``hand`` or ``searched``."""

    name: str
    kind: str
    policy: Policy
    inherit: bool = True


def contenders(plan: Plan, searched: Sequence[Policy], hand: Mapping[str, Policy] | None = None) -> list[Contender]:
    """The plain student, with its own and any inherited neck and head, then the hand-designed and the searched.

    Args:
        hand: the hand-designed policies by name; None for those of the plan.
    """
    plain = [Contender(PLAIN, "plain", Policy(), inherit=False)]
    if plan.inherited:
        plain.append(Contender(INHERITED, "plain", Policy()))
    rivals = [Contender(name, "hand", policy) for name, policy in (plan.policies if hand is None else hand).items()]
    names = [SEARCHED, *(f"{SEARCHED} #{place}" for place in range(2, len(searched) + 1))]
    return plain + rivals + [Contender(name, "searched", policy) for name, policy in zip(names, searched, strict=False)]


@dataclass(frozen=True)
class Comparison:
    """What a comparison showed: one row per contender, and every training's metrics as plain data."""

    rows: list[Row]
    trainings: list[dict[str, Any]]


def compare(
    plan: Plan, scheduler: Scheduler, contenders: Sequence[Contender], opponent: str | None = None
) -> Comparison:
    """Train every contender once per seed at the full budget, measure it on the test images, and sum up.

    All contenders of a seed share initial weights, batches and augmentation. With ``final.seeds: null`` and an
    opponent, the searched policy, its opponent and the plain students have :data:`FIRST_LOOK` seeds and, where the
    interval of the first two's difference then holds 0, :data:`SECOND_LOOK`; all others :data:`FEW`.

    Args:
        opponent: the name of the hand-designed contender that the searched policy is to be held against.
    """
    matter = {SEARCHED, opponent} | {contender.name for contender in contenders if contender.kind == "plain"}
    given = plan.config.final.seeds
    focused = given is None and opponent is not None
    counts = {c.name: FIRST_LOOK if not focused or c.name in matter else FEW for c in contenders}
    comparison = _compare(plan, scheduler, contenders, counts if given is None else given)
    if focused and is_open(comparison.rows, opponent):
        counts |= {name: SECOND_LOOK for name in counts if name in matter}
        comparison = _compare(plan, scheduler, contenders, counts)
    return comparison


def _compare(
    plan: Plan, scheduler: Scheduler, contenders: Sequence[Contender], seeds: Sequence[int] | Mapping[str, int]
) -> Comparison:
    of_each = {c.name: range(seeds[c.name]) if isinstance(seeds, Mapping) else seeds for c in contenders}
    every = dict.fromkeys(seed for own in of_each.values() for seed in own)
    tasks = {
        (contender.name, seed): comparison_task(plan, contender.policy, seed, contender.name, contender.inherit)
        for seed in every
        for contender in contenders
        if seed in of_each[contender.name]
    }
    scheduler.progress.stage(COMPARISON, len(tasks))
    results = dict(zip(tasks, scheduler.run(list(tasks.values())), strict=True))
    trainings = [
        {"name": name, "seed": seed, "metrics": dict(result.metrics) or None}
        for (name, seed), result in results.items()
    ]
    return Comparison(rows(contenders, results), trainings)


def teacherless(plan: Plan) -> list[Task]:
    """The tasks of a comparison that no teacher has a part in: the plain student's, which can be trained beside it."""
    if plan.config.self_taught:
        return []
    plain = contenders(plan, [], {})[0]
    return [
        comparison_task(plan, plain.policy, seed, plain.name, plain.inherit) for seed in plan.config.final.first_seeds
    ]


def comparison_task(plan: Plan, policy: Policy, seed: int, label: str, inherit: bool = True) -> Task:
    """A student at the full budget, measured on the test images; its weights are kept.

    Weights that are ratios to the task's gradient are calibrated once for all seeds.
    """
    return Task(COMPARISON, policy, seed, inherit, plan.config.seed, label=label, keep_weights=True)


def with_box_ap(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of masks with AP of the boxes beside them as ``box_ap``; those of boxes as they are."""
    boxes = metrics.get("boxes")
    return {**metrics, "box_ap": boxes["ap"]} if boxes else dict(metrics)


def rows(contenders: Sequence[Contender], results: Mapping[tuple[str, int], TaskResult]) -> list[Row]:
    """One row per contender from its results by name and seed; differences are to the better plain student."""
    aps = {
        contender.name: {
            seed: ap
            for (name, seed), result in results.items()
            if name == contender.name and (ap := result.ap) is not None
        }
        for contender in contenders
    }
    table = []
    for contender in contenders:
        own = {seed: result for (name, seed), result in results.items() if name == contender.name}
        mean, spread = mean_and_spread(list(aps[contender.name].values()))
        measured = [with_box_ap(result.metrics) for result in own.values() if result.metrics]
        metrics = {
            key: mean_and_spread([100 * m[key] for m in measured if m.get(key) is not None])[0]
            for key in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "box_ap")
            if any(m.get(key) is not None for m in measured)
        }
        trained = next((result.policy for result in own.values() if result.policy is not None), None)
        table.append(
            Row(
                name=contender.name,
                kind=contender.kind,
                policy=str(contender.policy if trained is None else Policy.from_dict(trained)),
                ap=aps[contender.name],
                mean=mean,
                spread=spread,
                metrics=metrics,
                failures={seed: result.reason for seed, result in own.items() if result.reason},
                seconds=mean_and_spread([result.seconds for result in own.values()])[0] if own else 0.0,
            )
        )
    return with_differences(table)
