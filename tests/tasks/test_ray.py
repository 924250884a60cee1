"""Workers in processes of their own: the same results, and what happens when they die."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from detkds.errors import DataError
from detkds.policy import Policy, Term
from detkds.policy_search.result import SearchError, State
from detkds.runs.executors import WorkerRecipe, make_trainer
from detkds.runs.plan import SEARCH, Plan
from detkds.tasks.pool import PoolExecutor, Seat
from detkds.tasks.ray import RayWorkers, start_ray
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import OnFraction, Outcome

pytestmark = pytest.mark.timeout(600)  # starting processes takes long on a busy machine
ray = pytest.importorskip("ray", reason="needs ray: pip install 'detkds[ray]'")
SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Scripted:
    """A trainer whose tasks do what their labels say; it leaves a line for each job in ``folder``.

    ``kill``: kill the process. ``once``: wait to be killed, but only the first time. ``bad``: raise a user's error.
    ``broken``: raise another one. Anything else: AP in points is the length of the label.
    """

    folder: Path

    def __call__(self, seat: Seat) -> Scripted:
        return self

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction) -> Iterator[Outcome]:
        with open(self.folder / "calls", "a") as file:
            file.write(" ".join(task.label for task in tasks.values()) + "\n")
        for key, task in tasks.items():
            on_fraction(key, 0.5)
            yield Outcome(key, self.result(task.label))

    def result(self, label: str) -> TaskResult:
        if label == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if label == "once" and not (self.folder / "pid").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(60)
        if label == "bad":
            raise DataError(["image 3: empty file", "image 7: no such file"])
        if label == "broken":
            raise ArithmeticError("no such number")
        return TaskResult(State.COMPLETE, {"ap": len(label) / 64, "threads": torch.get_num_threads()})


@dataclass(frozen=True)
class HalfReady:
    """Only every other seat has the images."""

    folder: Path

    def __call__(self, seat: Seat) -> Scripted:
        if seat.number % 2 == 0:
            raise DataError(["image 3: empty file", "image 7: no such file"])
        return Scripted(self.folder)


def fails(seat: Seat) -> Scripted:
    raise RuntimeError(f"no module named nonsense at seat {seat.number} of {seat.of}")


def named(*labels: str) -> dict[str, Task]:
    return {str(place): Task("search", Policy(), 0, label=label) for place, label in enumerate(labels)}


def run(pool: PoolExecutor, *labels: str) -> list[TaskResult]:
    """Results in the order of the labels."""
    results = {outcome.key: outcome.result for outcome in pool.run(named(*labels))}
    return [results[str(place)] for place in range(len(labels))]


def lengths(results: list[TaskResult]) -> list[int | None]:
    """Of the labels that results were made from."""
    return [None if result.ap is None else round(0.64 * result.ap) for result in results]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray on this machine with the functions of this module, and a folder from which workers can import."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    plugins = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{SOURCE}{os.pathsep}{plugins}")
        patch.setenv("RAY_agent_register_timeout_ms", "100000")  # for a busy machine
        start_ray(num_cpus=4)
        yield plugins
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="module")
def shared(folder: Path, cluster: Path) -> Iterator[tuple[PoolExecutor, list[str]]]:
    """Two workers for all tests of scripted tasks."""
    notes: list[str] = []
    with PoolExecutor(RayWorkers(Scripted(folder), None, 2, 1), note=notes.append) as pool:
        yield pool, notes


@pytest.fixture
def pair(shared: tuple[PoolExecutor, list[str]], folder: Path) -> tuple[PoolExecutor, list[str]]:
    """The two workers, and what is told from now on."""
    shared[1].clear()
    (folder / "calls").unlink(missing_ok=True)
    return shared


def told(notes: list[str]) -> list[str]:
    """Without what a busy machine gives cause for."""
    return [note for note in notes if not note.startswith("waiting for")]


@pytest.mark.slow
def test_results_come_from_both_workers(pair: tuple[PoolExecutor, list[str]], folder: Path) -> None:
    pool, notes = pair
    fractions: list[tuple[str, float]] = []
    tasks = named("a", "bb", "ccc", "dddd", "eeeee")
    results = {outcome.key: outcome.result for outcome in pool.run(tasks, lambda *told: fractions.append(told))}
    assert lengths([results[key] for key in tasks]) == [1, 2, 3, 4, 5]
    assert all(result.metrics["threads"] == 1 for result in results.values())
    assert sorted((folder / "calls").read_text().splitlines()) == ["a bb ccc", "dddd eeeee"]
    assert sorted(fractions) == [(key, 0.5) for key in tasks] and not told(notes)
    assert list(pool.run({})) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(pair: tuple[PoolExecutor, list[str]], folder: Path) -> None:
    pool, notes = pair

    def kill() -> None:
        while not (text := (folder / "pid").read_text() if (folder / "pid").exists() else ""):
            time.sleep(0.05)
        os.kill(int(text), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = run(pool, "a", "once", "ccc", "dddd")
    killer.join()
    assert lengths(results) == [1, 4, 3, 4]
    calls = (folder / "calls").read_text().splitlines()
    assert calls.count("a once") == 1 and (calls.count("once") == 1 or calls.count("a once") == 2)
    assert len(told(notes)) == 1 and told(notes)[0].startswith("a worker was lost with ")


@pytest.mark.slow
def test_a_task_that_kills_its_workers_fails_and_the_others_complete(
    pair: tuple[PoolExecutor, list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool, _ = pair
    results = run(pool, "a", "kill", "ccc", "dddd")
    assert [result.state for result in results] == [State.COMPLETE, State.FAILED, State.COMPLETE, State.COMPLETE]
    assert lengths(results) == [1, None, 3, 4]
    assert results[1].reason.startswith("its worker died 2 times: ")
    assert "process has died" in results[1].reason and "\n" not in results[1].reason
    assert (folder / "calls").read_text().splitlines().count("ccc dddd") == 1
    assert capfd.readouterr().out == "", "stdout belongs to results"


@pytest.mark.slow
def test_a_users_error_ends_the_run_with_all_its_faults(pair: tuple[PoolExecutor, list[str]]) -> None:
    with pytest.raises(DataError) as caught:
        run(pair[0], "bad")
    assert type(caught.value) is DataError
    assert caught.value.faults == ("image 3: empty file", "image 7: no such file")


@pytest.mark.slow
def test_another_error_ends_the_run_as_in_one_process(pair: tuple[PoolExecutor, list[str]]) -> None:
    with pytest.raises(ArithmeticError, match="no such number"):
        run(pair[0], "broken")
    assert lengths(run(pair[0], "aa")) == [2]


@pytest.mark.slow
def test_a_place_whose_start_is_refused_is_given_up(cluster: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    with PoolExecutor(RayWorkers(HalfReady(tmp_path), None, 2, 1), note=notes.append) as pool:
        while not told(notes):  # the other worker may have done everything before the refusal is heard of
            assert lengths(run(pool, "a", "bb", "ccc")) == [1, 2, 3]
        text = "a worker could not be started, 1 are left: image 3: empty file\nimage 7: no such file"
        assert told(notes) == [text]


@pytest.mark.slow
def test_workers_that_never_start_end_the_run_with_the_reason(cluster: Path) -> None:
    said = "no worker could be started: RuntimeError: no module named nonsense at seat 0 of 1"
    with PoolExecutor(RayWorkers(fails, None, 1, 1)) as pool, pytest.raises(SearchError, match=said):
        run(pool, "a")


@pytest.mark.slow
def test_more_workers_than_fit_are_refused(cluster: Path) -> None:
    with pytest.raises(SearchError, match="expected 5 workers with 1 CPUs each"):
        RayWorkers(fails, None, 5, 1)
    assert ray.is_initialized(), "what was not started here is not stopped here"


def test_an_address_where_nobody_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SearchError, match=f"no Ray cluster answers at {address}"):
        RayWorkers(fails, None, None, 1)


LATE = """
import torch
from dataclasses import dataclass
from typing import ClassVar
from detkds.distances.reduction import ALL_KINDS, element_distance
from detkds.registry import DISTANCES

