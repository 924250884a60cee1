"""Real processes: the same results as in this one, also where a worker is killed; and none outlives its parent."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detkds.errors import DataError
from detkds.policy import Policy, Term
from detkds.policy_search.result import SearchError, State
from detkds.runs.executors import WorkerRecipe, make_trainer
from detkds.runs.plan import SEARCH, Plan
from detkds.tasks import processes
from detkds.tasks.pool import PoolExecutor, Seat
from detkds.tasks.processes import ProcessWorkers, local_seats
from detkds.tasks.task import Task

SOURCE = Path(__file__).resolve().parents[2] / "src"
TERMS = [
    Term("global", [], "l2", 1.0),
    Term("global", ["norm(N)"], "l1", 5.0, "gradient"),
    Term("logits", [], "kl", 3.0),
    Term("global", ["scale(2)"], "l2", 1e35),  # diverges
    Term("global", [], "l2", 1e9),  # refused
]


@pytest.mark.timeout(600)  # starting processes takes long on a busy machine
def test_two_workers_find_what_one_process_finds_though_one_is_killed(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    """To the last bit, failures included, although candidates have other company."""
    plan = plan_of(proxy={"epochs": 2, "draws": 8}, train={"lr": 0.01})
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    tasks = {
        str(place): Task(SEARCH, Policy([term]), 0, screened=term.weight != 1e35, label=str(term))
        for place, term in enumerate(TERMS)
    }
    expected = {outcome.key: outcome.result for outcome in make_trainer(plan, here, print).run(tasks)}
    states = [expected[key].state for key in tasks]
    assert states == [State.COMPLETE] * 3 + [State.FAILED, State.FILTERED]
    assert len({str(expected[key].curve) for key in tasks}) == 4, "otherwise equality says little"

    notes: list[str] = []
    killed: list[int] = []
    workers = ProcessWorkers(WorkerRecipe.of(plan, there), [Seat(number, 2, "cpu") for number in range(2)])

    def kill(key: str, done: float) -> None:
        if not killed:  # whoever trains this
            for process, _ in workers._processes.values():
                killed.append(process.pid or 0)
                os.kill(killed[0], signal.SIGKILL)
                return

    with PoolExecutor(workers, population=2, note=notes.append) as pool:
        results = {outcome.key: outcome.result for outcome in pool.run(tasks, kill)}
        pids = [process.pid for process, _ in workers._processes.values()]
    assert {key: replace(result, seconds=0.0) for key, result in results.items()} == {
        key: replace(result, seconds=0.0) for key, result in expected.items()
    }
    assert len(pids) == 2 and killed[0] not in pids, "it was replaced"
    told = [note for note in notes if not note.startswith("waiting for a worker")]  # on a busy machine
    assert all("a worker was lost" in note and "ended by signal 9" in note for note in told)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "they end with the executor"


SLEEPER = """
import time

class Sleeper:
    def __call__(self, seat):
        return self

    def run(self, tasks, on_fraction):
        on_fraction("a", 0.5)
        time.sleep(600)
"""
PARENT = """
from detkds.policy import Policy
from detkds.tasks.pool import PoolExecutor, Seat
from detkds.tasks.processes import ProcessWorkers
from detkds.tasks.task import Task
from sleeper import Sleeper

workers = ProcessWorkers(Sleeper(), [Seat(0, 1, "cpu")])
tell = lambda key, done: print(workers._processes[0][0].pid, flush=True)
list(PoolExecutor(workers).run({"a": Task("search", Policy(), 0)}, tell))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the worker in /proc")
@pytest.mark.timeout(300)
def test_workers_die_with_their_parent_in_the_middle_of_their_work(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.05)


# ----------------------------------------------------------------------------------------------------------- seats


@pytest.mark.parametrize(
    ("machine", "asked", "devices"),
    [
        ((4, 0), (None, None, 1), ["cpu"] * 4),
        ((5, 0), (None, None, 2), ["cpu"] * 2),
        ((4, 0), ("cpu", 3, 1), ["cpu"] * 3),
        ((8, 2), (None, None, 1), ["cuda:0", "cuda:1"]),
        ((8, 2), ("cuda", 3, 1), ["cuda:0", "cuda:1", "cuda:0"]),
        ((8, 2), ("cpu", None, 4), ["cpu"] * 2),
        ((8, 2), ("cuda:1", None, 1), ["cuda:1"]),  # one device named for all
        ((8, 2), ("cuda:1", 2, 1), ["cuda:1"] * 2),
        ((8, 0), ("mps", None, 1), ["mps"]),
    ],
)
def test_a_worker_has_a_device_of_its_own(
    machine: tuple[int, int],
    asked: tuple[str | None, int | None, int],
    devices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "machine", lambda: dict(zip(("CPU", "GPU"), machine, strict=True)))
    seats = local_seats(*asked)
    assert [seat.device for seat in seats] == devices
    assert [(seat.number, seat.of) for seat in seats] == [(i, len(devices)) for i in range(len(devices))]
    assert all(seat.threads == asked[2] for seat in seats)


def test_more_workers_than_a_machine_has_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "machine", lambda: {"CPU": 2, "GPU": 0})
    with pytest.raises(SearchError, match="expected 2 workers with 2 CPUs each"):
        local_seats(None, 2, 2)


def test_an_error_travels_with_its_words() -> None:
    class LocalError(Exception):
        """Cannot be pickled."""

    error = processes._picklable(DataError(["image 3: empty file", "image 7: no such file"]))
    assert isinstance(error, DataError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DataError and copy.faults == ("image 3: empty file", "image 7: no such file")
    assert str(processes._picklable(LocalError("what happened"))) == "LocalError: what happened"
