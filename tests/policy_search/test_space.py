from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from detkds.errors import ConfigError
from detkds.policy import Policy, Term, load_policy
from detkds.policy_search.space import Space, draw, load_spaces, parse_spaces, points


@pytest.fixture(scope="module")
def spaces():
    return load_spaces("default")


@pytest.mark.parametrize(("name", "feature", "total"), [("paper", 4900, 15_267), ("default", 5880, 18_207)])
def test_sizes_of_the_shipped_spaces(name, feature, total):
    spaces = load_spaces(name)
    # 4 attentions x 5 scales x 5 (6 with norm_batch) normalisations x 7 distances x 7 weights
    assert spaces["global"].size == spaces["fgbg"].size == spaces["instance"].size == feature
    assert spaces["logits"].size == 8 * 7 * 7
    assert spaces["localization"].size == 5 * 5 * 7
    assert sum(space.size for space in spaces.values()) == total


def test_many_points_of_the_default_space_are_the_same_loss(spaces):
    # of 980 weight-free feature choices 519 to 528 have distinct values; the canonical form finds what holds always
    assert 0.5 * 5880 < spaces["global"].count_canonical() < 0.9 * 5880
    assert spaces["localization"].count_canonical() == 175


def test_the_size_is_the_number_of_points(spaces):
    assert sum(1 for _ in points(spaces["logits"])) == spaces["logits"].size


def test_terms_apply_attention_then_scale_then_normalise(spaces):
    params = {"attention": "catt", "scale": "scale(2)", "normalise": "norm(N)", "distance": "l1", "weight": 5.0}
    assert spaces["global"].policy(params) == Policy([Term("global", ["catt", "scale(2)", "norm(N)"], "l1", 5)])
    plain = dict.fromkeys(("attention", "scale", "normalise"), "none") | {"distance": "l2", "weight": 0.1}
    assert spaces["global"].term(plain) == Term("global", [], "l2", 0.1)


@pytest.mark.parametrize("knowledge", ["global", "instance", "logits", "localization"])
def test_keys_are_those_of_the_policies(spaces, knowledge):
    rng = np.random.default_rng(0)
    space = spaces[knowledge]
    for _ in range(40):
        params = draw(space, rng)
        assert space.key(params) == space.policy(params).key


def test_the_canonical_count_is_that_of_the_policies_keys(spaces):
    space = spaces["logits"]
    assert space.count_canonical() == len({space.policy(params).key for params in points(space)})


def test_encode_inverts_policy_up_to_the_canonical_form(spaces):
    space = spaces["global"]
    rng = np.random.default_rng(1)
    for _ in range(40):
        policy = space.policy(draw(space, rng))
        assert space.policy(space.encode(policy)).key == policy.key
    assert spaces["logits"].encode(Term("logits", ["norm_batch"], "pearson", 1))["weight"] == 1.0
    assert spaces["global"].encode(Term("global", ["scale(1)", "norm(N)"], "l1", 5))["scale"] == "none"


def test_encode_refuses_what_lies_outside(spaces):
    with pytest.raises(ConfigError, match="outside the global space"):
        spaces["global"].encode(Term("global", ["scale(3)"], "l1", 5))
    with pytest.raises(ConfigError, match="outside the global space"):
        spaces["global"].encode(Term("global", [], "l1", 6))


def test_draws_are_uniform(spaces):
    rng = np.random.default_rng(0)
    drawn = [draw(spaces["global"], rng) for _ in range(3000)]
    for name, options in spaces["global"].genes.items():
        for option in options:
            assert abs(sum(params[name] == option for params in drawn) / 3000 - 1 / len(options)) < 0.04


