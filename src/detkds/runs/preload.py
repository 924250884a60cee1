"""What every worker process needs imported, once: imported by the server that workers are forked from."""

from __future__ import annotations

import detkds.runs.executors  # noqa: F401 - for what it imports
from detkds import registry

for kind in vars(registry).values():
    if isinstance(kind, registry.Registry):
        kind.names()
