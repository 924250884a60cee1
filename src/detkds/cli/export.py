"""``detkds export``: a student in a form that works without this package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from detkds.cli.common import AsJson, Config, Overrides, answering, print_json, stdout


class Format(StrEnum):
    """A form to export to."""

    HOME = "home"
    ONNX = "onnx"


def export(
    config: Config,
    to: Annotated[Path, typer.Option("--to", help="The folder (home) or file (onnx) to write.", show_default=False)],
    overrides: Overrides = None,
    form: Annotated[Format, typer.Option("--format", help="For its home library, or ONNX.")] = Format.HOME,
    weights: Annotated[
        Path | None, typer.Option("--weights", "-w", help="A file of weights; by default those a search has left.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Compare the ONNX file with the detector on test images.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write the student for use without detkds: a folder for its home library, or an ONNX file.

    The folder holds load.py, which builds the detector from torchvision and timm, with its weights; a detector of
    transformers is written for from_pretrained. The ONNX file takes one image of the configuration's size and gives
    boxes, scores and labels; it is written only where it finds what the detector finds on test images.
    """
    with answering():
        from detkds.runs.export import export as write
        from detkds.runs.plan import load_run

        done = write(load_run(config, overrides or ()), to, form.value, weights, check=check)
        if as_json:
            parity = None if done.parity is None else vars(done.parity)
            print_json({"path": str(done.path), "parity": parity})
            return
        console = stdout()
        console.print(str(done.path), style="bold", soft_wrap=True)
        if done.parity is not None:
            console.print(f"onnxruntime and torch: {done.parity}", soft_wrap=True)
