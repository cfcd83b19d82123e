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
        (item.name, item.connection.kind, ", ".join(item.runtimes), ", ".join(item.aliases) or "-", item.description)
        for item in found
    ]
    text = table(("NAME", "KIND", "RUNTIMES", "ALIASES", "DESCRIPTION"), rows, left=(0, 1, 2, 3, 4))
    documents = [
        {
            "name": item.name,
            "kind": item.connection.kind,
            "runtimes": list(item.runtimes),
            "aliases": list(item.aliases),
            "description": item.description,
            "source": item.source,
        }
        for item in found
    ]
    return Outcome(text, {"devices": documents}, next=("hwprune doctor --device NAME",))


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, devices, example=EXAMPLE)
