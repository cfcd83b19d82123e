"""`hwprune devices`: what can be measured on. `hwprune devices new NAME`: one more."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from hwprune.cli._console import Outcome
from hwprune.cli._flags import check_device
from hwprune.cli._verb import Call, register
from hwprune.core.errors import UsageError, did_you_mean
from hwprune.report.text import table

if TYPE_CHECKING:
    from hwprune.devices.files import DeviceInfo

EXAMPLE = "hwprune devices new bench-board --from jetson-orin-nano --host nvidia@10.0.0.7"
NO_HOST = "no host yet"  # a kind of board
RUNTIMES_WIDTH = 34  # the shipped devices then take 80 columns


def devices(
    call: Call,
    action: Annotated[str | None, typer.Argument(metavar="new", help="new: write a device file.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What the new device is called.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", envvar="HWPRUNE_FROM", metavar="DEVICE", help="The known device that it is like."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="USER@HOST", help="Where ssh finds it.")] = "",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; ssh's own by default.")] = 0,
    identity_file: Annotated[str, typer.Option(metavar="FILE", help="Private key; ssh's own by default.")] = "",
    known_hosts: Annotated[str, typer.Option(metavar="FILE", help="Known host keys; ssh's own by default.")] = "",
    python: Annotated[str, typer.Option(metavar="FILE", help="Interpreter there that has the runtime.")] = "",
    alias: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Another name; may be repeated.")] = None,
) -> Outcome:
    """List the known devices, their runtimes and aliases; with `-v` what they are, too.

    `hwprune devices new NAME --from DEVICE --host USER@HOST` writes a device file of your own.
    """
    from hwprune import api
    from hwprune.devices.files import Connection

    if action is None:
        return _listed(call.common.verbosity)
    if action != "new":
        raise UsageError(
            f"hwprune devices does not know '{action}'.{did_you_mean(action, ['new'])}",
            hint="hwprune devices, or hwprune devices new NAME --from DEVICE --host USER@HOST",
        )
    if name is None or source is None or not host:
        raise UsageError("a new device needs a name, --from and --host", hint=EXAMPLE)
    check_device(source)
    connection = Connection("ssh", host, "", port, identity_file, known_hosts, python)
    made = api.new_device(name, source=source, connection=connection, aliases=tuple(alias or ()))
    document = {"name": made.name, "source": made.source, "host": made.connection.address}
    given = [("-p", str(port) if port else ""), ("-i", identity_file)]
    given.append(("-o", f"UserKnownHostsFile={known_hosts}" if known_hosts else ""))
    words = [word for flag, value in given if value for word in (flag, value)]
    log_in = " ".join(("ssh", *words, made.connection.address))  # no word of a connection needs quotes
    following = (f"{log_in}   (once, to compare and accept the host key)", f"hwprune doctor --device {made.name}")
    return Outcome(f"wrote {made.source}", document, next=following)


def _listed(verbosity: int) -> Outcome:
    from hwprune import api

    found = api.devices()
    headers = ("NAME", "WHERE", "ALIASES", "RUNTIMES", *(("DESCRIPTION",) if verbosity > 0 else ()))
    rows = [line for item in found for line in _rows(item, len(headers))]
    documents = [
        {
            "name": item.name,
            "kind": item.connection.kind,
            "runtimes": list(item.runtimes),
            "aliases": list(item.aliases),
            "host": item.connection.address or None,
            "template": item.is_template,
            "description": item.description,
            "source": item.source,
        }
        for item in found
    ]
    following = ["hwprune doctor --device NAME"]
    if any(item.is_template for item in found):
        following.append("hwprune devices new NAME --from KIND --host USER@HOST")
    text = table(headers, rows, left=range(len(headers)))
    return Outcome(text, {"devices": documents}, next=tuple(following))


def _rows(item: DeviceInfo, columns: int) -> list[tuple[str, ...]]:
    """The lines of one device: as many as its runtimes take; the description fills a column that is asked for."""
    where = NO_HOST if item.is_template else item.connection.address or "this machine"
    runtimes = textwrap.wrap(", ".join(item.runtimes), RUNTIMES_WIDTH)
    first = (item.name, where, ", ".join(item.aliases) or "-", runtimes[0], item.description)
    return [first[:columns], *(("", "", "", more, "")[:columns] for more in runtimes[1:])]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, devices, example=EXAMPLE)
