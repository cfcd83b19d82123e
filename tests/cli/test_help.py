"""Help answers at once, everywhere, with an example."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Done

from hwprune import __version__, methods
from hwprune.cli import _main

Hw = Callable[..., Done]
VERBS = [module.__name__.rpartition(".")[2] for module in _main.VERBS]
HEAVY = ("torch", "optuna", "sklearn", "pandas", "scipy", "onnxruntime", "onnx", "jinja2")
CPU_LIMIT_S = 0.5


def test_help_lists_every_verb(hw: Hw) -> None:
    done = hw("--help")
    assert done.code == 0
    positions = [done.out.index(f"│ {verb} ") for verb in VERBS]
    assert positions == sorted(positions)
    assert "hwprune search --latency 60%" in done.out


def test_no_verb_shows_the_help(hw: Hw) -> None:
    assert hw().out.strip() == hw("-h").out.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(hw: Hw, verb: str) -> None:
    done = hw(verb, "--help")
    assert done.code == 0
    assert f"Example:  hwprune {verb}" in " ".join(done.out.split("\n")) or f"Example: hwprune {verb}" in done.out
    for flag in ("--json", "--config", "--print-config", "--run-dir", "--seed", "--color", "-v", "-q"):
        assert flag in done.out
    assert done.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_every_verb_parses(hw: Hw, verb: str) -> None:
    from importlib import import_module

    words = import_module(f"hwprune.cli.{verb}").EXAMPLE.split()
    assert words[0] == "hwprune"
    assert hw(*words[1:], "--print-config").code == 0


def test_version(hw: Hw) -> None:
    assert hw("--version").out == f"hwprune {__version__}\n"


def test_search_help_lists_the_methods(hw: Hw) -> None:
    assert ", ".join(methods.names()) in " ".join(hw("search", "--help").out.split())


@pytest.mark.parametrize("words", [("--method", "greedy"), ("--method=greedy",)])
def test_a_methods_options_are_in_its_help(hw: Hw, words: tuple[str, ...]) -> None:
    import dataclasses

    from hwprune.methods import load

    out = hw("search", "--help", *words).out
    assert "Options of --method greedy" in out
    for field in dataclasses.fields(load("greedy")):  # type: ignore[arg-type]  # a plugin is a dataclass
        assert f"--set {field.name}=" in out
        assert str(field.metadata.get("help", "")) in out


def test_help_for_a_method_that_does_not_exist(hw: Hw) -> None:
    done = hw("search", "--method", "gredy", "--help")
    assert done.code == 2
    assert "unknown method 'gredy'. Did you mean 'greedy'?" in done.err


def _output(code: str) -> list[str]:
    """The words on the last line that a new process prints, started where the package is importable."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    return done.stdout.splitlines()[-1].split()


def _probe(code: str) -> list[str]:
    return _output(f"import sys\n{code}\nprint()\nprint(*[name for name in {HEAVY!r} if name in sys.modules])")


HELP = "from hwprune.cli import main; main(['search', '--help'])"


def test_help_loads_nothing_heavy() -> None:
    assert _probe(HELP) == []
    assert _probe("from hwprune.cli import main; main(['search', '--latency', '6x'])") == []


def test_that_check_can_fail() -> None:
    assert _probe(f"{HELP}; import jinja2") == ["jinja2"]


def test_help_takes_less_than_half_a_second() -> None:
    """Processor time of the whole process, the least of three: a busy machine may not fail it."""
    code = "import time\nfrom hwprune.cli import main; main(['--help'])\nprint()\nprint(time.process_time())"
    assert min(float(_output(code)[0]) for _ in range(3)) < CPU_LIMIT_S
