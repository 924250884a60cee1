"""A measured table of candidates, by its public name: see :mod:`detkds.search.measured_table`.

``python -m detkds.search.table FILE`` describes a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detkds.errors import UserError
from detkds.search.measured_table import Effect, MeasuredSpace, MeasuredTable, kendall
from detkds.search.table_text import describe

__all__ = ["Effect", "MeasuredSpace", "MeasuredTable", "kendall", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Describe a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m detkds.search.table", description="Describe a measured table.")
    parser.add_argument("file", type=Path)
    try:
        sys.stdout.write(describe(MeasuredTable.load(parser.parse_args(arguments).file)))
    except UserError as error:
        sys.stderr.write("\n".join(error.faults) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
