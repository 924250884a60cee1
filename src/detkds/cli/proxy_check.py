"""``detkds proxy-check``: how well short trainings rank policies."""

from __future__ import annotations

from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, DryRun, Fork, Overrides, answering, print_json, stderr, stdout
from detkds.cli.progress import ProgressOption, ProgressStyle, showing

Policies = Annotated[int, typer.Option(min=3, help="Random policies, equally many of every kind of knowledge.")]
Seeds = Annotated[int, typer.Option(min=1, help="Trainings of each policy at the full budget.")]


def proxy_check(
    config: Config,
    overrides: Overrides = None,
    policies: Policies = 20,
    seeds: Seeds = 1,
    fork: Fork = None,
    dry_run: DryRun = False,
    progress_style: ProgressOption = ProgressStyle.AUTO,
    as_json: AsJson = False,
) -> None:
    """Measure how well the proxy ranks: Kendall's tau between AP on the proxy and at the full budget.

    Uses training images only. Everything is kept in runs/NAME; detkds search then quotes it beside its result.
    """
    with answering(resumable=not dry_run):
        from detkds.runs.plan import load_run

        resolved = load_run(config, overrides or (), fork)
        if dry_run:
            from detkds.cli.plan import print_plan
            from detkds.runs.estimate import estimate_proxy_check

            print_plan(resolved, lambda plan: estimate_proxy_check(plan, policies, seeds), as_json)
            return
        from detkds.cli.tables import print_proxy_check
        from detkds.runs.proxy_check import run_proxy_check

        with showing(stderr(), progress_style) as progress:
            check = run_proxy_check(resolved, policies, seeds, progress)
        if as_json:
            print_json(check)
        else:
            print_proxy_check(stdout(), check, resolved.folder)
