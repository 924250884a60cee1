"""``detkds distill``: the student with one policy at the full budget."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, DryRun, Fork, Overrides, Seed, answering, print_json, stderr, stdout
from detkds.cli.progress import ProgressOption, ProgressStyle, showing

PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", "-p", help="A shipped policy or a file; by default the one this run's search found."),
]


def distill(
    config: Config,
    overrides: Overrides = None,
    policy: PolicyOption = None,
    seed: Seed = None,
    fork: Fork = None,
    dry_run: DryRun = False,
    progress_style: ProgressOption = ProgressStyle.AUTO,
    as_json: AsJson = False,
) -> None:
    """Train the student with one policy at the full budget, and measure it on the test images.

    Weights, metrics and the losses of each step lie in runs/NAME/distill. On several GPUs:
    torchrun --nproc-per-node 2 -m detkds distill CONFIG; the batch size is then that of each process.
    """
    import os

    first = int(os.environ.get("RANK", "0")) == 0
    with answering(resumable=not dry_run, quiet=not first):
        from detkds.runs.plan import load_run

        resolved = load_run(config, overrides or (), fork)
        if dry_run:
            from detkds.cli.plan import print_plan
            from detkds.runs.estimate import estimate_training
            from detkds.runs.train import resolve_policy

            wanted = resolve_policy(resolved, policy)
            print_plan(resolved, lambda plan: estimate_training(plan, "student", wanted), as_json)
            return
        from detkds.cli.tables import print_single
        from detkds.runs.train import run_distill

        with showing(stderr(quiet=not first), progress_style) as progress:
            done = run_distill(resolved, policy, seed, progress)
        if done is None:
            return
        if as_json:
            print_json({"weights": str(done.weights), "steps": str(done.steps), "metrics": done.metrics})
        else:
            print_single(stdout(), done, "student")
