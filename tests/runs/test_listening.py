"""Epochs of trainings side by side, told as units of one training."""

from __future__ import annotations

from typing import Any

import pytest
from detkds.runs.listening import Meter


def test_three_trainings_of_two_epochs_side_by_side(heard: Any) -> None:
    heard.stage("comparison", 3)
    meter = Meter(heard, epochs=2, population=8)
    meter.begin(3)
    meter.epoch(1)
    assert heard.done == [1.5]
    meter.epoch(2)
    for name in ("plain", "pkd", "cwd"):
        meter.result(1, name)
    assert heard.done == pytest.approx([3])
    assert heard.notes == ["plain", "pkd", "cwd"]


def test_a_group_of_two_populations_counts_the_epochs_of_both(heard: Any) -> None:
    """3 trainings, 2 at a time, 2 epochs: 4 epochs in all, each worth 3/4 of a unit."""
    heard.stage("comparison", 3)
    meter = Meter(heard, epochs=2, population=2)
    meter.begin(3)
    for epoch in (1, 2):
        meter.epoch(epoch)
    assert heard.done == pytest.approx([1.5])
    for epoch in (1, 2):
        meter.epoch(epoch)
    assert heard.done == pytest.approx([3])


def test_epochs_in_which_few_are_left_are_worth_less(heard: Any) -> None:
    """4 trainings, a half of them stopped after epoch 1 of 3: the first epoch is half of the work."""
    heard.stage("search", 4)
    meter = Meter(heard, epochs=3, population=8, shares=(1, 0.5, 0.5))
    meter.begin(4)
    meter.epoch(1)
    assert heard.done == pytest.approx([2])
    meter.epoch(2)
    assert heard.done == pytest.approx([3])
    for name in "abcd":  # all the others had stopped too
        meter.result(1, name)
    assert heard.done == pytest.approx([4])


def test_a_population_that_ended_early_is_done_when_the_next_begins(heard: Any) -> None:
    heard.stage("search", 4)
    meter = Meter(heard, epochs=3, population=2, shares=(1, 0.5, 0.5))
    meter.begin(4)
    meter.epoch(1)
    meter.epoch(1)
    assert heard.done == pytest.approx([3])
    meter.epoch(2)
    meter.epoch(3)
    assert heard.done == pytest.approx([4])


def test_what_was_filtered_is_taken_back(heard: Any) -> None:
    heard.stage("search", 4)
    meter = Meter(heard, epochs=1, population=8)
    meter.begin(2)
    meter.epoch(1)
    meter.result(1, "trained")
    meter.result(0, "filtered")
    assert heard.done == pytest.approx([1])


def test_a_resumed_population_begins_in_the_middle(heard: Any) -> None:
    heard.stage("comparison", 1)
    meter = Meter(heard, epochs=4, population=8)
    meter.begin(1)
    meter.epoch(3)
    assert heard.done == pytest.approx([0.75])
    meter.epoch(4)
    meter.result(1, "")
    assert heard.done == pytest.approx([1])


def test_trainings_that_end_without_telling_epochs_are_whole_units(heard: Any) -> None:
    heard.stage("search", 4)
    meter = Meter(heard, epochs=5, population=8)
    meter.begin(4)
    meter.trained(3)
    assert heard.done == pytest.approx([3])
    meter.trained(1)
    for units in (1, 1, 1, 0):
        meter.result(units, "")
    assert heard.done == pytest.approx([3])
