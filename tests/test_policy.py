"""Policies: plain data that round-trips, errors that name every fault, one key for one loss."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import re

import pytest
import yaml

from detkds import Policy, Term, list_policies, load_policy
from detkds.errors import PolicyError
from detkds.policy import parse_policy
from detkds.registry import DISTANCES, KNOWLEDGE, TRANSFORMS

TEXT = """\
policy: mine
source: nowhere
terms:
  - {knowledge: global, transforms: [catt, scale(2), norm(N)], distance: l1, weight: 5}
  - {knowledge: fgbg(background=0.25), transforms: ["norm(C, mode=l2)"], distance: smooth_l1(beta=0.5), weight: 0.1}
  - {knowledge: logits, distance: kl(tau=4), weight: 2, weighting: gradient, levels: [p4, p3]}
"""
KEYS = "policy, source, formula, fidelity, terms"


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "mine.yaml")
    return caught.value.faults


def one_term(**changes: str) -> str:
    """A policy file of one faultless term, in block style, with some fields written otherwise."""
    fields = {"knowledge": "global", "transforms": "[catt]", "distance": "l2", "weight": "1", **changes}
    lines = [f"{key}: {value}" for key, value in fields.items() if value]
    return "terms:\n  - " + "\n    ".join(lines) + "\n"


def test_fields_are_read_as_pieces():
    first, second, third = parse_policy(TEXT)
    assert (first.knowledge.name, first.distance.name, first.weight, first.weighting) == (
        "global",
        "l1",
        5.0,
        "absolute",
    )
    assert [transform.name for transform in first.transforms] == ["catt", "scale", "norm"]
    assert second.knowledge.background == 0.25 and second.transforms[0].mode == "l2" and second.distance.beta == 0.5
    assert third.transforms == () and third.levels == ("p4", "p3") and third.weighting == "gradient"
    assert first.label == "global/l1"


def test_a_term_from_expressions_equals_one_from_pieces():
    written = Term("global", ["scale(2)"], "l1", 3)
    built = Term(KNOWLEDGE.build("global"), (TRANSFORMS.build("scale(2)"),), DISTANCES.build("l1"), 3.0)
    assert written == built and hash(written) == hash(built)


@pytest.mark.parametrize(
    "policy", [parse_policy(TEXT), Policy(), *map(load_policy, list_policies())], ids=lambda p: p.name
)
def test_round_trips(policy: Policy):
    for again in (
        parse_policy(policy.to_yaml()),
        Policy.from_dict(policy.to_dict()),
        Policy.from_dict(json.loads(json.dumps(policy.to_dict()))),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert again == policy and hash(again) == hash(policy)
        assert (again.name, again.source) == (policy.name, policy.source)
    assert policy.to_yaml() == parse_policy(policy.to_yaml()).to_yaml()


@pytest.mark.parametrize("weight", [0.0, 0.1, 1 / 3, 1e-7, 123456789.0, 1e300])
def test_no_digit_of_a_weight_is_lost(weight: float):
    policy = Policy([Term("global", [], "l2", weight)])
    assert parse_policy(policy.to_yaml()).terms[0].weight == weight


def test_frozen():
    term = Term("global")
    with pytest.raises(dataclasses.FrozenInstanceError):
        term.weight = 2.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy([term]).terms = ()  # type: ignore[misc]


def test_formula_and_fidelity_are_kept_and_compared_by_nobody():
    policy = parse_policy(
        TEXT.replace("source:", "formula: mean (T - S)^2\nfidelity: 'approximate: no adapter'\nsource:")
    )
    assert policy.fidelity == "approximate: no adapter" and policy.formula == "mean (T - S)^2"
    again = parse_policy(policy.to_yaml())
    assert (again.formula, again.fidelity) == (policy.formula, policy.fidelity)
    plain = parse_policy(TEXT)
    assert policy == plain and policy.key == plain.key
    assert "fidelity" not in plain.to_dict()


@pytest.mark.parametrize("value", ["nearly", "approximate", "'approximate: '", "exact-ish"])
def test_a_fidelity_says_exact_or_in_what_it_is_not(value: str):
    [fault] = faults(f"fidelity: {value}\n{one_term()}")
    assert re.match(
        r"mine\.yaml:1: fidelity: expected 'exact', or 'exact: ' or .*'approximate: ' and what differs, got", fault
    )
    with pytest.raises(PolicyError, match="fidelity"):
        Policy([Term("global")], fidelity=value.strip("'"))


def test_name_and_source_do_not_enter_comparisons():
    assert Policy([Term("global")], name="a", source="b") == Policy([Term("global")], name="c")
    assert len({Policy([Term("global")], name="a"), Policy([Term("global")])}) == 1


def test_length_order_and_text():
    policy = parse_policy(TEXT)
    assert len(policy) == 3 and list(policy) == list(policy.terms)
    assert str(policy).splitlines() == [
        "global: catt > scale(2) > norm(N) | l1 x 5",
        "fgbg(background=0.25): norm(C, mode=l2) | smooth_l1(beta=0.5) x 0.1",
        "logits: - | kl(tau=4) x 2 of the task's gradient @ p4 p3",
    ]
    assert str(Policy()) == "plain (no distillation)" and Policy().key == "plain"


# ---------------------------------------------------------------------------------------------------------- faults


def test_every_fault_at_once_with_line_and_nearest_name():
    found = faults(
        "policy: mine\n"
        "terms:\n"
        "  - knowledge: globl\n"
        "    transforms: [cat, scale(0)]\n"
        "    distance: l3\n"
        "    weight: -1\n"
        "  - {knowledge: logits, transforms: [norm_batch], distance: iou, weight: .nan, weighting: relative}\n"
        "  - {knowledge: logits, distanse: l2}\n"
    )
    text = "\n".join(found)
    assert found[0].startswith("mine.yaml:3: terms[0]: unknown knowledge 'globl'; did you mean 'global'?")
    for expected in (
        "mine.yaml:4: terms[0]: unknown transform 'cat'; did you mean 'catt'?",
        "mine.yaml:4: terms[0]: transform 'scale(0)': n: expected a whole number >= 1, got 0",
        "mine.yaml:5: terms[0]: unknown distance 'l3'; did you mean 'l2'?",
        "mine.yaml:6: terms[0]: weight: expected a finite number >= 0, got -1",
        "mine.yaml:7: terms[1]: distance 'iou' cannot serve 'logits' here: it takes boxes, sides, not logits.",
        "mine.yaml:7: terms[1]: weight: expected a finite number >= 0, got nan",
        "mine.yaml:7: terms[1]: weighting: expected 'absolute' or 'gradient', got 'relative'",
        "mine.yaml:8: terms[2]: unknown key 'distanse'; did you mean 'distance'?",
        "mine.yaml:8: terms[2]: missing key 'distance'",
        "mine.yaml:8: terms[2]: missing key 'weight'",
    ):
        assert expected in text
    assert len(found) == 11


def test_faults_of_a_term_built_in_code_come_at_once():
    with pytest.raises(PolicyError) as caught:
        Term("globl", ["cat"], "l3", float("inf"), "relative", "p3")  # type: ignore[arg-type]
    assert len(caught.value.faults) == 6


@pytest.mark.parametrize("weight", ["-1", ".nan", "nan", ".inf", "inf", "-.inf", "yes", "five", "[1]", "''"])
def test_weights_that_are_refused(weight: str):
    [fault] = faults(one_term(weight=weight))
    assert fault.startswith("mine.yaml:5: terms[0]: weight: expected a finite number >= 0, got ")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.5, True, "1", None])
def test_weights_that_a_term_refuses(weight: object):
    with pytest.raises(PolicyError, match=r"weight: expected a finite number >= 0"):
        Term("global", [], "l2", weight)  # type: ignore[arg-type]


def test_weights_that_cannot_be_added_up_are_refused():
    with pytest.raises(PolicyError, match="weights whose sum is a finite number"):
        Policy([Term("global", [], "l2", 1e308)] * 2)


@pytest.mark.parametrize(("written", "value"), [("0", 0.0), ("1e-3", 1e-3), ("2.5", 2.5)])
def test_weights_that_are_taken(written: str, value: float):
    assert parse_policy(one_term(weight=written)).terms[0].weight == value


def test_a_comma_inside_an_unquoted_expression_is_explained():
    found = faults(one_term(transforms="[norm(C, mode=l2)]"))
    assert len(found) == 2
    assert "'norm(C': unbalanced brackets; quote an expression with a comma: \"norm(C, mode=l2)\"" in found[0]


@pytest.mark.parametrize("written", ["no", "catt", "{a: 1}", "''"])
def test_transforms_are_a_list(written: str):
    [fault] = faults(one_term(transforms=written))
    assert fault.startswith(
        "mine.yaml:3: terms[0]: transforms: expected a list such as [catt, norm(N)], or [] for none"
    )


@pytest.mark.parametrize(
    ("knowledge", "transforms", "distance", "expected"),
    [
        ("logits", ["catt"], "l2", "transform 'catt' cannot serve 'logits' here: it takes feature, not logits"),
        ("localization", [], "ciou", "distance 'ciou' cannot serve 'localization' here: it takes boxes, sides"),
        (
            "logits",
            ["sigmoid"],
            "ssim",
            "distance 'ssim' cannot serve 'logits' here: it takes feature, not probability",
        ),
        ("global", ["norm(C)", "sigmoid"], "l2", "transform 'sigmoid' cannot serve 'global'"),
        ("localization", ["sigmoid", "decode"], "iou", "transform 'decode' cannot serve 'localization'"),
    ],
)
def test_a_chain_whose_steps_do_not_fit_is_refused(knowledge: str, transforms: list[str], distance: str, expected: str):
    with pytest.raises(PolicyError) as caught:
        Term(knowledge, transforms, distance)
    [fault] = caught.value.faults
    assert fault.startswith(expected) and " For " in fault


def test_what_would_fit_is_named():
    with pytest.raises(PolicyError, match=r"For sides: .*\bciou\b.*\bl1\b"):
        Term("localization", ["sigmoid"], "pearson")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            f"mine.yaml: a policy: expected a mapping with the keys {KEYS}, got nothing",
        ),
        (
            "[]",
            f"mine.yaml:1: a policy: expected a mapping with the keys {KEYS}, got a list",
        ),
        ("policy: a", "mine.yaml:1: a policy: missing key 'terms'"),
        ("\nterms: 3", "mine.yaml:2: terms: expected a list, got 3"),
        ("terms:\n- global", "mine.yaml:2: terms[0]: expected a mapping with the keys knowledge, transforms"),
        ("policy: [a]\nterms: []", "mine.yaml:1: policy: expected text, got a list"),
        ("terms: []\nterms: []", "mine.yaml:2: key 'terms' is given twice"),
        ("terms: []\nterm: []", "mine.yaml:2: a policy: unknown key 'term'; did you mean 'terms'?"),
        ("a: b: c", "mine.yaml:1: not valid YAML: mapping values are not allowed here"),
        (one_term(levels="p3"), "mine.yaml:6: terms[0]: levels: expected a list such as [p3, p4]"),
        (one_term(knowledge="[global]"), "mine.yaml:2: terms[0]: knowledge: expected an expression"),
        (
            one_term(knowledge="!!python/object:os.system {}"),
            "mine.yaml:2: expected plain data or a plain key, got python/object:os.system",
        ),
    ],
)
def test_files_of_another_shape(text: str, expected: str):
    [fault] = faults(text)
    assert fault.startswith(expected)


def test_what_is_no_piece_is_refused():
    for build in (lambda: Term(5), lambda: Term("global", [DISTANCES.build("l2")]), lambda: Term("global", [], Term)):
        with pytest.raises(PolicyError, match="expected an expression or a registered"):
            build()
    with pytest.raises(PolicyError, match=r"terms\[1\]: expected a Term, got 'catt'"):
        Policy([Term("global"), "catt"])  # type: ignore[list-item]
    with pytest.raises(PolicyError, match=r"terms\[0\]: knowledge: expected an expression or a registered"):
        Policy.from_dict({"terms": [{"knowledge": object()}]})


def test_numbers_stand_for_text_where_text_is_expected():
    policy = parse_policy("policy: 3\n" + one_term(levels="[0, pool]"))
    assert policy.name == "3" and policy.terms[0].levels == ("0", "pool")
    assert Policy.from_dict(policy.to_dict()) == policy


def test_a_dictionary_has_no_lines():
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict({"terms": [{"knowledge": "global", "distance": "l3", "weight": 1}]}, "step 3")
    assert caught.value.faults[0].startswith("step 3: terms[0]: unknown distance 'l3'")


# ------------------------------------------------------------------------------------------------------- canonical


def chains() -> list[Term]:
    """All feature chains of the paper's kind, without their weights."""
    attention = [(), ("satt",), ("catt",), ("mask",)]
    scale = [(), ("scale(1)",), ("scale(2)",), ("local(2)",), ("win(2)",)]
    normalise = [(), ("norm(HW)",), ("norm(C)",), ("norm(N)",), ("minmax",), ("norm_batch",)]
    distances = ["l1", "l2", "smooth_l1", "kl", "cosine", "pearson", "ssim", "correlation"]
    return [Term("global", a + s + n, d) for a, s, n, d in itertools.product(attention, scale, normalise, distances)]


