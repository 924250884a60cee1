"""A file that withstands a kill or power loss at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from detkds.policy_search.journal import JournalFile, JournalLines
from detkds.policy_search.result import SearchError


def study_in(path, **changes):
    storage = JournalFile(path)
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True, **changes), storage


def fill(path, count):
    study, _ = study_in(path)
    for value in range(count):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + value)
    return [trial.value for trial in study.trials]


TORN = {
    "half a record": b'{"op_code":4,"wor',
    "zeros": b"\x00" * 64,
    "zeros after a trial": b'{"op_code":4}\x00\n',
    "a whole proposal after half a record": b'"half\n{"op_code":5}\n{"op',
}


@pytest.mark.parametrize("tail", TORN.values(), ids=TORN)
def test_a_torn_end_is_not_read_and_cut_off_before_the_next_write(tmp_path, tail, caplog):
    path = tmp_path / "s.journal"
    values = fill(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(list(JournalLines(path).read_logs(0))) == whole.count(b"\n")
    assert path.read_bytes() == whole + tail
    with caplog.at_level(logging.WARNING):
        study, _ = study_in(path)
        study.tell(study.ask(), 7.0)
    assert [trial.value for trial in study.trials] == [*values, 7.0]
    assert "unfinished record" in caplog.text
    assert path.read_bytes()[: len(whole)] == whole and path.with_name("s.journal.torn").read_bytes() == tail
    assert [trial.value for trial in study_in(path)[0].trials] == [*values, 7.0]


def test_damage_before_the_end_is_refused(tmp_path):
    path = tmp_path / "s.journal"
    fill(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[2:]]))
    with pytest.raises(SearchError, match=r"s\.journal: line 3 is damaged, and results follow"):
        JournalFile(path)


def test_what_is_synced(tmp_path, monkeypatch):
    study, _ = study_in(tmp_path / "s.journal")
    syncs = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: syncs.append(descriptor))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("a", 1)
    assert len(syncs) == 0
    study.tell(trial, 1.0)
    assert len(syncs) == 1
    study.add_trial(optuna.trial.create_trial(value=4.0))
    assert len(syncs) == 2


def test_optuna_and_a_search_read_the_files_of_each_other(tmp_path):
    values = fill(tmp_path / "search.journal", 3)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "search.journal")))
    assert [trial.value for trial in optuna.load_study(study_name="s", storage=storage).trials] == values
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    optuna.create_study(storage=storage, study_name="s").add_trial(optuna.trial.create_trial(value=4.0))
    assert [trial.value for trial in study_in(tmp_path / "optuna.journal")[0].trials] == [4.0]


def test_a_group_is_written_once_in_order_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "s.journal"
    study, storage = study_in(path)
    trial = study.ask()
    syncs = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: syncs.append(descriptor))
    with storage.grouped():
        storage.set_trial_user_attr(trial._trial_id, "a", 1)
        study.tell(trial, 5.0)
    assert len(syncs) == 1
    assert [json.loads(line)["op_code"] for line in path.read_text().splitlines()[-2:]] == [8, 6]
    size = path.stat().st_size
    with contextlib.suppress(RuntimeError), storage.grouped():
        storage.set_study_user_attr(study._study_id, "b", 1)
        raise RuntimeError
    assert path.stat().st_size == size


def test_another_process_is_seen_and_a_record_it_has_not_finished_waits(tmp_path):
    path = tmp_path / "s.journal"
    study, _ = study_in(path)
    other, _ = study_in(path)
    other.tell(other.ask(), 2.0)
    assert [trial.value for trial in study.trials] == [2.0]
    text = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"op_code":2,')
    assert len(study.trials) == 1
    path.write_bytes(text)
