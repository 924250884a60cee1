"""``detkds search``: the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkds.cli.common import AsJson, Config, DryRun, Fork, Overrides, answering, print_json, stderr, stdout
from detkds.cli.progress import ProgressOption, ProgressStyle, showing

if TYPE_CHECKING:
    from detkds.config import RunConfig


def search(
    config: Config,
    overrides: Overrides = None,
    fork: Fork = None,
    dry_run: DryRun = False,
    progress_style: ProgressOption = ProgressStyle.AUTO,
    as_json: AsJson = False,
) -> None:
    """Find the best policy for a pair and data, and compare it with the others at the full budget.

    Everything is kept in runs/NAME: run the same command again to go on where it was stopped.
    """
    with answering(resumable=not dry_run):
        from detkds.runs.plan import load_run

        search_or_plan(load_run(config, overrides or (), fork), dry_run, as_json, progress_style)


def search_or_plan(
    config: RunConfig, dry_run: bool, as_json: bool, progress_style: ProgressStyle = ProgressStyle.AUTO
) -> None:
    """Run or plan a search and print what came out."""
    if dry_run:
        from detkds.cli.plan import print_plan
        from detkds.runs.estimate import estimate

        print_plan(config, estimate, as_json)
        return
    from detkds.cli.tables import print_results
    from detkds.runs.search import run_search

    with showing(stderr(), progress_style) as progress:
        finished = run_search(config, progress)
    if as_json:
        print_json(finished.summary)
    else:
        print_results(stdout(), finished.summary, finished.folder)
