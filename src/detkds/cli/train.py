"""``detkds train``: one detector by its own losses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, DryRun, Fork, Overrides, Seed, answering, print_json, stderr, stdout
from detkds.cli.progress import ProgressOption, ProgressStyle, showing


class Which(StrEnum):
    """A detector of the pair."""

    STUDENT = "student"
    TEACHER = "teacher"


WhichOption = Annotated[Which, typer.Option("--which", help="The detector of the pair.")]


def train(
    config: Config,
    overrides: Overrides = None,
    which: WhichOption = Which.STUDENT,
    seed: Seed = None,
    fork: Fork = None,
    dry_run: DryRun = False,
    progress_style: ProgressOption = ProgressStyle.AUTO,
    as_json: AsJson = False,
) -> None:
    """Train the student or the teacher without distillation, and measure it on the test images.

    Weights, metrics and the losses of each step lie in runs/NAME/train.
    """
    with answering(resumable=not dry_run):
        from detkds.runs.plan import load_run

        resolved = load_run(config, overrides or (), fork)
        if dry_run:
            from detkds.cli.plan import print_plan
            from detkds.runs.estimate import estimate_training

            print_plan(resolved, lambda plan: estimate_training(plan, which.value), as_json)
            return
        from detkds.cli.tables import print_single
        from detkds.runs.train import run_train

        with showing(stderr(), progress_style) as progress:
            done = run_train(resolved, which.value, seed, progress)
        if as_json:
            print_json({"weights": str(done.weights), "steps": str(done.steps), "metrics": done.metrics})
        else:
            print_single(stdout(), done, which.value)
