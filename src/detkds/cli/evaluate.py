"""``detkds evaluate``: the metrics of a file of weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, Overrides, answering, print_json, stdout
from detkds.cli.train import Which, WhichOption


class Split(StrEnum):
    """A set of images of the configuration."""

    TEST = "test"
    TRAIN = "train"


def evaluate(
    config: Config,
    weights: Annotated[Path, typer.Option("--weights", "-w", help="A file of weights.", show_default=False)],
    overrides: Overrides = None,
    which: WhichOption = Which.STUDENT,
    split: Annotated[Split, typer.Option("--split", help="The images to measure on.")] = Split.TEST,
    as_json: AsJson = False,
) -> None:
    """Measure COCO average precision of the student or the teacher with the weights of a file."""
    with answering():
        from detkds.runs.evaluate import run_evaluate
        from detkds.runs.plan import load_run

        metrics = run_evaluate(load_run(config, overrides or ()), weights, which.value, split.value)
        if as_json:
            print_json(metrics)
            return
        from detkds.cli.tables import metrics_table

        stdout().print(metrics_table(metrics, f"{which.value} {weights} on the {split.value} images"))
