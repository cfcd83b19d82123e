"""`hwprune.toml` as defaults for the flags, and `--print-config` for what came out of flag, environment and file.

The user's own `config.toml` lies below the project's file and is written the same way. Keys are the flags' names with
underscores. At the top they hold for every verb that has the flag; in a table named as a verb for that verb alone.
What a run has of its own is not taken from the top by a verb that goes on with the run (`OF_A_RUN`): there it means the
next search. `options` is a table of method options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hwprune.core.config import read_toml, to_toml
from hwprune.core.errors import UsageError, did_you_mean

FILE = "hwprune.toml"
USER_FILE = "config.toml"
ONE_SETTING = {"latency_ms": "latency", "latency": "latency_ms"}  # two spellings: the one of the higher place counts
OF_A_RUN = {"finetune": ("data", "epochs"), "export": ("data", "input", "weights")}
PER_CALL = ("config", "print_config", "json", "verbose", "quiet", "help")  # belong to one command, not to a project


class Default(NamedTuple):
    """A flag's value out of a file."""

    value: Any
    file: str


def load_defaults(
    paths: Iterable[Path], verb: str, flags: Mapping[str, Iterable[str]]
) -> tuple[dict[str, Default], dict[str, Default]]:
    """What these files, a later one above an earlier one, say for the flags of `verb`; apart, what a run has itself."""
    found: dict[str, Default] = {}
    of_a_run: dict[str, Default] = {}
    for path in paths:
        general, own = read_defaults(path, verb, flags)
        for table in (general, own):
            for name in table:
                found.pop(ONE_SETTING.get(name, ""), None)
            for name, value in table.items():
                apart = table is general and name in OF_A_RUN.get(verb, ())
                (of_a_run if apart else found)[name] = Default(value, str(path))
    return found, of_a_run


def read_defaults(path: Path, verb: str, flags: Mapping[str, Iterable[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Default values for the flags of `verb`: those at the top of a file, and those in the verb's own table.

    `flags` maps every verb to the names of its flags.

    Raises `UsageError` naming file, key, nearest known key and line.
    """
    document = read_toml(path)
    text = path.read_text(encoding="utf-8")
    known = {name for names in flags.values() for name in names}
    general: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict) and key not in (*flags, "options", *known):
            raise UsageError(
                f"{path}: no table [{key}].{did_you_mean(key, (*flags, 'options'))}{_line(text, '', key)}",
                hint=f"a table is a verb's ({', '.join(flags)}), or [options] of the method",
            )
        if key in flags and isinstance(value, dict):
            for inner in value:
                _check(inner, set(flags[key]), path, text, table=key)
        else:
            _check(key, known, path, text, table="")
            general[key] = value
    top, own = (
        {key: _as_text(key, value, path) for key, value in table.items() if key in flags[verb]}
        for table in (general, document.get(verb, {}))
    )
    return top, own


def line_of(text: str, table: str, key: str) -> int:
    """The line, counted from 1, on which `key` of `[table]` stands (0 when it is written in another form)."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[([^\]]+)\]", line)
        if header:
            current = header.group(1).strip()
            if not table and current.split(".")[0] == key:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return 0


def resolved_toml(verb: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """TOML that `--config` reads back, the origin of each value in a comment."""
    options = parse_options(values.get("options") or ())
    plain = {key: _plain(value) for key, value in values.items() if key not in PER_CALL and key != "options"}
    document = {key: value for key, value in plain.items() if value is not None}
    unset = [key for key, value in plain.items() if value is None]
    own = {key: document.pop(key) for key in OF_A_RUN.get(verb, ()) if key in document}
    tables = {name: table for name, table in ((verb, own), ("options", options)) if table}
    comments = {**origins, **{f"options.{key}": origins.get("options", "") for key in options}}
    comments.update({f"{verb}.{key}": origins[key] for key in own})
    text = f"# hwprune {verb}\n" + to_toml({**document, **tables}, comments)
    return text + (f"\n# not set: {', '.join(unset)}\n" if unset else "")


def parse_options(pairs: Iterable[str]) -> dict[str, str]:
    """`{"distill_alpha": "0.5"}` from `("distill_alpha=0.5",)`. Raises `UsageError` for what is no KEY=VALUE."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {pair} is not KEY=VALUE", hint="write it as --set distill_alpha=0.5")
        options[key.strip()] = value.strip()
    return options


def _check(key: str, known: set[str], path: Path, text: str, *, table: str) -> None:
    if key in known:
        return
    if key == "set":
        raise UsageError(f"{path}: no key 'set'", hint="options of the method are a table: [options], then KEY = VALUE")
    place = f"[{table}] has no key" if table else "no key"
    flags = f"flags of {table}" if table else "flags of the verbs"
    raise UsageError(
        f"{path}: {place} '{key}'.{did_you_mean(key, known)}{_line(text, table, key)}",
        hint=f"keys are the {flags}, with underscores: hwprune {table or 'search'} --help",
    )


def _line(text: str, table: str, key: str) -> str:
    line = line_of(text, table, key)
    return f"   (line {line})" if line else ""


def _as_text(key: str, value: Any, path: Path) -> Any:
    if key == "options":
        if not isinstance(value, dict):
            raise UsageError(
                f"{path}: 'options' must be a table of method options", hint="write [options] and distill_alpha = 0.5"
            )
        return [f"{name}={_option_text(item)}" for name, item in value.items()]
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, float)) for item in items):
        raise UsageError(f"{path}: '{key}' must be a plain value or a list of them")
    return value


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value] or None
    return str(value) if isinstance(value, Path) else value
