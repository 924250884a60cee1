"""What is stored is looked up, what is not is trained once, and what may end otherwise is not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.result import HalvingGroup, State
from detkds.progress import Event, Progress
from detkds.tasks.executor import Executor
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.store import Store
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import OnFraction, Outcome


class Script:
    """An executor for which AP is the seed over 64, unless the label says otherwise; the last task comes first."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.broken: set[str] = set()

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction) -> Iterator[Outcome]:
        self.calls.append([task.label for task in tasks.values()])
        for key, task in reversed(tasks.items()):
            if task.label != "filtered":
                on_fraction(key, 0.5)
            if task.label == "killed":
                raise KeyboardInterrupt
            if task.label in self.broken:
                yield Outcome(key, TaskResult(State.FAILED, reason="its worker died"), transient=True)
            elif task.label == "filtered":
                yield Outcome(key, TaskResult(State.FILTERED, reason="no gradient", trained=False))
            else:
                weights = f"of {task.label}".encode() if task.keep_weights else None
                yield Outcome(key, TaskResult(State.COMPLETE, {"ap": task.seed / 64}), weights)

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, script: Executor, events: list[Event]):
    """``make(digest)``: a scheduler on the same folder and executor, whose setups have this content."""

    def build(digest: str = "content") -> Scheduler:
        return Scheduler(Store(tmp_path), script, lambda wanted: f"{digest} of {wanted.setup}", Progress(events.append))

    return build


def points(result: TaskResult) -> float:
    """The seed that a result was made from."""
    assert result.ap is not None
    return 0.64 * result.ap


def task(label: str, seed: int = 1, *, weight: float = 1.0, **options: object) -> Task:
    return Task("search", Policy([Term("global", (), "l2", weight)]), seed, label=label, **options)  # type: ignore[arg-type]


def test_results_come_in_order_and_are_looked_up_the_next_time(make, script, events):
    tasks = [task("a", 3), task("b", 1), task("c", 2)]
    results = make().run(tasks)
    assert [points(result) for result in results] == [3, 1, 2] and script.calls == [["a", "b", "c"]]
    assert make().run(tasks) == results
    more = make().run([task("new", 9), *tasks])
    assert [points(result) for result in more] == [9, 3, 1, 2]
    assert script.calls == [["a", "b", "c"], [], ["new"]]
    assert sum(event.kind == "finished" for event in events) == 3 + 3 + 4


def test_the_same_training_under_two_names_is_trained_once(make, script):
    results = make().run([task("a"), task("b"), task("c", weight=2.0)])
    assert results[0] == results[1] and len(script.calls[0]) == 2
    make().run([task("yet another name")])
    assert script.calls[1] == []


def test_other_content_is_another_training(make, script):
    make().run([task("a")])
    make("new annotations").run([task("a")])
    assert script.calls == [["a"], ["a"]]


def test_every_result_is_kept_as_it_comes(make, script):
    tasks = [task("killed", 1), task("b", 2), task("c", 3)]
    with pytest.raises(KeyboardInterrupt):
        make().run(tasks)
    make().run([task("a", 1), *tasks[1:]])
    assert script.calls == [["killed", "b", "c"], ["a"]]


def test_what_may_end_otherwise_is_tried_again(make, script):
    script.broken.add("b")
    first, failed = make().run([task("a"), task("b", 2)])
    assert (first.state, failed.state, failed.reason) == (State.COMPLETE, State.FAILED, "its worker died")
    script.broken.clear()
    assert [points(result) for result in make().run([task("a"), task("b", 2)])] == [1, 2]
    assert script.calls == [["a", "b"], ["b"]]


def test_candidates_that_are_compared_are_trained_together_or_not_at_all(make, script):
    def group(name: str, *labels: str) -> list[Task]:
        return [
            task(f"{name}{label}", int(label), group=HalvingGroup(name), members=("the group",)) for label in labels
        ]

    script.broken = {"a2"}
    make().run([*group("a", "1", "2", "3"), *group("b", "4", "5"), task("alone", 6)])
    script.broken = set()
    again = make().run([*group("a", "1", "2", "3"), *group("b", "4", "5"), task("alone", 6)])
    assert sorted(script.calls[1]) == ["a1", "a2", "a3"]
    assert [points(result) for result in again] == [1, 2, 3, 4, 5, 6]
    make().run([*group("a", "1", "2", "3"), *group("b", "4", "5")])
    assert script.calls[2] == []


def test_progress_counts_trainings_and_tells_of_what_was_not_one(make, script, events):
    scheduler = make()
    scheduler.progress.stage("search", 3)
    scheduler.run([task("a", 4)])
    events.clear()
    scheduler.run([task("a", 4), task("filtered", 2), task("b", 7)])
    assert [(event.kind, event.label, event.ap) for event in events if event.kind == "finished"] == [
        ("finished", "a", 6.25),
        ("finished", "b", 10.9375),
    ]
    assert [event.text for event in events if event.kind == "note"] == ["filtered  filtered: no gradient"]
    assert events[-1].done == 2 and events[-1].best == 10.9375 and events[-1].best_label == "b"
    assert next(event for event in events if event.label == "a").text == "global: - | l2 x 1"


def test_weights_are_trained_again_only_where_they_are_not_kept(make, script, tmp_path):
    wanted = task("a", keep_weights=True)
    make().run([task("a")])  # measured without its weights
    path = make().weights(wanted)
    assert path.read_bytes() == b"of a" and script.calls == [["a"], ["a"]]
    assert make().weights(wanted) == path and len(script.calls) == 2
    path.write_bytes(b"damaged")
    assert make().weights(wanted).read_bytes() == b"of a" and len(script.calls) == 3
    path.unlink()
    assert make().weights(task("a")).read_bytes() == b"of a" and len(script.calls) == 4


def test_weights_of_a_training_that_fails_are_a_users_error(make, script):
    script.broken.add("a")
    with pytest.raises(ConfigError, match="a: its training failed: its worker died"):
        make().weights(task("a", keep_weights=True))
