"""``python -m detkds``, and so ``torchrun -m detkds``."""

from __future__ import annotations

from detkds.cli import main

if __name__ == "__main__":
    main()
