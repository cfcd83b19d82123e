"""Which attributes of TensorRT's objects a source file touches, and whether every version has them.

TensorRT's objects are told by the names of the variables that hold them, and nothing else may hold one: a result of a
TensorRT call that is bound to another name is a finding too. So is `getattr` with a name that is not written out.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOLDERS = {
    "trt": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "entry": "ITensor",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
MAKERS = {
    "create_network": "network",
    "create_builder_config": "config",
    "get_input": "entry",
    "get_error": "problem",
    "create_timing_cache": "cache",
    "deserialize_cuda_engine": "engine",
    "create_execution_context": "context",
    "create_engine_inspector": "inspector",
    "Builder": "builder",
    "OnnxParser": "parser",
    "Runtime": "runtime",
}
OVERLOOKED = {"8.5.2": ("ILogger",)}  # a class whose declaration the list of names was not read from
ALWAYS = ("__version__", "__init__", "name")  # `name` of an enumeration's member


@dataclass(frozen=True)
class Touch:
    """One attribute of one kind of object; `guarded` by a `hasattr` in the same function."""

    line: int
    kind: str
    name: str
    guarded: bool = False


class Bindings:
    """What each version of the bindings has."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text())
        self._flat = {key: set(names) for key, names in document.pop("source_names").items() if key == "8.5.2"}
        self._full = document
        self.versions = (*self._flat, *document)

    def lacking(self, touch: Touch) -> tuple[str, ...]:
        """The versions in which there is no such attribute."""
        return tuple(version for version in self.versions if not self._has(version, touch))

    def _has(self, version: str, touch: Touch) -> bool:
        if touch.name in ALWAYS:
            return True
        if version in self._flat:
            return touch.name in self._flat[version] or touch.name in OVERLOOKED[version]
        known = self._full[version]
        if not touch.kind:
            return touch.name in known["top_level"] or touch.name in known["enums"]
        members = known["enums"].get(touch.kind) or known["classes"].get(touch.kind) or ()
        return touch.name in members


def findings(source: str, bindings: Bindings) -> list[str]:
    """What is wrong in a file, one sentence each."""
    tree = ast.parse(source)
    found = [text for function in _functions(tree) for text in _misuse(function)]
    for touch in touches(tree):
        lacking = bindings.lacking(touch)
        name = f"{touch.kind or 'tensorrt'}.{touch.name}"
        if len(lacking) == len(bindings.versions):
            found.append(f"line {touch.line}: no version has {name}")
        elif lacking and not touch.guarded:
            found.append(f"line {touch.line}: {name} is missing in {', '.join(lacking)} and not guarded by hasattr")
    return found


def touches(tree: ast.Module) -> Iterator[Touch]:
    """Every attribute of a TensorRT object that is read, written, or asked for."""
    for function in _functions(tree):
        guards = {
            (ast.dump(node.args[0]), node.args[1].value): node
            for node in _own(function)
            if _called(node) == "hasattr" and isinstance(node.args[1], ast.Constant)
        }
        for (_, name), call in guards.items():
            kind = _kind(call.args[0])
            if kind is not None:
                yield Touch(call.lineno, kind, str(name), guarded=True)
        for node in _own(function):
            if isinstance(node, ast.Attribute):
                kind = _kind(node.value)
                if kind is not None:
                    load = ast.parse(ast.unparse(node.value), mode="eval").body
                    yield Touch(node.lineno, kind, node.attr, (ast.dump(load), node.attr) in guards)


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function that are not those of a function in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _kind(value: ast.expr) -> str | None:
    """The class of the TensorRT object that an expression holds: "" is the module, None is no such object."""
    if isinstance(value, ast.Attribute) and _kind(value.value) == "":
        return None if value.attr.startswith("__") else value.attr  # trt.BuilderFlag
    holder = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    if isinstance(value, ast.Call):
        holder = MAKERS.get(_called(value), "")
    return HOLDERS.get(holder.lstrip("_"))


def _misuse(function: ast.AST) -> Iterator[str]:
    for node in _own(function):
        if _called(node) in ("getattr", "setattr") and _kind(node.args[0]) is not None:
            yield f"line {node.lineno}: {_called(node)} hides the name of an attribute"
        if isinstance(node, ast.Assign | ast.AnnAssign) and _called(node.value or node) in MAKERS:
            assert isinstance(node.value, ast.Call)
            made = MAKERS[_called(node.value)]
            of_trt = isinstance(node.value.func, ast.Attribute) and _kind(node.value.func.value) is not None
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets if of_trt else ():
                name = ast.unparse(target).rpartition(".")[2].lstrip("_")
                if name != made:
                    yield f"line {node.lineno}: '{name}' holds what is called '{made}' elsewhere"