def test_the_canonical_form_is_its_own_canonical_form():
    for term in chains():
        once = term.canonical()
        assert once.canonical() == once
        assert once.knowledge == term.knowledge and once.weight / term.weight in (0.5, 1, 2)


def test_a_constant_goes_into_an_absolute_weight_and_leaves_a_relative_one():
    squares, correlation = Term("global", ["norm(C)"], "l2", 1), Term("global", [], "pearson", 2)
    assert Policy([squares]).key == Policy([correlation]).key
    relative = [dataclasses.replace(term, weight=3, weighting="gradient") for term in (squares, correlation)]
    assert len({Policy([term]).key for term in relative}) == 1


def test_aliases_share_a_key():
    plain = Policy([Term("global", ["catt", "norm(N)"], "l1", 2)])
    assert Policy([Term("global", ["catt", "scale(1)", "norm(N)"], "l1", 2)]).key == plain.key
    assert Policy([Term("global", ["catt", "scale(2)", "norm(N)"], "l1", 2)]).key != plain.key


def test_order_zero_weights_and_repeats_do_not_matter():
    a, b = Term("global", [], "l2", 0.1), Term("logits", [], "kl", 3)
    c, d = dataclasses.replace(a, weight=0.2), dataclasses.replace(a, weight=0.3)
    keys = {Policy(order).key for order in itertools.permutations([a, b, c, d, Term("fgbg", [], "l1", 0)])}
    assert len(keys) == 1
    merged = Policy([a, b, c, d]).canonical()
    assert len(merged) == 2 and {term.weight for term in merged} == {0.6, 3.0}
    assert Policy([Term("fgbg", [], "l1", 0)]).key == Policy().key == "plain"


