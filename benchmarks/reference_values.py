"""The numbers that the tests hold the shipped policies to, worked out by the authors' own code.

The code is read from clones that you name; none of it is part of this project. The inputs are drawn by
``benchmarks/reference/inputs.py``, in float64; kept are the loss and the length of its gradient on each group of the
student's tensors. One file is written for every clone, ``tests/policies/reference/<name of the clone>.json``.

Run it with

    git clone https://github.com/open-mmlab/mmrazor /tmp/mmrazor
    python benchmarks/reference_values.py /tmp/mmrazor

The name of a folder says which repository it is: mmrazor, FGD and MGD (yzd-v), attention-transfer (szagoruyko),
RepDistiller (HobbitLong), ICKD (ADLab-AutoDrive), FRS (duzhixing), DeFeat.pytorch (ggjy), LD (HikariTJU), BCKD
(TinyTigerPan), MasKD (hunto), overhaul-distillation (clovaai), CrossKD (jbwang1997), Distill_GID_detectron2
(daixinghome), DetKDS (lliai; needs einops), WKD (JiamingLv), Simple-Recipe-Distillation (roymiles) and lightly-train
(lightly-ai).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "reference"))

import features
import instances
import responses
import torch
from inputs import CASES, SEED, Inputs, make_inputs
from methods import METHODS, Method

OUT = Path(__file__).resolve().parents[1] / "tests" / "policies" / "reference"
REGISTERED = (features, instances, responses)


def main(arguments: Sequence[str] | None = None) -> None:
    """Work the numbers of every named clone out and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clones", nargs="+", type=Path, help="folders that official repositories were cloned into")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    for clone in options.clones:
        chosen = [method for method in METHODS.values() if method.repository == clone.resolve().name]
        if not chosen:
            known = ", ".join(sorted({method.repository for method in METHODS.values()}))
            parser.error(f"{clone}: expected a folder named as its repository ({known})")
        commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        values = {method.policy: values_of(method, clone.resolve()) for method in chosen}
        record = {"repository": clone.resolve().name, "commit": commit.stdout.strip(), "seed": SEED, "values": values}
        path = OUT / f"{clone.resolve().name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{path}: {', '.join(values)}")


def values_of(method: Method, clone: Path) -> dict[str, Any]:
    """``{case: {"loss": ..., "gradient": {group: ...}}}`` of one method."""
    return {case: _values(method, clone, make_inputs(case, method.finest, method.levels)) for case in CASES}


def _values(method: Method, clone: Path, inputs: Inputs) -> dict[str, Any]:
    groups = inputs.student.leaves()
    leaves = [tensor.requires_grad_() for tensors in groups.values() for tensor in tensors]
    loss = method.loss(inputs, clone)
    gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    lengths = {}
    for group, tensors in groups.items():
        found = [gradient for gradient in (next(gradients) for _ in tensors) if gradient is not None]
        length = torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt().item() if found else 0.0
        if length:
            lengths[group] = length
    value = loss.item()
    if method.constant:
        inputs.student = inputs.teacher
        value -= method.loss(inputs, clone).item()
    return {"loss": value, "gradient": lengths}


if __name__ == "__main__":
    main()
