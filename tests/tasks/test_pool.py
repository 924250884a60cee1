"""Tasks handed out to workers that die, fail to start and raise, without a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from detkds.errors import DataError
from detkds.policy import Policy
from detkds.policy_search.result import HalvingGroup, SearchError, State
from detkds.tasks.pool import (
    MAX_STARTS,
    Done,
    Fraction,
    Lost,
    Message,
    PoolExecutor,
    Raised,
    Ready,
    Seat,
    serve,
)
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Outcome

Answer = Callable[[int, Mapping[str, Task]], list[Message]]


def outcome(key: str, ap: float = 0.5) -> Outcome:
    return Outcome(key, TaskResult(State.COMPLETE, {"ap": ap}))


def well(number: int, tasks: Mapping[str, Task]) -> list[Message]:
    """What a healthy worker says of a job."""
    return [*(outcome(key, task.seed / 100) for key, task in tasks.items()), Done()]


class Fake:
    """Workers that say at once what a script says of their job, and start as ``starts`` says."""

    def __init__(self, seats: int, answer: Answer = well) -> None:
        self.seats = [Seat(number, seats, "cpu") for number in range(seats)]
        self.needs = "1 CPU core"
        self.answer = answer
        self.starts: Callable[[int], list[Message]] = lambda number: [Ready()]
        self.log: list[tuple[int, str]] = []
        self.waiting: list[tuple[int, Message]] = []
        self.stopped: list[int] = []
        self.closed = False

    def start(self, number: int) -> None:
        self.log.append((number, "start"))
        self.waiting += [(number, message) for message in self.starts(number)]

    def send(self, number: int, tasks: Mapping[str, Task]) -> None:
        self.log.append((number, "".join(tasks)))
        self.waiting += [(number, message) for message in self.answer(number, tasks)]

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        messages, self.waiting = self.waiting, []
        return messages

    def stop(self, number: int) -> None:
        self.stopped.append(number)

    def close(self) -> None:
        self.closed = True

    def jobs(self) -> list[tuple[int, str]]:
        return [(number, what) for number, what in self.log if what != "start"]


def tasks(keys: str, **options: object) -> dict[str, Task]:
    return {key: Task("search", Policy(), 0, label=key, **options) for key in keys}  # type: ignore[arg-type]


def run(workers: Fake, wanted: Mapping[str, Task], **options: object) -> tuple[dict[str, Outcome], list[str]]:
    notes: list[str] = []
    pool = PoolExecutor(workers, note=notes.append, **options)  # type: ignore[arg-type]
    return {given.key: given for given in pool.run(wanted)}, notes


def test_every_task_is_given_once_in_portions_that_keep_all_busy() -> None:
    workers = Fake(2)
    found, notes = run(workers, tasks("abcde"))
    assert sorted(found) == list("abcde") and not notes
    assert sorted(workers.jobs()) == [(0, "abc"), (1, "de")]
    workers = Fake(2)
    run(workers, tasks("abcde"), population=1)
    assert sorted("".join(what for _, what in workers.jobs())) == list("abcde") and len(workers.jobs()) == 5


def test_nothing_is_started_for_nothing() -> None:
    workers = Fake(2)
    found, _ = run(workers, {})
    assert not found and not workers.log


def test_tasks_of_other_setups_and_seeds_are_other_jobs() -> None:
    wanted = {
        f"{setup[0]}{seed}{number}": Task(setup, Policy(), seed)
        for setup in ("search", "comparison")
        for seed in (0, 1)
        for number in range(3)
    }
    workers = Fake(4)
    found, _ = run(workers, wanted)
    assert len(found) == 12 and sorted(what for _, what in workers.jobs()) == [
        "c00c01c02", "c10c11c12", "s00s01s02", "s10s11s12"]  # fmt: skip


def test_candidates_that_stop_each_other_stay_together() -> None:
    wanted = {**tasks("abcd", group=HalvingGroup("first")), **tasks("ef", group=HalvingGroup("second"))}
    workers = Fake(3)
    run(workers, wanted)
    assert sorted(what for _, what in workers.jobs()) == ["abcd", "ef"]


def test_fractions_are_passed_on_from_whoever_trains() -> None:
    def answer(number: int, own: Mapping[str, Task]) -> list[Message]:
        return [*(Fraction(key, part) for key in own for part in (0.5, 1.0)), *well(number, own)]

    heard: list[tuple[str, float]] = []
    list(PoolExecutor(Fake(2, answer)).run(tasks("ab"), lambda key, done: heard.append((key, done))))
    assert sorted(heard) == [("a", 0.5), ("a", 1.0), ("b", 0.5), ("b", 1.0)]


def test_a_worker_that_dies_is_replaced_and_what_it_had_not_told_is_trained_elsewhere() -> None:
    died = []

    def answer(number: int, own: Mapping[str, Task]) -> list[Message]:
        if "a" in own and not died:
            died.append(number)
            return [outcome("a", 0.25), Lost("ended by signal 9")]
        return well(number, own)

    workers = Fake(2, answer)
    found, notes = run(workers, tasks("abcd"))
    assert sorted(found) == list("abcd") and found["a"].result.ap == 25
    assert notes == ["a worker was lost with 1 training: ended by signal 9"]
    assert workers.log.count((died[0], "start")) == 2
    again = next(number for number, what in workers.jobs() if what == "b")
    assert again != died[0], "another worker takes it over"


def test_a_task_that_kills_its_workers_fails_and_the_others_complete() -> None:
    def answer(number: int, own: Mapping[str, Task]) -> list[Message]:
        return [Lost("ended by signal 9")] if "x" in own else well(number, own)

    workers = Fake(2, answer)
    found, notes = run(workers, tasks("axcd"))
    assert {key: given.result.state for key, given in found.items()} == {
        **dict.fromkeys("acd", State.COMPLETE),
        "x": State.FAILED,
    }
    assert found["x"].transient and found["x"].result.reason == "its worker died 2 times: ended by signal 9"
    jobs = [what for _, what in workers.jobs()]
    assert [jobs.count(job) for job in ("ax", "cd", "a", "x")] == [2, 1, 1, 2]
    assert len(notes) == 4 and notes[0] == "a worker was lost with 2 trainings: ended by signal 9"


def test_a_single_worker_takes_up_its_own_job_again() -> None:
    died = []

    def answer(number: int, own: Mapping[str, Task]) -> list[Message]:
        if not died:
            died.append(number)
            return [Lost("gone")]
        return well(number, own)

    found, _ = run(Fake(1, answer), tasks("ab"))
    assert sorted(found) == ["a", "b"]


def test_a_worker_that_dies_after_its_last_word_costs_nothing() -> None:
    died = []

    def answer(number: int, own: Mapping[str, Task]) -> list[Message]:
        said = well(number, own)
        if not died:
            died.append(number)
            said[-1] = Lost("ended by signal 9")
        return said

    workers = Fake(1, answer)
    found, notes = run(workers, tasks("abc"), population=1)
    assert sorted(found) == list("abc") and not notes


def test_an_outcome_that_comes_twice_is_given_once() -> None:
    pool = PoolExecutor(Fake(1, lambda number, own: [outcome("a"), outcome("a"), *well(number, own)]))
    assert [given.key for given in pool.run(tasks("ab"))] == ["a", "b"]


def test_a_seat_whose_starts_fail_is_given_up_and_the_others_go_on() -> None:
    workers = Fake(2)
    workers.starts = lambda number: [Ready()] if number else [Raised(OSError("no memory"), starting=True)]
    workers.answer = lambda number, own: [] if workers.log.count((0, "start")) < MAX_STARTS else well(number, own)
    pool = PoolExecutor(workers, population=1, note=(notes := []).append)
    workers.answer = well
    for _ in range(MAX_STARTS):  # the other worker may be done before a refusal is heard of
        assert sorted(given.key for given in pool.run(tasks("ab"))) == ["a", "b"]
    assert workers.log.count((0, "start")) == MAX_STARTS and workers.stopped == [0]
    assert notes == ["a worker could not be started, 1 are left: OSError: no memory"]


def test_a_users_error_at_the_start_is_not_tried_again() -> None:
    workers = Fake(1)
    workers.starts = lambda number: [Raised(DataError(["image 3: empty file", "image 7: no such file"]), starting=True)]
    with pytest.raises(SearchError) as caught:
        run(workers, tasks("a"))
    assert caught.value.faults == tuple(
        f"executor: no worker could be started: {fault}" for fault in ("image 3: empty file", "image 7: no such file")
    )
    assert workers.log == [(0, "start")]


def test_workers_that_never_start_end_the_run_and_the_next_says_so_at_once() -> None:
    workers = Fake(2)
    workers.starts = lambda number: [Lost("it ended with exit code 1")]
    pool = PoolExecutor(workers)
    with pytest.raises(SearchError, match="no worker could be started: it ended with exit code 1"):
        list(pool.run(tasks("ab")))
    assert len(workers.log) == 2 * MAX_STARTS
    with pytest.raises(SearchError, match="expected workers, got none"):
        list(pool.run(tasks("ab")))


def test_starts_that_fail_now_and_then_do_not_add_up() -> None:
    """A worker that was ready in between has shown that its place is sound."""
    fails = iter([True, True, False] * 3)
    lost = iter([True, True, False])
    workers = Fake(1, lambda number, own: [Lost("gone")] if next(lost, False) else well(number, own))
    workers.starts = lambda number: [Lost("too early")] if next(fails) else [Ready()]
    found, _ = run(workers, tasks("ab"))
    assert sorted(found) == ["a", "b"] and len([job for job in workers.log if job[1] == "start"]) == 9


@pytest.mark.parametrize("error", [DataError(["image 3: empty file"]), ArithmeticError("no such number")])
def test_what_no_task_is_to_blame_for_ends_the_run_and_the_worker_goes_on(error: Exception) -> None:
    workers = Fake(1, lambda number, own: [Raised(error)] if "bad" in own else well(number, own))
    pool = PoolExecutor(workers)
    with pytest.raises(type(error)) as caught:
        list(pool.run({"bad": Task("search", Policy(), 0)}))
    assert caught.value is error
    assert [given.key for given in pool.run(tasks("a"))] == ["a"]


def test_what_others_have_said_by_then_is_not_forgotten() -> None:
    workers = Fake(2, lambda number, own: [Raised(ArithmeticError())] if "bad" in own else well(number, own))
    pool = PoolExecutor(workers, population=1)
    with pytest.raises(ArithmeticError):
        list(pool.run({"bad": Task("search", Policy(), 0), **tasks("a")}))
    assert sorted(given.key for given in pool.run(tasks("bcd"))) == ["b", "c", "d"]
    assert {number for number, what in workers.jobs() if what in "bcd"} == {0, 1}, "both are free again"


def test_who_waits_long_is_told_what_for() -> None:
    workers = Fake(1)
    workers.starts = lambda number: []
    pool = PoolExecutor(workers, note=(notes := []).append)
    quiet = iter([[], [], [(0, Ready())]])
    receive = workers.receive
    workers.receive = lambda timeout: next(quiet, None) or receive(timeout)  # type: ignore[method-assign]
    assert [given.key for given in pool.run(tasks("a"))] == ["a"]
    assert notes == ["waiting for a worker: each needs 1 CPU core"] * 2


def test_the_end_is_the_end() -> None:
    workers = Fake(2)
    with PoolExecutor(workers) as pool:
        list(pool.run(tasks("a")))
    assert workers.closed
    with pytest.raises(SearchError, match="got none: it was closed"):
        list(pool.run(tasks("b")))


# ----------------------------------------------------------------------------------------------------------- serve


class Scripted:
    """A trainer that gives these outcomes."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = outcomes

    def run(self, own: Mapping[str, Task], on_fraction: Callable[[str, float], None]) -> Sequence[Outcome]:
        on_fraction("a", 0.5)
        return self.outcomes


