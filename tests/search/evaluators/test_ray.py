"""Workers in processes of their own: the same results, and what happens when they die."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config_file import parse_config
from detkds.errors import DataError
from detkds.policy import Policy, Term
from detkds.runs.evaluators import WorkerRecipe, local_evaluator
from detkds.runs.listening import Silence
from detkds.runs.plan import make_plan
from detkds.search.evaluators.ray import DeviceLostError, RayEvaluator, Seat, Worker, start_ray
from detkds.search.result import HalvingGroup, Result, SearchError, State

pytestmark = pytest.mark.timeout(600)  # starting processes takes long on a busy machine
ray = pytest.importorskip("ray", reason="needs ray: pip install 'detkds[ray]'")
SOURCE = Path(__file__).resolve().parents[3] / "src"


@dataclass(frozen=True)
class Scripted:
    """An evaluator whose candidates do what their names say; it leaves a line for each call in ``folder``.

    ``kill``: kill the process. ``once``: wait to be killed, but only the first time. ``bad``: raise a user's error.
    ``broken``: raise another one. Anything else: AP is the length of the name.
    """

    folder: Path

    def __call__(self, seat: Seat) -> Scripted:
        return self

    def evaluate(self, policies: Sequence[Policy], peers: Sequence[HalvingGroup] = ()) -> list[Result]:
        with open(self.folder / "calls", "a") as file:
            file.write(" ".join(policy.name for policy in policies) + "\n")
        return [self.measure(policy, peers[i] if peers else HalvingGroup()) for i, policy in enumerate(policies)]

    def measure(self, policy: Policy, peers: HalvingGroup) -> Result:
        if policy.name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if policy.name == "once" and not (self.folder / "pid").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(60)
        if policy.name == "bad":
            raise DataError(["image 3: empty file", "image 7: no such file"])
        if policy.name == "broken":
            raise ArithmeticError("no such number")
        metrics = {"threads": float(torch.get_num_threads()), "peers": float(len(peers.earlier))}
        return Result(State.COMPLETE, float(len(policy.name)), metrics)


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


def named(*names: str) -> list[Policy]:
    return [Policy([], name=name) for name in names]


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


class Notes(list[str]):
    """What an evaluator told."""

    trained = 0

    def add(self, count: int) -> None:
        self.trained += count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="module")
def shared(folder: Path, cluster: Path) -> Iterator[tuple[RayEvaluator, Notes]]:
    """Two workers for all tests of scripted candidates."""
    notes = Notes()
    with RayEvaluator(Scripted(folder), workers=2, threads=1, on_note=notes.append, on_trained=notes.add) as evaluator:
        yield evaluator, notes


@pytest.fixture
def pair(shared: tuple[RayEvaluator, Notes], folder: Path) -> tuple[RayEvaluator, Notes]:
    """The two workers, and what is told from now on."""
    evaluator, notes = shared
    notes.clear()
    notes.trained = 0
    (folder / "calls").unlink(missing_ok=True)
    return evaluator, notes


@pytest.mark.slow
def test_results_come_in_order_from_both_workers(pair: tuple[RayEvaluator, Notes], folder: Path) -> None:
    evaluator, notes = pair
    peers = [HalvingGroup("a", {"x": (1.0,)})] * 2 + [HalvingGroup("b")] * 3
    results = evaluator.evaluate(named("a", "bb", "ccc", "dddd", "eeeee"), peers)
    assert [result.ap for result in results] == [1, 2, 3, 4, 5]
    assert [result.metrics["peers"] for result in results] == [1, 1, 0, 0, 0]
    assert all(result.metrics["threads"] == 1 for result in results)
    assert sorted((folder / "calls").read_text().splitlines()) == ["a bb ccc", "dddd eeeee"]
    assert all(note.startswith("waiting for") for note in notes) and notes.trained == 5
    assert evaluator.evaluate([]) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(pair: tuple[RayEvaluator, Notes], folder: Path) -> None:
    evaluator, notes = pair

    def kill() -> None:
        while not (text := (folder / "pid").read_text() if (folder / "pid").exists() else ""):
            time.sleep(0.05)
        os.kill(int(text), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = evaluator.evaluate(named("a", "once", "ccc", "dddd"))
    killer.join()
    assert [result.ap for result in results] == [1, 4, 3, 4]
    assert (folder / "calls").read_text().splitlines().count("a once") == 2, "the same population again"
    assert len(notes) == 1 and notes[0].startswith("a Ray worker was lost with 2 candidates: ")
    assert notes.trained == 4


@pytest.mark.slow
def test_a_candidate_that_kills_its_workers_fails_and_the_others_complete(
    pair: tuple[RayEvaluator, Notes], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluator, notes = pair
    results = evaluator.evaluate(named("a", "kill", "ccc", "dddd"))
    assert [result.state for result in results] == [State.COMPLETE, State.FAILED, State.COMPLETE, State.COMPLETE]
    assert [result.ap for result in results] == [1, None, 3, 4]
    assert results[1].reason.startswith("its worker died 2 times: ")
    assert "process has died" in results[1].reason and "\n" not in results[1].reason
    calls = (folder / "calls").read_text().splitlines()
    assert [calls.count(call) for call in ("a kill", "kill", "a", "ccc dddd")] == [2, 2, 1, 1]
    assert len(notes) == 4 and notes.trained == 4
    assert capfd.readouterr().out == "", "stdout belongs to results"


@pytest.mark.slow
def test_a_users_error_ends_the_evaluation_with_all_its_faults(pair: tuple[RayEvaluator, Notes]) -> None:
    with pytest.raises(DataError) as caught:
        pair[0].evaluate(named("bad"))
    assert type(caught.value) is DataError
    assert caught.value.faults == ("image 3: empty file", "image 7: no such file")


@pytest.mark.slow
def test_another_error_ends_the_evaluation_as_in_one_process(pair: tuple[RayEvaluator, Notes]) -> None:
    with pytest.raises(ArithmeticError, match="no such number"):
        pair[0].evaluate(named("broken"))
    [result] = pair[0].evaluate(named("aa"))
    assert result.ap == 2


@pytest.mark.slow
def test_a_place_whose_start_is_refused_is_given_up(cluster: Path, tmp_path: Path) -> None:
    notes = Notes()
    with RayEvaluator(HalfReady(tmp_path), workers=2, threads=1, on_note=notes.append) as evaluator:
        while not notes:  # the other worker may have done everything before the refusal is heard of
            results = evaluator.evaluate(named("a", "bb", "ccc"))
            assert [result.ap for result in results] == [1, 2, 3]
        assert notes == ["a Ray worker could not be started, 1 are left: image 3: empty file\nimage 7: no such file"]


@pytest.mark.slow
def test_workers_that_never_start_end_the_search_with_the_reason(cluster: Path) -> None:
    said = "no Ray worker could be started: RuntimeError: no module named nonsense at seat 0 of 1"
    with RayEvaluator(fails, workers=1, threads=1) as evaluator:
        with pytest.raises(SearchError, match=said):
            evaluator.evaluate(named("a"))
        with pytest.raises(SearchError, match="expected Ray workers, got none"):
            evaluator.evaluate(named("a"))


@pytest.mark.slow
def test_more_workers_than_fit_are_refused(cluster: Path) -> None:
    with pytest.raises(SearchError, match="expected 5 workers with 1 CPUs each"):
        RayEvaluator(fails, workers=5, threads=1)
    assert ray.is_initialized(), "what was not started here is not stopped here"


def test_an_address_where_nobody_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SearchError, match=f"no Ray cluster answers at {address}"):
        RayEvaluator(fails)


def test_a_broken_device_costs_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a device-side fault every later result of a process is worthless, those that look like failures too."""

    def broken(device: torch.device) -> None:
        raise RuntimeError(f"{device}: an illegal memory access was encountered\nCompile with ...")

    worker = Worker()
    worker.start(Scripted(tmp_path), Seat(0, 1, "cuda"), threads=torch.get_num_threads())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert worker.evaluate(named("aa"), ())[0].ap == 2
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    for name in ("aa", "broken"):
        with pytest.raises(DeviceLostError, match=r"illegal memory access was encountered$"):
            worker.evaluate(named(name), ())


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
    cluster: Path, tiny_module_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, failures included, although candidates have other company."""
    (cluster / "late_faults.py").write_text(LATE)
    monkeypatch.syspath_prepend(str(cluster))
    proxy, train = tiny_module_run["proxy"] | {"draws": 64}, tiny_module_run["train"] | {"lr": 0.01}
    changes = {"proxy": proxy, "train": train, "threads": 1, "plugins": ["late_faults"]}
    plan = make_plan(parse_config(tiny_module_run | changes))
    plan.teacher.eval().requires_grad_(False)
    folder = plan.config.folder
    folder.mkdir(parents=True)
    policies = [Policy([Term(*term)]) for term in TERMS]
    local = local_evaluator(plan, folder, Silence()).evaluate(policies)
    states = [result.state for result in local]
    assert states == [State.COMPLETE] * 3 + [State.FAILED] * 2 + [State.FILTERED]
    assert len({result.ap for result in local[:3]}) == 3, "otherwise equality says little"
    with RayEvaluator(WorkerRecipe.of(plan, folder), population=2, workers=2, threads=1) as evaluator:
        found = evaluator.evaluate(policies)
    assert [replace(result, seconds=0.0) for result in found] == [replace(result, seconds=0.0) for result in local]
