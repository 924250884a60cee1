"""What a search stores, how it is read back, and what is refused."""

from __future__ import annotations

import json
import os

import optuna
import pytest

from detkds.config import SearchConfig
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import Result, SearchError, State
from detkds.policy_search.space import Space
from detkds.policy_search.storage import journal_path, locked, open_storage
from detkds.policy_search.study import SearchStudy


def test_where_a_search_is_stored(tmp_path):
    assert journal_path(tmp_path) == tmp_path / "study.journal"
    assert journal_path(tmp_path / "run-v1.5") == tmp_path / "run-v1.5" / "study.journal"
    assert journal_path(tmp_path / "x.journal") == tmp_path / "x.journal"
    memory = optuna.storages.InMemoryStorage()
    assert open_storage(memory) is memory
    open_storage(f"sqlite:///{tmp_path}/s.db")
    with pytest.raises(SearchError, match="cannot be opened"):
        open_storage("nosuchdatabase://user:secret@host/x")
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SearchError, match="cannot be stored here"):
        open_storage(blocker / "run")


def test_a_second_process_is_refused(tmp_path):
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with locked(tmp_path):
                    os._exit(1)
            except SearchError as error:
                os._exit(0 if "another process" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with locked(tmp_path):
        pass


def searched(tmp_path):
    """A journal with a search of three trials in it, and how to search on."""
    space = Space("logits", {"distance": ("l1", "l2", "kl"), "weight": (1.0, 2.0)})
    sampler = make_sampler("random", space, 0, SearchConfig())

    def opened(budget):
        return SearchStudy("logits", sampler, open_storage(tmp_path), budget)

    study = opened(3)
    while trials := study.ask():
        for trial in trials:
            study.tell(trial, Result(State.COMPLETE, float(trial.number)))
    return tmp_path / "study.journal", opened


def test_a_search_is_read_back_as_it_was(tmp_path):
    _, opened = searched(tmp_path)
    assert [trial.ap for trial in opened(3).trials] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "change",
    [
        {"op_code": 99},
        {"op_code": "4"},
        {"op_code": None},
        {"user_attr": []},
        {"user_attr": {"outcome": "finished"}},
        {"user_attr": {"ap": None}},
        {"user_attr": {"ap": float("nan")}},
        {"user_attr": {"metrics": 3}},
        {"user_attr": {"rungs": None}},
        {"system_attrs": {}},
        {"system_attrs": {"proposal": {"role": "random"}}},
        {"system_attrs": {"proposal": {"role": "random", "iteration": 0, "parents": []}, "wave": [0]}},
        {"params": {}},
        {"params": {"distance": 9, "weight": 0}},
        {"distributions": {"distance": "none"}},
        {"state": 99},
        {"values": [[]]},
        {"values": [99.0]},
    ],
    ids=repr,
)
def test_a_record_that_is_not_what_a_search_writes_is_one_error(tmp_path, change):
    """The last record that has the field, and where it is an attribute that attribute, is spoilt."""
    path, opened = searched(tmp_path)
    spoil(path, change)
    with pytest.raises(SearchError, match=r"damaged|cannot be read") as error:
        opened(3)
    assert len(error.value.faults) == 1 and "restore the file from a copy" in str(error.value)


@pytest.mark.parametrize("change", [{"study_id": 7}, {"trial_id": 77}], ids=repr)
def test_a_record_that_optuna_passes_over_is_made_again(tmp_path, change):
    path, opened = searched(tmp_path)
    keys = [trial.key for trial in opened(3).trials]
    spoil(path, change)
    study = opened(3)
    for trial in study.ask():
        study.tell(trial, Result(State.COMPLETE, float(trial.number)))
    assert [trial.key for trial in study.trials] == keys and study.best.ap == 2.0


def spoil(path, change):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    ((name, value),) = change.items()
    fitting = [record for record in records if name in record]
    if name == "user_attr" and value:
        fitting = [record for record in fitting if value.keys() & record[name].keys()]
    fitting[-1][name] = value
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_trials_of_another_program_are_refused(tmp_path):
    _, opened = searched(tmp_path)
    optuna.load_study(study_name="logits", storage=open_storage(tmp_path)).ask()
    with pytest.raises(SearchError, match="trial 3 is damaged"):
        opened(9)


def test_a_second_writer_is_noticed(tmp_path):
    _, opened = searched(tmp_path)
    first, second = opened(5), opened(5)
    first.ask()
    with pytest.raises(SearchError, match="another process is searching in this storage"):
        second.ask()


def test_a_lock_that_is_no_file_is_one_error(tmp_path):
    (tmp_path / "study.lock").mkdir()
    with pytest.raises(SearchError, match=r"study\.lock: cannot be locked"), locked(tmp_path):
        pass
