"""Every family as teacher of every family: what can be distilled, and that one step of it works.

Each pair takes one distillation step with one term of every kind of knowledge it offers. The step is at fault where
a loss is not finite, a term sends no gradient to the student or any to the teacher, a detector runs more than once, or
the teacher is changed; see :mod:`detkds.runs.pair_check`. Small detectors with random weights serve.

Run it with

    python benchmarks/pair_matrix.py --out docs/pairs.md
    python benchmarks/pair_matrix.py --families retinanet fcos

"""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from detkds.detectors import Detector, build_detector
from detkds.detectors.transformers.families import FAMILIES
from detkds.registry import DETECTORS
from detkds.runs.pair import describe_pair
from detkds.runs.pair_check import check_pair_step

CLASSES = ("ant", "bee", "cat")
REGIONS = {"representation": 32, "rpn_samples": 32, "roi_samples": 16, "rpn_pre_nms": 60, "rpn_post_nms": 30,
           "rpn_pre_nms_predict": 60, "rpn_post_nms_predict": 30}  # fmt: skip
FEATURES = ("global", "fgbg", "instance")


def families() -> list[str]:
    """The registered families that are built from options alone, those of the transformers library last."""
    return sorted((name for name in DETECTORS if name != "hooked"), key=lambda name: (name in FAMILIES, name))


def small(name: str, *, seed: int, neck_channels: int) -> Detector:
    """A detector of a family, as narrow as it goes, with random weights."""
    known = inspect.signature(DETECTORS[name]).parameters
    options: dict[str, Any] = {"backbone": "narrow8", "neck_channels": neck_channels, **REGIONS}
    chosen = {key: value for key, value in options.items() if key in known}
    if name in FAMILIES:
        chosen = {"size": "nano"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector(name, CLASSES, **chosen)


def step(teacher: str, student: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the pair offers, and what is at fault with a step of it."""
    learning = small(student, seed=0, neck_channels=16)
    teaching = _teacher(teacher)
    return describe_pair(learning.info, teaching.info), check_pair_step(learning, teaching).faults


@cache
def _teacher(name: str) -> Detector:
    return small(name, seed=1, neck_channels=24).eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every pair, print the matrix, write the page if asked to; 1 where a step is at fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=families(), help="families to pair with one another")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    faults: dict[tuple[str, str], tuple[str, ...]] = {}
    for teacher in options.families:
        for student in options.families:
            found[teacher, student], faults[teacher, student] = step(teacher, student)
            print(f"{teacher} > {student}: {_cell(found[teacher, student])}", *faults[teacher, student], flush=True)
    text = page(options.families, found, faults)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return int(any(faults.values()))


def page(
    names: Sequence[str],
    found: dict[tuple[str, str], dict[str, Any]],
    faults: dict[tuple[str, str], tuple[str, ...]],
) -> str:
    """The matrix in Markdown, the reasons for what is missing, and what is at fault."""
    lines = [
        "# What can be distilled between which detectors",
        "",
        "Made by `python benchmarks/pair_matrix.py --out docs/pairs.md`; do not edit. A row teaches, a column learns.",
        "**f**: features (`global`, `fgbg`, `instance`), **l**: `logits`, **b**: boxes (`localization`).",
        "",
        "Of every pair one step with all of these was taken, with small detectors and random weights: each loss was",
        "finite, each term sent gradient to the student alone, each detector ran once, the teacher stayed as it was,",
        "except where **!** stands. `detkds pair TEACHER STUDENT --check` says and tries the same of any two,",
        "with levels and adapters.",
        "",
        "| teacher \\ student | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for teacher in names:
        cells = [_cell(found[teacher, student]) + (" **!**" if faults[teacher, student] else "") for student in names]
        lines.append(f"| {teacher} | " + " | ".join(cells) + " |")
    reasons = Counter(f"`{kind}`: {reason}" for data in found.values() for kind, reason in data["refused"].items())
    lines += ["", "Why the others cannot, and of how many pairs:", ""]
    lines += [f"- {reason} ({count})" for reason, count in reasons.most_common()]
    wrong = [f"- {teacher} > {student}: {'; '.join(said)}" for (teacher, student), said in faults.items() if said]
    if wrong:
        lines += ["", "At fault:", "", *wrong]
    return "\n".join(lines) + "\n"


def _cell(data: dict[str, Any]) -> str:
    offered = data["offered"]
    parts = ["f"] if all(kind in offered for kind in FEATURES) else [kind for kind in FEATURES if kind in offered]
    parts += [letter for kind, letter in (("logits", "l"), ("localization", "b")) if kind in offered]
    return " ".join(parts) or "-"


if __name__ == "__main__":
    raise SystemExit(main())
