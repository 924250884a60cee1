"""The file of a measured table: JSON lines, gzipped or not; a header, then one line for every training.

The header says how and where it was measured, and holds the spaces that the choices come from::

    {"format": 1, "name": "cards", "rungs": [1, 3, 9],
     "spaces": {"logits": {"knowledge": "logits", "weighting": "gradient", "genes": {"transform": [...], ...}}}, ...}

A training is a choice of one option per gene, a seed, and what came of it; AP in points (0-100) at every rung::

    {
        "knowledge": "logits",
        "params": {"transform": "none", "distance": "kl", "weight": 3.0},
        "seed": 0,
        "state": "complete",
        "ap": [12.1, 20.4, 31.0],
        "ap50": [20.0, 35.1, 49.9],
        "reason": "",
        "seconds": 6.2,
    }
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from detkds.errors import DataError, Faults, UserError, unknown_name
from detkds.policy_search.result import State
from detkds.policy_search.space import Option, Space

FORMAT = 1
"""The format that is read."""

_STATES = (State.COMPLETE.value, State.FILTERED.value, State.FAILED.value)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Measurement:
    """One training of a choice.

    Attributes:
        knowledge, params: the choice.
        seed: of initial weights and data order.
        state: complete, filtered or failed.
        ap, ap50: in points at every rung; empty unless complete.
        reason: why it was not completed.
        seconds: its share of the time that its population took.
    """

    knowledge: str
    params: Mapping[str, Option]
    seed: int
    state: State
    ap: tuple[float, ...] = ()
    ap50: tuple[float, ...] = ()
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class TableFile:
    """What a file holds, checked.

    Attributes:
        header: the first line.
        rungs: epochs after which AP was measured, ascending; the last is the whole training.
        spaces: the space of every kind of knowledge.
        measurements: all trainings, in the order of the file.
    """

    header: Mapping[str, Any]
    rungs: tuple[int, ...]
    spaces: Mapping[str, Space]
    measurements: tuple[Measurement, ...]


def read_table(path: str | Path) -> TableFile:
    """Read and check a file.

    Raises:
        DataError: it cannot be read, or listing every fault with its line.
    """
    first, *rest = _read_lines(Path(path))
    faults = Faults(f"{path}:1")
    header = _object(first, faults)
    version = header.get("format")
    if not faults and version != FORMAT:
        faults.add(f"format: expected {FORMAT}, got {version!r}; this version of detkds reads no other")
    faults.raise_as(DataError)
    rungs = header.get("rungs")
    if not _are_rungs(rungs):
        faults.add(f"rungs: expected whole numbers > 0 in ascending order, got {rungs!r}")
    spaces = _spaces(header.get("spaces"), faults)
    faults.raise_as(DataError)
    assert isinstance(rungs, list)
    measurements, seen = [], set()
    all_faults = Faults()
    for number, line in enumerate(rest, start=2):
        faults = Faults(f"{path}:{number}")
        measurement = _measurement(_object(line, faults), spaces, len(rungs), faults)
        if measurement is not None:
            name = (measurement.knowledge, measurement.seed, *measurement.params.values())
            if name in seen:
                faults.add("the same choice and seed stand in an earlier line")
            seen.add(name)
            measurements.append(measurement)
        all_faults.lines += faults.lines
    all_faults.raise_as(DataError)
    return TableFile(header, tuple(rungs), spaces, tuple(measurements))


def _read_lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a measured table (JSON lines, maybe gzipped): {error}") from None
    if not text.strip():
        raise DataError(f"{path}: expected a measured table, got an empty file")
    return text.splitlines()


def _object(line: str, faults: Faults) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        faults.add(f"not valid JSON: {error}")
        return {}
    if not isinstance(data, dict):
        faults.add(f"expected a JSON object, got {line[:40]!r}")
        return {}
    return data


def _are_rungs(value: Any) -> bool:
    whole = isinstance(value, list) and value and all(type(rung) is int and rung > 0 for rung in value)
    return bool(whole) and all(a < b for a, b in pairwise(value))


def _spaces(data: Any, faults: Faults) -> dict[str, Space]:
    if not isinstance(data, dict) or not data:
        faults.add(f"spaces: expected the space of every kind of knowledge, got {data!r}")
        return {}
    spaces: dict[str, Space] = {}
    for name, space in data.items():
        genes = space.get("genes") if isinstance(space, dict) else None
        if not isinstance(genes, dict) or not all(map(_are_options, genes.values())):
            faults.add(f"spaces.{name}: expected genes with lists of options, got {space!r}")
            continue
        weighting = space.get("weighting")
        if weighting not in ("absolute", "gradient"):
            faults.add(f"spaces.{name}.weighting: expected 'absolute' or 'gradient', got {weighting!r}")
            continue
        try:
            spaces[name] = Space(str(space.get("knowledge", name)), genes, weighting)
        except UserError as error:
            faults.add(error)
    return spaces


def _measurement(
    data: Mapping[str, Any], spaces: Mapping[str, Space], rungs: int, faults: Faults
) -> Measurement | None:
    """The training on a line; None where it has faults."""
    if faults:
        return None
    missing = [key for key in ("knowledge", "params", "seed", "state") if key not in data]
    if missing:
        faults.add(f"missing keys: {', '.join(missing)}")
        return None
    state, seed = data["state"], data["seed"]
    space = spaces.get(str(data["knowledge"]))
    if space is None:
        faults.add(unknown_name("knowledge", data["knowledge"], spaces))
    else:
        _check_params(data["params"], space, faults)
    if type(seed) is not int or seed < 0:
        faults.add(f"seed: expected a whole number >= 0, got {seed!r}")
    if state not in _STATES:
        faults.add(f"state: expected one of {', '.join(_STATES)}, got {state!r}")
    for name in ("ap", "ap50") if state == State.COMPLETE else ():
        if not _are_numbers(data.get(name), rungs):
            faults.add(f"{name}: expected {rungs} finite numbers, one per rung, got {data.get(name)!r}")
    if not _are_numbers([data.get("seconds", 0.0)], 1):
        faults.add(f"seconds: expected a finite number, got {data['seconds']!r}")
    if faults or space is None:
        return None
    complete = state == State.COMPLETE
    return Measurement(
        knowledge=str(data["knowledge"]),
        params={name: data["params"][name] for name in space.genes},
        seed=seed,
        state=State(state),
        ap=tuple(data["ap"]) if complete else (),
        ap50=tuple(data["ap50"]) if complete else (),
        reason=str(data.get("reason", "")),
        seconds=float(data.get("seconds", 0.0)),
    )


def _check_params(params: Any, space: Space, faults: Faults) -> None:
    if not isinstance(params, dict) or params.keys() != space.genes.keys():
        faults.add(f"params: expected one option for each of {', '.join(space.genes)}, got {params!r}")
        return
    outside = [name for name, option in params.items() if option not in space.genes[name]]
    for name in outside:
        faults.add(f"params.{name}: {unknown_name('option', params[name], map(str, space.genes[name]))}")
    if not outside and not space.legal(params):
        faults.add(f"params: expected transforms and a distance that fit together, got {params!r}")


def _are_options(value: Any) -> bool:
    return isinstance(value, list) and all(type(option) in (str, int, float) for option in value)


def _are_numbers(value: Any, count: int) -> bool:
    numbers = isinstance(value, Sequence) and all(
        type(number) in (int, float) and math.isfinite(number) for number in value
    )
    return numbers and len(value) == count
