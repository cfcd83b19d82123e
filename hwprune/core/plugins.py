"""A plugin is one file, found by its name, with exactly one concrete class in it.

Listing the names imports nothing; a file whose name begins with an underscore is machinery, not a plugin.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from typing import TypeVar, get_origin

from hwprune.core.errors import DeviceError, unknown_name

T = TypeVar("T")


def names(package: str) -> tuple[str, ...]:
    """The plugin names of a package such as `hwprune.methods`, sorted, without importing any of them."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"{package} is not a package")
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return tuple(sorted(module.name for module in found if not module.name.startswith("_")))


def load(package: str, name: str, base: type[T]) -> type[T]:
    """The one concrete subclass of `base` in `package/name.py`.

    Raises `UsageError` for an unknown name and `DeviceError` when the plugin's own dependency is missing.
    """
    known = names(package)
    kind = package.rsplit(".", 1)[-1].rstrip("s").replace("latency", "latency model")
    if name not in known:
        raise unknown_name(kind, name, known)
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"{kind} '{name}' could not be loaded: no module named '{error.name}'",
            hint=f"pip install 'hwprune[{name}]'",
        ) from error
    classes = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and get_origin(member) is None  # before Python 3.11 an alias such as `list[int]` calls itself a class
        and issubclass(member, base)
        and member.__module__ == module.__name__
    ]
    concrete = [member for member in classes if not inspect.isabstract(member)]
    if len(concrete) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(concrete)}")
    return concrete[0]