def second_step():
    return torch.initial_seed() == 1  # calibration draws no seed of its own, training one per step

@DISTANCES.register("raises_late")
@dataclass(frozen=True)
class RaisesLate:
    kinds: ClassVar = ALL_KINDS

    def __call__(self, pair):
        if second_step():
            raise ArithmeticError("too late")
        return element_distance(pair, lambda student, teacher: (student - teacher).abs())

@DISTANCES.register("nan_late")
@dataclass(frozen=True)
class NanLate:
    kinds: ClassVar = ALL_KINDS

    def __call__(self, pair):
        distance = element_distance(pair, lambda student, teacher: (student - teacher).abs())
        return distance * float("nan") if second_step() else distance
"""


TERMS = [
    ("global", [], "l2", 1.0),
    ("global", ["norm(N)"], "l1", 5.0),
    ("logits", [], "kl", 3.0),
    ("global", [], "raises_late", 0.1),
    ("global", [], "nan_late", 0.1),
    ("global", [], "l2", 1e9),
]


@pytest.mark.slow
def test_workers_find_what_one_process_finds(
    cluster: Path, plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, failures included, although candidates have other company."""
    (cluster / "late_faults.py").write_text(LATE)
    monkeypatch.syspath_prepend(str(cluster))
    plan = plan_of(proxy={"draws": 64}, train={"lr": 0.01}, plugins=["late_faults"])
    folder = plan.config.folder
    folder.mkdir(parents=True)
    tasks = {
        str(place): Task(SEARCH, Policy([Term(*term)]), 0, screened=True, label=term[2])
        for place, term in enumerate(TERMS)
    }
    local = {outcome.key: outcome.result for outcome in make_trainer(plan, folder, print).run(tasks)}
    states = [local[key].state for key in tasks]
    assert states == [State.COMPLETE] * 3 + [State.FAILED] * 2 + [State.FILTERED]
    assert len({local[key].ap for key in "012"}) == 3, "otherwise equality says little"
    with PoolExecutor(RayWorkers(WorkerRecipe.of(plan, folder), None, 2, 1), population=2) as pool:
        results = {outcome.key: outcome.result for outcome in pool.run(tasks)}
    assert {key: replace(result, seconds=0.0) for key, result in results.items()} == {
        key: replace(result, seconds=0.0) for key, result in local.items()
    }
