"""The example of every verb can be typed: it parses against the flags, and that of `predict` runs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cli_fakes import Done

from hwprune.cli import predict
from hwprune.cli._main import VERBS

Hw = Callable[..., Done]
TABLES = Path(__file__).parents[2] / "latency_tables"


def words(module: ModuleType) -> list[str]:
    program, *rest = shlex.split(module.EXAMPLE)
    assert program == "hwprune"
    return rest


@pytest.mark.parametrize("module", VERBS, ids=lambda module: module.__name__)
def test_every_example_parses(hw: Hw, module: ModuleType) -> None:
    typed = words(module)
    assert typed[0] == module.__name__.rpartition(".")[2]
    done = hw(*typed, "--print-config")
    assert (done.code, done.err) == (0, "")
    flags = [word for word in typed if word.startswith("--")]
    assert done.out.count("# flag") >= len(flags)


def test_the_example_of_predict_runs_with_the_shipped_table(hw: Hw, workplace: Path) -> None:
    (shipped,) = TABLES.glob("cpu/onnxruntime-*/mobilenetv2-*")
    shutil.copytree(shipped, workplace / "latency_tables" / shipped.relative_to(TABLES))
    done = hw(*words(predict), "--json")
    assert done.code == 0
    assert 0.5 < done.json["predicted_ms"] < 5
    assert hw("predict", "mobilenetv2", "--json").json["predicted_ms"] > done.json["predicted_ms"]
