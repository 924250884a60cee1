"""What is searched: for each kind of knowledge the options of every gene, and what a choice of them means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detkds.errors import ConfigError, Faults, PolicyError, UserError, unknown_name
from detkds.policy import Policy, Term, Weighting
from detkds.registry import ADAPTERS, DISTANCES, KNOWLEDGE, SCHEDULES, TRANSFORMS, Registry, parse_expression
from detkds.term_schema import OPTIONAL_PIECES
from detkds.yaml_reader import parse_yaml, read_yaml

Option = str | float
Params = Mapping[str, Option]

STAGES = ("attention", "scale", "normalise", "transform")
"""Genes that name a transform, in the order in which transforms apply."""

_REGISTRIES: dict[str, Registry[Any]] = {
    "knowledge": KNOWLEDGE,
    "adapter": ADAPTERS,
    **dict.fromkeys(STAGES, TRANSFORMS),
    "distance": DISTANCES,
    "schedule": SCHEDULES,
}
"""Genes that name a piece."""

_APART = ("knowledge", "adapter", "schedule")
"""Genes whose options fit whatever the other genes are, and stand in no rule of :mod:`detkds.canonical`."""


class SearchSpace(Protocol):
    """What a sampler needs to know: genes and their options, and which choices are the same policy."""

    @property
    def genes(self) -> Mapping[str, tuple[Option, ...]]:
        """The options of every gene, by its name, in a fixed order."""
        ...

    def legal(self, params: Params) -> bool:
        """Whether the choice is a policy at all."""
        ...

    def key(self, params: Params) -> str:
        """A text that is equal for two choices exactly when they are the same loss."""
        ...

    def policy(self, params: Params) -> Policy:
        """The policy that a choice of one option per gene stands for."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain data that two spaces share exactly when they are the same."""
        ...


def draw(space: SearchSpace, rng: np.random.Generator) -> dict[str, Option]:
    """A legal choice, uniform over the space."""
    while True:
        params = {name: options[int(rng.integers(len(options)))] for name, options in space.genes.items()}
        if space.legal(params):
            return params


def points(space: SearchSpace) -> Iterator[dict[str, Option]]:
    """Every legal choice, in lexicographic order of the genes' options."""
    for values in product(*space.genes.values()):
        params = dict(zip(space.genes, values, strict=True))
        if space.legal(params):
            yield params


