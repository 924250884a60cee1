"""The teacher of a run: loaded, or trained once and kept in the run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from detkds.detectors.base import Detector
from detkds.detectors.weights import load_weights, save_weights
from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.runs.folder import write_text
from detkds.runs.plan import Plan
from detkds.training.loop import OnEpoch, OnStep
from detkds.training.population import Candidate, Setting, measure, train_candidates


def prepare_teacher(
    plan: Plan, folder: Path, on_epoch: OnEpoch | None = None, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Give ``plan.teacher`` its weights and measure it on the test images, once per run folder.

    Returns:
        Its metrics, AP as fractions; none where students teach themselves.

    Raises:
        ConfigError: its training failed.
    """
    if plan.config.self_taught:
        plan.teacher.requires_grad_(False).eval()
        return {}
    weights, record = folder / "teacher.safetensors", folder / "teacher.json"
    if plan.teacher_ready:
        if not record.exists():
            setting = plan.setting(plan.train_data, plan.test_data, plan.config.train)
            write_text(record, json.dumps(measure(plan.teacher, setting).to_dict(), indent=1))
    elif weights.exists() and record.exists():
        load_weights(plan.teacher, str(weights))
    else:
        _train_teacher(plan, folder, on_epoch, on_step)
    plan.teacher.requires_grad_(False)
    plan.teacher.eval()
    return json.loads(record.read_text(encoding="utf-8"))


def _train_teacher(plan: Plan, folder: Path, on_epoch: OnEpoch | None, on_step: OnStep | None) -> None:
    assert plan.config.teacher.train is not None

    def itself(seed: int, inherit: bool) -> Detector:
        return plan.teacher

    setting: Setting = replace(
        plan.setting(plan.train_data, plan.test_data, plan.config.teacher.train),
        teacher=None,
        build_student=itself,
        masks=plan.teacher.info.masks,
    )
    state = folder / "teacher.state"
    [trained] = train_candidates(
        setting,
        [Candidate("teacher", Policy())],
        seed=plan.config.seed,
        checkpoint=state,
        on_step=on_step,
        on_epoch=on_epoch,
    )
    if trained.metrics is None:
        raise ConfigError(f"teacher: its training failed: {trained.failure}")
    save_weights(trained.student, folder / "teacher.safetensors")
    load_weights(plan.teacher, str(folder / "teacher.safetensors"))
    write_text(folder / "teacher.json", json.dumps(trained.metrics.to_dict(), indent=1))
    state.unlink(missing_ok=True)
