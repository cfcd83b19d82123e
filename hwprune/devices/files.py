"""Device files: one TOML a device, shipped beside this module, in the user's and in the working folder; later wins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hwprune.core.config import from_mapping, read_toml
from hwprune.core.errors import UsageError, did_you_mean, unknown_name
from hwprune.core.measurement import Target
from hwprune.core.specs import config_folder

SCHEMA = 1
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_FORMS = {  # what ssh gets as an argument: no leading "-", no blank, no quote, nothing that ssh expands but "~/"
    "host": (r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}", "orin.local or 10.0.0.7"),
    "user": (r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}", "nvidia"),
    "identity_file": (r"(~?/)?[A-Za-z0-9._+@][A-Za-z0-9._+@/-]*", "~/.ssh/id_ed25519"),
    "known_hosts": (r"(~?/)?[A-Za-z0-9._+@][A-Za-z0-9._+@/-]*", "~/.ssh/known_hosts"),
    "python": (r"/?[A-Za-z0-9._+][A-Za-z0-9._+/-]*", "/usr/bin/python3"),
}


@dataclass(frozen=True)
class Connection:
    """How to reach a device: `local` is this machine, `ssh` another one.

    A file of kind `ssh` without a host is a template for `hwprune devices new`. What is empty is left to ssh and its
    own configuration. `python`: the interpreter on the device that has the runtime. `build_s`: for how many seconds a
    network may be built over there, 0 for the usual 600. Raises `UsageError` for anything that could be read as more
    than a name: every value becomes one argument of ssh.
    """

    kind: Literal["local", "ssh"] = "local"
    host: str = ""
    user: str = ""
    port: int = 0
    identity_file: str = ""
    known_hosts: str = ""
    python: str = ""
    build_s: int = 0

    def __post_init__(self) -> None:
        given = [item.name for item in fields(self) if item.name != "kind" and getattr(self, item.name)]
        if self.kind == "local" and given:
            raise UsageError(f"a local connection has no {given[0]}", hint='write kind = "ssh"')
        user, at, host = self.host.rpartition("@")
        if at:
            if self.user and self.user != user:
                raise UsageError(
                    f"host '{self.host}' names another user than user = '{self.user}'",
                    hint='name the user once: host = "user@host", or user = "..." beside the host',
                )
            object.__setattr__(self, "host", host)
            object.__setattr__(self, "user", user)
        for name, (pattern, example) in _FORMS.items():
            value = getattr(self, name)
            if (value or (at and name in ("host", "user"))) and not re.fullmatch(pattern, value):
                raise UsageError(f"{name} = {value!r} cannot be used for a connection", hint=f"write it as {example}")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port = {self.port} is no port", hint="1 to 65535, or leave it out")
        if self.build_s < 0:
            raise UsageError(f"build_s = {self.build_s} is no time", hint="seconds, or leave it out: 600")

    @property
    def address(self) -> str:
        """`user@host`, or `host` alone."""
        return f"{self.user}@{self.host}" if self.user else self.host


@dataclass(frozen=True)
class RuntimeInfo:
    """What a device file says of one runtime: the precisions offered and the runtime's options."""

    precisions: tuple[str, ...] = ("fp32",)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceInfo:
    """One device file. `runtimes` maps a runtime's name to what the device offers of it; the first is its default.

    Devices of one `pool` are called by its name in fingerprints: where everything else agrees, too, they fill one
    latency table together.
    """

    name: str
    schema: int = SCHEMA
    aliases: tuple[str, ...] = ()
    description: str = ""
    pool: str = ""
    connection: Connection = Connection()
    runtimes: dict[str, RuntimeInfo] = field(default_factory=dict)
    source: str = ""

    @property
    def is_template(self) -> bool:
        """Whether it describes a kind of board rather than one: reached by SSH, but no host is named."""
        return self.connection.kind == "ssh" and not self.connection.host


NAME_HINT = "letters, digits, '.', '_' and '-', up to 63, a letter or digit first"


def valid_name(name: str) -> bool:
    """Whether a device may be called so; the name becomes that of files and folders."""
    return re.fullmatch(_NAME, name) is not None


def search_path() -> tuple[Path, ...]:
    """The folders device files are read from; a name in a later one replaces the same name in an earlier one."""
    return Path(__file__).parent, config_folder() / "devices", Path("devices")