@dataclass(frozen=True)
class Space:
    """Single-term policies of one kind of knowledge.

    Attributes:
        knowledge: an expression such as ``global``.
        genes: the options of every gene: transforms (``attention``, ``scale``, ``normalise``, or ``transform`` for
            responses; ``none`` for no operation), ``distance`` and ``weight``; where they vary also ``knowledge``
            (expressions of the one kind), ``adapter`` and ``schedule``.
        weighting: what the weights mean; see :class:`detkds.policy.Term`.

    Raises:
        ConfigError: listing every gene that is not known and every option of which no legal term can be built.
    """

    knowledge: str
    genes: Mapping[str, tuple[Option, ...]]
    weighting: Weighting = "absolute"
    _pieces: dict[tuple[str, Option], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _terms: dict[tuple[Option, ...], Term] = field(default_factory=dict, init=False, repr=False, compare=False)
    _canonical: dict[tuple[Option, ...], Term] = field(default_factory=dict, init=False, repr=False, compare=False)
    _keys: dict[tuple[Option, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _illegal: set[tuple[Option, ...]] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genes", {name: tuple(options) for name, options in self.genes.items()})
        self._check_genes()
        self._build_pieces()
        self._check_options()

    def __hash__(self) -> int:
        return hash((self.knowledge, tuple(self.genes.items()), self.weighting))

    def term(self, params: Params) -> Term:
        """The term of one choice, its transforms in the order of :data:`STAGES`; remembered."""
        choice = tuple(params[name] for name in self.genes)
        if choice not in self._terms:
            self._terms[choice] = self._build_term(params)
        return self._terms[choice]

    def _build_term(self, params: Params) -> Term:
        transforms = [self._pieces[stage, params[stage]] for stage in STAGES if params.get(stage, "none") != "none"]
        distance = self._pieces["distance", params["distance"]]
        knowledge = self._pieces["knowledge", params.get("knowledge", self.knowledge)]
        optional = {name: self._pieces[name, params[name]] for name in OPTIONAL_PIECES if name in params}
        return Term(knowledge, transforms, distance, float(params["weight"]), self.weighting, **optional)

    def policy(self, params: Params) -> Policy:
        """The policy of one choice: a single term."""
        return Policy([self.term(params)])

    def key(self, params: Params) -> str:
        """The text of the canonical policy; remembered.

        The canonical form of a term of weight 1 is worked out once; a weight multiplies that of the form.
        """
        choice = tuple(params[name] for name in self.genes)
        if choice not in self._keys:
            unweighted = self._unweighted(params)
            if unweighted not in self._canonical:
                self._canonical[unweighted] = self.term({**params, "weight": 1.0}).canonical()
            form = self._canonical[unweighted]
            self._keys[choice] = form.key_at(form.weight * float(params["weight"]))
        return self._keys[choice]

    def legal(self, params: Params) -> bool:
        """Whether distance and transforms fit together."""
        return self._chain(params) not in self._illegal

    @property
    def size(self) -> int:
        """Legal choices, as written; some are the same loss."""
        whole = math.prod(len(options) for options in self.genes.values())
        return whole - len(self._illegal) * len(self.genes["weight"]) * self._variants

    def count_canonical(self) -> int:
        """Distinct losses, counted by building every one but for the genes that stand apart."""
        return len({self.key(params) for params in self._core()}) * self._variants

    def takes(self, knowledge: Any) -> bool:
        """Whether this knowledge, in this form, is searched here."""
        options = self.genes.get("knowledge", (self.knowledge,))
        return any(self._pieces["knowledge", option] == knowledge for option in options)

    def encode(self, policy: Policy | Term) -> dict[str, Option]:
        """The choice that stands for a policy (or for the same loss written otherwise).

        Raises:
            ConfigError: the policy lies outside this space.
        """
        policy = policy if isinstance(policy, Policy) else Policy([policy])
        if len(policy) == 1:
            (term,) = policy
            apart = {name: self._option(name, getattr(term, name)) for name in _APART if name in self.genes}
            if None not in apart.values():
                core = {name: self._pieces[name, self.genes[name][0]] for name in apart}
                choice = self._index.get(Policy([replace(term, **core)]).key)
                if choice is not None:
                    return {**choice, **apart}  # type: ignore[dict-item]
        raise ConfigError(f"policy outside the {self.knowledge} space: {policy.key}; add its options to the space file")

    def nearest(self, term: Term) -> Term:
        """The term with pieces that this space offers: where one has other arguments here, it has those."""
        offered = [piece for piece in self._pieces.values() if piece is not None]

        def own(piece: Any) -> Any:
            alike = [other for other in offered if getattr(other, "name", None) == piece.name]
            return piece if piece in alike or not alike else alike[0]

        return replace(term, transforms=tuple(map(own, term.transforms)), distance=own(term.distance))

    def describe(self) -> dict[str, Any]:
        """Plain data: knowledge, weighting and genes."""
        genes = {name: list(options) for name, options in self.genes.items()}
        return {"knowledge": self.knowledge, "weighting": self.weighting, "genes": genes}

    @cached_property
    def _index(self) -> dict[str, dict[str, Option]]:
        index: dict[str, dict[str, Option]] = {}
        for params in self._core():
            index.setdefault(self.key(params), params)
        return index

    def _core(self) -> Iterator[dict[str, Option]]:
        """The legal choices with the genes that stand apart at their first options."""
        genes = {name: options[:1] if name in _APART else options for name, options in self.genes.items()}
        for values in product(*genes.values()):
            params = dict(zip(genes, values, strict=True))
            if self.legal(params):
                yield params

    @property
    def _variants(self) -> int:
        """Choices of the genes that stand apart."""
        return math.prod(len(self.genes[name]) for name in _APART if name in self.genes)

    def _option(self, name: str, piece: Any) -> Option | None:
        """The option of a gene that builds this piece; None where none does."""
        return next((option for option in self.genes[name] if self._pieces[name, option] == piece), None)

    def _unweighted(self, params: Params) -> tuple[Option, ...]:
        return tuple(params[name] for name in self.genes if name != "weight")

    def _chain(self, params: Params) -> tuple[Option, ...]:
        """What decides whether a choice is legal: its transforms and distance."""
        return tuple(params[name] for name in self.genes if name not in ("weight", *_APART))

    def _check_genes(self) -> None:
        faults = Faults(f"space {self.knowledge}")
        for name, options in self.genes.items():
            if name not in (*_REGISTRIES, "weight"):
                faults.add(unknown_name("gene", name, (*_REGISTRIES, "weight")))
            if not options:
                faults.add(f"{name}: expected at least one option, got none")
            if len(set(options)) != len(options):
                faults.add(f"{name}: an option is listed twice in {', '.join(map(str, options))}")
        for name in ("distance", "weight"):
            if name not in self.genes:
                faults.add(f"missing gene {name!r}")
        for weight in self.genes.get("weight", ()):
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                faults.add(f"weight: expected finite numbers > 0, got {weight!r}")
        faults.raise_as(ConfigError)
        genes = dict(self.genes)
        genes["weight"] = tuple(float(weight) for weight in genes["weight"])
        object.__setattr__(self, "genes", genes)

    def _build_pieces(self) -> None:
        options = [(name, option) for name in self.genes if name != "weight" for option in self.genes[name]]
        kind = parse_expression(self.knowledge)[0]
        faults = Faults(f"space {self.knowledge}")
        for name, option in [("knowledge", self.knowledge), *options]:
            if option == "none" and name in STAGES:
                continue
            try:
                self._pieces[name, option] = _REGISTRIES[name].build(str(option))
            except UserError as error:
                faults.add(error)
                continue
            if name == "knowledge" and self._pieces[name, option].name != kind:
                faults.add(f"knowledge: expected expressions of {kind!r}, got {option!r}")
        faults.raise_as(ConfigError)

    def _check_options(self) -> None:
        usable: set[tuple[str, Option]] = set()
        refused: dict[tuple[str, Option], str] = {}
        first = {name: options[0] for name, options in self.genes.items()}
        names = [name for name in self.genes if name not in ("weight", *_APART)]
        legal: dict[str, Option] = {}
        for values in product(*(self.genes[name] for name in names)):
            choice = dict(zip(names, values, strict=True))
            try:
                self.term({**first, **choice})
                usable.update(choice.items())
                legal = legal or choice
            except PolicyError as error:
                self._illegal.add(values)
                for item in choice.items():
                    refused.setdefault(item, error.faults[0])
        apart = [(name, option) for name in _APART for option in self.genes.get(name, ()) if legal]
        for item in apart:
            try:
                self.term({**first, **legal, item[0]: item[1]})
            except PolicyError as error:
                refused[item] = error.faults[0]
        faults = Faults(f"space {self.knowledge}")
        for (name, option), reason in refused.items():
            if (name, option) not in usable:
                faults.add(f"{name}: {option}: {reason}")
        faults.raise_as(ConfigError)


def load_spaces(
    name: str | Path = "default", weighting: Weighting = "absolute", knowledge: Sequence[str] | None = None
) -> dict[str, Space]:
    """Load the spaces of a shipped file (``default``, ``paper``) or of a YAML file of the same form.

    Args:
        name: a shipped name or a path.
        weighting: which of the file's weight lists to use, and what the weights mean.
        knowledge: the kinds wanted, in this order; None for all of the file.

    Raises:
        ConfigError: listing every fault in the file.
    """
    shipped = {path.stem: path for path in (Path(__file__).parent / "spaces").glob("*.yaml")}
    path = shipped.get(str(name), Path(name))
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(unknown_name("space", name, shipped) + "; or give the path of a .yaml file")
    return _spaces(read_yaml(path, ConfigError)[0], str(path), weighting, knowledge)


def parse_spaces(
    text: str, where: str = "space", weighting: Weighting = "absolute", knowledge: Sequence[str] | None = None
) -> dict[str, Space]:
    """Parse the text of a space file; see :func:`load_spaces`."""
    return _spaces(parse_yaml(text, where, ConfigError)[0], where, weighting, knowledge)


def _spaces(data: Any, where: str, weighting: Weighting, knowledge: Sequence[str] | None) -> dict[str, Space]:
    faults = Faults(where)
    weights, kinds = (_mapping(data, key, faults) for key in ("weights", "knowledge"))
    if weights and not isinstance(weights.get(weighting), list):
        faults.add(f"weights.{weighting}: expected a list of numbers, got {weights.get(weighting)!r}")
    for kind in knowledge or ():
        if kinds and kind not in kinds:
            faults.add(unknown_name("knowledge", kind, kinds))
    faults.raise_as(ConfigError)
    spaces: dict[str, Space] = {}
    for kind in knowledge if knowledge is not None else kinds:
        genes = kinds[kind]
        if not isinstance(genes, dict) or not all(isinstance(options, list) for options in genes.values()):
            faults.add(f"knowledge.{kind}: expected lists of options by gene, got {genes!r}")
            continue
        options = {name: tuple(map(str, listed)) for name, listed in genes.items() if name != "weight"}
        try:
            spaces[kind] = Space(kind, {**options, "weight": tuple(genes.get("weight", weights[weighting]))}, weighting)
        except UserError as error:
            faults.add(error)
    faults.raise_as(ConfigError)
    return spaces


def _mapping(data: Any, key: str, faults: Faults) -> dict[str, Any]:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, dict) or not value:
        faults.add(f"{key}: expected a mapping, got {value!r}")
        return {}
    return value
