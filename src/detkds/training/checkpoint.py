"""Training state on disk: written whole or not at all, taken up where it was left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detkds.errors import WeightsError
from detkds.training.member import Member


def save_state(path: Path, members: Sequence[Member], epochs_done: int) -> None:
    """Write the state of all members; a crash while writing leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"epochs_done": epochs_done, "members": {member.name: member.state_dict() for member in members}}
    scratch = path.with_name(path.name + ".part")
    with open(scratch, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def load_state(path: Path, members: Sequence[Member]) -> int:
    """Restore the members' state; the epochs they have done, 0 where there is no file.

    Raises:
        WeightsError: the file is not a state of these members.
    """
    if not path.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["members"]
    except Exception as error:
        raise WeightsError(f"{path}: not a training state: {error}; delete it to start over") from None
    names = [member.name for member in members]
    if list(saved) != names:
        raise WeightsError(f"{path}: holds members {', '.join(saved)}, expected {', '.join(names)}; delete it to start over")
    for member in members:
        try:
            member.load_state_dict(saved[member.name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(f"{path}: member {member.name!r} does not fit: {error}; delete it to start over") from None
    return int(state["epochs_done"])
