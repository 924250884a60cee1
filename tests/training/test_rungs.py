"""Candidates that stop early: they take no more steps, and nobody else notices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest

from detkds import Policy, Term
from detkds.training import population
from detkds.training.population import Candidate, Rungs, train_candidates, train_in_populations

FITNETS = Policy([Term("global", [], "l2", 0.1)])
STEPS = 3
"""Of an epoch."""


def never(rung, aps):
    return {}


@pytest.mark.parametrize(("name", "ema"), [("retinanet", None), ("fcos", 0.9), ("faster_rcnn", None)])
def test_survivors_go_on_where_they_are_and_end_bit_for_bit_as_without_rungs(name, ema, setting, five, same):
    one = setting(name, epochs=3, ema=ema)
    candidates = [Candidate("a", FITNETS), Candidate("loses", FITNETS), Candidate("b", five), Candidate("c", Policy())]
    whole = train_candidates(one, candidates, seed=2)
    arrivals, steps = [], defaultdict(list)

    def stops(rung, aps):
        arrivals.append((rung, list(aps)))
        return {"loses": "it lost"} if rung == 0 else {}

    found = train_candidates(
        one,
        candidates,
        seed=2,
        rungs=Rungs((1, 2), stops),
        on_step=lambda member, _: steps[member.name].append(member.steps),
    )
    assert arrivals == [(0, ["a", "loses", "b", "c"]), (1, ["a", "b", "c"])]
    every = list(range(1, 3 * STEPS + 1))  # each step once: nobody begins anew
    assert steps == {"a": every, "loses": every[:STEPS], "b": every, "c": every}
    for before, after in zip(whole, found, strict=True):
        if after.candidate.name != "loses":
            assert same(before.student.state_dict(), after.student.state_dict())
            assert before.metrics == after.metrics and after.stopped is None
            assert (after.epochs, len(after.rungs), before.rungs) == (3, 2, ())
    (alone,) = train_candidates(one, candidates[2:3], seed=2)
    assert same(alone.student.state_dict(), found[2].student.state_dict())

    lost = found[1]
    assert (lost.stopped, lost.failure, lost.metrics, lost.epochs) == ("it lost", None, None, 1)
    (short,) = train_candidates(one, candidates[1:2], seed=2, rungs=Rungs((1,), lambda *_: {"loses": "at once"}))
    assert same(short.student.state_dict(), lost.student.state_dict()) and short.rungs == lost.rungs


def test_ap_at_a_rung_is_that_of_the_student_there(setting, monkeypatch):
    seen = []

    def measure(detector, one):
        seen.append(detector)
        return real(detector, one)

    real = population.measure
    monkeypatch.setattr(population, "measure", measure)
    one = setting(epochs=2, ema=0.5)
    (trained,) = train_candidates(one, [Candidate("a", FITNETS)], seed=0, rungs=Rungs((1,), never))
    assert len(seen) == 2 and seen[0] is seen[1] is trained.student  # the moving average, at the rung and at the end


def test_the_teacher_is_asked_only_while_someone_distils(setting):
    one, calls = setting(epochs=3), Counter()
    one.teacher.register_forward_hook(lambda *_: calls.update(["teacher"]))
    candidates = [Candidate("a", FITNETS), Candidate("plain", Policy())]
    trained = train_candidates(one, candidates, seed=0, rungs=Rungs((1,), lambda *_: {"a": "it lost"}))
    assert calls["teacher"] == STEPS and [found.epochs for found in trained] == [1, 3]


def test_nothing_is_trained_when_all_have_stopped(setting):
    epochs, candidates = [], [Candidate("a", FITNETS), Candidate("b", Policy())]
    rungs = Rungs((2,), lambda rung, aps: dict.fromkeys(aps, "it lost"))
    trained = train_candidates(setting(epochs=5), candidates, seed=0, rungs=rungs, on_epoch=epochs.append)
    assert epochs == [1, 2] and [found.epochs for found in trained] == [2, 2]


def test_an_ap_that_is_no_number_is_a_failure(setting, monkeypatch):
    real = population.measure

    def measure(detector, one):
        metrics = real(detector, one)
        return population.Metrics(math.nan, *[0.0] * 5, {}) if len(seen) == 1 else metrics

    seen = []

    def stops(rung, aps):
        seen.append(list(aps))
        return {}

    monkeypatch.setattr(population, "measure", measure)
    (trained,) = train_candidates(setting(epochs=3), [Candidate("a", Policy())], seed=0, rungs=Rungs((1, 2), stops))
    assert trained.failure == "AP after epoch 2 is not a finite number: nan" and seen == [["a"], []]
    assert trained.epochs == 2 and trained.stopped is None


def test_time_is_split_by_steps(setting):
    candidates = [Candidate("a", Policy()), Candidate("short", Policy())]
    rungs = Rungs((1,), lambda *_: {"short": "it lost"})
    long, short = train_candidates(setting(epochs=4), candidates, seed=0, rungs=rungs)
    assert 0 < 4 * short.seconds <= long.seconds


class KilledError(BaseException):
    """What a process is killed by."""


def test_a_stop_is_remembered_over_a_resume(setting, same, tmp_path):
    candidates, path = [Candidate("a", FITNETS), Candidate("b", Policy())], tmp_path / "run.state"
    whole = train_candidates(setting(epochs=3), candidates, seed=0)

    def kill(epoch):
        if epoch == 1:
            raise KilledError

    first = Rungs((1, 2), lambda rung, aps: {"b": "it lost"})
    with pytest.raises(KilledError):
        train_candidates(setting(epochs=3), candidates, seed=0, checkpoint=path, rungs=first, on_epoch=kill)
    arrivals, steps = [], Counter()
    second = Rungs((1, 2), lambda rung, aps: arrivals.append((rung, list(aps))) or {})
    a, b = train_candidates(
        setting(epochs=3), candidates, seed=0, checkpoint=path, rungs=second,
        on_step=lambda member, _: steps.update([member.name]),
    )  # fmt: skip
    assert arrivals == [(1, ["a"])] and steps == {"a": 2 * STEPS}
    assert (b.stopped, b.epochs, len(b.rungs)) == ("it lost", 1, 1)
    assert same(a.student.state_dict(), whole[0].student.state_dict()) and len(a.rungs) == 2


@pytest.mark.parametrize(
    ("groups", "size", "expected"),
    [
        ("aaabbbcc", 4, ["aaa", "bbb", "cc"]),
        ("aaabbbcc", 5, ["aaa", "bbbcc"]),
        ("aaabbbcc", 6, ["aaabbb", "cc"]),
        ("aaaaab", 2, ["aa", "aa", "ab"]),  # too large for any population
        ("......", 4, ["....", ".."]),  # no group
    ],
)
def test_a_group_trains_in_one_population(setting, monkeypatch, groups, size, expected):
    chunks = []

    def trained(one, chunk, **options):
        chunks.append("".join(candidate.group or "." for candidate in chunk))
        return []

    monkeypatch.setattr(population, "train_candidates", trained)
    candidates = [Candidate(str(n), Policy(), group=group.strip(".")) for n, group in enumerate(groups)]
    assert len(list(train_in_populations(setting(), candidates, seed=0, population=size))) == len(expected)
    assert chunks == expected
