"""The fields of a term, checked: pieces built from their expressions, and every fault with the field it stands in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from detkds.errors import UserError
from detkds.protocols import Distance, Knowledge, Transform
from detkds.registry import ADAPTERS, DISTANCES, KNOWLEDGE, SCHEDULES, TRANSFORMS, Registry, expression
from detkds.structures import Kind

OPTIONAL_PIECES = {"adapter": "auto", "schedule": "constant"}
"""The pieces that a term need not name, and what stands for them."""


def checked_fields(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The fields of a term as they are kept, and every fault with the field it stands in; absent fields are not."""
    fields = dict(given)
    faults: list[tuple[str, str]] = []
    pieces = {"knowledge": KNOWLEDGE, "distance": DISTANCES, "adapter": ADAPTERS, "schedule": SCHEDULES}
    for key, registry in pieces.items():
        if key in given:
            fields[key], wrong = _piece(given[key], registry)
            faults += [(key, fault) for fault in wrong]
    for key, example in (("transforms", "[catt, norm(N)]"), ("levels", "[p3, p4]")):
        if key in given and not isinstance(given[key], list | tuple):
            faults.append((key, f"{key}: expected a list such as {example}, or [] for none, got {given[key]!r}"))
        elif key in given:
            fields[key] = tuple(given[key])
    if isinstance(fields.get("transforms"), tuple):
        built = [_piece(item, TRANSFORMS) for item in fields["transforms"]]
        fields["transforms"] = tuple(piece for piece, _ in built)
        faults += [("transforms", fault) for _, wrong in built for fault in wrong]
    for level in fields.get("levels", ()) if isinstance(fields.get("levels"), tuple) else ():
        if not isinstance(level, str):
            faults.append(("levels", f"levels: expected names of pyramid levels, got {level!r}"))
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not (math.isfinite(weight) and weight >= 0):
        faults.append(("weight", f"weight: expected a finite number >= 0, got {weight!r}"))
    elif "weight" in given:
        fields["weight"] = float(weight)
    if given.get("weighting", "absolute") not in ("absolute", "gradient"):
        faults.append(("weighting", f"weighting: expected 'absolute' or 'gradient', got {given['weighting']!r}"))
    pieces_faulty = any(key in (*pieces, "transforms") for key, _ in faults)
    if not pieces_faulty and "knowledge" in given and "distance" in given:
        faults += _check_kinds(fields["knowledge"], fields.get("transforms", ()), fields["distance"])
        if (
            fields["knowledge"].yields != "feature"
            and expression(fields.get("adapter", ADAPTERS.build("auto"))) != "auto"
        ):
            faults.append(("adapter", f"adapter: expected knowledge of features, got {fields['knowledge'].name!r}"))
    return fields, faults


def _piece(value: Any, registry: Registry[Any]) -> tuple[Any, tuple[str, ...]]:
    """A registered piece from itself or its expression, or None with what is wrong."""
    if not isinstance(value, str):
        name = getattr(value, "name", None)
        if isinstance(value, type) or not isinstance(name, str) or name not in registry:
            return None, (f"{registry.kind}: expected an expression or a registered {registry.kind}, got {value!r}",)
        return value, ()
    if value.count("(") != value.count(")"):
        hint = 'quote an expression with a comma: "norm(C, mode=l2)"'
        return None, (f"{registry.kind} {value!r}: unbalanced brackets; {hint}",)
    try:
        return registry.build(value), ()
    except UserError as error:
        return None, error.faults


def _check_kinds(knowledge: Knowledge, transforms: Sequence[Transform], distance: Distance) -> list[tuple[str, str]]:
    """The first step of a term that cannot take what the steps before it give, if there is one."""
    kind: Kind = knowledge.yields
    for transform in transforms:
        if kind not in transform.kinds:
            usable = [name for name in TRANSFORMS if kind in TRANSFORMS[name].kinds]  # type: ignore[attr-defined]
            fault = (
                f"transform {expression(transform)!r} cannot serve {knowledge.name!r} here: it takes "
                f"{', '.join(sorted(transform.kinds))}, not {kind}. For {kind}: {', '.join(usable)}"
            )
            return [("transforms", fault)]
        kind = transform.kinds[kind]
    if kind in distance.kinds:
        return []
    usable = [name for name in DISTANCES if kind in DISTANCES[name].kinds]  # type: ignore[attr-defined]
    fault = (
        f"distance {expression(distance)!r} cannot serve {knowledge.name!r} here: it takes "
        f"{', '.join(sorted(distance.kinds))}, not {kind}. For {kind}: {', '.join(usable) or 'none; transform it'}"
    )
    return [("distance", fault)]
