"""Candidates that stop early: they take no more steps, and nobody else notices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from detkds import Policy, Term
from detkds.evaluation.coco_ap import Metrics
from detkds.training.checkpoint import StateFiles
from detkds.training.population import Rungs, StudentSpec, train_population
from detkds.training.setup import TrainingSetup

FITNETS = Policy([Term("global", [], "l2", 0.1)])
STEPS = 3
"""Of an epoch."""


def never(rung, aps):
    return {}


@pytest.mark.parametrize(("name", "ema"), [("retinanet", None), ("fcos", 0.9), ("faster_rcnn", None)])
def test_survivors_go_on_where_they_are_and_end_bit_for_bit_as_without_rungs(name, ema, setup, five, same, observer):
    one = setup(name, epochs=3, ema=ema)
    candidates = [
        StudentSpec("a", FITNETS),
        StudentSpec("loses", FITNETS),
        StudentSpec("b", five),
        StudentSpec("c", Policy()),
    ]
    whole = train_population(one, candidates, seed=2)
    arrivals, steps = [], defaultdict(list)

    def stops(rung, aps):
        arrivals.append((rung, list(aps)))
        return {"loses": "it lost"} if rung == 0 else {}

    found = train_population(
        one,
        candidates,
        seed=2,
        rungs=Rungs((1, 2), stops),
        observer=observer(lambda student, _: steps[student.key].append(student.steps)),
    )
    assert arrivals == [(0, ["a", "loses", "b", "c"]), (1, ["a", "b", "c"])]
    every = list(range(1, 3 * STEPS + 1))  # each step once: nobody begins anew
    assert steps == {"a": every, "loses": every[:STEPS], "b": every, "c": every}
    for before, after in zip(whole, found, strict=True):
        if after.key != "loses":
            assert same(before.student.state_dict(), after.student.state_dict())
            assert before.metrics == after.metrics and after.stopped is None
            assert (after.epochs, len(after.rungs), before.rungs) == (3, 2, ())
    (alone,) = train_population(one, candidates[2:3], seed=2)
    assert same(alone.student.state_dict(), found[2].student.state_dict())

    lost = found[1]
    assert (lost.stopped, lost.failure, lost.metrics, lost.epochs) == ("it lost", None, None, 1)
    (short,) = train_population(one, candidates[1:2], seed=2, rungs=Rungs((1,), lambda *_: {"loses": "at once"}))
    assert same(short.student.state_dict(), lost.student.state_dict()) and short.rungs == lost.rungs


def test_ap_at_a_rung_is_that_of_the_student_there(setup, monkeypatch):
    seen = []

    def measure(setup, detector):
        seen.append(detector)
        return real(setup, detector)

    real = TrainingSetup.measure
    monkeypatch.setattr(TrainingSetup, "measure", measure)
    one = setup(epochs=2, ema=0.5)
    (trained,) = train_population(one, [StudentSpec("a", FITNETS)], seed=0, rungs=Rungs((1,), never))
    assert len(seen) == 2 and seen[0] is seen[1] is trained.student  # the moving average, at the rung and at the end


def test_the_teacher_is_asked_only_while_someone_distils(setup):
    one, calls = setup(epochs=3), Counter()
    one.teacher.register_forward_hook(lambda *_: calls.update(["teacher"]))
    candidates = [StudentSpec("a", FITNETS), StudentSpec("plain", Policy())]
    trained = train_population(one, candidates, seed=0, rungs=Rungs((1,), lambda *_: {"a": "it lost"}))
    assert calls["teacher"] == STEPS and [found.epochs for found in trained] == [1, 3]


def test_nothing_is_trained_when_all_have_stopped(setup, observer):
    epochs, candidates = [], [StudentSpec("a", FITNETS), StudentSpec("b", Policy())]
    rungs = Rungs((2,), lambda rung, aps: dict.fromkeys(aps, "it lost"))
    trained = train_population(
        setup(epochs=5), candidates, seed=0, rungs=rungs, observer=observer(on_epoch=epochs.append)
    )
    assert epochs == [1, 2] and [found.epochs for found in trained] == [2, 2]


def test_an_ap_that_is_no_number_is_a_failure(setup, monkeypatch):
    real = TrainingSetup.measure

    def measure(setup, detector):
        metrics = real(setup, detector)
        return Metrics(math.nan, *[0.0] * 5, {}) if len(seen) == 1 else metrics

    seen = []

    def stops(rung, aps):
        seen.append(list(aps))
        return {}

    monkeypatch.setattr(TrainingSetup, "measure", measure)
    (trained,) = train_population(setup(epochs=3), [StudentSpec("a", Policy())], seed=0, rungs=Rungs((1, 2), stops))
    assert trained.failure == "AP after epoch 2 is not a finite number: nan" and seen == [["a"], []]
    assert trained.epochs == 2 and trained.stopped is None


def test_time_is_split_by_steps(setup):
    candidates = [StudentSpec("a", Policy()), StudentSpec("short", Policy())]
    rungs = Rungs((1,), lambda *_: {"short": "it lost"})
    long, short = train_population(setup(epochs=4), candidates, seed=0, rungs=rungs)
    assert 0 < 4 * short.seconds <= long.seconds


class KilledError(BaseException):
    """What a process is killed by."""


def test_a_stop_is_remembered_over_a_resume(setup, same, observer, tmp_path):
    candidates, states = [StudentSpec("a", FITNETS), StudentSpec("b", Policy())], StateFiles(tmp_path, every=0)
    whole = train_population(setup(epochs=3), candidates, seed=0)

    def kill(student, _):
        if student.steps == STEPS + 1:
            raise KilledError

    first = Rungs((1, 2), lambda rung, aps: {"b": "it lost"})
    with pytest.raises(KilledError):
        train_population(
            setup(epochs=3), candidates, seed=0, states=states, rungs=first, observer=observer(on_step=kill)
        )
    arrivals, steps = [], Counter()
    second = Rungs((1, 2), lambda rung, aps: arrivals.append((rung, list(aps))) or {})
    a, b = train_population(
        setup(epochs=3),
        candidates,
        seed=0,
        states=states,
        rungs=second,
        observer=observer(lambda student, _: steps.update([student.key])),
    )
    assert arrivals == [(1, ["a"])] and steps == {"a": 2 * STEPS}
    assert (b.stopped, b.epochs, len(b.rungs)) == ("it lost", 1, 1)
    assert same(a.student.state_dict(), whole[0].student.state_dict()) and len(a.rungs) == 2
