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
        saved, epochs_done = dict(state["members"]), int(state["epochs_done"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: not a training state: {reason[:200]}; delete it to start over") from None
    names = [member.name for member in members]
    if list(saved) != names:
        held = f"holds members {', '.join(saved)}, expected {', '.join(names)}"
        raise WeightsError(f"{path}: {held}; delete it to start over")
    for member in members:
        try:
            member.load_state_dict(saved[member.name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            unfit = f"member {member.name!r} does not fit: {error}"
            raise WeightsError(f"{path}: {unfit}; delete it to start over") from None
    return epochs_done
