"""Find the best way to distil one object detector into another, then train the student with it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detkds.version import __version__

if TYPE_CHECKING:
    from detkds.distiller import Distiller
    from detkds.policy import Policy, Term, list_policies, load_policy

__all__ = ["Distiller", "Policy", "Term", "__version__", "list_policies", "load_policy"]

_HOMES = {
    "Distiller": "distiller",
    "Policy": "policy",
    "Term": "policy",
    "list_policies": "policy",
    "load_policy": "policy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detkds' has no attribute {name!r}")
    return getattr(import_module(f"detkds.{_HOMES[name]}"), name)
