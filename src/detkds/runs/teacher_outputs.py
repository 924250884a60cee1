"""The teacher's outputs of a run's search: how they are got is decided once and kept beside the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detkds.files import write_text
from detkds.runs.plan import SEARCH, Plan
from detkds.runs.preview import populations
from detkds.training.batch_files import BatchFiles
from detkds.training.digests import fingerprint
from detkds.training.teacher import TeacherForward
from detkds.training.teacher_cache import Decision, TeacherCache

_RECORD = "teacher_outputs.json"


def teacher_outputs(
    plan: Plan, folder: Path, note: Callable[[str], None], disk_share: float = 1.0
) -> dict[str, TeacherForward]:
    """What gives the teacher's outputs in the search; in other stages, and where nothing is kept, the teacher itself.

    Outputs lie in ``folder/teacher``, on this share of the disk granted; they may be deleted at any time.
    """
    cache, setup = plan.config.proxy.cache, plan.setups[SEARCH]
    if cache.mode == "live" or plan.config.self_taught:
        return {}
    disk_gb = cache.disk_gb * disk_share
    name = fingerprint(setup, plan.config.search.seed)
    asked = {"fingerprint": name, "mode": cache.mode, "disk_gb": disk_gb}
    record = _read(folder)

    def keep(decision: Decision) -> None:
        note(str(decision))
        write_text(folder / _RECORD, json.dumps({"asked": asked, "decision": decision.to_dict()}, indent=1))

    return {
        SEARCH: TeacherCache(
            plan.teacher,
            BatchFiles(folder / "teacher", name, int(disk_gb * 1e9), note),
            batches=setup.steps(epochs=setup.config.epochs),
            populations=populations(plan),
            shared=plan.config.proxy.population > 1,
            mode=cache.mode,
            decision=_decision(record) if record.get("asked") == asked else None,
            on_decision=keep,
        )
    }


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """The mode asked for, and what was decided and measured, as plain data."""
    mode = plan.config.proxy.cache.mode
    return {"mode": mode, **({} if mode == "live" else _read(folder).get("decision", {}))}


def _decision(record: dict[str, Any]) -> Decision | None:
    try:
        return Decision(**record["decision"])
    except (TypeError, KeyError):
        return None


def _read(folder: Path) -> dict[str, Any]:
    """What was decided before; nothing where that is damaged, as it is soon decided again."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("decision", {}), dict) else {}
