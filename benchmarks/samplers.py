"""How good are the samplers? Mean regret on synthetic landscapes over the paper's space, at equal budgets.

A landscape is random main effects of the options and interactions of their pairs, scaled to a deviation of 0.75 AP;
measuring adds noise of 0.15 AP and a tenth of the policies is refused, at no cost. The regret of a search is the true
AP of the best policy there is, less the true AP of the policy that the search measured as best. The interval is a
bootstrap over landscapes, which are the units that are independent. All samplers meet the same landscapes.

Finished searches are appended to searches.jsonl; run again, it continues there.

Run it with

    python benchmarks/samplers.py --out runs/samplers --workers 4
    python benchmarks/samplers.py --out runs/quick --landscapes 6 --repetitions 2 --samplers random evolution mcts
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from detkds.policy import Policy
from detkds.registry import SAMPLERS, parse_expression
from detkds.search.divide_and_conquer import check_sampler, make_sampler, study_seed
from detkds.search.evaluators.table import SyntheticLandscape
from detkds.search.result import State, rank
from detkds.search.settings import SearchSettings
from detkds.search.space import Space, load_spaces, points
from detkds.search.study import SearchStudy

SAMPLER_EXPRESSIONS = (
    "random", "evolution", "kdzero", "mcts", "mcts(c=1.41, amaf=false)", "tpe", "nsga2", "nsga2(population=50)",
)  # fmt: skip
RESAMPLES = 2000


@dataclass(frozen=True)
class Search:
    """One search to run; its result is read at every budget."""

    sampler: str
    landscape: int
    repetition: int
    budgets: tuple[int, ...]
    space: str
    knowledge: str
    interaction: float
    noise: float

    @property
    def key(self) -> str:
        """What tells searches apart."""
        return json.dumps(asdict(self), sort_keys=True)


def main() -> None:
    """Run what is missing, then print the table and write it with a plot."""
    arguments = parse_arguments()
    for sampler in arguments.samplers:
        check_sampler(sampler)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "searches.jsonl"
    wanted = list(searches(arguments))
    done = {found["key"]: found for found in read_lines(path)}
    missing = [search for search in wanted if search.key not in done]
    print(f"{len(wanted)} searches, {len(missing)} of them to run")
    begin = time.perf_counter()
    with path.open("a", encoding="utf-8") as file:
        for count, found in enumerate(run_all(missing, arguments.workers), 1):
            done[found["key"]] = found
            file.write(json.dumps(found) + "\n")
            file.flush()
            if count % 50 == 0:
                print(f"{count} of {len(missing)} in {time.perf_counter() - begin:.0f} s", flush=True)
    rows = summarise([(search, done[search.key]) for search in wanted])
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "workers")}
    (arguments.out / "summary.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    print_table(rows)
    plot(rows, arguments.out / "regret.png")
    print(f"written: {arguments.out / 'summary.json'}, {arguments.out / 'regret.png'}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="folder to write to and continue from")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLER_EXPRESSIONS), help="expressions")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 40, 60, 100], help="candidate trainings")
    parser.add_argument("--landscapes", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=5, help="searches of each sampler on each landscape")
    parser.add_argument("--space", default="paper", help="a shipped space or a space file")
    parser.add_argument("--knowledge", default="global", help="the kind of knowledge whose space is searched")
    parser.add_argument("--interaction", type=float, default=0.6, help="deviation of pairwise effects to main effects")
    parser.add_argument("--noise", type=float, default=0.15, help="deviation of what measuring adds, in AP")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    return parser.parse_args()


def searches(arguments: argparse.Namespace) -> Iterator[Search]:
    """Every search; budgets with the same settings are read off one search, unless the sampler depends on them."""
    for landscape in range(arguments.landscapes):
        for sampler in arguments.samplers:
            uses_budget = getattr(SAMPLERS[parse_expression(sampler)[0]], "uses_budget", False)
            shared: defaultdict[Any, list[int]] = defaultdict(list)
            for budget in sorted(set(arguments.budgets)):
                settings = SearchSettings.for_budget(budget, 1)
                shared[budget if uses_budget else replace(settings, single_budget=1)].append(budget)
            for budgets in shared.values():
                for repetition in range(arguments.repetitions):
                    yield Search(sampler, landscape, repetition, tuple(budgets), arguments.space, arguments.knowledge,
                                 arguments.interaction, arguments.noise)  # fmt: skip


def run_all(missing: Sequence[Search], workers: int) -> Iterator[dict[str, Any]]:
    """Run searches, each as soon as a process is free."""
    if workers <= 1:
        yield from map(run, missing)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(run, missing, chunksize=8)


def run(search: Search) -> dict[str, Any]:
    """Run one search; regret by budget, in AP."""
    begin = time.process_time()
    landscape = SyntheticLandscape(search.landscape, interaction=search.interaction, noise=search.noise)
    space = space_of(search.space, search.knowledge)
    settings = SearchSettings.for_budget(max(search.budgets), 1, sampler=search.sampler)
    seed = study_seed(search.repetition, f"landscape {search.landscape}")
    sampler = make_sampler(search.sampler, space, seed, settings)
    study = SearchStudy(search.knowledge, sampler, InMemoryStorage(), settings.single_budget)
    while candidates := study.gather():
        results = landscape.evaluate([candidate.policy for candidate in candidates])
        for candidate, result in zip(candidates, results, strict=True):
            study.tell(candidate, result)
    optimum = best_there_is(search.space, search.knowledge, landscape)
    regrets = {}
    for budget in search.budgets:
        spent = np.cumsum([record.counts for record in study.records])
        within = [record for record, trained in zip(study.records, spent, strict=True) if trained <= budget]
        regrets[str(budget)] = optimum - landscape.true_ap(rank(within)[0].policy)
    return {"key": search.key, "regret": regrets, "seconds": round(time.process_time() - begin, 3)}


@cache
def space_of(name: str, knowledge: str) -> Space:
    """The space, read once per process."""
    return load_spaces(name, knowledge=[knowledge])[knowledge]


@cache
def every_policy(name: str, knowledge: str) -> tuple[Policy, ...]:
    """All distinct policies of the space, in canonical form."""
    space = space_of(name, knowledge)
    distinct = {space.key(params): params for params in points(space)}
    return tuple(space.policy(params).canonical() for params in distinct.values())


@cache
def best_there_is(name: str, knowledge: str, landscape: SyntheticLandscape) -> float:
    """The highest true AP among the policies that are not refused."""
    policies = every_policy(name, knowledge)
    quality = np.array([landscape.quality(policy.terms[0]) for policy in policies])
    for index in np.argsort(-quality):
        if landscape.evaluate([policies[index]])[0].state is not State.FILTERED:
            return landscape.true_ap(policies[index])
    raise RuntimeError("the landscape refuses every policy")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The stored searches; a torn last line, left by a kill, is closed and skipped."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: skipped a line that is not whole")


def summarise(found: Sequence[tuple[Search, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean regret per sampler and budget, with the 95 % interval of a bootstrap over landscapes."""
    by_cell: defaultdict[tuple[str, int], defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for search, result in found:
        for budget in search.budgets:
            by_cell[search.sampler, budget][search.landscape].append(result["regret"][str(budget)])
    rows = []
    for (sampler, budget), by_landscape in by_cell.items():
        means = np.array([np.mean(values) for values in by_landscape.values()])
        draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
        low, high = np.quantile(means[draws].mean(1), [0.025, 0.975])
        rows.append({
            "sampler": sampler, "budget": budget, "regret": float(means.mean()), "low": float(low), "high": float(high),
            "landscapes": len(means), "searches": sum(map(len, by_landscape.values())),
        })  # fmt: skip
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line per sampler, one column per budget."""
    budgets = sorted({row["budget"] for row in rows})
    print(f"\nmean regret in AP [95 % interval], {rows[0]['landscapes']} landscapes")
    print(f"{'sampler':28}" + "".join(f"{f'{budget} trainings':>20}" for budget in budgets))
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        cells = {row["budget"]: row for row in rows if row["sampler"] == sampler}
        texts = [f"{cells[b]['regret']:.2f} [{cells[b]['low']:.2f}, {cells[b]['high']:.2f}]" for b in budgets]
        print(f"{sampler:28}" + "".join(f"{text:>20}" for text in texts))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Regret against budget, one line with its intervals per sampler; drawn side by side, to be told apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    for place, sampler in enumerate(samplers):
        cells = sorted((row for row in rows if row["sampler"] == sampler), key=lambda row: row["budget"])
        beside = [row["budget"] + 0.6 * (place - (len(samplers) - 1) / 2) for row in cells]
        regrets, lows, highs = (np.array([row[name] for row in cells]) for name in ("regret", "low", "high"))
        errors = np.stack([regrets - lows, highs - regrets])
        axes.errorbar(beside, regrets, errors, marker="o", markersize=4, elinewidth=0.8, label=sampler)
    axes.set(xlabel="candidate trainings", ylabel="mean regret in AP", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
