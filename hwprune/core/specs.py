"""What a user names on the command line: `NAME?key=value&key=value`, `FILE.py:FUNCTION`, `PACKAGE.MODULE:FUNCTION`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hwprune.core.errors import HwpruneError, UsageError, did_you_mean

_TRACE_HINT = "mend it there; with -vv the whole traceback is shown"


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """`("resnet20", {"width": "2"})` from `resnet20?width=2`; `UsageError` for an option without a value."""
    name, _, query = spec.partition("?")
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not key or not equals or not value:
            raise UsageError(
                f"option '{item}' in '{spec}' has no value", hint=f"write it as {name}?{key or 'key'}=value"
            )
        options[key] = value
    return name, options


def is_function(reference: str) -> bool:
    """True for `FILE.py:FUNCTION`, and for `PACKAGE.MODULE:FUNCTION` where that package is installed."""
    location, _, function = reference.rpartition(":")
    if not location or not function.isidentifier():
        return False
    parts = location.split(".")
    dotted = all(part.isidentifier() for part in parts)
    return location.endswith(".py") or (dotted and importlib.util.find_spec(parts[0]) is not None)


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION` names. It runs the user's own module.

    Raises `UsageError` when the file, module or function is not there or cannot be imported, whatever it raises then.
    """
    location, _, name = reference.rpartition(":")
    module = _module_from_file(Path(location)) if location.endswith(".py") else _module_by_name(location)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{location} has no function '{name}'.{did_you_mean(name, known)}")
    return function  # type: ignore[no-any-return]


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file {path}", hint="write FILE.py:FUNCTION with a path from this folder")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # files beside it can be imported; last, so that they hide no installed package
    # The name holds the path's hash, so that two files of the same name do not replace each other.
    name = f"_hwprune_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{path} cannot be imported: {_told(error, str(path))}", hint=_TRACE_HINT) from error
    return module


def _module_by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        hint = "install it, or add its folder to PYTHONPATH" if isinstance(error, ImportError) else _TRACE_HINT
        raise UsageError(f"module '{name}' cannot be imported: {_told(error, _file_of(name))}", hint=hint) from error


def call_function(reference: str, function: Callable[..., Any], /, **arguments: Any) -> Any:
    """What `function`, loaded from `reference`, gives for these arguments.

    It is the user's code: whatever it raises, and an argument that it lacks, becomes a `UsageError` that names the
    innermost line of its own file. Our own errors pass as they are.
    """
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:
        pass  # written in C: it has no signature to compare with
    except TypeError as error:
        given = f"only {', '.join(arguments)}" if arguments else "no arguments"
        raise UsageError(
            f"{reference} cannot be called: {error}", hint=f"it is given {given}; give the other ones a default"
        ) from error
    try:
        return function(**arguments)
    except HwpruneError:
        raise
    except Exception as error:
        location = reference.rpartition(":")[0]
        raise UsageError(f"{reference} raised {_told(error, _file_of(location))}", hint=_TRACE_HINT) from error


def _told(error: Exception, file: str) -> str:
    """`ValueError: boom (m.py, line 12)`: the innermost line of that file, if there is one."""
    if isinstance(error, SyntaxError):
        return str(error)  # which names file and line already
    text = str(error) if isinstance(error, ImportError) else ": ".join(filter(None, (type(error).__name__, str(error))))
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if file and os.path.realpath(frame.filename) == os.path.realpath(file)]
    return f"{text} ({Path(file).name}, line {lines[-1]})" if lines else text


def _file_of(location: str) -> str:
    """The file of `FILE.py` or `PACKAGE.MODULE`; empty where it is not known."""
    if location.endswith(".py"):
        return location
    with contextlib.suppress(Exception):  # to find a module in a package runs the package, which may be what fails
        spec = importlib.util.find_spec(location)
        return spec.origin or "" if spec is not None else ""
    return ""


def config_folder() -> Path:
    """Where a user keeps settings for every project: $XDG_CONFIG_HOME/hwprune, else ~/.config/hwprune.

    A user without a home has none: the folder cannot exist then, and nobody else can put settings into it.
    """
    return user_folder("XDG_CONFIG_HOME", ".config") or Path(os.devnull) / "hwprune"


def user_folder(variable: str, below_home: str) -> Path | None:
    """Our folder in the one that `variable` names, else in that part of the home; None for a user without a home."""
    base = os.environ.get(variable)
    if base:
        return Path(base) / "hwprune"
    try:
        return Path.home() / below_home / "hwprune"
    except RuntimeError:  # HOME is not set, and the system does not know this user
        return None


def temporary_folder() -> Path:
    """What stands for our folders where a user has no home; another user has another one."""
    return Path(tempfile.gettempdir()) / f"hwprune-{os.getuid()}"


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where decoded data and trained dense networks are kept, outside of any project.

    `folder` if given, else $HWPRUNE_CACHE, else $XDG_CACHE_HOME/hwprune, else ~/.cache/hwprune; without a home a
    temporary folder.
    """
    given = folder or os.environ.get("HWPRUNE_CACHE")
    if not given:
        return user_folder("XDG_CACHE_HOME", ".cache") or temporary_folder()
    return at_home(Path(given))


def at_home(path: Path) -> Path:
    """The path with the home folder in place of a `~` that no shell has expanded; `UsageError` where there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(f"there is no home folder for the ~ in {path}", hint="write the whole path") from error
