"""What is kept comes back as it was, or not at all; what is damaged is named and trained again."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from detkds.policy import Policy, Term
from detkds.policy_search.result import State
from detkds.tasks.store import RESULTS, WEIGHTS, Store, slug
from detkds.tasks.task import Task, TaskResult

TASK = Task("comparison", Policy([Term("global", (), "l2", 2.0)]), 3, label="pkd, twice")
RESULT = TaskResult(
    State.COMPLETE,
    metrics={"ap": 0.25, "ap50": 0.5, "ap_small": None, "kind": "box"},
    seconds=1.5,
    epochs=2.0,
    rungs=(0.125,),
    curve=({"task/box": 1.0}, {"task/box": 0.5, "validation_ap": 0.25}),
    policy=Policy([Term("global", (), "l2", 0.3)]).to_dict(),
)
FAILED = TaskResult(State.FAILED, reason="DivergenceError: not finite", trained=False)


@pytest.fixture
def notes() -> list[str]:
    return []


def reopened(store: Store, notes: list[str]) -> Store:
    return Store(store.folder, notes.append)


def test_results_and_weights_come_back_in_another_process(tmp_path: Path, notes: list[str]) -> None:
    store = Store(tmp_path, notes.append)
    assert store.get("a") is None and store.weights("a") is None
    kept = store.put("a", TASK, RESULT, b"some weights")
    store.put("b", TASK, FAILED)
    assert kept.weights and TaskResult.from_dict({**kept.to_dict(), "weights": ""}) == RESULT
    for same in (store, reopened(store, notes)):
        assert same.get("a") == kept and same.get("b") == FAILED and same.get("c") is None
        assert same.weights("b") is None
        path = same.weights("a")
        assert path is not None and path.read_bytes() == b"some weights"
        assert path == tmp_path / WEIGHTS / f"{slug('pkd, twice')}-seed3-a.safetensors"
    assert not notes


def test_nothing_that_was_written_is_ever_changed(tmp_path: Path, notes: list[str]) -> None:
    store = Store(tmp_path, notes.append)
    content = []
    for number in range(3):
        store.put(str(number), TASK, RESULT)
        content.append((tmp_path / RESULTS).read_text())
    store.put("0", TASK, FAILED)
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(content))
    assert (tmp_path / RESULTS).read_text().startswith(content[-1])
    assert reopened(store, notes).get("0") == FAILED, "the last one counts"


def test_a_line_torn_by_a_kill_is_cut_off_and_appending_goes_on(tmp_path: Path, notes: list[str]) -> None:
    store = Store(tmp_path, notes.append)
    store.put("a", TASK, RESULT)
    store.put("b", TASK, RESULT)
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-40])
    store = reopened(store, notes)
    assert store.get("a") == RESULT and store.get("b") is None
    store.put("c", TASK, FAILED)
    store = reopened(store, notes)
    assert (store.get("a"), store.get("b"), store.get("c")) == (RESULT, None, FAILED)
    assert not notes, "a kill is nothing to tell of"


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace('"ap": 0.25', '"ap": 0.95'),  # a number that somebody improved
        lambda line: line[: len(line) // 2],
        lambda line: "",
        lambda line: json.dumps([line]),
        lambda line: "\x00" * 40,
    ],
)
def test_a_damaged_line_in_the_middle_costs_itself_alone(damage: object, tmp_path: Path, notes: list[str]) -> None:
    store = Store(tmp_path, notes.append)
    for key in "abc":
        store.put(key, TASK, RESULT)
    first, middle, last = (tmp_path / RESULTS).read_text().splitlines()
    (tmp_path / RESULTS).write_text("\n".join([first, damage(middle), last]) + "\n")  # type: ignore[operator]
    store = reopened(store, notes)
    assert [store.get(key) for key in "abc"] == [RESULT, None, RESULT]
    assert len(notes) == 1 and str(tmp_path / RESULTS) in notes[0] and "1 damaged line" in notes[0]


def test_a_sound_line_of_another_form_is_passed_over(tmp_path: Path, notes: list[str]) -> None:
    from detkds.files import append_line

    for result in ({"state": "excellent", "rungs": [], "curve": []}, {"state": "complete"}, {"unknown": 1}, 3):
        append_line(tmp_path / RESULTS, {"key": "a", "result": result})
    append_line(tmp_path / RESULTS, {"result": RESULT.to_dict()})
    store = Store(tmp_path, notes.append)
    assert store.get("a") is None and len(notes) == 1 and "5 damaged lines" in notes[0]


def test_weights_that_are_not_those_that_were_kept_are_refused(tmp_path: Path, notes: list[str]) -> None:
    store = Store(tmp_path, notes.append)
    store.put("a", TASK, RESULT, b"some weights")
    path = store.weights("a")
    assert path is not None
    path.write_bytes(b"same length!")
    assert store.weights("a") is None
    assert notes == [f"{path} is damaged; its training is done again"]
    path.unlink()
    assert store.weights("a") is None and len(notes) == 1
    assert store.get("a") is not None, "what it measured is still known"
    store.put("a", TASK, RESULT, b"some weights")
    assert store.weights("a") == path


def test_two_tasks_of_one_name_have_files_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("0123456789", "abcdefghij"):
        store.put(key, TASK, RESULT, key.encode())
    assert [store.weights(key).read_bytes() for key in ("0123456789", "abcdefghij")] == [b"0123456789", b"abcdefghij"]  # type: ignore[union-attr]


def test_a_label_or_a_record_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    from detkds.files import append_line

    store = Store(tmp_path / "run")
    (tmp_path / "run").mkdir()
    store.put("a", Task("x", Policy(), 0, label="../../secret"), RESULT, b"w")
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "run" / WEIGHTS]
    (tmp_path / "secret").write_bytes(b"secret")
    result = {**RESULT.to_dict(), "weights": "1" * 32}
    append_line(tmp_path / "run" / RESULTS, {"key": "b", "file": "../../secret", "result": result})
    assert Store(tmp_path / "run").weights("b") is None


def test_what_another_run_measured_is_taken_over_once(tmp_path: Path, notes: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    other = Store(first)
    other.put("a", TASK, RESULT, b"some weights")
    store = Store(second, notes.append, parent=first)
    assert store.get("a") == other.get("a")
    path = store.weights("a")
    assert path is not None and path.read_bytes() == b"some weights" and path.is_relative_to(second)
    store.put("b", TASK, FAILED)
    assert Store(first).get("b") is None, "the other run stays as it is"
    other.put("c", TASK, RESULT)
    for parent in (first, tmp_path / "absent"):
        store = Store(second, notes.append, parent=parent)
        assert store.get("b") == FAILED and store.get("c") is None, "a store that has begun takes nothing over"
        assert store.get("a") is not None and not notes


def test_states_go_when_they_are_no_longer_needed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remove_states()
    store.states.mkdir()
    (store.states / "a.3.state").write_bytes(b"")
    store.remove_states()
    assert not store.states.exists()


def test_a_slug_stands_in_a_file_name_and_is_nobody_elses() -> None:
    assert slug("searched") == "searched"
    names = [
        "plain, inherited",
        "plain-inherited",
        "plain--inherited",
        "../detkds/one-stage",
        "detkds-one-stage",
        "x" * 70,
    ]
    slugs = [slug(name) for name in [*names, "x" * 71, "é", ""]]
    assert len(set(slugs)) == len(slugs) and all(len(name) <= 65 for name in slugs)
    assert all("/" not in name and "." not in name for name in slugs)


# --------------------------------------------------------------------------------------------------------- results


def test_a_result_is_plain_data_and_back() -> None:
    for result in (RESULT, FAILED):
        assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_result_in_the_terms_of_a_search() -> None:
    measured = RESULT.as_measurement()
    assert (measured.state, measured.ap, measured.metrics, measured.rungs) == (
        State.COMPLETE,
        25,
        {"AP50": 50},
        (12.5,),
    )
    assert measured.policy is not None and str(measured.policy) == "global: - | l2 x 0.3" and measured.epochs == 2
    pruned = TaskResult(State.PRUNED, reason="it lost", rungs=(0.1, 0.2), epochs=2.0).as_measurement()
    assert (pruned.ap, pruned.rungs, pruned.metrics, pruned.counts) == (20, (10, 20), {}, True)
    failed = FAILED.as_measurement()
    assert (failed.state, failed.ap, failed.counts, failed.policy) == (State.FAILED, None, False, None)
    for metrics in ({}, {"ap": math.nan}):
        assert TaskResult(State.COMPLETE, metrics=metrics).as_measurement().state is State.FAILED
