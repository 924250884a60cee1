"""Terms and policies: one distillation loss, and the whole recipe, as plain data.

A policy is a set of terms; a term is knowledge + transforms + distance + weight. Both are frozen, hashable and
round-trip through YAML::

    policy: detkds/global
    terms:
      - {knowledge: global, transforms: [catt, scale(2), norm(N)], distance: l1, weight: 5}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from detkds.canonical import canonical_steps
from detkds.errors import Faults, PolicyError, UserError, unknown_name
from detkds.registry import DISTANCES, KNOWLEDGE, TRANSFORMS, Registry, expression
from detkds.structures import Distance, Kind, Knowledge, Transform

Weighting = Literal["absolute", "gradient"]


@dataclass(frozen=True)
class Term:
    """One distillation loss.

    Attributes:
        knowledge, transforms, distance: registered pieces, or the expressions that name them.
        weight: finite and >= 0; what the loss is multiplied by.
        weighting: ``absolute``, or ``gradient``: the weight is then the wanted ratio between this term's gradient
            on the student's features and the task's, and calibration turns it into an absolute one before training.
        levels: pyramid levels to use, by name; empty means all that both detectors have.

    Raises:
        PolicyError: listing every fault of the term.
    """

    knowledge: Knowledge | str
    transforms: Sequence[Transform | str] = ()
    distance: Distance | str = "l2"
    weight: float = 1.0
    weighting: Weighting = "absolute"
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = Faults()
        knowledge = _piece(self.knowledge, KNOWLEDGE, faults)
        transforms = tuple(_piece(item, TRANSFORMS, faults) for item in self.transforms)
        distance = _piece(self.distance, DISTANCES, faults)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            faults.add(f"weight: expected a finite number >= 0, got {self.weight!r}")
        elif not math.isfinite(self.weight) or self.weight < 0:
            faults.add(f"weight: expected a finite number >= 0, got {self.weight}")
        else:
            object.__setattr__(self, "weight", float(self.weight))
        if self.weighting not in ("absolute", "gradient"):
            faults.add(f"weighting: expected 'absolute' or 'gradient', got {self.weighting!r}")
        if not faults:
            _check_kinds(knowledge, transforms, distance, faults)
        faults.raise_as(PolicyError)
        object.__setattr__(self, "knowledge", knowledge)
        object.__setattr__(self, "transforms", transforms)
        object.__setattr__(self, "distance", distance)
        object.__setattr__(self, "levels", tuple(self.levels))

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
        return data

    def canonical(self) -> Term:
        """The one form of all terms that compute the same loss; see :mod:`detkds.canonical`."""
        data = self.to_dict()
        transforms, distance = canonical_steps(data["knowledge"], tuple(data["transforms"]), data["distance"])
        return replace(self, transforms=transforms, distance=distance, levels=tuple(sorted(self.levels)))

    def __str__(self) -> str:
        data = self.to_dict()
        chain = " > ".join(data["transforms"]) or "-"
        ratio = " of the task's gradient" if self.weighting == "gradient" else ""
        where = f" @ {' '.join(self.levels)}" if self.levels else ""
        return f"{data['knowledge']}: {chain} | {data['distance']} x {self.weight:g}{ratio}{where}"


@dataclass(frozen=True)
class Policy:
    """A set of terms. Without terms it is the plain student, trained by its own losses alone.

    ``name`` and ``source`` say what the policy is called and where it comes from; they do not enter comparisons.
    """

    terms: Sequence[Term] = ()
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))

    def canonical(self) -> Policy:
        """Canonical terms, sorted; terms of weight 0 left out, equal terms merged by adding their weights."""
        merged: dict[Term, float] = {}
        for term in (term.canonical() for term in self.terms if term.weight > 0):
            unit = replace(term, weight=1.0)
            merged[unit] = merged.get(unit, 0.0) + term.weight
        return replace(self, terms=tuple(sorted((replace(t, weight=w) for t, w in merged.items()), key=str)))

    @property
    def key(self) -> str:
        """A stable text, equal for two policies exactly when their canonical forms are."""
        return "; ".join(str(term) for term in self.canonical().terms) or "plain"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a policy file."""
        data: dict[str, Any] = {"policy": self.name} if self.name else {}
        if self.source:
            data["source"] = self.source
        return {**data, "terms": [term.to_dict() for term in self.terms]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "policy") -> Policy:
        """Build a policy from plain data.

        Raises:
            PolicyError: listing every fault.
        """
        return parse_policy(yaml.safe_dump(dict(data), sort_keys=False), where, lines=False)

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
    except yaml.YAMLError as error:
        raise PolicyError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None

    def at(node: yaml.Node) -> str:
        return f"{where}:{node.start_mark.line + 1}" if lines else where

    fields = _fields(root, ("policy", "terms"), ("policy", "source", "terms"), "a policy", faults, at)
    terms: list[Term] = []
    for index, node in enumerate(_items(fields.get("terms"), "terms", faults, at)):
        entry = _fields(
            node,
            ("knowledge", "distance", "weight"),
            ("knowledge", "transforms", "distance", "weight", "weighting", "levels"),
            f"terms[{index}]",
            faults,
            at,
        )
        values = {key: yaml.SafeLoader("").construct_object(child, deep=True) for key, child in entry.items()}
        if not {"knowledge", "distance", "weight"} <= values.keys():
            continue
        for key in ("transforms", "levels"):
            values[key] = [str(value) for value in (values.get(key) or [])] if isinstance(
                values.get(key) or [], list
            ) else [str(values[key])]
        try:
            terms.append(Term(**values))
        except PolicyError as error:
            for fault in error.faults:
                faults.add(f"{at(node)}: terms[{index}]: {fault}")
    faults.raise_as(PolicyError)
    name, source = (fields[key].value if key in fields else "" for key in ("policy", "source"))
    return Policy(terms, name=name, source=source)


