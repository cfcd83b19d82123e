"""`hwprune devices`: what can be measured on."""

from __future__ import annotations

import typer

from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register
from hwprune.report.text import table

EXAMPLE = "hwprune devices"


def devices(call: Call) -> Outcome:
    """List the known devices, their runtimes and aliases."""
    from hwprune import api

    found = api.devices()
    rows = [
        (
            item.name,
            item.kind,
            ", ".join(item.runtimes),
            ", ".join(item.aliases) or "-",
            item.description,
        )
        for item in found
    ]
    text = table(("NAME", "KIND", "RUNTIMES", "ALIASES", "DESCRIPTION"), rows, left=(0, 1, 2, 3, 4))
    keys = ("name", "kind", "runtimes", "aliases", "description")
    document = {"devices": [{key: _plain(getattr(item, key)) for key in keys} for item in found]}
    return Outcome(text, document, next=("hwprune doctor --device NAME",))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, devices, example=EXAMPLE)
