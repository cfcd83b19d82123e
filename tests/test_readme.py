"""The README tells the truth: its Python example runs, its two commands are one line each and name what exists."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

from hwprune import methods
from hwprune.cli._main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.timeout(900)  # it waits for quiet moments of the machine
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(block.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"^(pass|miss) ", printed.getvalue(), re.M), printed.getvalue()
    assert (tmp_path / "small.onnx").exists()


def test_the_two_commands_stand_on_one_line_each() -> None:
    lines = [line.strip() for line in README.splitlines() if line.strip().startswith("python3 -m venv")]
    assert [line.rsplit("&& ", 1)[-1] for line in lines] == ["hwprune search --latency 60%", "pytest"]
    assert all("-c constraints.txt" in line for line in lines)
    assert (ROOT / "constraints.txt").exists()


def test_the_tree_is_true() -> None:
    (tree,) = re.findall(r"```\nhwprune/\n(.*?)```", README, re.S)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r"  \w", line)}
    real = {
        path.name.removesuffix(".py") for path in (ROOT / "hwprune").iterdir() if not path.name.startswith(("_", "."))
    }
    assert {name.removesuffix(".py") for name in named} == real - {"py.typed"}


def test_every_verb_and_method_is_named() -> None:
    verbs = {module.__name__.rsplit(".", 1)[-1] for module in VERBS}
    assert verbs <= set(re.findall(r"^\| `hwprune (\w+)", README, re.M))
    named = {
        name for row in re.findall(r"^\| (`[a-z0-9]+`.*?) \|", README, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(methods.names()) <= named
