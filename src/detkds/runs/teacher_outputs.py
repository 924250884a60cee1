"""The teacher's outputs of a run's search: how they are got is decided once and kept beside the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detkds.runs.folder import write_text
from detkds.runs.listening import Listener
from detkds.runs.plan import Plan
from detkds.runs.preview import populations
from detkds.training.batch_files import BatchFiles
from detkds.training.fingerprint import fingerprint
from detkds.training.population import Setting
from detkds.training.teacher_cache import Decision, TeacherCache

_RECORD = "teacher_outputs.json"


def teacher_outputs(
    plan: Plan, setting: Setting, folder: Path, listener: Listener, disk_share: float = 1.0
) -> TeacherCache | None:
    """What answers for the teacher while the search trains on ``setting``; None: the teacher itself.

    Outputs lie in ``folder/teacher``, on this share of the disk granted; they may be deleted at any time.
    """
    cache = plan.config.proxy.cache
    if cache.mode == "live":
        return None
    disk_gb = cache.disk_gb * disk_share
    name = fingerprint(setting, plan.config.search.seed)
    asked = {"fingerprint": name, "mode": cache.mode, "disk_gb": disk_gb}
    record = _read(folder)

    def keep(decision: Decision) -> None:
        listener.note(str(decision))
        write_text(folder / _RECORD, json.dumps({"asked": asked, "decision": decision.to_dict()}, indent=1))

    return TeacherCache(
        plan.teacher,
        BatchFiles(folder / "teacher", name, int(disk_gb * 1e9), listener.note),
        batches=setting.steps(epochs=setting.config.epochs),
        populations=populations(plan),
        shared=plan.config.proxy.population > 1,
        mode=cache.mode,
        decision=Decision(**record["decision"]) if record.get("asked") == asked else None,
        on_decision=keep,
    )


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """The mode asked for, and what was decided and measured, as plain data."""
    mode = plan.config.proxy.cache.mode
    return {"mode": mode, **({} if mode == "live" else _read(folder).get("decision", {}))}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
