"""``detkds report``: the page of a run, also while it is going on."""

from __future__ import annotations

from detkds.cli.common import answering, stdout
from detkds.cli.status import Run, find_run


def report(run: Run) -> None:
    """Write the report of a run from what its folder holds; also of one that is still going on."""
    with answering():
        from detkds.runs.report import write_run_report

        stdout().print(str(write_run_report(find_run(run))), soft_wrap=True)