def test_keys_differ_by_the_last_digit_of_a_weight():
    first, second = (Policy([Term("global", [], "l2", weight)]) for weight in (1.0, 1.0000000001))
    assert first.canonical() != second.canonical() and first.key != second.key


def test_weighting_and_levels_make_another_loss():
    base = Term("global", [], "l2")
    others = [dataclasses.replace(base, weighting="gradient"), dataclasses.replace(base, levels=("p3",))]
    assert len({Policy([term]).key for term in (base, *others)}) == 3
    assert len(Policy([base, *others]).canonical()) == 3
    assert Policy([dataclasses.replace(base, levels=("p4", "p3", "p4"))]).key == (
        Policy([dataclasses.replace(base, levels=("p3", "p4"))]).key
    )


# --------------------------------------------------------------------------------------------------------- shipped


def test_shipped_policies_are_listed_and_loaded_by_name(tmp_path):
    names = list_policies()
    assert names == sorted(names)
    assert {"fitnets", "pkd", "cwd", "skd", "detkds/global", "detkds/one-stage", "detkds/two-stage"} <= set(names)
    for name in names:
        policy = load_policy(name)
        assert policy.name == name and policy.source and len(policy)
        path = tmp_path / f"{name.replace('/', '-')}.yaml"
        path.write_text(policy.to_yaml())
        assert load_policy(path) == policy and load_policy(str(path)) == policy


