"""Errors carry every fault, and an unknown name comes with its nearest neighbour."""

from __future__ import annotations

import pickle

import pytest

from detkds import errors
from detkds.errors import ConfigError, DataError, Faults, PairError, PolicyError, UserError, WeightsError, unknown_name


@pytest.mark.parametrize("error", [PolicyError, DataError, ConfigError, PairError, WeightsError])
def test_every_error_is_a_user_error_and_a_value_error(error: type[UserError]) -> None:
    assert issubclass(error, UserError)
    assert issubclass(error, ValueError)


def test_every_error_of_the_module_is_a_user_error() -> None:
    raised = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(raised) >= 6
    assert [item.__name__ for item in raised if not issubclass(item, UserError)] == []


def test_one_string_is_one_fault_not_one_per_letter() -> None:
    error = UserError("weight: expected a number, got 'x'")
    assert error.faults == ("weight: expected a number, got 'x'",)
    assert str(error) == "weight: expected a number, got 'x'"


def test_several_faults_are_one_line_each() -> None:
    error = UserError(f"fault {number}" for number in (1, 2))
    assert error.faults == ("fault 1", "fault 2")
    assert str(error) == "fault 1\nfault 2"


def test_faults_raises_nothing_when_nothing_was_found() -> None:
    faults = Faults("policy.yaml")
    assert not faults
    faults.raise_as(PolicyError)


def test_faults_names_the_place_in_every_line() -> None:
    faults = Faults("policy.yaml")
    faults.add("terms[0]: no distance")
    faults.add("terms[1]: no weight")
    assert faults
    with pytest.raises(PolicyError) as caught:
        faults.raise_as(PolicyError)
    assert caught.value.faults == ("policy.yaml: terms[0]: no distance", "policy.yaml: terms[1]: no weight")


def test_faults_without_a_place_adds_no_prefix() -> None:
    faults = Faults()
    faults.add("no images")
    assert faults.lines == ["no images"]


def test_faults_stay_apart_on_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(DataError(["image 3: empty file", "image 7: no such file"])))
    assert type(error) is DataError
    assert error.faults == ("image 3: empty file", "image 7: no such file")


def test_faults_unfolds_a_caught_error() -> None:
    faults = Faults("run.yaml")
    faults.add(DataError(["image 3: empty file", "image 7: no such file"]))
    faults.add("epochs: expected at least 1, got 0")
    assert faults.lines == [
        "run.yaml: image 3: empty file",
        "run.yaml: image 7: no such file",
        "run.yaml: epochs: expected at least 1, got 0",
    ]


def test_unknown_name_suggests_the_nearest_and_lists_all_sorted() -> None:
    message = unknown_name("distance", "pearsn", ["pearson", "l1", "kl"])
    assert message == "unknown distance 'pearsn'; did you mean 'pearson'? Known: kl, l1, pearson"


def test_unknown_name_suggests_nothing_when_nothing_is_near() -> None:
    assert unknown_name("distance", "zzz", ["pearson", "l1"]) == "unknown distance 'zzz'. Known: l1, pearson"


def test_unknown_name_without_any_known_name() -> None:
    assert unknown_name("detector", None, []) == "unknown detector 'None'. Known: none"
