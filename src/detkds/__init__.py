"""Find the best way to distil one object detector into another, then train the student with it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detkds.version import __version__

if TYPE_CHECKING:
    from detkds.api import calibrate, compare, distill, evaluate, export, pair, search
    from detkds.config_file import load_config
    from detkds.distiller import Distiller
    from detkds.policy import Policy, Term, list_policies, load_policy
    from detkds.structures import DetectorOutput, FeatureSpec, Pair

__all__ = [
    "DetectorOutput",
    "Distiller",
    "FeatureSpec",
    "Pair",
    "Policy",
    "Term",
    "__version__",
    "calibrate",
    "compare",
    "distill",
    "evaluate",
    "export",
    "list_policies",
    "load_config",
    "load_policy",
    "pair",
    "search",
]

_HOMES = {
    **dict.fromkeys(("calibrate", "compare", "distill", "evaluate", "export", "pair", "search"), "api"),
    **dict.fromkeys(("Policy", "Term", "list_policies", "load_policy"), "policy"),
    **dict.fromkeys(("DetectorOutput", "FeatureSpec", "Pair"), "structures"),
    "Distiller": "distiller",
    "load_config": "config_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detkds' has no attribute {name!r}")
    return getattr(import_module(f"detkds.{_HOMES[name]}"), name)
