"""Terms and policies: one distillation loss, and the whole recipe, as plain data.

A policy is a set of terms; a term is knowledge + transforms + distance + weight. Both are frozen, hashable and
round-trip through YAML::

    policy: detkds/global
    terms:
      - {knowledge: global, transforms: [catt, scale(2), norm(N)], distance: l1, weight: 5}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from detkds.canonical import canonical_steps
from detkds.errors import Faults, PolicyError, unknown_name
from detkds.protocols import Adapter, Distance, Knowledge, Schedule, Transform
from detkds.registry import expression
from detkds.term_fields import OPTIONAL_PIECES, checked_fields

Weighting = Literal["absolute", "gradient"]

FIDELITIES = ("exact", "equivalent up to a stated factor", "approximate")
"""How true a policy may be to what its source published, the best first."""

_DESCRIPTIONS = ("policy", "source", "formula", "fidelity")
"""The keys of a policy file that describe it."""


@dataclass(frozen=True)
class Term:
    """One distillation loss.

    Attributes:
        knowledge, transforms, distance: registered pieces, or the expressions that name them.
        weight: finite and >= 0; what the loss is multiplied by.
        weighting: ``absolute``, or ``gradient``: the weight is then the wanted ratio between this term's gradient
            on the student's features and the task's, and calibration turns it into an absolute one before training.
        levels: pyramid levels to use, by name; empty means all that both detectors have.
        adapter: what is learned on the student's maps before they are compared, for knowledge of features.
        schedule: how the weight changes over the training.

    Raises:
        PolicyError: listing every fault of the term.
    """

    knowledge: Knowledge | str
    transforms: Sequence[Transform | str] = ()
    distance: Distance | str = "l2"
    weight: float = 1.0
    weighting: Weighting = "absolute"
    levels: tuple[str, ...] = ()
    adapter: Adapter | str = "auto"
    schedule: Schedule | str = "constant"

    def __post_init__(self) -> None:
        fields, faults = checked_fields(
            {
                "knowledge": self.knowledge,
                "transforms": self.transforms,
                "distance": self.distance,
                "weight": self.weight,
                "weighting": self.weighting,
                "levels": self.levels,
                "adapter": self.adapter,
                "schedule": self.schedule,
            }
        )
        if faults:
            raise PolicyError(fault for _, fault in faults)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """``knowledge/distance``, the name of this term's loss."""
        return f"{self.knowledge.name}/{self.distance.name}"  # type: ignore[union-attr]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what a policy file holds for this term."""
        data: dict[str, Any] = {
            "knowledge": expression(self.knowledge),
            "transforms": [expression(transform) for transform in self.transforms],
            "distance": expression(self.distance),
            "weight": self.weight,
        }
        if self.weighting != "absolute":
            data["weighting"] = self.weighting
        if self.levels:
            data["levels"] = list(self.levels)
        for field_name, default in OPTIONAL_PIECES.items():
            if (written := expression(getattr(self, field_name))) != default:
                data[field_name] = written
        return data

    def canonical(self) -> Term:
        """The one form of all terms that compute the same loss; see :mod:`detkds.canonical`.

        A constant factor goes into an absolute weight. A weight relative to the gradient does not feel it.
        """
        data, levels = self.to_dict(), tuple(sorted(set(self.levels)))
        transforms, distance, factor = canonical_steps(data["knowledge"], tuple(data["transforms"]), data["distance"])
        weight = self.weight * (factor if self.weighting == "absolute" else 1.0)
        return replace(self, transforms=transforms, distance=distance, weight=weight, levels=levels)

    @property
    def key(self) -> str:
        """A stable text with every digit of the weight, equal for two terms exactly when the terms are."""
        return self.key_at(self.weight)

    def key_at(self, weight: float) -> str:
        """The key of the same term with another weight."""
        return self._text(repr(weight).removesuffix(".0"))

    def __str__(self) -> str:
        return self._text(f"{self.weight:g}")

    def _text(self, weight: str) -> str:
        data = self.to_dict()
        chain = " > ".join(data["transforms"]) or "-"
        ratio = " of the task's gradient" if self.weighting == "gradient" else ""
        where = f" @ {' '.join(self.levels)}" if self.levels else ""
        adapter = f" by {data['adapter']}" if "adapter" in data else ""
        schedule = f", {data['schedule']}" if "schedule" in data else ""
        return f"{data['knowledge']}: {chain} | {data['distance']} x {weight}{ratio}{where}{adapter}{schedule}"