def read_device(path: Path) -> DeviceInfo:
    """The device described by a TOML file. Raises `UsageError` naming file and key when it is wrong."""
    table = read_toml(path)
    try:
        info = from_mapping(DeviceInfo, {**table, "source": str(path)}, where=str(path))
    except UsageError as error:
        if str(path) in error.message:
            raise
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
    if info.schema != SCHEMA:
        raise UsageError(f"{path}: schema {info.schema} is not {SCHEMA}", hint="update hwprune, or the device file")
    for name in (info.name, *info.aliases, *filter(None, (info.pool,))):
        if not valid_name(name):
            raise UsageError(f"{path}: {name!r} cannot be a device's name", hint=NAME_HINT)
    offers: Mapping[str, Any] = info.runtimes
    if not offers:
        raise UsageError(f"{path}: device '{info.name}' offers no runtime", hint="add a table [runtimes.onnxruntime]")
    runtimes = {
        name: from_mapping(RuntimeInfo, values, where=f"{path}: runtimes.{name}") for name, values in offers.items()
    }
    return replace(info, runtimes=runtimes)


def devices() -> tuple[DeviceInfo, ...]:
    """Every device known here, by name. Raises `UsageError` for a broken file or an alias that is taken."""
    found: dict[str, DeviceInfo] = {}
    for path in _files():
        info = read_device(path)
        found[info.name] = info
    owners: dict[str, str] = {}
    for info in found.values():
        for name in (info.name, *info.aliases):
            if owners.setdefault(name, info.name) != info.name:
                raise UsageError(
                    f"{info.source}: '{name}' is already a name of device '{owners[name]}'",
                    hint="give it another name or alias",
                )
    return tuple(found[name] for name in sorted(found))


def _files() -> Iterator[Path]:
    for folder in search_path():
        if folder.is_dir():
            yield from sorted(folder.glob("*.toml"))


def _not_offered(info: DeviceInfo, runtime: str) -> UsageError:
    """The error for a runtime that a device lacks: where it is offered, or what the nearest name here is."""
    hint = f"it offers: {', '.join(info.runtimes)}"
    elsewhere = [other.name for other in devices() if runtime in other.runtimes]
    if elsewhere:
        return UsageError(
            f"device '{info.name}' does not offer the runtime '{runtime}'",
            hint=f"{hint}; {runtime} is offered by {', '.join(elsewhere)}",
        )
    text = f"device '{info.name}' does not offer the runtime '{runtime}'.{did_you_mean(runtime, info.runtimes)}"
    return UsageError(text, hint=hint)


def find_device(name: str) -> DeviceInfo:
    """The device of this name or alias. Raises `UsageError` with the names that begin so, or the nearest one."""
    known = devices()
    for info in known:
        if name in (info.name, *info.aliases):
            return info
    check_distinct(name, known)
    raise unknown_name("device", name, [label for info in known for label in (info.name, *info.aliases)])


def check_distinct(name: str, known: Sequence[DeviceInfo]) -> None:
    """Raise `UsageError` where several devices begin with a name that is none's, `jetson` say: no one is nearer."""
    kinds = [info.name for info in known if info.name.startswith(name)]
    if len(kinds) > 1 and not any(name in (info.name, *info.aliases) for info in known):
        raise UsageError(
            f"'{name}' may be {', '.join(kinds[:-1])} or {kinds[-1]}",
            hint="name one; a board is made known by `hwprune devices new NAME --from KIND --host USER@HOST`",
        )


def measured_as(target: Target) -> Target:
    """The target as it stands in fingerprints and tables: resolved, and under the name of its device's pool."""
    known = resolve(target)
    info = find_device(known.device)
    return replace(known, device=info.pool or info.name)


def resolve(target: Target) -> Target:
    """The target under the device's own name; a runtime left at the default becomes what the device offers first.

    A runtime may name a precision too: `tensorrt:fp16`, or `:fp16` of the device's first runtime. Raises `UsageError`
    for an unknown device, and a runtime or precision that the device does not offer.
    """
    info = find_device(target.device)
    runtime, colon, precision = target.runtime.partition(":")
    if colon:
        target = replace(target, runtime=runtime or Target.runtime, precision=precision)
    runtime = target.runtime
    if runtime not in info.runtimes:
        if runtime != Target.runtime:
            raise _not_offered(info, runtime)
        runtime = next(iter(info.runtimes))
    offered_precisions = info.runtimes[runtime].precisions
    if target.precision not in offered_precisions:
        raise UsageError(
            f"device '{info.name}' with {runtime} does not offer the precision {target.precision}",
            hint=f"it offers: {', '.join(offered_precisions)}",
        )
    return replace(target, device=info.name, runtime=runtime)
