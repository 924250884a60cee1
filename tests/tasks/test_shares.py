"""How candidates and machines are divided among workers."""

from __future__ import annotations

import pytest

from detkds.policy_search.result import SearchError
from detkds.tasks.shares import Share, portions, share


@pytest.mark.parametrize(
    ("count", "population", "workers", "sizes"),
    [
        (0, 8, 2, []),
        (5, 8, 1, [5]),
        (5, 8, 2, [3, 2]),
        (5, 8, 4, [2, 2, 1]),
        (20, 8, 1, [7, 7, 6]),
        (20, 8, 2, [5, 5, 5, 5]),
        (3, 1, 8, [1, 1, 1]),
    ],
)
def test_portions_are_even_and_no_larger_than_a_population(count, population, workers, sizes):
    found = portions([""] * count, population, workers)
    assert [len(part) for part in found] == sizes
    assert [index for part in found for index in part] == list(range(count))


def test_groups_stay_whole_where_their_members_stop_each_other():
    groups = ["a", "b", "a", "b", "b", "c"]
    assert portions(groups, 8, 2, whole_groups=True) == [[0, 2], [1, 3, 4], [5]]
    assert portions(groups, 8, 1, whole_groups=True) == [[0, 2, 1, 3, 4, 5]]
    assert portions(groups, 2, 1, whole_groups=True) == [[0, 2], [1, 3, 4], [5]]


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 8}], {}, Share(8, "cpu", 1, 1, 0)),
        ([{"CPU": 8}], {"threads": 3}, Share(2, "cpu", 3, 3, 0)),
        ([{"CPU": 8}], {"workers": 2}, Share(2, "cpu", 4, 4, 0)),
        ([{"CPU": 3}, {"CPU": 5}], {"workers": 2}, Share(2, "cpu", 3, 3, 0)),  # both must fit on their machine
        ([{"CPU": 3}, {"CPU": 5}, {}], {"threads": 2}, Share(3, "cpu", 2, 2, 0)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}, {"CPU": 8}], {}, Share(4, "cuda", 10, 0, 1)),
        ([{"CPU": 16, "GPU": 2}], {"workers": 3, "threads": 1}, Share(3, "cuda", 1, 0, 0.5)),
        ([{"CPU": 16, "GPU": 2}], {"device": "cpu", "workers": 1}, Share(1, "cpu", 16, 16, 0)),
        ([{"CPU": 4, "GPU": 1}], {"device": "cuda:0"}, Share(1, "cuda", 4, 0, 1)),
    ],
)
def test_workers_get_equal_shares_of_the_machines(nodes, asked, expected):
    assert share(nodes, **asked) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "said"),
    [
        ([{"CPU": 4}], {"device": "cuda"}, "expected a GPU, got none"),
        ([{"CPU": 4}, {"CPU": 3}], {"workers": 3, "threads": 3}, "expected 3 workers with 3 CPUs each"),
        ([{"CPU": 2}], {"workers": 3}, "got 1 machine with 2 CPUs"),
        ([{}], {}, "got 1 machine with 0 CPUs"),
    ],
)
def test_too_small_a_cluster_is_refused(nodes, asked, said):
    with pytest.raises(SearchError, match=said):
        share(nodes, **asked)


def test_a_share_is_named():
    assert str(Share(2, "cpu", 1, 1, 0)) == "2 workers on cpu, 1 thread each"
    assert str(Share(1, "cuda", 4, 0, 1)) == "1 worker on cuda, 4 threads each"
