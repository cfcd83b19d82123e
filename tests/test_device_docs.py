"""The pages on devices tell the truth: their commands, files, options and error messages exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from hwprune.cli._main import app
from hwprune.core.config import read_toml
from hwprune.core.measurement import WARNINGS
from hwprune.devices.files import DeviceInfo, RuntimeInfo, find_device
from hwprune.devices.prepare import TOLERANCE
from hwprune.runtimes.tensorrt import TensorRt

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("jetson.md", "tensorrt.md")}
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "hwprune").rglob("*.py")))
pages = pytest.mark.parametrize("page", sorted(PAGES))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def _commands(page: str) -> list[list[str]]:
    lines = [line for block in _blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hwprune ")]


def _parse(verb: str, arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    group.commands[verb].make_context(verb, arguments)


@pages
def test_every_command_can_be_typed(page: str) -> None:
    commands = _commands(page)
    assert commands
    for _, verb, *arguments in commands:
        _parse(verb, arguments)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(TyperException, match="No such option: --power-mode"):
        _parse("profile", ["mobilenetv2", "--power-mode", "15W"])
    with pytest.raises(KeyError):
        _parse("prepare", [])


@pages
def test_every_device_file_can_be_read(page: str, tmp_path: Path) -> None:
    for block in _blocks(page, "toml"):
        (tmp_path / "device.toml").write_text(block)
        table = read_toml(tmp_path / "device.toml")
        assert set(table) <= {field.name for field in fields(DeviceInfo)}
        for values in table["runtimes"].values():
            assert set(values) <= {field.name for field in fields(RuntimeInfo)}
            TensorRt(**values.get("options", {}))


def test_every_device_that_is_named_exists() -> None:
    named = set(re.findall(r"`(jetson-[a-z-]+[a-z])`", PAGES["jetson.md"]))
    assert named == {"jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-agx-xavier", "jetson-thor"}
    assert all("tensorrt" in find_device(name).runtimes for name in named)


def test_the_options_are_those_of_the_runtime() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGES["tensorrt.md"], re.M)
    assert {name: text.strip("`-") for name, text in rows} == {
        field.name: str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        for field in fields(TensorRt)
    }


def test_every_error_that_is_explained_can_happen() -> None:
    rows = re.findall(r"^\| (.*?) \| ", PAGES["jetson.md"].split("## 8.")[1], re.M)[2:]
    assert len(rows) >= 12
    for row in rows:
        for part in row.split(" ... "):
            assert part.removesuffix(" ...").removeprefix("... ") in SOURCE, part


@pages
def test_warnings_and_figures_are_those_of_the_code(page: str) -> None:
    warnings = set(re.findall(r"`(no_cuda_graph|host_bound|mixed_\w+|timing_\w+|bimodal)`", PAGES[page]))
    assert warnings <= {*WARNINGS, *TensorRt.own_warnings}
    assert warnings
    shares = {name: f"{100 * TOLERANCE[name]:g} %" for name in ("fp32", "fp16", "tf32", "int8")}
    assert page != "tensorrt.md" or all(share in PAGES[page] for share in shares.values())
