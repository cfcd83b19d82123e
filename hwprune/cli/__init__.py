"""The command line: one thin file a verb, each calls the function of the same name in `hwprune.api`.

Results go to stdout, talk to stderr. `main` is the entry point of the `hwprune` command.
"""

from __future__ import annotations

from hwprune.cli._main import main

__all__ = ["main"]