def test_gradient_weights_come_from_their_own_list():
    (space,) = load_spaces("default", "gradient", ["logits"]).values()
    assert space.genes["weight"] == (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    assert space.term(next(iter(points(space)))).weighting == "gradient"


def test_every_fault_of_a_space_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        Space("global", {"attention": ("satt", "sat"), "distance": ("l1", "pearsn"), "weight": (1,)})
    assert len(error.value.faults) == 2
    assert "did you mean 'satt'" in error.value.faults[0] and "did you mean 'pearson'" in error.value.faults[1]
    with pytest.raises(ConfigError) as error:
        Space("global", {"attend": ("satt",), "distance": ("l1", "l1"), "weight": (1, -1, float("nan"))})
    text = str(error.value)
    assert "unknown gene 'attend'" in text and "listed twice" in text and "-1" in text and "nan" in text
    with pytest.raises(ConfigError, match="missing gene 'weight'"):
        Space("global", {"distance": ("l1",)})


def test_an_option_that_serves_no_term_is_a_fault_and_a_pair_that_does_not_fit_is_left_out():
    with pytest.raises(ConfigError, match=r"distance: giou: .*cannot serve 'global'"):
        Space("global", {"distance": ("l1", "giou"), "weight": (1,)})
    genes = {"transform": ("none", "decode"), "distance": ("l1", "giou"), "weight": (1, 2)}
    space = Space("localization", genes)
    legal = [params for params in (dict(zip(genes, v, strict=True)) for v in product(*genes.values()))
             if space.legal(params)]  # fmt: skip
    assert {(params["transform"], params["distance"]) for params in legal} == {
        ("none", "l1"), ("decode", "l1"), ("decode", "giou")}  # fmt: skip
    assert len(legal) == space.size == len(list(points(space)))


def test_space_files_are_checked_as_a_whole(tmp_path):
    text = "weights: {absolute: [1]}\nknowledge:\n  global: {distance: [l1, l3]}\n  logits: {distance: l1}\n"
    with pytest.raises(ConfigError) as error:
        parse_spaces(text, "my.yaml")
    assert len(error.value.faults) == 2 and all(fault.startswith("my.yaml") for fault in error.value.faults)
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        load_spaces("defualt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spaces(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="unknown knowledge 'globl'"):
        load_spaces("default", knowledge=["globl"])
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse_spaces("3")
    path = tmp_path / "own.yaml"
    path.write_text("weights: {absolute: [1, 2]}\nknowledge:\n  global: {distance: [l1, l2], weight: [3]}\n")
    assert load_spaces(path)["global"].genes == {"distance": ("l1", "l2"), "weight": (3.0,)}


def test_variants_of_the_knowledge_adapters_and_schedules_are_genes_too():
    genes = {"knowledge": ("fgbg", "fgbg(background=1)"), "adapter": ("auto", "conv(3)"), "distance": ("l1", "l2"),
             "schedule": ("constant", "warmup(5)"), "weight": (1.0, 2.0)}  # fmt: skip
    space = Space("fgbg", genes)
    assert space.size == space.count_canonical() == 32
    terms = {space.term(params) for params in points(space)}
    wanted = [Term(knowledge, [], distance, weight, adapter=adapter, schedule=schedule)
              for knowledge, adapter, distance, schedule, weight in product(*genes.values())]  # fmt: skip
    assert terms == set(wanted)
    assert space.term(space.encode(wanted[-1])) == wanted[-1]
    with pytest.raises(ConfigError, match=r"expected expressions of 'fgbg', got 'global'"):
        Space("fgbg", {**genes, "knowledge": ("global",)})
    with pytest.raises(ConfigError, match=r"adapter: conv\(3\): .*expected knowledge of features"):
        Space("logits", {"adapter": ("auto", "conv(3)"), "distance": ("l1",), "weight": (1.0,)})


def test_the_extended_space_holds_the_genes_of_hand_designed_methods():
    spaces = load_spaces("extended")
    assert sum(space.size for space in spaces.values()) > 1_000_000
    dense = (
        "at",
        "bckd",
        "cofd",
        "cwd-logits",
        "defeat-features",
        "fgd",
        "fgfi",
        "frs",
        "gid",
        "ickd",
        "kd-sigmoid",
        "ld",
        "mgd",
        "sp",
    )
    for name in (*dense, "cwd", "fitnets", "pkd", "skd"):
        for term in load_policy(name):
            taking = [space for space in spaces.values() if space.takes(term.knowledge)]
            assert taking or term.knowledge.name == "context", (name, str(term))
            weighted = replace(term, weight=5.0)
            for space in taking:
                assert space.term(space.encode(weighted)).canonical() == weighted.canonical(), (name, str(term))
    terms = [
        Term("global(mask=score, positions=all)", [], "l2", 5, adapter="conv(3)"),
        Term("global", ["gram(C)"], "l2", 2),
        Term("global", [], "l2", 1, adapter="generate"),
        Term("logits", [], "bkd", 1),
        Term("localization", ["edges"], "kl(tau=10)", 0.5),
        Term("instance(source=gi)", ["pairwise"], "smooth_l1", 8),
    ]
    for term in terms:
        assert spaces[term.knowledge.name].term(spaces[term.knowledge.name].encode(term)) == term
