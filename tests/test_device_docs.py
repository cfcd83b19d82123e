"""The pages tell the truth: every command of theirs can be typed; files, options and errors of the devices exist."""

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
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "hwprune").rglob("*.py")))
pages = pytest.mark.parametrize("page", ["jetson.md", "tensorrt.md"])
every_page = pytest.mark.parametrize("page", sorted(PAGES))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def _commands(text: str) -> list[list[str]]:
    """The lines of blocks that begin with `hwprune`, or end with it after `&&`."""
    fenced = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    lines = [line.strip().rpartition(" && ")[2] for line in (*fenced, *indented)]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hwprune ")]


def _mentions(text: str) -> list[list[str]]:
    """Code in sentences and tables that begins with `hwprune`, which may leave a flag's value out."""
    return [shlex.split(code) for code in re.findall(r"`(hwprune [^`\n]+)`", text)]


def _group() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def _parse(verb: str, arguments: list[str]) -> None:
    _group().commands[verb].make_context(verb, arguments)


def _unknown(words: list[str]) -> set[str]:
    """The flags in a mention that its verb does not have."""
    params = _group().commands[words[1]].params
    known = {"--help", *(name for param in params for name in (*param.opts, *param.secondary_opts))}
    return {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - known


@every_page
def test_every_command_can_be_typed(page: str) -> None:
    commands = _commands(PAGES[page])
    assert commands
    for _, verb, *arguments in commands:
        _parse(verb, arguments)


@every_page
def test_every_verb_and_flag_that_is_named_exists(page: str) -> None:
    mentions = _mentions(PAGES[page])
    assert mentions
    assert {" ".join(words): flags for words in mentions if (flags := _unknown(words))} == {}


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = "```\nhwprune doctor  # first\n```\n`hwprune fit --json` says\nhwprune can\n    cd && hwprune report last\n"
    assert _commands(text) == [["hwprune", "doctor"], ["hwprune", "report", "last"]]
    assert _mentions(text) == [["hwprune", "fit", "--json"]]


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(TyperException, match="No such option: --power-mode"):
        _parse("profile", ["mobilenetv2", "--power-mode", "15W"])
    with pytest.raises(KeyError):
        _parse("prepare", [])
    assert _unknown(["hwprune", "profile", "--power-mode", "--samples"]) == {"--power-mode"}


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
