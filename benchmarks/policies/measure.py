"""Measure whole policies on small pairs of detectors: the workbench on which the search's defaults are chosen.

Candidates are the shipped policies as published and at three strengths, leaders put together, their mutants and random
combinations (:func:`candidates`). Each is trained on the proxy (two lengths) and, with two seeds, at the full budget,
all on images cut from the training set; AP is that of the validation images. Results are kept in the run's folder as
they come, and the command goes on where it was left:

    python benchmarks/policies/measure.py digits --out runs/policies
    python benchmarks/policies/measure.py digits --out runs/policies --pack benchmarks/policies/digits.jsonl.gz

"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detkds
from detkds.errors import PolicyError
from detkds.policy import Policy, list_policies, load_policy
from detkds.policy_search.portfolio import Entry, at_strength, scaled
from detkds.policy_search.result import State
from detkds.policy_search.space import draw, load_spaces
from detkds.progress import Progress
from detkds.runs.candidates import relative_policies
from detkds.runs.plan import CONFIRMATION, SEARCH, Plan, load_run, make_plan, servable
from detkds.runs.session import Session, open_session
from detkds.tasks.executor import InlineExecutor
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Trainer
from detkds.training.checkpoint import StateFiles

HERE = Path(__file__).parent
STRENGTHS = (1.0, 3.0, 10.0)
"""Of the calibrated forms: the norm of the terms' gradients relative to the task's."""
LEADERS = (
    "gid",
    "cwd",
    "fitnets",
    "pkd",
    "bckd",
    "cwd-logits",
    "fitnets-gradient",
    "mgd",
    "detkds/global",
    "detkds/one-stage",
    "ld",
    "frs",
)
"""Shipped policies that are also measured at every strength; the first six are put together as well."""
LONG_PROXY = 4
"""Passes of the longer proxy."""
SEEDS = (1, 2)
"""Of the trainings at the full budget."""
MUTANTS, RANDOM = 14, 14


@dataclass(frozen=True)
class Candidate:
    """A whole policy and where it comes from: ``published``, ``calibrated``, ``together``, ``mutant``, ``random``."""

    name: str
    group: str
    policy: Policy


def main() -> None:
    """Measure what is missing, or pack what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pair", help="the name of a configuration beside this file")
    parser.add_argument("--out", type=Path, default=Path("runs/policies"))
    parser.add_argument("--pack", type=Path, default=None, help="write the results there as one file, and stop")
    parser.add_argument("overrides", nargs="*", help="key=value for the configuration")
    arguments = parser.parse_args()
    plan = make_plan(load_run(HERE / f"{arguments.pair}.yaml", [f"runs={arguments.out}", *arguments.overrides]))
    with open_session(plan, Progress()) as session:
        teacher = session.prepare_teacher()
        print(f"teacher: AP {100 * teacher['ap']:.1f}", flush=True)
        measure(session, candidates(plan), 100 * teacher["ap"], arguments.pack)


def candidates(plan: Plan) -> list[Candidate]:
    """Distinct policies that this pair can serve; the same for every run of one configuration."""
    rng = np.random.default_rng(0)
    entries = servable([Entry(name) for name in list_policies()], plan.build_student(0, False), plan.teacher)
    shipped = {entry.policy: load_policy(entry.policy) for entry in entries}
    relative = dict(zip(shipped, relative_policies(plan, list(shipped.values())), strict=True))
    leaders = [name for name in LEADERS if name in shipped]
    made = [Candidate("plain", "plain", Policy())]
    made += [Candidate(name, "published", policy) for name, policy in shipped.items()]
    made += [
        Candidate(f"{name} at {strength:g}", "calibrated", at_strength(relative[name], strength))
        for name in leaders
        for strength in STRENGTHS
    ]
    for names in [*combinations(leaders[:6], 2), *combinations(leaders[:4], 3)]:
        terms = [term for name in names for term in shipped[name]]
        made.append(Candidate(" + ".join(names), "together", Policy(terms)))
    spaces = {kind: space for kind, space in load_spaces("default", "gradient").items() if kind in plan.spaces}
    kinds = list(spaces)
    mutants = [mutant(relative[leaders[i % 6]], spaces, rng) for i in range(MUTANTS)]
    made += [Candidate(f"mutant {i}", "mutant", policy) for i, policy in enumerate(mutants)]
    for i in range(RANDOM):
        chosen = [kinds[k] for k in rng.choice(len(kinds), 1 + i % 3, replace=False)]
        terms = [spaces[kind].term(draw(spaces[kind], rng)) for kind in chosen]
        made.append(Candidate(f"random {i}", "random", Policy(terms)))
    distinct: dict[str, Candidate] = {}
    order = {"plain": 0, "calibrated": 2, "together": 3, "mutant": 4, "random": 5}
    made.sort(key=lambda candidate: 1 if candidate.name in LEADERS else order.get(candidate.group, 6))
    for candidate in made:
        distinct.setdefault(candidate.policy.key, candidate)
    return list(distinct.values())


