"""The agent's archive: the same every time, only what a device needs, and within Python 3.8."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_devices import MODULES, scripted_bundle

from hwprune.core import plugins
from hwprune.core.errors import UsageError
from hwprune.devices.agent import bootstrap
from hwprune.devices.remote.bundle import PACKAGE, ROOTS, bundle_for, make_bundle

SENT = ("onnxruntime", "tensorrt", "simulated", "ncnn")
HOST_ONLY = ("hwprune/core/config.py", "hwprune/core/specs.py", "hwprune/devices/files.py", "hwprune/api/_runs.py")

# What came to the standard library or its classes after 3.8.
NEW_NAMES = {
    "functools": {"cache"},
    "math": {"lcm", "nextafter", "ulp", "cbrt", "exp2", "sumprod"},
    "itertools": {"pairwise", "batched"},
    "typing": {
        "Annotated",
        "Concatenate",
        "LiteralString",
        "Never",
        "NotRequired",
        "ParamSpec",
        "Required",
        "Self",
        "TypeAlias",
        "TypeGuard",
        "Unpack",
        "assert_never",
        "override",
    },
    "enum": {"StrEnum", "verify"},
    "contextlib": {"aclosing", "chdir"},
    "types": {"NoneType", "UnionType", "EllipsisType"},
    "inspect": {"get_annotations"},
    "statistics": {"correlation", "covariance", "linear_regression"},
    "random": {"randbytes"},
    "bisect": set(),
    "string": set(),
    "zlib": set(),
}
NEW_MODULES = {"tomllib", "graphlib", "zoneinfo", "importlib.resources.abc"}
NEW_METHODS = {
    "removeprefix",
    "removesuffix",
    "bit_count",
    "with_stem",
    "is_relative_to",
    "readlink",
    "hardlink_to",
    "randbytes",
    "unparse",
    "indent",
    "to_thread",
}
NEW_KEYWORDS = {
    "zip": {"strict"},
    "dataclass": {"slots", "kw_only", "match_args", "weakref_slot"},
    "field": {"kw_only"},
    "bisect": {"key"},
    "bisect_left": {"key"},
    "open": set(),
    "unlink": set(),
    "shutdown": {"cancel_futures"},
    "mkdir": set(),
}
GENERIC = {
    "dict", "list", "tuple", "set", "frozenset", "type", "Callable", "Iterable", "Iterator", "Mapping", "Sequence",
    "Generator", "Collection", "MutableMapping", "OrderedDict", "deque", "defaultdict", "AbstractContextManager",
    "Queue", "Popen", "Pattern", "Match", "CompletedProcess", "Awaitable", "Counter",
}  # fmt: skip


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that Python evaluates: annotations are left out, which `from __future__` makes text."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            yield from evaluated(child)


def too_new(source: str) -> list[str]:
    """What of a module needs more than Python 3.8."""
    tree = ast.parse(source, feature_version=(3, 8))
    origin = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = ["no annotations import"] if "from __future__ import annotations" not in source else []
    for node in evaluated(tree):
        found += [f"line {getattr(node, 'lineno', 0)}: {what}" for what in _needs(node, origin)]
    return found


def _needs(node: ast.AST, origin: dict[str, str | None]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        yield from (alias.name for alias in node.names if alias.name in NEW_NAMES.get(node.module or "", ()))
        yield from [node.module] if node.module in NEW_MODULES else []
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in NEW_MODULES)
    elif isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if node.attr in NEW_METHODS or node.attr in NEW_NAMES.get(owner, ()):
            yield ast.unparse(node)
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        yield from (f"{called}({item.arg}=)" for item in node.keywords if item.arg in NEW_KEYWORDS.get(called, ()))
        if called == "isinstance" and any(isinstance(item, ast.BinOp) for item in node.args[1:]):
            yield ast.unparse(node)
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        name = node.value.id
        if name in GENERIC and origin.get(name) != "typing" and isinstance(node.ctx, ast.Load):
            yield f"{ast.unparse(node)} evaluated"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = (node.left, node.right)
        if any(isinstance(side, ast.Dict | ast.DictComp) or ast.unparse(side) == "None" for side in sides):
            yield ast.unparse(node)
    elif type(node).__name__ in ("Match", "TryStar"):  # Python 3.10 has no ast.TryStar
        yield "match or except*"


def members(runtime: str) -> dict[str, str]:
    """The files of a bundle."""
    with zipfile.ZipFile(io.BytesIO(bundle_for(runtime).data)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize("runtime", plugins.names("hwprune.runtimes"))
def test_everything_sent_runs_on_python_3_8(runtime: str) -> None:
    found = {name: too_new(text) for name, text in members(runtime).items() if not name.endswith("__init__.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert too_new(Path(bootstrap.__file__).read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "def f(a, b):\n    return zip(a, b, strict=True)",
        "A = int | None",
        "A = dict[str, int]",
        "isinstance(3, int | str)",
        "x = {**{}} | {'a': 1}",
        "from functools import cache",
        "import functools\nfunctools.cache(print)",
        "'a'.removeprefix('a')",
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass A:\n    x: int",
        "import tomllib",
        "from collections.abc import Callable\nA = Callable[[], int]",
    ],
)
def test_the_check_finds_what_is_newer(line: str) -> None:
    assert too_new(f"from __future__ import annotations\n{line}\n")


def test_the_check_lets_the_old_pass() -> None:
    text = "from typing import Callable\nA = Callable[[int], str]\nx: dict[str, int | None] = {}\nflags = 1 | 2\n"
    assert too_new(f"from __future__ import annotations\n{text}") == []
    with pytest.raises(SyntaxError):
        too_new("from __future__ import annotations\nmatch 1:\n    case 1: pass\n")


def test_the_same_sources_give_the_same_bytes() -> None:
    first, second = make_bundle(MODULES), make_bundle(tuple(reversed(MODULES)))
    assert first == second
    assert first.digest == second.digest
    assert first.digest != scripted_bundle().digest


@pytest.mark.parametrize("runtime", SENT)
def test_a_device_gets_what_it_needs_and_no_more(runtime: str) -> None:
    names = set(bundle_for(runtime).modules)
    assert {"hwprune/devices/agent/worker.py", f"hwprune/runtimes/{runtime}.py", "hwprune/devices/board.py"} <= names
    assert not names & set(HOST_ONLY)
    assert not [name for name in names if name.startswith(("hwprune/graph", "hwprune/devices/remote", "hwprune/cli"))]
    assert all((PACKAGE.parent / name).is_file() for name in names)
    assert len(bundle_for(runtime).packed) < 200_000


def test_a_runtime_that_is_none() -> None:
    for name in ("nonesuch", "../devices/board", "os.path", ""):
        with pytest.raises(UsageError, match="cannot be sent to a device"):
            bundle_for(name)


def test_the_agent_needs_the_standard_library_only(tmp_path: Path) -> None:
    (tmp_path / "agent.zip").write_bytes(scripted_bundle().data)
    modules = ", ".join((*ROOTS, "hwprune.runtimes.scripted", "hwprune.devices.checks"))
    code = f"import sys; sys.path.insert(0, 'agent.zip'); import {modules}; print('numpy' in sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_starter_has_nothing_that_a_shell_would_read() -> None:
    assert not set(bootstrap.STARTER) & set("'\"$`\\!\n#*?~{}[]|&")
    assert "hwprune" not in bootstrap.STARTER
