from __future__ import annotations

import pytest

from detkds.errors import ConfigError
from detkds.search.settings import SearchSettings


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        SearchSettings(population=1, parents=0, sample_ratio=1.5, newcomer="every:0", crossover=2, single_budget=True,
                       divide="no")  # fmt: skip
    assert len(error.value.faults) == 7


def test_the_papers_settings():
    paper = SearchSettings.paper()
    assert (paper.population, paper.sample_ratio, paper.parents, paper.newcomer) == (20, 0.9, 5, "always")
    assert paper.single_budget == 20 + 2 * 40


@pytest.mark.parametrize(
    ("trainings", "knowledge", "single", "combination", "population"),
    [(140, 5, 20, 40, 8), (100, 5, 14, 30, 8), (700, 5, 100, 200, 20), (60, 1, 60, 0, 8)],
)
def test_a_total_budget_is_shared_out_whole(trainings, knowledge, single, combination, population):
    settings = SearchSettings.for_budget(trainings, knowledge)
    assert (settings.single_budget, settings.combination_budget, settings.population) == (
        single, combination, population)  # fmt: skip
    assert single * knowledge + combination == trainings == settings.trainings(knowledge)


def test_a_budget_too_small_to_share():
    with pytest.raises(ConfigError, match="at least 7 trainings, got 6"):
        SearchSettings.for_budget(6, 5)
