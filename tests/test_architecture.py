"""The house keeps its shape: import direction, owners of heavy packages, lengths, and what a start-up may load.

Lengths hold for tests, benchmarks and tools as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hwprune"
LEVEL = {
    "core": 0,
    "graph": 1,
    "runtimes": 1,
    "training": 1,
    "report": 1,
    "models": 1,
    "devices": 2,
    "latency": 3,
    "methods": 4,
    "search": 5,
    "testing": 6,
    "api": 7,
    "cli": 8,
}
OWNERS = {
    "optuna": ("methods", "search"),
    "sklearn": ("latency", "training"),
    "pandas": ("latency", "report"),
    "onnxruntime": ("runtimes",),
    "onnx": ("graph", "runtimes", "devices", "testing"),
    "jinja2": ("report",),
    "typer": ("cli",),
    "rich": ("cli",),
    "torch": ("graph", "runtimes", "training", "models", "latency", "methods", "search", "testing", "api"),
}
TORCH_FREE = ("core", "devices", "runtimes", "report", "cli")
HEAVY = ("torch", "optuna", "sklearn", "pandas", "scipy", "onnxruntime")


def _files() -> Iterator[tuple[Path, str]]:
    """Every module of the package with the name of its folder (its own name at the top level)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        yield path, parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    nodes = _top_level(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "hwprune":
                yield from (f"hwprune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run at import, `if TYPE_CHECKING:` blocks left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _top_level(node)


def _breaches(folder: str, imported: str) -> str:
    """Why `folder` may not import the module, or the empty string."""
    parts = imported.split(".")
    if parts[0] == "hwprune" and len(parts) > 1 and folder in LEVEL and parts[1] in LEVEL:
        if parts[1] != folder and LEVEL[parts[1]] >= LEVEL[folder]:
            return f"{folder} imports {imported}, which is not below it"
    elif folder in LEVEL and parts[0] in OWNERS and folder not in OWNERS[parts[0]]:
        return f"{folder} imports {imported}, which belongs to {', '.join(OWNERS[parts[0]])}"
    return ""


def test_imports_point_down() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {breach}"
        for path, folder in _files()
        for imported in _imports(_parsed(path))
        if (breach := _breaches(folder, imported))
    ]
    assert not found, "\n".join(found)


def test_the_import_check_can_fail() -> None:
    assert _breaches("core", "hwprune.graph.trace")
    assert _breaches("graph", "hwprune.runtimes")
    assert _breaches("cli", "torch")
    assert _breaches("methods", "hwprune.testing")
    assert _breaches("testing", "hwprune.api")
    assert not _breaches("search", "hwprune.methods")


def test_measuring_files_need_no_torch() -> None:
    found = [
        f"{path.relative_to(PACKAGE)} imports {imported}"
        for path, folder in _files()
        if folder in TORCH_FREE
        for imported in _imports(_parsed(path), top_level_only=True)
        if imported.split(".")[0] == "torch"
    ]
    assert not found, "\n".join(found)


def test_files_and_functions_are_short() -> None:
    folders = ("hwprune", "tests", "benchmarks", "tools")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert {path.relative_to(ROOT).parts[0] for path in paths} == set(folders)
    found = [
        f"{path.relative_to(ROOT)}{fault}" for path in paths for fault in _too_long(path.read_text(), _parsed(path))
    ]
    assert not found, "\n".join(found)


def _too_long(text: str, tree: ast.AST) -> Iterator[str]:
    """What is wrong with the lengths in a file."""
    if text.count("\n") > 400:
        yield f" has {text.count(chr(10))} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
            yield f":{node.lineno} {node.name} is over 60 lines"


def test_the_length_check_can_fail() -> None:
    def faults(text: str) -> list[str]:
        return list(_too_long(text, ast.parse(text)))

    assert faults("a = 1\n" * 401) == [" has 401 lines"]
    assert faults("def long():\n" + "    a = 1\n" * 60) == [":1 long is over 60 lines"]
    assert not faults("def short():\n" + "    a = 1\n" * 59)


def test_no_unsafe_calls() -> None:
    unsafe = {"eval", "exec"}
    found = []
    for path, _ in _files():
        for node in ast.walk(_parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            shell = any(keyword.arg == "shell" for keyword in node.keywords)
            if called in unsafe or called in ("torch.load", "pickle.load", "pickle.loads", "joblib.load") or shell:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {called}")
    assert not found, "\n".join(found)


def _loaded(code: str) -> list[str]:
    probe = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split() if done.stdout.strip() else []


@pytest.mark.parametrize(
    "code", ["import hwprune", "import hwprune.cli", "import hwprune.devices", "import hwprune.core.measurement"]
)
def test_start_up_loads_nothing_heavy(code: str) -> None:
    assert _loaded(code) == []


def test_the_start_up_check_can_fail() -> None:
    assert _loaded("import scipy") == ["scipy"]
