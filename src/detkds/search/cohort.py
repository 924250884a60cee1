"""Which candidates of a study are compared with one another where losing ones stop early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from detkds.search.result import Peers, Record, State


def group_peers(
    name: str, waves: Mapping[int, int], records: Iterable[Record], numbers: Sequence[int], cohort: int
) -> list[Peers]:
    """The peers of the trials of these numbers, which are to be measured now.

    A wave, the trials proposed before any of them is measured, is cut by the order of its trials into cohorts, and a
    cohort is one group. What is known of other cohorts of its wave is no matter to it, so that a search that was
    killed between two results goes on to compare the rest with the same candidates as if it had not been.

    Args:
        name: of the study.
        waves: from a trial's number to the index of its wave.
        records: the study's trials.
        numbers: the trials to be measured.
        cohort: trials of a cohort.
    """
    begins: dict[int, int] = {}
    for number, wave in sorted(waves.items()):
        begins.setdefault(wave, number)
    places = {number: (wave, (number - begins[wave]) // cohort) for number, wave in waves.items()}
    measured = [
        record
        for record in records
        if record.state in (State.COMPLETE, State.PRUNED) and record.rungs and not record.twin_of
    ]
    found: dict[tuple[int, int], Peers] = {}
    for wave, place in sorted({places[number] for number in numbers}):
        others = [r for r in measured if places[r.number][0] < wave or places[r.number] == (wave, place)]
        found[wave, place] = Peers(f"{name}/{wave}/{place}", {record.key: record.rungs for record in others})
    return [found[places[number]] for number in numbers]
