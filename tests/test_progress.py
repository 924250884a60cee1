"""What a run tells its sinks: counts, the best, and how much time remains."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import pytest

from detkds import progress
from detkds.progress import Event, Progress, count_text, duration_text


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def run(clock: Clock, events: list[Event]) -> Progress:
    """A progress whose events land in ``events``."""
    return Progress(events.append, clock=clock)


def test_without_a_sink_it_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress() as run:
        run.expect({"search": 3})
        run.stage("search", 2)
        run.training("a", 0.5)
        run.finished("a", "a", 3.0)
        run.note("text")
    assert capfd.readouterr() == ("", "")


def test_fractions_and_finished_trainings_are_counted(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.stage("search", 4)
    for key, fraction in (("a", 0.25), ("b", 0.5), ("a", 0.75)):
        clock.now += 1
        run.training(key, fraction, f"policy {key}")
    assert [(e.kind, e.done, e.label) for e in events[1:]] == [
        ("training", 0.25, "policy a"),
        ("training", 0.75, "policy b"),
        ("training", 1.25, "policy a"),
    ]
    run.finished("b", "policy b", 3.5, "pruned")
    assert events[-1].done == 1.75
    run.finished("c", "policy c")
    run.finished("a", "policy a", 2.0)
    assert (events[-1].done, events[-1].total, events[-1].ap, events[-1].best) == (3, 4, 2.0, 3.5)
    assert events[-1].best_label == "policy b"


def test_a_fraction_never_goes_back(run: Progress, clock: Clock, events: list[Event]) -> None:
    """A training that begins again after its worker died, one told of after its end, and nonsense."""
    run.stage("search", 2)
    for fraction in (0.5, 0.1, 7.0, math.nan, -1.0):
        clock.now += 1
        run.training("a", fraction)
    assert [event.done for event in events[1:]] == [0.5, 0.5, 1]
    run.finished("a", "a")
    run.finished("a", "a")
    clock.now += 1
    run.training("a", 0.2)
    assert events[-1].done == 1
    assert events[-1].kind == "finished"


def test_the_number_of_a_stage_may_change(run: Progress, events: list[Event]) -> None:
    run.stage("search", 10)
    run.finished("a", "a", 4.0)
    run.stage("search", 3)
    assert (events[-1].kind, events[-1].done, events[-1].total, events[-1].best) == ("stage", 1, 3, 4.0)
    run.stage("comparison", 5)
    assert (events[-1].done, events[-1].total, events[-1].best) == (0, 5, None)


def test_more_trainings_than_announced_raise_the_total(run: Progress, events: list[Event]) -> None:
    run.stage("search", 1)
    for key in "abc":
        run.finished(key, key)
    assert (events[-1].done, events[-1].total, events[-1].remaining) == (3, 3, 0)


@pytest.mark.parametrize("ap", [math.nan, math.inf, None])
def test_a_failed_training_has_no_ap(run: Progress, events: list[Event], ap: float | None) -> None:
    run.stage("search", 2)
    run.finished("a", "a", 0.0)
    run.finished("b", "b", ap, "failed: loss is not finite")
    assert (events[-1].ap, events[-1].best, events[-1].text) == (None, 0.0, "failed: loss is not finite")


def test_training_is_told_ten_times_a_second(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.stage("search", 1)
    for step in range(1000):
        clock.now = 1000 + step / 1024
        run.training("a", step / 1000)
    told = [event for event in events if event.kind == "training"]
    assert 9 <= len(told) <= 10
    assert all(later.elapsed - event.elapsed >= 0.1 for event, later in pairwise(told))


def test_remaining_time_follows_the_pace(run: Progress, clock: Clock, events: list[Event]) -> None:
    """A quarter of 4 trainings in 10 s: 30 s for the rest."""
    run.stage("search", 4)
    assert events[-1].remaining is None
    run.training("a", 0.0)
    clock.now += 10
    run.training("a", 1.0)
    assert events[-1].remaining == pytest.approx(30)
    assert events[-1].elapsed == 10


def test_what_was_done_before_says_nothing_of_the_pace(run: Progress, clock: Clock, events: list[Event]) -> None:
    """Of 10 trainings 5 are stored and one goes on from its half: half a training in 10 s, and 4 are left."""
    run.stage("search", 10)
    for key in range(5):
        run.finished(str(key), "stored", stored=True)
    run.training("a", 0.5)
    assert (events[-1].done, events[-1].remaining) == (5.5, None)
    clock.now += 10
    run.finished("a", "a")
    assert (events[-1].done, events[-1].remaining) == (6, pytest.approx(80))


def test_a_training_that_tells_only_its_end_counts_as_work(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.stage("search", 2)
    clock.now += 10
    run.training("a", 1.0)
    run.finished("a", "a")
    assert events[-1].remaining == pytest.approx(10)


def test_expected_seconds_tell_of_the_whole_run(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.expect({"teacher": 100, "search": 200, "comparison": 300, "broken": math.nan})
    run.stage("teacher", 10)
    assert events[-1].remaining == pytest.approx(600)
    clock.now += 100
    for key in range(5):
        run.finished(str(key), "t")
    # Twice as slow as expected so far; a twentieth of what was expected stands against it.
    pace = (100 + 0.5 * 10) / (5 + 0.5)
    assert events[-1].remaining == pytest.approx(5 * pace + 500 * (100 + 30) / (50 + 30))
    clock.now += 100
    for key in range(5, 10):
        run.finished(str(key), "t")
    run.stage("search", 10)
    scale = (200 + 30) / (100 + 30)
    assert events[-1].remaining == pytest.approx(200 + 300 * scale)
    run.stage("comparison", 1)
    run.finished("c", "c")
    assert events[-1].remaining == 0


def test_a_stage_that_was_left_out_is_not_waited_for(run: Progress, events: list[Event]) -> None:
    run.expect({"teacher": 100, "search": 200, "comparison": 300})
    run.stage("search", 10)
    assert events[-1].remaining == pytest.approx(500)
    run.stage("comparison", 0)
    assert events[-1].remaining == 0


def test_a_stage_nobody_expected_goes_by_its_pace(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.expect({"search": 200, "comparison": 300})
    run.stage("teacher", 2)
    assert events[-1].remaining is None
    clock.now += 5
    run.finished("t", "t")
    assert events[-1].remaining == pytest.approx(5 + 500)


def test_a_clock_that_jumps_back_stands_still(run: Progress, clock: Clock, events: list[Event]) -> None:
    run.stage("search", 2)
    clock.now += 10
    run.finished("a", "a")
    clock.now -= 500
    run.note("later")
    assert [event.elapsed for event in events] == [0, 10, 10]
    assert all(event.remaining is None or event.remaining >= 0 for event in events)


def test_a_wall_clock_that_jumps_changes_stamps_only(
    run: Progress, clock: Clock, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = iter([2e9, 1e9, 3e9])
    monkeypatch.setattr(progress.time, "time", lambda: next(stamps))
    run.stage("search", 2)
    clock.now += 10
    run.finished("a", "a")
    run.note("later")
    assert [event.time for event in events] == [2e9, 1e9, 3e9]
    assert [event.elapsed for event in events] == [0, 10, 10]
    assert events[-1].remaining == pytest.approx(10)


def test_a_sink_that_breaks_is_dropped_and_the_others_hear_of_it(clock: Clock, events: list[Event]) -> None:
    def broken(event: Event) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    run = Progress(broken, events.append, clock=clock)
    run.stage("search", 2)
    run.finished("a", "a")
    assert sorted(event.kind for event in events) == ["finished", "note", "stage"]
    assert "Broken pipe" in next(event.text for event in events if event.kind == "note")


def test_a_fault_in_a_sink_is_not_hidden() -> None:
    def faulty(event: Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Progress(faulty).note("text")


def test_a_late_sink_begins_with_the_present_stage(run: Progress, events: list[Event]) -> None:
    late: list[Event] = []
    run.add_sink(late.append)
    assert late == []
    run.stage("search", 2)
    later: list[Event] = []
    run.add_sink(later.append)
    assert [(event.kind, event.stage) for event in later] == [("stage", "search")]
    assert len(late) == len(events) == 1


def test_the_end_tells_why(events: list[Event]) -> None:
    with Progress(events.append) as run:
        run.close()
        run.close("not again")
    assert [(event.kind, event.text) for event in events] == [("close", "")]
    with pytest.raises(KeyboardInterrupt), Progress(events.append):
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="disk full"), Progress(events.append):
        raise OSError("disk full")
    assert [event.text for event in events[1:]] == ["KeyboardInterrupt", "OSError: disk full"]


def test_threads_lose_nothing() -> None:
    events: list[Event] = []
    run = Progress(events.append)
    run.stage("search", 400)

    def work(name: str) -> None:
        for index in range(100):
            run.training(f"{name}{index}", 0.5)
            run.finished(f"{name}{index}", name, float(index))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (events[-1].done, events[-1].best) == (400, 99.0)
    done = [event.done for event in events]
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "1.5 min"),
        (599, "10.0 min"),
        (600, "10 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
    ],
)
def test_durations_change_their_unit_at_their_limits(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_counts_are_whole_where_they_are() -> None:
    assert [count_text(value) for value in (0, 60, 1234.0, 1234.56, 0.04)] == ["0", "60", "1234", "1234.6", "0"]