def mutant(policy: Policy, spaces: Any, rng: np.random.Generator) -> Policy:
    """One change: a weight by three, a distance or transform of the space, a random term more, or a term less."""
    terms = list(policy)
    place = int(rng.integers(len(terms)))
    for _ in range(100):
        change = ["weight", "term", "piece", "piece"][int(rng.integers(4))]
        if change == "weight":
            terms[place] = scaled(terms[place], 3.0 if rng.random() < 0.5 else 1 / 3)
            break
        kind = list(spaces)[int(rng.integers(len(spaces)))]
        random_term = spaces[kind].term(draw(spaces[kind], rng))
        if change == "term":
            terms.append(random_term)
            break
        try:
            if rng.random() < 0.5:
                terms[place] = replace(terms[place], distance=random_term.distance)
            else:
                terms[place] = replace(terms[place], transforms=random_term.transforms)
        except PolicyError:
            continue
        break
    return Policy(terms)


def measure(session: Session, wanted: Sequence[Candidate], teacher: float, target: Path | None) -> None:
    """Train a population of candidates at a time, everything of each; write the file if that is asked for."""
    plan, config = session.plan, session.plan.config
    longer = plan.proxy_config.model_copy(update={"epochs": LONG_PROXY})
    setups = {**plan.setups, "longer": plan.setup(plan.proxy_data, plan.validation_data, longer)}
    plan.__dict__["setups"] = setups
    trainer = Trainer(
        setups,
        population=config.proxy.population,
        calibration_batches=config.proxy.calibration_batches,
        states=StateFiles(session.folder / "states"),
    )
    scheduler = session.scheduler_on(InlineExecutor(trainer))
    records: list[dict[str, Any]] = []
    size = config.proxy.population
    for seeds in (SEEDS[:1], SEEDS) if target is None else (SEEDS,):
        records = []
        for chunk in (wanted[begin : begin + size] for begin in range(0, len(wanted), size)):
            records += measured(scheduler, chunk, seeds, only_stored=target is not None)
            if target is None:
                print(f"seeds {seeds}: {len(records)} of {len(wanted)}", flush=True)
    if target is not None:
        lines = [header(config.model_dump(mode="json"), teacher), *records]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        target.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{target}: {len(records)} of {len(wanted)} policies, {target.stat().st_size / 1024:.0f} KiB")


def measured(
    scheduler: Scheduler, chunk: Sequence[Candidate], seeds: Sequence[int], only_stored: bool
) -> list[dict[str, Any]]:
    """The records of candidates; with ``only_stored`` those that are there."""

    def run(tasks: Sequence[Task]) -> list[TaskResult]:
        if only_stored and any(scheduler.store.get(scheduler.key(task)) is None for task in tasks):
            return []
        return scheduler.run(tasks)

    screened = run([Task(SEARCH, c.policy, 0, screened=True, label=c.name) for c in chunk])
    results = list(zip(chunk, screened, strict=False))
    absolute = {c.name: Policy.from_dict(r.policy) if r.policy else c.policy for c, r in results}
    alive = [c for c, r in results if r.state is State.COMPLETE]
    longer = dict(zip([c.name for c in alive], run([Task("longer", absolute[c.name], 0) for c in alive]), strict=False))
    full = {
        seed: dict(
            zip([c.name for c in alive], run([Task(CONFIRMATION, absolute[c.name], seed) for c in alive]), strict=False)
        )
        for seed in seeds
    }
    return [
        {
            "name": c.name,
            "group": c.group,
            "policy": c.policy.to_dict(),
            "state": r.state.value,
            "reason": r.reason,
            "absolute": absolute[c.name].to_dict() if c in alive else None,
            "proxy": ap(r),
            "longer": ap(longer.get(c.name)),
            "full": {str(seed): ap(full[seed].get(c.name)) for seed in seeds},
            "curve": {str(seed): curve(full[seed].get(c.name)) for seed in seeds},
            "seconds": round(r.seconds + sum(full[s][c.name].seconds for s in seeds if c.name in full[s]), 1),
        }
        for c, r in results
    ]


def ap(result: TaskResult | None) -> float | None:
    """AP in points."""
    return None if result is None or result.ap is None else round(result.ap, 3)


def curve(result: TaskResult | None) -> list[float]:
    """Validation AP in points wherever it was measured on the way."""
    points = [] if result is None else [record["validation_ap"] for record in result.curve if "validation_ap" in record]
    return [round(100 * point, 3) for point in points]


def header(config: dict[str, Any], teacher: float) -> dict[str, Any]:
    """What was measured, how and where."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return {
        "format": 1,
        "name": config["name"],
        "command": f"python benchmarks/policies/measure.py {config['name']}",
        "commit": commit.stdout.strip(),
        "version": detkds.__version__,
        "torch": torch.__version__,
        "machine": f"1 thread, {platform.system()} {platform.machine()}",
        "teacher": round(teacher, 2),
        "passes": {"proxy": config["proxy"]["epochs"], "longer": LONG_PROXY, "full": config["train"]["epochs"]},
        "setting": {key: config[key] for key in ("data", "teacher", "student", "train", "proxy")},
    }


if __name__ == "__main__":
    main()