def _fields(node: Any, required: Sequence[str], known: Sequence[str], what: str, faults: Faults, at: Any) -> dict:
    """The children of a mapping node by key, with every missing, unknown or repeated key recorded as a fault."""
    if not isinstance(node, yaml.MappingNode):
        place = at(node) if node is not None else "policy"
        faults.add(f"{place}: {what}: expected a mapping with the keys {', '.join(known)}, got {_shown(node)}")
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
        if key not in fields and key != "policy":
            faults.add(f"{at(node)}: {what}: missing key {key!r}")
    return fields


def _items(node: yaml.Node | None, what: str, faults: Faults, at: Any) -> list[yaml.Node]:
    if node is None:
        return []
    if not isinstance(node, yaml.SequenceNode):
        faults.add(f"{at(node)}: {what}: expected a list, got {_shown(node)}")
        return []
    return node.value


def _shown(node: yaml.Node | None) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "nothing" if node is None else f"a {node.id}"


def _piece(value: Any, registry: Registry[Any], faults: Faults) -> Any:
    if not isinstance(value, str):
        return value
    if value.count("(") != value.count(")"):
        faults.add(f'{registry.kind} {value!r}: unbalanced brackets; quote an expression with a comma: "norm(C, mode=l2)"')
        return None
    try:
        return registry.build(value)
    except UserError as error:
        faults.add(error)
        return None


def _check_kinds(knowledge: Knowledge, transforms: Sequence[Transform], distance: Distance, faults: Faults) -> None:
    kind: Kind = knowledge.yields
    for transform in transforms:
        if kind not in transform.kinds:
            usable = [name for name in TRANSFORMS if kind in TRANSFORMS[name].kinds]  # type: ignore[attr-defined]
            faults.add(
                f"transform {expression(transform)!r} cannot serve {knowledge.name!r}: it takes "
                f"{', '.join(sorted(transform.kinds))}, not {kind}. For {kind}: {', '.join(usable)}"
            )
            return
        kind = transform.kinds[kind]
    if kind not in distance.kinds:
        usable = [name for name in DISTANCES if kind in DISTANCES[name].kinds]  # type: ignore[attr-defined]
        faults.add(
            f"distance {expression(distance)!r} cannot serve {knowledge.name!r} here: it takes "
            f"{', '.join(sorted(distance.kinds))}, not {kind}. For {kind}: {', '.join(usable) or 'none; transform it'}"
        )


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
