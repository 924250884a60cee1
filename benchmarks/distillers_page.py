"""The page of the shipped policies: what each matches, its loss, how true it is to its paper, and where it works.

Everything stands in the policy files or is asked of the pieces; which families a policy serves is asked of
:func:`detkds.distiller.check_pair` on small detectors with random weights.

Run it with

    python benchmarks/distillers_page.py --out docs/distillers.md

"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from textwrap import dedent

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pair_matrix import families, small

from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.policy import Policy, list_policies, load_policy
from detkds.registry import KNOWLEDGE
from detkds.runs.plan import absolute
from detkds.structures import DetectorInfo

Infos = Mapping[str, DetectorInfo]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args(arguments)
    text = page([load_policy(name) for name in list_policies()], described())
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")


def described() -> dict[str, DetectorInfo]:
    """What a detector of every family offers."""
    return {name: small(name, seed=0, neck_channels=16).info for name in families()}


def page(policies: Sequence[Policy], infos: Infos) -> str:
    """The page in Markdown."""
    lines = [
        "# The shipped policies",
        "",
        "Made by `python benchmarks/distillers_page.py --out docs/distillers.md`; do not edit. The facts stand in",
        "`src/detkds/policies/`; where a policy works was asked of the code. T is the teacher's tensor, S the",
        "student's after its adapter; sum_l runs over the levels.",
        "",
        *_RULE,
        "",
        "| policy | from | knowledge | fidelity | families |",
        "|---|---|---|---|---|",
    ]
    for policy in policies:
        kinds = ", ".join(dict.fromkeys(str(term.to_dict()["knowledge"]) for term in policy))
        served = _served(policy, infos)
        fidelity = policy.fidelity.partition(":")[0] or "not stated"
        link = f"[{policy.name}](#{_anchor(policy.name)})"
        lines.append(f"| {link} | {_cell(policy.source)} | {kinds} | {fidelity} | {len(served)} of {len(infos)} |")
    for policy in policies:
        lines += ["", *_section(policy, infos)]
    used = sorted({term.knowledge.name for policy in policies for term in policy})  # type: ignore[union-attr]
    lines += ["", "## What the kinds of knowledge are", ""]
    lines += [f"- `{name}`: {(inspect.getdoc(KNOWLEDGE[name]) or '').partition(chr(10))[0]}" for name in used]
    return "\n".join([*lines, "", *_not_compared(policies)]) + "\n"


_RULE = dedent("""\
    What the words of fidelity mean, which `tests/policies/test_reference.py` holds every policy to:

    - **exact**: on the same tensors the loss and its gradient are those of the code that its authors published, or of
      the library that reproduced it, within 1e-5 relative, for batches with and without padding, with an image without
      objects, and with one and with several anchors in a cell. A part of the loss that does not depend on the student
      is left aside. What the code does outside of the loss, as initial weights or the choice of levels, may differ,
      and is then stated.
    - **equivalent up to a stated factor**: the same, times a number that is stated.
    - **approximate**: everything else; what differs is stated, by how much where there is code to compare with, and so
      is that there was none.

    The values that the tests compare with were worked out by that code itself; `benchmarks/reference_values.py` makes
    them again from clones of its repositories.
    """).splitlines()


def _not_compared(policies: Sequence[Policy]) -> list[str]:
    """The list of what could not be checked against anybody else's code."""
    recorded = (json.loads(path.read_text(encoding="utf-8"))["values"] for path in _VALUES.glob("*.json"))
    compared = {name for values in recorded for name in values}
    lines = ["## What was not compared with code", ""]
    for policy in policies:
        if policy.name not in compared:
            lines.append(f"- [{policy.name}](#{_anchor(policy.name)}): {policy.fidelity or 'not stated'}.")
    return [*lines, *_ASIDE]


_VALUES = Path(__file__).resolve().parents[1] / "tests" / "policies" / "reference"
_ASIDE = dedent("""\
    - Of every policy: the assignment of anchors, the sampling of proposals, crowd regions and mixed precision, which are
      the detectors' and stood still in the comparison; boxes decoded from numbers, which were given; the margins of
      COFD from batch normalisation; the autoencoder of DiffKD; the confidence that the tokens of MasKD learn from.
    """).splitlines()


def _section(policy: Policy, infos: Infos) -> list[str]:
    lines = [f"## {policy.name}", "", policy.source, ""]
    if policy.formula:
        lines += ["    " + policy.formula, ""]
    lines += [
        f"- Fidelity: {policy.fidelity or 'not stated'}.",
        f"- Serves a teacher and a student of: {_families(policy, infos)}.",
        f"- Between different families: {_between(policy, infos)}.",
        "",
    ]
    shown = [term.to_dict() for term in policy]
    columns = [
        key for key in _COLUMNS if key in ("knowledge", "distance", "weight") or any(one.get(key) for one in shown)
    ]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for term in shown:
        lines.append("| " + " | ".join(_written(key, term.get(key)) for key in columns) + " |")
    return lines


_COLUMNS = ("knowledge", "levels", "adapter", "transforms", "distance", "weight", "weighting", "schedule")
_ABSENT = {"levels": "all common", "adapter": "auto", "weighting": "absolute", "schedule": "constant"}


def _written(key: str, value: object) -> str:
    if isinstance(value, list):
        value = (" > " if key == "transforms" else ", ").join(map(str, value))
    if isinstance(value, float):
        value = f"{value:g}"
    return _cell(str(value)) if value else _ABSENT.get(key, "-")


def _served(policy: Policy, infos: Infos) -> list[str]:
    return [name for name, info in infos.items() if _fits(policy, info, info)]


def _families(policy: Policy, infos: Infos) -> str:
    served = _served(policy, infos)
    missing = [name for name in infos if name not in served]
    if not missing:
        return "every family"
    if len(missing) < len(served):
        return f"every family but {', '.join(missing)}"
    return ", ".join(served) or "no family"


def _between(policy: Policy, infos: Infos) -> str:
    pairs = list(permutations(infos.values(), 2))
    return f"{sum(_fits(policy, *pair) for pair in pairs)} of {len(pairs)} pairs"


def _fits(policy: Policy, student: DetectorInfo, teacher: DetectorInfo) -> bool:
    try:
        check_pair(absolute(policy), student, teacher)
    except PairError:
        return False
    return True


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(title: str) -> str:
    """The fragment that a heading is reached by on GitHub."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    main()
