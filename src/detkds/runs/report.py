"""``detkds report``: the page of a run from what its folder holds, also while it is going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from detkds.errors import ConfigError, UserError
from detkds.policy_search.storage import journal_path, stored_trials
from detkds.progress import state_text
from detkds.progress_sinks import PROGRESS_FILE, read_progress
from detkds.report import write_report
from detkds.runs.folder import CONFIG
from detkds.runs.summary import TRAININGS

REPORT = "report.html"


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` from what there is of a run: its search so far, or everything where it is over.

    Raises:
        ConfigError: the folder is no run's.
        SearchError: its trials are damaged.
    """
    config = _read(folder / CONFIG)
    if not config:
        raise ConfigError(f"{folder}: expected a run folder, with {CONFIG}; run detkds search first")
    store = (config.get("search") or {}).get("storage") or folder
    trials = stored_trials(store) if store is not folder or journal_path(folder).exists() else []
    summary = _read(folder / "summary.json")
    try:
        event, _ = read_progress(folder / PROGRESS_FILE)
        over, line = event.kind == "close" and not event.text, state_text(event)
    except UserError:
        over, line = bool(summary), ""
    known = {**summary, "name": config.get("name", folder.name), "running": not (summary and over), "progress": line}
    return write_report(folder / REPORT, known, trials, _read(folder / TRAININGS).get("trainings", []))


def _read(path: Path) -> dict[str, Any]:
    """A mapping from a YAML or JSON file; empty where there is none, or it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}
