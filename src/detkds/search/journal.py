"""The file a search is kept in: Optuna's journal format, made to withstand a kill or power loss at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend

from detkds.search.result import SearchError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; a search is then not guarded against a second one
    fcntl = None

_CREATE_TRIAL = 4
_SET_PARAM_OR_ATTR = (5, 8, 9)  # operation codes of Optuna's journal format

_logger = logging.getLogger(__name__)


class Journal(BaseJournalBackend):
    """One JSON record per line, appended and synced; readable by everything that reads Optuna's journal files.

    It differs from Optuna's own backend in four ways. A torn last line (power loss in the middle of a write) is cut
    off when the file is opened, and kept beside it as ``<name>.torn``; otherwise the next record would be glued to
    it and lost. The lock is the kernel's and dies with its process; a lock file would stay and stall the resumed
    search. Results are synced to disk before the search goes on; proposals reach it with the next result, because one
    that is lost is made again alike. Records written inside :meth:`grouped` go there together.

    Raises:
        SearchError: a line before the last is damaged, or the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offsets = [0]
        self._group: list[dict[str, Any]] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open("a+b") as file:
                self._heal(file)
        except OSError as error:
            raise SearchError(f"{self.path}: the search cannot be stored here: {error}") from None

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from the given one on; a line that another process is still writing is left for later."""
        start = min(log_number_from, len(self._offsets) - 1)
        with open(self.path, "rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start=start):
                if not line.endswith(b"\n"):
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
        with self._open("ab") as file:
            file.write(text.encode())
            file.flush()
            if not all(map(_is_proposal, logs)):
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def _open(self, mode: str) -> Iterator[BinaryIO]:
        with open(self.path, mode) as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file  # type: ignore[misc]

    def _heal(self, file: BinaryIO) -> None:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        records = [_parsed(line) for line in lines]
        if None not in records:
            return
        damaged = records.index(None)
        if not all(record is None or _is_proposal(record) for record in records[damaged:]):
            raise SearchError(
                f"{self.path}: line {damaged + 1} is damaged, and results follow it; "
                "restore the file from a copy, or start the search in another folder"
            )
        size = sum(map(len, lines[:damaged]))
        torn = b"".join(lines[damaged:])
        with open(self.path.with_name(self.path.name + ".torn"), "ab") as kept:
            kept.write(torn)
        file.truncate(size)
        os.fsync(file.fileno())
        _logger.warning("%s: cut off %d bytes of an unfinished record at its end", self.path, len(torn))


def open_storage(store: str | Path | BaseStorage) -> BaseStorage:
    """Open where trials are kept.

    Args:
        store: a journal file or the folder it is in (``study.journal``), the URL of any Optuna storage
            (``postgresql://...``), or an Optuna storage.

    Raises:
        SearchError: it cannot be opened or is damaged.
    """
    if isinstance(store, BaseStorage):
        return store
    if isinstance(store, str) and "://" in store:
        try:
            return optuna.storages.get_storage(store)
        except Exception as error:  # the storage behind a URL may raise anything
            raise SearchError(f"storage {store.split('@')[-1]}: cannot be opened: {error}") from None
    return JournalStorage(Journal(journal_path(store)))


def journal_path(store: str | Path) -> Path:
    """The journal file that a path stands for: itself (``*.journal``, ``*.log``), or ``study.journal`` in a folder."""
    path = Path(store)
    is_file = path.is_file() or (path.suffix in (".journal", ".log") and not path.is_dir())
    return path if is_file else path / "study.journal"


def grouped(storage: BaseStorage) -> contextlib.AbstractContextManager[None]:
    """A block whose records are written together, where the storage can do so."""
    backend = getattr(storage, "_backend", None)
    return backend.grouped() if isinstance(backend, Journal) else contextlib.nullcontext()


@contextlib.contextmanager
def sole_search(store: str | Path | BaseStorage) -> Iterator[None]:
    """Hold a file-based search for this process alone; freed by the kernel when the process ends, however it does.

    Raises:
        SearchError: another process is searching in the same file.
    """
    if fcntl is None or isinstance(store, BaseStorage) or "://" in str(store):
        yield
        return
    path = journal_path(store).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SearchError(
                f"{journal_path(store)}: another process is searching here; wait for it or use another folder"
            ) from None
        yield


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where the line is damaged or unfinished."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def _is_proposal(record: dict[str, Any]) -> bool:
    """Whether a record only says what a trial is to be: the next process would write the same again."""
    operation = record["op_code"]
    return operation in _SET_PARAM_OR_ATTR or (operation == _CREATE_TRIAL and "state" not in record)