def test_shipped_weights_are_those_of_the_papers():
    assert [str(term) for term in load_policy("detkds/one-stage")] == [
        "global: catt(power=1) > scale(2) > norm(N) | l1 x 0.2 of the task's gradient",
        "fgbg: local(4) > norm(HW) | l2 x 0.2 of the task's gradient",
        "instance: catt(power=1) > norm(C) | smooth_l1 x 0.2 of the task's gradient",
        "logits: norm_batch | pearson x 0.2 of the task's gradient",
        "localization: sigmoid | ciou x 0.2 of the task's gradient",
    ]
    for name, text in {
        "fitnets": "global: - | l2 x 1",
        "pkd": "global: norm_batch(unbiased=true) | l2 x 5",
        "cwd": "global: reshape(C) | kl x 5",
        "skd": "global: - | ssim x 4",
    }.items():
        assert str(load_policy(name)) == text


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(
        PolicyError, match=r"unknown policy 'pdk'; did you mean 'pkd'\?.*or give the path of a \.yaml file"
    ):
        load_policy("pdk")
    with pytest.raises(PolicyError, match="cannot be read: "):
        load_policy(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PolicyError, match="cannot be read: "):
        load_policy(tmp_path / "binary.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"terms": [{"knowledge": "global", "distance": "l9", "weight": 1}]}))
    with pytest.raises(PolicyError, match=r"bad\.yaml:1: terms\[0\]: unknown distance 'l9'|bad\.yaml:2: terms"):
        load_policy(path)
