"""The agent as one file: the sources that a device needs, in a zip archive that Python imports from.

What is in it follows from what its modules import, beginning with the agent and one runtime. The same sources give
the same bytes, so that the SHA-256 names them: a device that has the file gets nothing sent.
"""

from __future__ import annotations

import ast
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hwprune.core.errors import UsageError
from hwprune.devices.agent import bootstrap

PACKAGE = Path(__file__).parents[2]
ROOTS = ("hwprune.devices.agent.supervisor", "hwprune.devices.agent.worker")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip archive


@dataclass(frozen=True)
class Bundle:
    """The agent's archive and its hash; `modules` are the names of what is in it."""

    data: bytes
    modules: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def packed(self) -> bytes:
        """As it is sent."""
        return zlib.compress(self.data, 9)


@lru_cache(maxsize=8)
def bundle_for(runtime: str) -> Bundle:
    """The agent with one runtime. Raises `UsageError` for a runtime that is not one file of `hwprune/runtimes`."""
    module = f"hwprune.runtimes.{runtime}"
    if not runtime.isidentifier() or _file(module) is None:
        raise UsageError(f"the runtime '{runtime}' cannot be sent to a device", hint="hwprune devices lists runtimes")
    return make_bundle((*ROOTS, module))


def make_bundle(roots: tuple[str, ...], extra: Mapping[str, str] | None = None) -> Bundle:
    """The archive of these modules and of all that they import from here. `extra`: more files, path -> text."""
    sources = {_entry(file): file.read_text(encoding="utf-8") for file in _closure(roots)}
    sources.update(dict.fromkeys(_packages({**sources, **(extra or {})}), '"""Part of the agent."""\n'))
    sources.update(extra or {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, sources[name])
    return Bundle(buffer.getvalue(), tuple(sorted(sources)))


def starter_source() -> bytes:
    """The text of the code that runs first on the device."""
    return Path(bootstrap.__file__).read_bytes()


def _closure(roots: tuple[str, ...]) -> list[Path]:
    """The files of these modules, of the private packages they are in, and of everything they import."""
    waiting = list(roots)
    found: list[Path] = []
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or file in found or _is_public_package(file):
            continue
        found.append(file)
        waiting += [name.rpartition(".")[0], *_imported(file)]
    return found


def _is_public_package(file: Path) -> bool:
    """Whether it gathers names for the host: such a file imports too much, and stays empty on a device."""
    return file.name == "__init__.py" and not file.parent.name.startswith("_")


def _imported(file: Path) -> Iterator[str]:
    """What of this package a module imports anywhere; `from package import name` may mean a module, too."""
    for node in _running(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hwprune."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hwprune."):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that can be executed: `if TYPE_CHECKING:` blocks are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _entry(file: Path) -> str:
    return str(Path("hwprune") / file.relative_to(PACKAGE))


def _packages(sources: Mapping[str, str]) -> set[str]:
    """The `__init__.py` of every folder that has none yet."""
    folders = {folder for name in sources for folder in Path(name).parents if str(folder) != "."}
    return {str(folder / "__init__.py") for folder in folders} - set(sources)
