"""Strict configuration: a TOML table becomes a frozen dataclass, every unknown key is an error with a suggestion.

Only what a dataclass declares is accepted: no includes, no interpolation, nothing that runs code.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hwprune.core.errors import UsageError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; `UsageError` naming file and line when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}", hint="mend the line that it names") from error


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """A dataclass from plain values; text is converted to the field's type.

    `where` (a file, or `--set`) begins the message of every `UsageError`: unknown key, wrong type, missing key.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise UsageError(
                f"{where}: unknown key '{key}'.{did_you_mean(key, fields)}", hint=f"known: {', '.join(fields)}"
            )
    converted = {key: _convert(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    missing = [name for name, field in fields.items() if name not in converted and _required(field)]
    if missing:
        raise UsageError(f"{where}: missing key '{missing[0]}'")
    return cls(**converted)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(hint), where)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UsageError(f"{where} is {value!r}, not one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        return _convert_tuple(value, typing.get_args(hint), where)
    if origin in (dict, Mapping) or hint in (dict, Any):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_mapping(hint, value, where=where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if type(None) in choices and (value is None or value == "none"):
        return None
    real = [choice for choice in choices if choice is not type(None)]
    return _convert(value, real[0], where)


def _convert_tuple(value: Any, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where} is {value!r}, not a list")
    return tuple(_convert(item, items[0], where) for item in value)


def _convert_scalar(value: Any, hint: type, where: str) -> Any:
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float) and isinstance(value, str):
        try:
            return hint(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{where} is {value!r}, not of type {hint.__name__}")
    return value


def to_toml(document: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """TOML text of scalars, lists and nested tables; `comments` maps a dotted key to a trailing comment."""
    return "\n".join(_toml_lines(document, "", comments or {})) + "\n"


def _toml_lines(table: Mapping[str, Any], prefix: str, comments: Mapping[str, str]) -> list[str]:
    lines = []
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            comment = comments.get(f"{prefix}{key}", "")
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}" + (f"  # {comment}" if comment else ""))
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{_toml_key(key)}]", *_toml_lines(value, f"{prefix}{_toml_key(key)}.", comments)]
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, float):
        return float.__repr__(value)  # inf and nan are written so in TOML, and not in JSON
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    raise TypeError(f"no TOML for {type(value).__name__}")


def _toml_string(text: str) -> str:
    """A basic string. JSON's escapes are TOML's, but for surrogate pairs, and TOML escapes DEL too."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # the name of a file in another encoding
        raise UsageError(f"{text!a} is not Unicode text", hint="rename the file") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
