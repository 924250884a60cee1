"""``detkds compare``: policies side by side at the full budget."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, DryRun, Fork, Overrides, answering, print_json, stderr, stdout
from detkds.cli.progress import ProgressOption, ProgressStyle, showing

Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", "-p", help="A shipped policy or a file; repeat it. By default those of final.policies."),
]


def compare(
    config: Config,
    overrides: Overrides = None,
    policy: Policies = None,
    fork: Fork = None,
    dry_run: DryRun = False,
    progress_style: ProgressOption = ProgressStyle.AUTO,
    as_json: AsJson = False,
) -> None:
    """Train the plain student and each policy at the full budget over the seeds of final.seeds, without a search.

    All share initial weights, batches and augmentation. Afterwards a training step is measured for all policies side by
    side: its seconds, and the memory that the losses hold for the backward pass. Everything is kept in runs/NAME: run
    the same command again to go on where it was stopped.
    """
    with answering(resumable=not dry_run):
        from detkds.runs.plan import load_run

        chosen = policy or []
        resolved = load_run(config, overrides or (), fork)
        if dry_run:
            from detkds.cli.plan import print_plan
            from detkds.runs.estimate import estimate_comparison

            update = {"final": resolved.final.model_copy(update={"policies": tuple(chosen) or resolved.final.policies})}
            print_plan(resolved.model_copy(update=update), estimate_comparison, as_json)
            return
        from detkds.cli.tables import print_comparison
        from detkds.runs.compare import files, run_compare

        with showing(stderr(), progress_style) as progress:
            comparison = run_compare(resolved, chosen, progress)
        if as_json:
            print_json(comparison)
        else:
            print_comparison(stdout(), comparison, files(resolved.folder))
