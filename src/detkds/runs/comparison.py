"""Train policies at the full budget over several seeds and say what the numbers show."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from detkds.detectors.weights import save_weights
from detkds.policy import Policy
from detkds.runs.folder import append_line, read_lines
from detkds.runs.plan import Plan
from detkds.runs.verdict import Row, mean_and_spread, paired_difference
from detkds.training.calibrate import calibrate, probe_terms
from detkds.training.loop import OnEpoch
from detkds.training.population import Candidate, Setting, Trained, train_in_populations


@dataclass(frozen=True)
class Contender:
    """One line of a comparison before it is trained; ``kind`` is ``plain``, ``hand`` or ``searched``."""

    name: str
    kind: str
    policy: Policy
    inherit: bool = True


def contenders(plan: Plan, searched: Sequence[Policy]) -> list[Contender]:
    """The plain student, with its own and with the inherited neck and head, then the hand-designed and the searched."""
    plain = [Contender("plain", "plain", Policy(), inherit=False)]
    if plan.config.inherit:
        plain.append(Contender("plain, inherited", "plain", Policy()))
    hand = [Contender(name, "hand", policy) for name, policy in plan.policies.items()]
    found = [
        Contender("searched" if i == 0 else f"searched #{i + 1}", "searched", policy)
        for i, policy in enumerate(searched)
    ]
    return plain + hand + found


def compare(
    plan: Plan,
    folder: Path,
    entries: Sequence[Contender],
    *,
    on_seed: Callable[[int, int], None] | None = None,
    on_result: Callable[[str, int, float | None], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Row]:
    """Train every contender once per seed on all training images and measure it on the test images.

    All contenders of a seed share initial weights, batches and augmentation. Finished trainings are kept in
    ``final.jsonl`` and not repeated; unfinished ones go on at their last epoch. Students lie in ``students/``.

    Args:
        on_seed: called with a seed and the number of trainings that it still needs.
        on_result: called with a contender's name, the seed, and its AP, a fraction, or None where it failed.
        on_epoch: called with the epochs that the trainings under way have done.
    """
    setting = plan.setting(plan.train_data, plan.test_data, plan.config.train)
    path = folder / "final.jsonl"
    policies = absolute_policies(plan, setting, [entry.policy for entry in entries])
    entries = [replace(entry, policy=policy) for entry, policy in zip(entries, policies, strict=True)]
    keys = {entry.name: entry.policy.key for entry in entries}
    for seed in plan.config.final.seeds:
        done = {record["name"] for record in _matching(path, keys) if record["seed"] == seed}
        missing = [Candidate(e.name, e.policy, e.inherit) for e in entries if e.name not in done]
        if on_seed is not None:
            on_seed(seed, len(missing))
        for trained in train_in_populations(
            setting,
            missing,
            seed=seed,
            population=plan.config.proxy.population,
            checkpoints=folder / "states",
            on_epoch=on_epoch,
        ):
            for one in trained:
                if one.failure is None:
                    student = folder / "students" / f"{slug(one.candidate.name)}-seed{seed}.safetensors"
                    student.parent.mkdir(exist_ok=True)
                    save_weights(one.student, student)
                append_line(path, _record(one, seed, keys[one.candidate.name]))
                if on_result is not None:
                    on_result(one.candidate.name, seed, one.metrics.ap if one.metrics else None)
    return rows(entries, _matching(path, keys), plan.config.final.seeds)


def rows(entries: Sequence[Contender], records: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Row]:
    """One row per contender from its stored results; differences are to the plain student it starts from."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {entry.name: {} for entry in entries}
    for record in records:
        if record["seed"] in seeds:
            by_name[record["name"]][record["seed"]] = record
    aps = {
        name: {seed: 100 * record["metrics"]["ap"] for seed, record in found.items() if record["metrics"]}
        for name, found in by_name.items()
    }
    plain = [entry.name for entry in entries if entry.kind == "plain"]
    result = []
    for entry in entries:
        found = by_name[entry.name]
        mean, spread = mean_and_spread(list(aps[entry.name].values()))
        measured = [record["metrics"] for record in found.values() if record["metrics"]]
        metrics = {
            key: mean_and_spread([100 * m[key] for m in measured if m.get(key) is not None])[0]
            for key in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")
            if any(m.get(key) is not None for m in measured)
        }
        base = plain[-1] if entry.kind != "plain" else plain[0]
        result.append(
            Row(
                name=entry.name,
                kind=entry.kind,
                policy=str(entry.policy),
                ap=aps[entry.name],
                mean=mean,
                spread=spread,
                metrics=metrics,
                to_plain=None if entry.name == base else paired_difference(aps[entry.name], aps[base]),
                failures={seed: record["failure"] for seed, record in found.items() if record["failure"]},
                seconds=mean_and_spread([record["seconds"] for record in found.values()])[0] if found else 0.0,
            )
        )
    return result


def slug(name: str) -> str:
    """A name that can stand in a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")


def absolute_policies(plan: Plan, setting: Setting, policies: Sequence[Policy]) -> list[Policy]:
    """The policies with absolute weights, calibrated once, on the first seed's start."""
    relative = [term for policy in policies for term in policy if term.weighting != "absolute"]
    if not relative:
        return list(policies)
    seed = plan.config.final.seeds[0]
    batches = [b.to(plan.device) for b in islice(setting.batches(seed)(0), plan.config.proxy.calibration_batches)]
    scratch = copy.deepcopy(plan.build_student(seed, True)).to(plan.device)
    probes = probe_terms(relative, scratch, plan.teacher, batches, seed=seed)
    return [calibrate(policy, probes) for policy in policies]


def _matching(path: Path, keys: dict[str, str]) -> list[dict[str, Any]]:
    """The stored results that were made with the policies asked for now."""
    return [record for record in read_lines(path) if keys.get(record["name"]) == record["key"]]


def _record(trained: Trained, seed: int, key: str) -> dict[str, Any]:
    return {
        "name": trained.candidate.name,
        "seed": seed,
        "key": key,
        "metrics": trained.metrics.to_dict() if trained.metrics else None,
        "failure": trained.failure,
        "seconds": round(trained.seconds, 2),
    }
