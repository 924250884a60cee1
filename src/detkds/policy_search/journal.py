"""The file a search is kept in: Optuna's journal format, made to withstand a kill or power loss at any moment.

What depends on the inside of that format is in this file alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from detkds.policy_search.result import SearchError

RESTORE = "restore the file from a copy, or start the search in another folder"
"""What to do about a damaged store."""

_CREATE_TRIAL, _SET_PARAM_OR_ATTR = 4, (5, 8, 9)  # operation codes of Optuna's journal format

_logger = logging.getLogger(__name__)


class JournalFile(JournalStorage):
    """Optuna's journal storage over one file.

    Raises:
        SearchError: the file cannot be opened, is damaged, or is not the journal of a search.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = JournalLines(path)
        try:
            super().__init__(self._file)
        except Exception as error:  # what Optuna raises on a record that it cannot apply depends on the record
            raise SearchError(f"{path}: a record is damaged ({type(error).__name__}: {error}); {RESTORE}") from None

    def grouped(self) -> contextlib.AbstractContextManager[None]:
        """Write what is stored in this block at its end, in order; nothing if it raises."""
        return self._file.grouped()


class JournalLines(BaseJournalBackend):
    """One JSON record per line, appended and synced; readable by everything that reads Optuna's journal files.

    It differs from Optuna's own backend in three ways. A torn last line (power loss in the middle of a write) is not
    read; before the next write it is cut off, and kept beside the file as ``<name>.torn``; otherwise the next record
    would be glued to it and lost. Results are synced to disk before the search goes on; proposals reach it with the
    next result, because one that is lost is made again alike. Records written inside :meth:`grouped` go there together.

    Raises:
        SearchError: a line before the last is damaged, or the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offsets = [0]
        self._group: list[dict[str, Any]] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._end = _intact_bytes(self.path)
            self._torn = self._end < self.path.stat().st_size
        except OSError as error:
            raise SearchError(f"{self.path}: the search cannot be stored here: {error}") from None

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from the given one on; a line that another process is still writing is left for later."""
        start = min(log_number_from, len(self._offsets) - 1)
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start=start):
                if not line.endswith(b"\n") or (self._torn and self._offsets[number] >= self._end):
                    return
                if number + 1 == len(self._offsets):
                    self._offsets.append(self._offsets[number] + len(line))
                if number >= log_number_from:
                    yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, and sync them to disk where they are more than a proposal; later if a group is open."""
        if self._group is not None:
            self._group.extend(logs)
        else:
            self._write(logs)

    @contextlib.contextmanager
    def grouped(self) -> Iterator[None]:
        """Write what is appended in this block at its end, in order; nothing if it raises."""
        self._group = []
        try:
            yield
            group, self._group = self._group, None
            if group:
                self._write(group)
        finally:
            self._group = None

    def _write(self, logs: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        if self._torn:
            self._cut_off()
        with open(self.path, "ab") as file:
            file.write(text.encode())
            file.flush()
            if not all(map(_is_proposal, logs)):
                os.fsync(file.fileno())

    def _cut_off(self) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self._end)
            torn = file.read()
            with open(self.path.with_name(self.path.name + ".torn"), "ab") as kept:
                kept.write(torn)
            file.truncate(self._end)
            os.fsync(file.fileno())
        self._torn = False
        _logger.warning("%s: cut off %d bytes of an unfinished record at its end", self.path, len(torn))


def _intact_bytes(path: Path) -> int:
    """How many bytes of a journal can be read; less than all where its end is torn.

    Raises:
        SearchError: a result follows a damaged line.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    records = [_parsed(line) for line in lines]
    damaged = records.index(None) if None in records else len(lines)
    if not all(record is None or _is_proposal(record) for record in records[damaged:]):
        raise SearchError(f"{path}: line {damaged + 1} is damaged, and results follow it; {RESTORE}")
    return sum(map(len, lines[:damaged]))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where the line is damaged or unfinished."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def _is_proposal(record: dict[str, Any]) -> bool:
    """Whether a record only says what a trial is to be: the next process would write the same again."""
    operation = record["op_code"]
    is_running = record.get("state", TrialState.RUNNING) == TrialState.RUNNING
    return operation in _SET_PARAM_OR_ATTR or (operation == _CREATE_TRIAL and is_running)
