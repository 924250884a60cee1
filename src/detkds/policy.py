"""Terms and policies: one distillation loss, and the whole recipe, as plain data.

A policy is a set of terms; a term is knowledge + transforms + distance + weight. Both are frozen, hashable and
round-trip through YAML::

    policy: detkds/global
    terms:
      - {knowledge: global, transforms: [catt, scale(2), norm(N)], distance: l1, weight: 5}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from detkds.canonical import canonical_steps
from detkds.errors import Faults, PolicyError, unknown_name
from detkds.protocols import Adapter, Distance, Knowledge, Schedule, Transform
from detkds.registry import expression
from detkds.term_schema import OPTIONAL_PIECES, checked_fields
from detkds.yaml_reader import Lines, parse_yaml, read_yaml

Weighting = Literal["absolute", "gradient"]

FIDELITIES = ("exact", "equivalent up to a stated factor", "approximate")
"""How true a policy may be to what its source published, the best first."""

_DESCRIPTIONS = ("policy", "source", "formula", "fidelity")
"""The keys of a policy file that describe it."""


@dataclass(frozen=True, init=False)
class Term:
    """One distillation loss.

    Attributes:
        knowledge, transforms, distance: registered pieces; expressions that name them are taken too.
        weight: finite and >= 0; what the loss is multiplied by.
        weighting: ``absolute``, or ``gradient``: the weight is then the wanted ratio between this term's gradient
            on the student's features and the task's, and calibration turns it into an absolute one before training.
        levels: pyramid levels to use, by name; empty means all that both detectors have.
        adapter: what is learned on the student's maps before they are compared, for knowledge of features.
        schedule: how the weight changes over the training.

    Raises:
        PolicyError: listing every fault of the term.
    """

    knowledge: Knowledge
    transforms: tuple[Transform, ...]
    distance: Distance
    weight: float
    weighting: Weighting
    levels: tuple[str, ...]
    adapter: Adapter
    schedule: Schedule

    def __init__(
        self,
        knowledge: Knowledge | str,
        transforms: Sequence[Transform | str] = (),
        distance: Distance | str = "l2",
        weight: float = 1.0,
        weighting: Weighting = "absolute",
        levels: Sequence[str] = (),
        adapter: Adapter | str = "auto",
        schedule: Schedule | str = "constant",
    ) -> None:
        """Build the pieces that are given as expressions."""
        given = locals()
        fields, faults = checked_fields({field.name: given[field.name] for field in dataclasses.fields(self)})
        if faults:
            raise PolicyError(fault for _, fault in faults)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """``knowledge/distance``, the name of this term's loss."""
        return f"{self.knowledge.name}/{self.distance.name}"

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
        return self._canonical

    @cached_property
    def _canonical(self) -> Term:
        transforms, distance, factor = canonical_steps(self.knowledge, self.transforms, self.distance)
        levels = tuple(sorted(set(self.levels)))
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
        if math.isinf(sum(term.weight for term in terms if isinstance(term, Term))):
            faults.add("terms: expected weights whose sum is a finite number")
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

    @cached_property
    def key(self) -> str:
        """A stable text, equal for two policies exactly when their canonical forms are."""
        return "; ".join(term.key for term in self.canonical().terms) or "plain"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a policy file."""
        described = {"policy": self.name, **{key: getattr(self, key) for key in _DESCRIPTIONS[1:]}}
        data: dict[str, Any] = {key: value for key, value in described.items() if value}
        return {**data, "terms": [term.to_dict() for term in self.terms]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str | Lines = "policy") -> Policy:
        """Build a policy from plain data.

        Args:
            data: as :meth:`to_dict` gives it; numbers may be written as text.
            where: how messages call the source; with :class:`~detkds.yaml_reader.Lines`, each names its line.

        Raises:
            PolicyError: listing every fault.
        """
        lines = Lines(where, {}) if isinstance(where, str) else where
        faults = Faults()
        known = (*_DESCRIPTIONS, "terms")
        fields = _fields(data, ("terms",), known, "a policy", lines, (), faults)
        about = {key: _text(fields[key]) for key in _DESCRIPTIONS if key in fields}
        for key, text in about.items():
            if not isinstance(text, str):
                faults.add(f"{lines.at(key)}: {key}: expected text, got {_shown(text)}")
            elif key == "fidelity" and (fault := _fidelity_fault(text)):
                faults.add(f"{lines.at(key)}: {fault}")
        items = fields.get("terms", [])
        if not isinstance(items, list | tuple):
            faults.add(f"{lines.at('terms')}: terms: expected a list, got {_shown(items)}")
            items = []
        terms = [_read_term(item, index, lines, faults) for index, item in enumerate(items)]
        faults.raise_as(PolicyError)
        return cls([Term(**term) for term in terms], name=about.pop("policy", ""), **about)

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
    if Path(name).suffix not in (".yaml", ".yml"):
        raise PolicyError(unknown_name("policy", name, shipped) + "; or give the path of a .yaml file")
    return Policy.from_dict(*read_yaml(name, PolicyError))


def list_policies() -> list[str]:
    """Names of the policies that ship with the package, sorted."""
    return sorted(_shipped())


def parse_policy(text: str, where: str = "policy") -> Policy:
    """Parse the text of a policy file.

    Args:
        text: YAML.
        where: how messages call the source.

    Raises:
        PolicyError: listing every fault, each with the line it stands in.
    """
    return Policy.from_dict(*parse_yaml(text, where, PolicyError))


def _fidelity_fault(fidelity: str) -> str | None:
    word, _, reason = fidelity.partition(": ")
    if fidelity in ("", "exact") or (word in FIDELITIES and reason.strip()):
        return None
    words = " or ".join(f"'{word}: '" for word in FIDELITIES)
    return f"fidelity: expected 'exact', or {words} and what differs, got {fidelity!r}"


def _read_term(data: Any, index: int, lines: Lines, faults: Faults) -> dict[str, Any]:
    """The fields of a term from plain data, with every fault recorded."""
    required = ("knowledge", "distance", "weight")
    known = ("knowledge", "transforms", "distance", "weight", "weighting", "levels", *OPTIONAL_PIECES)
    what = f"terms[{index}]"
    entry = dict(_fields(data, required, known, what, lines, ("terms", index), faults))
    if isinstance(entry.get("weight"), str):
        with suppress(ValueError):
            entry["weight"] = float(entry["weight"])  # YAML takes 1e-3, without a point, for text
    if isinstance(entry.get("levels"), list):
        entry["levels"] = [_text(level) for level in entry["levels"]]
    fields, wrong = checked_fields(entry)
    for key, fault in wrong:
        faults.add(f"{lines.at('terms', index, key)}: {what}: {fault}")
    return fields


def _fields(
    data: Any,
    required: Sequence[str],
    known: Sequence[str],
    what: str,
    lines: Lines,
    path: tuple[str | int, ...],
    faults: Faults,
) -> Mapping[str, Any]:
    """The known keys of a mapping, with every missing or unknown key recorded as a fault."""
    if not isinstance(data, Mapping):
        keys = ", ".join(known)
        faults.add(f"{lines.at(*path)}: {what}: expected a mapping with the keys {keys}, got {_shown(data)}")
        return {}
    for key in data:
        if key not in known:
            faults.add(f"{lines.at(*path, key)}: {what}: {unknown_name('key', key, known)}")
    for key in required:
        if key not in data:
            faults.add(f"{lines.at(*path)}: {what}: missing key {key!r}")
    return {key: value for key, value in data.items() if key in known}


def _text(value: Any) -> Any:
    """A number that stands where text is expected, such as the name of a level, as text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    return "nothing" if value is None else repr(value)


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