@dataclass(frozen=True)
class Policy:
    """A set of terms. Without terms it is the plain student, trained by its own losses alone.

    The other fields describe it and do not enter comparisons.

    Attributes:
        name: what it is called; source: where it comes from.
        formula: the loss in plain text.
        fidelity: one of :data:`FIDELITIES`, a colon, and what differs and by how much; ``exact`` may stand alone.

    Raises:
        PolicyError: something else than terms, or a fidelity that is neither.
    """

    terms: Sequence[Term] = ()
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)
    formula: str = field(default="", compare=False)
    fidelity: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        terms = tuple(self.terms)
        faults = Faults()
        for index, term in enumerate(terms):
            if not isinstance(term, Term):
                faults.add(f"terms[{index}]: expected a Term, got {term!r}; Policy.from_dict reads plain data")
        if fault := _fidelity_fault(self.fidelity):
            faults.add(fault)
        faults.raise_as(PolicyError)
        object.__setattr__(self, "terms", terms)

    def canonical(self) -> Policy:
        """Canonical terms, sorted; terms of weight 0 left out, equal terms merged by adding their weights."""
        merged: dict[Term, list[float]] = {}
        for term in (term.canonical() for term in self.terms if term.weight > 0):
            merged.setdefault(replace(term, weight=1.0), []).append(term.weight)
        # The exact sum: the order of the terms does not matter.
        terms = (replace(term, weight=math.fsum(weights)) for term, weights in merged.items())
        return replace(self, terms=tuple(sorted(terms, key=lambda term: term.key)))

    @property
    def key(self) -> str:
        """A stable text, equal for two policies exactly when their canonical forms are."""
        return "; ".join(term.key for term in self.canonical().terms) or "plain"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a policy file."""
        described = {"policy": self.name, **{key: getattr(self, key) for key in _DESCRIPTIONS[1:]}}
        data: dict[str, Any] = {key: value for key, value in described.items() if value}
        return {**data, "terms": [term.to_dict() for term in self.terms]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "policy") -> Policy:
        """Build a policy from plain data.

        Raises:
            PolicyError: listing every fault.
        """
        try:
            text = yaml.safe_dump(dict(data), sort_keys=False)
        except yaml.YAMLError as error:
            raise PolicyError(f"{where}: expected plain data (text, numbers, lists), got {_one_line(error)}") from None
        return parse_policy(text, where, lines=False)

    def to_yaml(self) -> str:
        """The policy as the text of a policy file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=120)

    def __str__(self) -> str:
        return "\n".join(str(term) for term in self.terms) or "plain (no distillation)"

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)


def load_policy(name: str | Path) -> Policy:
    """Load a policy by the name of a shipped one (see :func:`list_policies`) or by the path of a YAML file.

    Raises:
        PolicyError: no such policy or file, or every fault in the file, each with its line.
    """
    shipped = _shipped()
    if str(name) in shipped:
        return parse_policy(shipped[str(name)], f"policies/{name}.yaml")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise PolicyError(unknown_name("policy", name, shipped) + "; or give the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read as a policy file: {error}") from None
    return parse_policy(text, str(path))


def list_policies() -> list[str]:
    """Names of the policies that ship with the package, sorted."""
    return sorted(_shipped())


