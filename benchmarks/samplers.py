"""How good are the samplers? Mean regret at equal budgets, on a measured table or on synthetic landscapes.

The regret of a search is the AP of the best policy there is, less that of the policy which the search measured as
best. In a measured table (``--table``) AP is that of one training, the same for the search and for the regret, see
``detkds.bench.table``; the interval is a bootstrap over repetitions. A synthetic landscape, over the paper's space, is
random main effects of the options and interactions of their pairs, scaled to a deviation of 0.75 AP; measuring adds
noise of 0.15 AP and a tenth of the policies is refused, at no cost; the interval is a bootstrap over landscapes, which
are the units that are independent. All samplers meet the same landscapes and the same seeds.

With ``--halving`` (a table only) every search is also run with losing candidates stopped at the table's rungs: how
much more regret that costs, and what part of the epochs is trained.

Finished searches are appended to searches.jsonl; run again, it continues there.

Run it with

    python benchmarks/samplers.py --table benchmarks/table/digits.jsonl.gz --out runs/samplers-table
    python benchmarks/samplers.py --out runs/samplers --workers 4
    python benchmarks/samplers.py --table benchmarks/table/digits.jsonl.gz --samplers evolution --halving 3 \\
        --parallel 8 --out runs/halving
    python benchmarks/samplers.py --out runs/quick --landscapes 6 --repetitions 2 --samplers random evolution mcts
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detkds.bench.evaluators import SyntheticLandscape
from detkds.bench.simulate import best_within, config_for_budget, simulate
from detkds.bench.table import MeasuredTable
from detkds.config import HalvingConfig, SearchConfig
from detkds.policy import Policy
from detkds.policy_search.divide_and_conquer import check_sampler, make_sampler, run_side_by_side, study_seed
from detkds.policy_search.result import Evaluator, Result, State, Trial
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Params, SearchSpace, Space, load_spaces, points
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS, parse_expression

SAMPLER_EXPRESSIONS = (
    "random", "evolution", "kdzero", "mcts", "mcts(c=1.41, amaf=false)", "tpe", "nsga2", "nsga2(population=50)",
)  # fmt: skip
RESAMPLES = 2000


class Problem(Protocol):
    """What is searched: a space, what is measured of a choice, and how far from the best it truly is, in AP."""

    space: SearchSpace

    def measure(self, params: Params) -> Result:
        """What a search is told."""
        ...

    def regret(self, params: Params) -> float:
        """True AP of the best policy, less that of this choice."""
        ...


@dataclass(frozen=True)
class Landscape:
    """Names a synthetic landscape."""

    landscape: int
    space: str
    knowledge: str
    interaction: float
    noise: float


@dataclass(frozen=True)
class Table:
    """Names a kind of knowledge in a measured table; the digest is of the file."""

    path: str
    digest: str
    knowledge: str


@dataclass(frozen=True)
class Search:
    """One search to run; its result is read at every budget.

    Attributes:
        parallel: candidates that are proposed before any of them is measured.
        rungs: epochs after which losing candidates stop; none: all are trained to the end.
        eta: one of so many goes on.
    """

    sampler: str
    repetition: int
    budgets: tuple[int, ...]
    where: Landscape | Table
    parallel: int = 1
    rungs: tuple[int, ...] = ()
    eta: int = 3

    @property
    def key(self) -> str:
        """What tells searches apart; a table is known by its digest, wherever it lies."""
        where = {name: value for name, value in asdict(self.where).items() if name != "path"}
        own = {field.name: getattr(self, field.name) for field in fields(self)
               if getattr(self, field.name) != field.default}  # fmt: skip
        return json.dumps({**own, "where": where}, sort_keys=True)

    @property
    def label(self) -> str:
        """The sampler, and how its candidates are stopped."""
        halving = f", rungs {' '.join(map(str, self.rungs))}, 1 of {self.eta}" if self.rungs else ""
        return self.sampler + halving

    @property
    def config(self) -> SearchConfig:
        """That of the largest budget."""
        return config_for_budget(max(self.budgets), sampler=self.sampler, parallel=self.parallel)

    @property
    def sizes(self) -> dict[str, int]:
        """What is proposed at once is also compared with one another."""
        return {"chunk": self.parallel, "group": self.parallel} if self.parallel > 1 else {"chunk": 4, "group": 8}

    @property
    def unit(self) -> int:
        """Searches of different units are independent."""
        return self.where.landscape if isinstance(self.where, Landscape) else self.repetition


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table and write it with a plot."""
    options = parse_arguments(arguments)
    for sampler in options.samplers:
        check_sampler(sampler)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "searches.jsonl"
    wanted = list(searches(options))
    done = {found["key"]: found for found in read_lines(path)}
    missing = [search for search in wanted if search.key not in done]
    print(f"{len(wanted)} searches, {len(missing)} of them to run")
    begin = time.perf_counter()
    with path.open("a", encoding="utf-8") as file:
        for count, found in enumerate(run_all(missing, options.workers), 1):
            done[found["key"]] = found
            file.write(json.dumps(found) + "\n")
            file.flush()
            if count % 50 == 0:
                print(f"{count} of {len(missing)} in {time.perf_counter() - begin:.0f} s", flush=True)
    rows = summarise([(search, done[search.key]) for search in wanted])
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "workers")}
    if isinstance(wanted[0].where, Table):
        settings["table"] = {"name": options.table.name, "digest": wanted[0].where.digest}
    (options.out / "summary.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    print_table(rows)
    plot(rows, options.out / "regret.png")
    print(f"written: {options.out / 'summary.json'}, {options.out / 'regret.png'}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="folder to write to and continue from")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLER_EXPRESSIONS), help="expressions")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 40, 60, 100], help="candidate trainings")
    parser.add_argument("--table", type=Path, help="a measured table to search, in place of synthetic landscapes")
    parser.add_argument("--landscapes", type=int, default=60)
    parser.add_argument("--repetitions", type=int, help="searches of each sampler on each landscape (5) or table (200)")
    parser.add_argument("--space", default="paper", help="a shipped space or a space file; a table has its own")
    parser.add_argument("--knowledge", default="global", help="the kind of knowledge whose space is searched")
    parser.add_argument("--interaction", type=float, default=0.6, help="deviation of pairwise effects to main effects")
    parser.add_argument("--noise", type=float, default=0.15, help="deviation of what measuring adds, in AP")
    parser.add_argument("--parallel", type=int, default=1, help="candidates proposed before one of them is measured")
    parser.add_argument("--halving", type=int, nargs="+", default=[], help="rungs, in epochs of the table")
    parser.add_argument("--eta", type=int, default=3, help="one of so many candidates goes on at a rung")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    if options.repetitions is None:
        options.repetitions = 5 if options.table is None else 200
    if options.halving and options.table is None:
        parser.error("--halving: expected a --table, whose rungs were measured")
    return options


def searches(options: argparse.Namespace) -> Iterator[Search]:
    """Every search; budgets with the same configuration are read off one search, unless the sampler depends on them."""
    for where in problems(options):
        for sampler in options.samplers:
            uses_budget = getattr(SAMPLERS[parse_expression(sampler)[0]], "uses_budget", False)
            shared: defaultdict[int, list[int]] = defaultdict(list)
            for budget in sorted(set(options.budgets)):
                shared[budget if uses_budget else config_for_budget(budget).population].append(budget)
            for budgets in shared.values():
                for rungs in dict.fromkeys([(), tuple(options.halving)]):
                    for repetition in range(options.repetitions):
                        yield Search(sampler, repetition, tuple(budgets), where, options.parallel, rungs, options.eta)


def problems(options: argparse.Namespace) -> Iterator[Landscape | Table]:
    """What is searched."""
    if options.table is None:
        for landscape in range(options.landscapes):
            yield Landscape(landscape, options.space, options.knowledge, options.interaction, options.noise)
    else:
        digest = hashlib.sha256(options.table.read_bytes()).hexdigest()[:16]
        yield Table(str(options.table), digest, options.knowledge)


def run_all(missing: Sequence[Search], workers: int) -> Iterator[dict[str, Any]]:
    """Run searches, each as soon as a process is free."""
    if workers <= 1:
        yield from map(run, missing)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(run, missing, chunksize=8)


def run(search: Search) -> dict[str, Any]:
    """Run one search; by budget the regret, in AP, and the part of the epochs that was trained."""
    begin = time.process_time()
    problem = open_problem(search.where)
    seed = study_seed(search.repetition, f"landscape {getattr(search.where, 'landscape', 0)}")
    sampler = make_sampler(search.sampler, problem.space, seed, search.config)
    if search.rungs:
        assert isinstance(problem, TableProblem)
        evaluator = problem.table.evaluator(problem.knowledge, HalvingConfig(rungs=search.rungs, eta=search.eta))
        trials = search_halved(sampler, evaluator, search)
        epochs = [trial.epochs for trial in trials if trial.counts]
        trained = {str(budget): sum(epochs[:budget]) / budget / problem.table.rungs[-1] for budget in search.budgets}
    else:
        trials, trained = simulate(sampler, problem.measure, max(search.budgets), search.sizes["chunk"]), {}
    regrets = {}
    for budget in search.budgets:
        best = best_within(trials, budget)
        if best is None:
            raise RuntimeError(f"no candidate of {budget} trainings was completed: {search}")
        regrets[str(budget)] = problem.regret(best.params)
    found = {"key": search.key, "regret": regrets, "seconds": round(time.process_time() - begin, 3)}
    return {**found, "trained": trained} if search.rungs else found


def search_halved(sampler: SearchSampler, evaluator: Evaluator, search: Search) -> list[Trial]:
    """The trials of a search in which losing candidates stop."""
    study = SearchStudy("halved", sampler, None, max(search.budgets), **search.sizes)
    run_side_by_side([study], evaluator, lambda event: None)
    return study.trials


@lru_cache(maxsize=2)
def open_problem(where: Landscape | Table) -> Problem:
    """The problem of this name, read once per process."""
    return SyntheticProblem(where) if isinstance(where, Landscape) else TableProblem(where)


class TableProblem:
    """One kind of knowledge of a measured table."""

    def __init__(self, where: Table) -> None:
        self.table, self.knowledge = MeasuredTable.load(where.path), where.knowledge
        self.space = self.table.space(where.knowledge)
        self.results = self.table.results(where.knowledge)

    def measure(self, params: Params) -> Result:
        """As measured with the search's seed."""
        return self.results[self.space.key(params)]

    def regret(self, params: Params) -> float:
        """By the mean over seeds."""
        return self.table.regret(self.space.policy(params))


class SyntheticProblem:
    """A landscape over a space."""

    def __init__(self, where: Landscape) -> None:
        self.space = space_of(where.space, where.knowledge)
        self.landscape = SyntheticLandscape(where.landscape, interaction=where.interaction, noise=where.noise)
        self.optimum = best_there_is(every_policy(where.space, where.knowledge), self.landscape)
        self.results: dict[str, Result] = {}

    def measure(self, params: Params) -> Result:
        """With noise, the same each time."""
        key = self.space.key(params)
        if key not in self.results:
            (self.results[key],) = self.landscape.evaluate([self.space.policy(params)])
        return self.results[key]

    def regret(self, params: Params) -> float:
        """Without noise."""
        return self.optimum - self.landscape.true_ap(self.space.policy(params))


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


def best_there_is(policies: Sequence[Policy], landscape: SyntheticLandscape) -> float:
    """The highest true AP among the policies that are not refused."""
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
    """Mean regret per sampler and budget, with the 95 % interval of a bootstrap over independent units.

    With halving also ``trained``, the part of the epochs, and ``more``, the regret beyond that of the same searches
    without it, with its interval.
    """
    by_cell: defaultdict[tuple[str, str, int], defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    trained: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for search, result in found:
        for budget in search.budgets:
            by_cell[search.label, search.sampler, budget][search.unit].append(result["regret"][str(budget)])
            if search.rungs:
                trained[search.label, budget].append(result["trained"][str(budget)])
    rows = []
    for (label, sampler, budget), by_unit in by_cell.items():
        means = np.array([np.mean(values) for values in by_unit.values()])
        row = {"sampler": label, "budget": budget, "regret": float(means.mean()), **interval(means),
               "units": len(means), "searches": sum(map(len, by_unit.values()))}  # fmt: skip
        if (label, budget) in trained:
            whole = by_cell[sampler, sampler, budget]
            more = means - np.array([np.mean(whole[unit]) for unit in by_unit])
            row["trained"] = float(np.mean(trained[label, budget]))
            row["more"] = {"regret": float(more.mean()), **interval(more)}
        rows.append(row)
    return rows


def interval(values: np.ndarray) -> dict[str, float]:
    """The 95 % bootstrap interval of a mean."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line per sampler, one column per budget."""
    budgets = sorted({row["budget"] for row in rows})
    print(f"\nmean regret in AP [95 % interval], {rows[0]['searches']} searches each")
    print(f"{'sampler':28}" + "".join(f"{f'{budget} trainings':>20}" for budget in budgets))
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        cells = {row["budget"]: row for row in rows if row["sampler"] == sampler}
        texts = [f"{cells[b]['regret']:.2f} [{cells[b]['low']:.2f}, {cells[b]['high']:.2f}]" for b in budgets]
        print(f"{sampler:28}" + "".join(f"{text:>20}" for text in texts))
        if "trained" in cells[budgets[0]]:
            more = [cells[b]["more"] for b in budgets]
            texts = [f"{one['regret']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for one in more]
            print(f"{'  more than without':28}" + "".join(f"{text:>20}" for text in texts))
            print(f"{'  of the epochs':28}" + "".join(f"{cells[b]['trained']:>20.0%}" for b in budgets))


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
