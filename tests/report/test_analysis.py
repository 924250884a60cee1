"""What the trials of a search show."""

from __future__ import annotations

from dataclasses import replace

from detkds.policy_search.result import Trial
from detkds.report.analysis import history, marginals, measured, outcomes, per_class, plain_reason


def test_history_interleaves_studies_of_one_stage_and_keeps_the_best(records: list[Trial]) -> None:
    points = history(records)
    assert [(p.index, p.study, p.ap, p.best) for p in points] == [
        (1, "global", 10.0, 10.0),
        (2, "logits", 12.0, 12.0),
        (3, "global", 14.0, 14.0),
        (4, "combination", 13.0, 14.0),
    ]
    assert history([]) == []


def test_what_was_not_trained_is_not_measured(records: list[Trial]) -> None:
    assert [record.place for record in measured(records)] == ["global/0", "logits/0", "global/1", "combination/0"]


def test_outcomes_count_like_reasons_together(records: list[Trial]) -> None:
    found = {(o.state, o.reason): o.count for o in outcomes(records)}
    assert found == {
        ("complete", ""): 4,
        ("filtered", "its loss reaches …, over the limit of …"): 2,
        ("failed", "DivergenceError: loss not finite at step …"): 1,
        ("looked up", "the same loss was known already"): 1,
    }
    assert outcomes(records)[0].count == 4


def test_a_reason_of_several_terms_is_known_by_the_first() -> None:
    reason = "term 'a: scale(2) | l2 x 1': it has no gradient; term 'b: - | l1 x 2': it has no gradient"
    assert plain_reason(reason) == "it has no gradient"
    assert plain_reason("p3 and conv2d stay, 1.5 and -3e-4 go") == "p3 and conv2d stay, … and … go"


def test_marginals_are_means_by_option_and_twins_do_not_count_twice(records: list[Trial]) -> None:
    found = marginals(records)
    (distance,) = found["global"]
    assert distance.name == "distance"
    assert [(o.option, o.count, o.mean, o.best) for o in distance.options] == [
        ("l1", 1, 14.0, 14.0),
        ("l2", 1, 10.0, 10.0),
    ]
    assert distance.spread == 4.0
    assert found["logits"] == []


def test_marginals_leave_out_what_had_no_say(records: list[Trial]) -> None:
    """In a joint space the distance of a term of weight 0 is none; its weight is."""
    params = ({"a.distance": "l1", "a.weight": 1.0}, {"a.distance": "l2", "a.weight": 0.0},
              {"a.distance": "kl", "a.weight": 2.0})  # fmt: skip
    joint = [replace(records[0], study="joint", number=i, params=one) for i, one in enumerate(params)]
    found = {gene.name: {option.option for option in gene.options} for gene in marginals(joint)["joint"]}
    assert found == {"a.distance": {"l1", "kl"}, "a.weight": {"0", "1", "2"}}


def test_ap_by_class_is_averaged_over_seeds_and_sorted_by_gain() -> None:
    """cat: plain (0.1 + 0.3) / 2 = 20 points, pkd 40; dog: 50 and 40; bird was never measured for pkd."""

    def line(name: str, **per_class: float | None) -> dict[str, object]:
        return {"name": name, "seed": 0, "metrics": {"per_class": per_class}}

    lines = [
        line("plain", cat=0.1, dog=0.5, bird=0.2),
        line("plain", cat=0.3, dog=0.5, bird=None),
        line("pkd", cat=0.4, dog=0.4, bird=None),
        line("cwd", cat=0.9, dog=0.9, bird=0.9),
        {"name": "pkd", "seed": 1, "metrics": None},
    ]
    rows = per_class(lines, ["plain", "pkd"])
    assert [row["name"] for row in rows] == ["cat", "dog"]
    assert [round(value, 6) for value in rows[0]["values"]] == [20, 40]
    assert round(rows[1]["gain"], 6) == -10
