"""The README tells the truth: its Python example runs, its two commands are one line each and name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwprune import methods
from hwprune.cli._main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.timeout(900)  # it waits for quiet moments of the machine
def test_the_python_example_runs(tmp_path: Path) -> None:
    """As a user runs it, in a process of its own: that of a long test run measures with more noise."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(block.strip().splitlines()) <= 12
    (tmp_path / "example.py").write_text(block)
    command = [sys.executable, str(tmp_path / "example.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^(pass|miss) ", done.stdout, re.M), done.stdout
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
