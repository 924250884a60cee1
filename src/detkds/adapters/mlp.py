"""Two 1x1 convolutions: the same small network at every position."""

from __future__ import annotations
