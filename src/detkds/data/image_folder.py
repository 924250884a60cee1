"""Which files of an image folder the names in annotations mean."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from detkds.errors import Faults


class ImageFolder:
    """Tells whether names point at files inside a folder, with one directory listing per sub-folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = os.path.realpath(folder)
        self.exists = folder.is_dir()
        self.listings: dict[str, dict[str, bool]] = {}

    def named(self, where: str, name: Any, faults: Faults, notes: Counter[str]) -> str:
        """The path below the folder of the file that a name means; the name itself where there is none, a fault."""
        fault = self._form(name)
        if fault is None and not self.exists:
            return str(name)
        spellings = {} if fault else self._spellings(name)
        for spelling, note in spellings.items():
            through_link = self._listing(spelling).get(os.path.basename(spelling))
            if through_link is None:
                continue
            if through_link and not self._contains(os.path.realpath(self.folder / spelling)):
                fault = "leaves the image folder through a link"
                break
            if note:
                notes[note] += 1
            return spelling
        else:
            fault = fault or f"no such file in {self.folder}{self._near(name)}"
        faults.add(f"{where}: file_name {name!r}: {fault}")
        return str(name)

    def _form(self, name: Any) -> str | None:
        if not isinstance(name, str) or not name or "\0" in name:
            return "expected a path below the image folder"
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts:
            return "leaves the image folder; names must be relative and without '..'"
        return None

    def _spellings(self, name: str) -> dict[str, str]:
        """The ways to write a name that mean the same file, and what to say where another than the first exists."""
        spellings = {name: ""}
        slashes = name.replace("\\", "/")
        spellings.setdefault(slashes, "file names are read with / for \\")
        parts = PurePosixPath(slashes).parts
        bare = "/".join(parts[1:]) if len(parts) > 1 and parts[0] == self.folder.resolve().name else slashes
        spellings.setdefault(bare, f"file names are read without the folder {self.folder.name} itself")
        for form in ("NFC", "NFD"):
            spellings.setdefault(unicodedata.normalize(form, bare), "file names are read in another Unicode form")
        return spellings

    def _listing(self, name: str) -> dict[str, bool]:
        """Files of the sub-folder that a name is in, and whether each needs its link resolved."""
        parent = os.path.dirname(name)
        if parent not in self.listings:
            self.listings[parent] = self._list(parent)
        return self.listings[parent]

    def _near(self, name: str) -> str:
        """A hint at a file whose name differs by upper and lower case alone, or by its sub-folder."""
        file = os.path.basename(name.replace("\\", "/")).casefold()
        self._listing("")
        for folder, listing in self.listings.items():
            for other in listing:
                if other.casefold() == file:
                    return f"; did you mean {os.path.join(folder, other)!r}?"
        return ""

    def _list(self, parent: str) -> dict[str, bool]:
        path = self.folder / parent
        through_link = not self._contains(os.path.realpath(path))
        try:
            with os.scandir(path) as entries:
                return {entry.name: through_link or entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:
            return {}

    def _contains(self, resolved: str) -> bool:
        return resolved == self.root or resolved.startswith(self.root.rstrip(os.sep) + os.sep)
