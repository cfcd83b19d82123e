"""A runtime or latency model without its conformance suite fails here; methods are looked after in their own tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwprune.core import plugins

TESTS = Path(__file__).parent
RUNTIMES = "hwprune.runtimes"


def _suites(base: str, tree: ast.Module) -> Iterator[ast.ClassDef]:
    """The classes of a file that inherit a conformance suite."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and base in {ast.unparse(parent) for parent in node.bases}:
            yield node


def _always_run() -> Iterator[ast.Module]:
    """The test files with a suite that needs no hardware."""
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text()
        if "Conformance" in text and "pytestmark = pytest.mark.gpu" not in text:
            yield ast.parse(text)


def runtimes_of(tree: ast.Module) -> set[str]:
    """The runtimes whose class, imported from their file, is named in a suite of this test file."""
    origin = {
        alias.asname or alias.name: node.module.removeprefix(f"{RUNTIMES}.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{RUNTIMES}.") and node.module
        for alias in node.names
    }
    suites = _suites("RuntimeConformance", tree)
    named = {item.id for suite in suites for item in ast.walk(suite) if isinstance(item, ast.Name)}
    return {origin[name] for name in named & set(origin)}


def kinds_of(tree: ast.Module) -> set[str]:
    """The latency models that the suites of this test file name as their `kind`."""
    assigned = [
        item
        for suite in _suites("LatencyModelConformance", tree)
        for item in suite.body
        if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "kind"
    ]
    return {item.value.value for item in assigned if isinstance(item.value, ast.Constant) and item.value.value}


def test_every_runtime_has_its_suite() -> None:
    tested = set().union(*(runtimes_of(tree) for tree in _always_run()))
    assert set(plugins.names(RUNTIMES)) - tested == set()


def test_every_latency_model_has_its_suite() -> None:
    tested = set().union(*(kinds_of(tree) for tree in _always_run()))
    assert tested == set(plugins.names("hwprune.latency.models"))


@pytest.mark.parametrize("base", ["RuntimeConformance", "object"])
def test_only_a_suite_counts(base: str) -> None:
    text = f"from hwprune.runtimes.ncnn import Ncnn\nclass TestIt({base}):\n    runtime = Ncnn()\nother = Ncnn()\n"
    assert runtimes_of(ast.parse(text)) == ({"ncnn"} if base == "RuntimeConformance" else set())
    text = f"class TestIt({base}):\n    kind = 'macs'\n".replace("Runtime", "LatencyModel")
    assert kinds_of(ast.parse(text)) == ({"macs"} if base == "RuntimeConformance" else set())
