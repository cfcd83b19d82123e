"""`hwprune devices new`: a device file of the user's own, made from a known device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hwprune.core.config import to_toml
from hwprune.core.errors import UsageError
from hwprune.core.files import atomic_write_text
from hwprune.core.specs import config_folder
from hwprune.devices.files import NAME_HINT, Connection, DeviceInfo, devices, find_device, valid_name


def new_device(name: str, *, source: str, connection: Connection, aliases: Sequence[str] = ()) -> DeviceInfo:
    """Write `NAME.toml` into the user's folder of devices: what `source` offers, reached over `connection`.

    Raises `UsageError` for a name or alias that is taken or cannot be one, and a connection without a host.
    """
    for label in (name, *aliases):
        if not valid_name(label):
            raise UsageError(f"{label!r} cannot be a device's name", hint=NAME_HINT)
    if not connection.host:
        raise UsageError(f"device '{name}' needs a host", hint="--host user@host")
    taken = {label: info for info in devices() for label in (info.name, *info.aliases)}
    for label in (name, *aliases):
        if label in taken:
            owner = taken[label]
            raise UsageError(
                f"'{label}' is already a name of device '{owner.name}'",
                hint=f"choose another, or edit or remove {owner.source}",
            )
    pattern = find_device(source)
    path = config_folder() / "devices" / f"{name}.toml"
    made = replace(
        pattern,
        name=name,
        aliases=tuple(aliases),
        connection=connection,
        description=pattern.description.replace("this machine", connection.host),
        source=str(path),
    )
    if path.exists():
        raise UsageError(f"{path} exists already", hint="choose another name, or edit that file")
    atomic_write_text(path, f"# made from {pattern.name} by hwprune devices new\n" + to_toml(_document(made)))
    return made


def _document(info: DeviceInfo) -> Mapping[str, Any]:
    given = {key: value for key, value in vars(info.connection).items() if value}
    if info.connection.user:
        given["host"] = info.connection.address
        del given["user"]
    return {
        "schema": info.schema,
        "name": info.name,
        "aliases": info.aliases,
        "description": info.description,
        "connection": given,
        "runtimes": {
            name: {"precisions": offer.precisions, **({"options": offer.options} if offer.options else {})}
            for name, offer in info.runtimes.items()
        },
    }