def test_a_worker_says_all_that_becomes_of_its_job() -> None:
    said: list[Message] = []
    failed = Outcome("b", TaskResult(State.FAILED, reason="why"))
    serve(Scripted(outcome("a"), failed), tasks("ab"), said.append, torch.device("cpu"))  # type: ignore[arg-type]
    assert said == [Fraction("a", 0.5), outcome("a"), failed, Done()]


def test_a_failure_on_a_broken_device_is_not_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a device-side fault every later result of a process is worthless, those that look like failures too."""

    def broken(device: torch.device) -> None:
        raise torch.AcceleratorError(f"{device}: an illegal memory access was encountered")

    said: list[Message] = []
    failed = Outcome("b", TaskResult(State.FAILED, reason="why"))
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(torch.AcceleratorError):
        serve(Scripted(outcome("a"), failed), tasks("ab"), said.append, torch.device("cuda"))  # type: ignore[arg-type]
    assert said == [Fraction("a", 0.5), outcome("a")]


def test_what_is_left_over_is_shared_by_all_workers() -> None:
    wanted = {f"{seed}{number}": Task("comparison", Policy(), seed) for seed in (0, 1, 2) for number in range(4)}
    workers = Fake(2)
    run(workers, wanted)
    assert sorted(what for _, what in workers.jobs()) == ["00010203", "10111213", "2021", "2223"]
