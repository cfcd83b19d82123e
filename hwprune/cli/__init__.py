"""The command line: one thin file a verb, each calls the function of the same name in `hwprune.api`.

Results go to stdout, talk to stderr. `main` is the entry point of the `hwprune` command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 yes, 1 no, 2 your input, 3 the device, 4 our bug, 130 interrupted."""
    try:
        from hwprune.cli._main import run
    except KeyboardInterrupt:  # half a second goes into imports, before any error can be told as one
        sys.stderr.write("error: interrupted\n")
        return 130
    return run(arguments)