def parse_policy(text: str, where: str = "policy", *, lines: bool = True) -> Policy:
    """Parse the text of a policy file.

    Args:
        text: YAML.
        where: how messages call the source.
        lines: whether messages give line numbers.

    Raises:
        PolicyError: listing every fault, each with the line it stands in.
    """
    faults = Faults()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyError(f"{where}: not valid YAML: {_one_line(error)}") from None

    def at(node: yaml.Node | None) -> str:
        return f"{where}:{node.start_mark.line + 1}" if lines and node is not None else where

    fields = _fields(root, ("terms",), (*_DESCRIPTIONS, "terms"), "a policy", faults, at)
    for key in _DESCRIPTIONS:
        if key in fields and not isinstance(fields[key], yaml.ScalarNode):
            faults.add(f"{at(fields[key])}: {key}: expected text, got {_shown(fields[key])}")
    about = {key: node.value for key, node in fields.items() if key in _DESCRIPTIONS}
    if isinstance(fields.get("fidelity"), yaml.ScalarNode) and (fault := _fidelity_fault(about["fidelity"])):
        faults.add(f"{at(fields['fidelity'])}: {fault}")
    terms: list[Term] = []
    items = fields.get("terms")
    if items is not None and not isinstance(items, yaml.SequenceNode):
        faults.add(f"{at(items)}: terms: expected a list, got {_shown(items)}")
    for index, node in enumerate(items.value if isinstance(items, yaml.SequenceNode) else ()):
        entry = _fields(
            node,
            ("knowledge", "distance", "weight"),
            ("knowledge", "transforms", "distance", "weight", "weighting", "levels", *OPTIONAL_PIECES),
            f"terms[{index}]",
            faults,
            at,
        )
        values, found = checked_fields({key: _plain(key, child) for key, child in entry.items()})
        for key, fault in found:
            faults.add(f"{at(entry.get(key, node))}: terms[{index}]: {fault}")
        if not faults:
            terms.append(Term(**values))
    faults.raise_as(PolicyError)
    return Policy(terms, name=about.pop("policy", ""), **about)


def _fidelity_fault(fidelity: str) -> str | None:
    word, _, reason = fidelity.partition(": ")
    if fidelity in ("", "exact") or (word in FIDELITIES and reason.strip()):
        return None
    words = " or ".join(f"'{word}: '" for word in FIDELITIES)
    return f"fidelity: expected 'exact', or {words} and what differs, got {fidelity!r}"


def _fields(
    node: yaml.Node | None,
    required: Sequence[str],
    known: Sequence[str],
    what: str,
    faults: Faults,
    at: Callable[[yaml.Node | None], str],
) -> dict[str, yaml.Node]:
    """The children of a mapping node by key, with every missing, unknown or repeated key recorded as a fault."""
    if not isinstance(node, yaml.MappingNode):
        faults.add(f"{at(node)}: {what}: expected a mapping with the keys {', '.join(known)}, got {_shown(node)}")
        return {}
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value not in known:
            faults.add(f"{at(key)}: {what}: {unknown_name('key', key.value, known)}")
        elif key.value in fields:
            faults.add(f"{at(key)}: {what}: key {key.value!r} is given twice")
        else:
            fields[key.value] = value
    for key in required:
        if key not in fields:
            faults.add(f"{at(node)}: {what}: missing key {key!r}")
    return fields


def _plain(key: str, node: yaml.Node) -> Any:
    """The value of a term's field: a number for ``weight``, elsewhere text as it is written, or a list of it."""
    if isinstance(node, yaml.SequenceNode):
        return [item.value if isinstance(item, yaml.ScalarNode) else _Unreadable(_shown(item)) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        return _Unreadable(_shown(node))
    if key == "weight":
        try:
            return float(node.value)
        except ValueError:
            return _Unreadable(_shown(node))
    return node.value


class _Unreadable:
    """What stands in a file where something else was expected; no field accepts it."""

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown


def _shown(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping" if node is not None else "nothing"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shipped() -> dict[str, str]:
    """The text of every shipped policy file, by name: the path below ``policies`` without the ending."""
    found: dict[str, str] = {}

    def walk(folder: Any, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found[prefix + entry.name.removesuffix(".yaml")] = entry.read_text(encoding="utf-8")

    walk(resources.files("detkds") / "policies", "")
    return found
