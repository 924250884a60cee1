"""``detkds demo``: a real search on embedded data, in minutes."""

from __future__ import annotations

from detkds.cli.common import AsJson, DryRun, Overrides, answering


def demo(overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Train a teacher on embedded data, search how to distil it, and show the gain; no download, some minutes.

    The run is like any other: it lies in runs/demo and its configuration is runs/demo/config.yaml.
    """
    with answering(resumable=not dry_run):
        from importlib import resources

        from detkds.cli.search import search_or_plan
        from detkds.runs.plan import load_run

        with resources.as_file(resources.files("detkds.runs") / "demo.yaml") as path:
            config = load_run(path, overrides or ())
        search_or_plan(config, dry_run, as_json)
